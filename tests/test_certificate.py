"""The lower bound holds for every plan and is the optimum where it is known; words tell what the schedule does."""

import re

import pytest

from codegen.certificate import certificate, problem_of_plan, stored_row_bytes, value_row_bytes
from codegen.elimination import lower_bound
from codegen.plan import Plan
from codegen.planner import plan
from codegen.schedule_words import MOST_LINES, Repeat, fold, words_of
from codegen.simplify import simplify
from codegen.targets import target
from mnet.graph import Graph
from mnet.oracle import LITERT
from tests.models import tiny_autoencoder, tiny_mobilenet, tiny_residual

GRAPHS = {"mobilenet": tiny_mobilenet(size=24), "residual": tiny_residual(), "autoencoder": tiny_autoencoder()}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return simplify(GRAPHS[request.param])


@pytest.mark.parametrize("core", ("cortex-m4", "cortex-m0", "cortex-m55"))
@pytest.mark.parametrize(("mode", "goal"), (("rows", "ram"), ("const", "cycles"), ("arena", "balanced")))
def test_no_plan_is_below_its_bounds(graph: Graph, core: str, mode: str, goal: str) -> None:
    made = plan(graph, target(core), LITERT, mode, goal)
    found = certificate(made)
    assert 0 < found.bound_bytes <= found.live_bytes <= found.arena_bytes
    assert 0 < found.value_bound_bytes <= found.bound_bytes or mode == "arena"
    assert found.percent >= 0 and found.value_percent >= 0
    assert found.is_reached and found.value_is_reached  # these are small


def test_dense_layers_hold_two_vectors_at_once() -> None:
    made = plan(simplify(tiny_autoencoder()), target("cortex-m0"), LITERT)
    assert lower_bound(problem_of_plan(made, value_row_bytes)) == max(
        a + b for a, b in ((24, 16), (16, 4), (4, 16), (16, 24))
    )


def test_a_separable_block_keeps_three_rows_of_the_window() -> None:
    """Width 12 and 8 channels: three rows of the stem's output, one made by the depthwise, at the least."""
    made = plan(simplify(tiny_mobilenet(size=24)), target("cortex-m0"), LITERT)
    assert lower_bound(problem_of_plan(made, value_row_bytes)) >= 4 * 12 * 8
    assert lower_bound(problem_of_plan(made, stored_row_bytes)) >= 4 * 12 * 8


def _unfolded(node: str | Repeat) -> list[str]:
    if isinstance(node, str):
        return [node]
    return node.times * [step for inner in node.body for step in _unfolded(inner)]


@pytest.mark.parametrize("mode", ("const", "rows"))
def test_folded_steps_are_the_schedule(graph: Graph, mode: str) -> None:
    made = plan(graph, target("cortex-m0"), LITERT, mode, "ram")
    steps = ["take" if step < 0 else made.entries[step].label for step in made.schedule]
    assert [step for node in fold(steps) for step in _unfolded(node)] == steps


def test_words_are_few_and_name_what_runs(graph: Graph) -> None:
    made: Plan = plan(graph, target("cortex-m4"), LITERT, "rows")
    text = words_of(made)
    assert 0 < len(text) <= MOST_LINES
    known = {op.name for op in made.ops} | {"row", "rows", "of", "the", "input", "times", "to"}
    assert set(re.findall(r"[a-z]\w*", " ".join(text))) <= known
