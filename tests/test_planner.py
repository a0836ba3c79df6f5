"""What a user asks of the planner is what the plan is best at; budgets are kept; choices change no bits."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.memory import Box, place
from codegen.objective import OBJECTIVES
from codegen.plan import Plan
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import LITERT, ORACLES
from tests.models import tiny_mobilenet
from tests.strategies import small_graphs
from tests.test_generate import compare_on_host, described

M4 = target("cortex-m4")


def cycles(made: Plan) -> int:
    """Return what the kernels are expected to take."""
    return sum(op.kernel.cost(op.call, op.view).cycles * op.calls for op in made.ops if op.kernel.cost)


def flash(made: Plan) -> int:
    code = {op.symbol: op.kernel.cost(op.call, op.view).code_bytes for op in made.ops if op.kernel.cost}
    return sum(code.values()) + 4 * sum(len(words) for words in made.constants.values())


@pytest.fixture(scope="module")
def graph() -> Graph:
    return simplify(tiny_mobilenet(size=64))


@pytest.fixture(scope="module")
def plans(graph: Graph) -> dict[str, Plan]:
    return {name: plan(graph, M4, LITERT, "rows", name) for name in OBJECTIVES}


def test_each_objective_is_best_at_what_it_strives_for(plans: dict[str, Plan]) -> None:
    assert cycles(plans["cycles"]) == min(map(cycles, plans.values()))
    assert flash(plans["size"]) == min(map(flash, plans.values()))
    assert plans["ram"].arena_bytes == min(made.arena_bytes for made in plans.values())
    assert flash(plans["size"]) < 0.8 * flash(plans["cycles"])
    assert plans["ram"].arena_bytes < 0.8 * plans["cycles"].arena_bytes


def test_balanced_pays_little_for_much(plans: dict[str, Plan]) -> None:
    balanced, fastest = plans["balanced"], plans["cycles"]
    assert cycles(balanced) < 1.12 * cycles(fastest)
    assert balanced.arena_bytes < fastest.arena_bytes and flash(balanced) < flash(fastest)


def test_a_budget_is_kept_at_a_price(graph: Graph, plans: dict[str, Plan]) -> None:
    least, most = plans["ram"].arena_bytes, plans["balanced"].arena_bytes
    budget = (least + most) // 2
    made = plan(graph, M4, LITERT, "rows", "cycles", budget)
    assert made.arena_bytes <= budget
    assert cycles(plans["cycles"]) <= cycles(made) <= cycles(plans["ram"])


def test_a_draft_that_the_solver_finds_no_place_for_does_not_end_the_search(
    graph: Graph, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Box, ...]] = []

    def wasteful(boxes: Sequence[Box]) -> tuple[dict[str, int], int]:
        addresses, taken = place(boxes)
        return {name: address + 4096 for name, address in addresses.items()}, taken + 4096

    def choosy(boxes: Sequence[Box], most_bytes: int) -> dict[str, int] | None:
        asked.append(tuple(boxes))
        addresses, taken = place(boxes)
        return None if tuple(boxes) == asked[0] or taken > most_bytes else addresses

    monkeypatch.setattr("codegen.planner.place", wasteful)
    monkeypatch.setattr("codegen.planner.pack", choosy)
    monkeypatch.setattr("codegen.planner._ATTEMPTS", 1)
    monkeypatch.setattr("codegen.planner._MORE_ATTEMPTS", 0)
    budget = plans["balanced"].arena_bytes
    made = plan(graph, M4, LITERT, "rows", "balanced", ram=budget)
    assert made.arena_bytes <= budget and len(set(asked)) == len(asked) > 1


def test_where_nothing_fits_the_smallest_plan_comes_back(graph: Graph, plans: dict[str, Plan]) -> None:
    made = plan(graph, M4, LITERT, "rows", "balanced", 100)
    assert made.arena_bytes <= plans["ram"].arena_bytes * 1.05  # nobody asks the solver for what cannot be


def test_unknown_objectives_are_named(graph: Graph) -> None:
    with pytest.raises(PlanError, match=r"fast.*balanced"):
        plan(graph, M4, LITERT, "rows", "fast")


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=small_graphs(), name=st.sampled_from(sorted(OBJECTIVES)), mode=st.sampled_from(INPUT_MODES))
@pytest.mark.slow
def test_every_objective_gives_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, mode: str
) -> None:
    made = plan(simplify(graph), M4, ORACLES["litert"], mode, name)
    folder: Path = tmp_path_factory.mktemp("generated") / graph.name
    leg = compare_on_host(graph, made, folder)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)
