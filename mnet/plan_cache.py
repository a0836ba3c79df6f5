"""Plans and fronts that were decided before lie in the user's cache folder, by a hash of all that they depend on."""

import hashlib
import importlib.util
import json
import os
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import numpy as np

import codegen
from codegen.assemble import Decisions, assemble
from codegen.front import Point, front
from codegen.plan import Plan
from codegen.planner import Report, Request, decide
from mnet import fixed_point, oracle, reductions
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
    _write(file, decisions.as_json())
    return assemble(*arguments, decisions)


def cached_front(request: Request, report: Report = lambda what, done, total: None) -> tuple[Point, ...]:
    """Return the front of a request's network: found once, and its plans are then cached, too.

    Args:
        request: its objective and budget are not looked at.
        report: is told (what, done, total) as the work goes on.

    Raises:
        PlanError: see `codegen.front.front`.
    """
    known = front_if_cached(request)
    if known is not None:
        return known
    points = front(request, report)
    for point in points:
        _write(cache_folder() / f"plan-{_key(point.request(request))}.json", point.decisions.as_json())
    _write(_front_file(request), json.dumps([asdict(point) for point in points]))
    return points


def front_if_cached(request: Request) -> tuple[Point, ...] | None:
    """Return the front of a request's network where it was found before."""
    try:
        rows = json.loads(_front_file(request).read_text())
        points = tuple(_point(row) for row in rows)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # not there yet, or damaged
    return points or None


def _point(row: dict[str, object]) -> Point:
    decisions = Decisions.from_json(json.dumps(row["decisions"]))
    numbers = {name: row[name] for name in ("arena_bytes", "stack_bytes", "cycles", "flash_bytes")}
    ram = row["ram"]
    if not all(isinstance(value, int) for value in (*numbers.values(), 0 if ram is None else ram)):
        raise TypeError("not the numbers of a point")
    return Point(str(row["optimize"]), ram, decisions, **numbers)  # type: ignore[arg-type]


def _front_file(request: Request) -> Path:
    return cache_folder() / f"front-{_key(replace(request, optimize='', ram=None))}.json"


def _write(file: Path, text: str) -> None:
    """Write a file, all of it or nothing."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_text(text)
    os.replace(unfinished, file)


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
    files = [*sorted(folder.glob("*.py")), Path(fixed_point.__file__), Path(oracle.__file__), Path(reductions.__file__)]
    return b"".join(file.read_bytes() for file in files)


def _content(graph: Graph) -> bytes:
    parts = [repr((graph.name, graph.inputs, graph.outputs, graph.tensors)).encode()]
    for op in graph.ops:
        parts.append(type(op).__name__.encode())
        for field in fields(op):
            value = getattr(op, field.name)
            parts.append(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return b"\0".join(parts)
