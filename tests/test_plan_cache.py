"""Decisions make the same plan again; what was decided once is found, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from codegen import planner
from codegen.assemble import Decisions, assemble
from codegen.planner import Request, decide
from codegen.simplify import simplify
from codegen.targets import target
from mnet import plan_cache
from mnet.errors import PlanError
from mnet.oracle import LITERT
from mnet.plan_cache import cached_plan
from tests.models import tiny_mobilenet, tiny_residual


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Request(simplify(tiny_mobilenet(size=24)), target("cortex-m4"), LITERT, "rows")


def _make(request: Request, decisions: Decisions) -> str:
    return str(assemble(request.graph, request.target, request.oracle, request.input_mode, "balanced", decisions))


def test_decisions_survive_being_written(request_: Request) -> None:
    decisions = decide(request_)
    assert Decisions.from_json(decisions.as_json()) == decisions
    assert _make(request_, decisions) == _make(request_, Decisions.from_json(decisions.as_json()))


def test_decisions_of_another_network_are_refused(request_: Request) -> None:
    decisions = decide(replace(request_, graph=simplify(tiny_residual())))
    with pytest.raises(PlanError):
        _make(request_, decisions)


def test_a_plan_is_decided_once(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_plan(request_)
    (file,) = (tmp_path / "mnet").glob("plan-*.json")

    def never(*args: object) -> None:
        raise AssertionError("decided again")

    monkeypatch.setattr(plan_cache, "decide", never)
    assert str(cached_plan(request_)) == str(first)
    for other in (
        replace(request_, input_mode="arena"),
        replace(request_, optimize="ram"),
        replace(request_, ram=9000),
        replace(request_, target=target("cortex-m0")),
        replace(request_, graph=simplify(tiny_mobilenet(size=24, seed=5))),
    ):
        with pytest.raises(AssertionError, match="decided again"):
            cached_plan(other)
    monkeypatch.setattr(plan_cache, "decide", planner.decide)
    for damage in ("", "{", "{}", file.read_text().replace('"kernels": [', '"kernels": [99, '), "[1, 2]"):
        file.write_text(damage)
        assert str(cached_plan(request_)) == str(first)
