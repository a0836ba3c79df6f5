"""The checker finds what a wrong planner would do; plans say what they promise."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from codegen.plan import Plan, check_plan
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet.errors import PlanError
from mnet.oracle import LITERT
from tests.models import tiny_mobilenet, tiny_residual


@pytest.fixture(params=(("cortex-m4", "cycles"), ("cortex-m0", "balanced")), ids="-".join)
def made(request: pytest.FixtureRequest) -> Plan:
    core, optimize = request.param
    return plan(simplify(tiny_mobilenet(size=24)), target(core), LITERT, optimize=optimize)


def _swapped(made: Plan) -> Plan:
    """Two neighbouring steps of different entries change places."""
    steps = list(made.schedule)
    at = next(n for n in range(len(steps) // 2, len(steps)) if steps[n] != steps[n + 1])
    steps[at], steps[at + 1] = steps[at + 1], steps[at]
    return replace(made, schedule=tuple(steps))


def _too_short(made: Plan) -> Plan:
    return replace(made, schedule=made.schedule[:-1])


def _ring_too_small(made: Plan) -> Plan:
    name, storage = next((n, s) for n, s in made.storage.items() if not s.apart and s.slots > 1)
    return replace(made, storage={**made.storage, name: replace(storage, slots=storage.slots - 1)})


def _overlap(made: Plan) -> Plan:
    a, b = next((a, b) for a in made.buffers for b in made.buffers if a is not b and a.birth <= b.birth <= a.death)
    return replace(made, buffers=tuple(replace(x, offset=a.offset) if x is b else x for x in made.buffers))


def _early_death(made: Plan) -> Plan:
    last = max(made.buffers, key=lambda b: b.death - b.birth if b.death < len(made.schedule) else -1)
    return replace(made, buffers=tuple(replace(x, death=x.death - 1) if x is last else x for x in made.buffers))


def _outside(made: Plan) -> Plan:
    return replace(made, rows_bytes=made.rows_bytes - 4)


@pytest.mark.parametrize("damage", (_swapped, _too_short, _ring_too_small, _overlap, _early_death, _outside))
def test_check_plan_finds(made: Plan, damage: Callable[[Plan], Plan]) -> None:
    assert check_plan(made) is made
    with pytest.raises(PlanError):
        check_plan(damage(made))


def test_rings_keep_the_arena_below_the_largest_pair_of_tensors() -> None:
    graph = simplify(tiny_mobilenet(size=64))
    made = plan(graph, target("cortex-m0"), LITERT, "rows")
    sizes = [s.tensor.shape[0] * s.tensor.shape[1] * s.tensor.shape[2] for s in made.storage.values()]
    assert made.arena_bytes < max(a + b for a, b in itertools.pairwise(sizes)) / 2


def test_layers_of_one_geometry_share_a_function() -> None:
    made = plan(simplify(tiny_residual()), target("cortex-m4"), LITERT)
    assert len({op.symbol for op in made.ops}) <= len(made.ops)
    assert all(op.view == other.view for op in made.ops for other in made.ops if op.symbol == other.symbol)


def test_a_printed_plan_names_every_op_and_buffer(made: Plan) -> None:
    text = str(made)
    assert all(op.name in text for op in made.ops) and all(b.tensor in text for b in made.buffers)
    assert f"{made.arena_bytes:,} B" in text
