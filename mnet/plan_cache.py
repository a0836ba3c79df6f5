"""Plans that were decided before: the decisions lie in the user's cache folder, by a hash of all they depend on."""

import hashlib
import importlib.util
import os
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

import codegen
from codegen.assemble import Decisions, assemble
from codegen.plan import Plan
from codegen.planner import Request, decide
from mnet import fixed_point, oracle
from mnet.cache import cache_folder
from mnet.errors import PlanError
from mnet.graph import Graph


def cached_plan(request: Request) -> Plan:
    """Return the plan of a request: decided once, then made from the decisions, and checked every time.

    Raises:
        PlanError: see `codegen.planner.decide`.
    """
    file = cache_folder() / f"plan-{_key(request)}.json"
    arguments = request.graph, request.target, request.oracle, request.input_mode, request.optimize
    try:
        return assemble(*arguments, Decisions.from_json(file.read_text()))
    except (OSError, ValueError, LookupError, TypeError, PlanError):
        pass  # not there yet, or damaged
    decisions = decide(request)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_text(decisions.as_json())
    os.replace(unfinished, file)
    return assemble(*arguments, decisions)


def _key(request: Request) -> str:
    """Return what the decisions depend on: network, wishes, this version's planner and kernels."""
    digest = hashlib.sha256(_code())
    digest.update(_content(request.graph))
    wishes = request.target.name, request.oracle.name, request.input_mode, request.optimize, request.ram
    digest.update(repr((wishes, importlib.util.find_spec("ortools") is not None)).encode())
    return digest.hexdigest()[:32]


@cache
def _code() -> bytes:
    folder = Path(codegen.__file__ or "").parent
    files = [*sorted(folder.glob("*.py")), Path(fixed_point.__file__), Path(oracle.__file__)]
    return b"".join(file.read_bytes() for file in files)


def _content(graph: Graph) -> bytes:
    parts = [repr((graph.name, graph.input, graph.output, graph.tensors)).encode()]
    for op in graph.ops:
        parts.append(type(op).__name__.encode())
        for field in fields(op):
            value = getattr(op, field.name)
            parts.append(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return b"\0".join(parts)
