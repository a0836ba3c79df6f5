"""From Graph to Plan: choose schedule, layouts and kernels together, place the buffers, write the tables, check."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.arrangement import Arrangement, Arranger
from codegen.choices import Catalogue, layouts_of
from codegen.layout import Storage
from codegen.memory import place
from codegen.objective import Objective, objective
from codegen.optimize import Optimizer, Solution
from codegen.plan import TAKE, Buffer, Plan, PlannedOp, check_plan, state_size
from codegen.schedule import FILL_ALL
from codegen.selection import Stage, call_of, stages_of, storages_of
from codegen.tables import TableWriter, symbols_of
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle

INPUT_MODES = ("const", "arena", "rows")
FOREVER = 0xFFFF  # death of a buffer that outlives the schedule
_ATTEMPTS = 3  # to keep a budget


@dataclass(frozen=True, eq=False)
class _Draft:
    """All choices made, nothing placed."""

    stages: Sequence[Stage]
    arrangement: Arrangement
    storages: Mapping[str, Storage]
    solution: Solution


def _arrangements(
    graph: Graph, target: Target, oracle: Oracle, input_mode: str
) -> Iterator[tuple[list[Stage], Mapping[str, Storage], Arrangement]]:
    """Yield different ways to run the network: by rows or by whole layers, for wide and for narrow layouts."""
    seen = set()
    for whole_layers in (False, True):
        stages, tensors = stages_of(graph, target, whole_layers)
        rows = tuple(stage.rows for stage in stages)
        if rows in seen:
            continue
        seen.add(rows)
        storages = storages_of(graph, target, stages, tensors)
        calls = [call_of(stage, graph, oracle, storages) for stage in stages]
        arranger = Arranger(graph, stages, calls, storages, input_mode)
        allowed = layouts_of(storages, graph, stages, target)
        sizes = [storages, {name: replace(s, layout=allowed[name][-1]) for name, s in storages.items()}]
        for which in sizes if sizes[0] != sizes[1] else sizes[:1]:
            yield stages, storages, arranger.search(which)


def _drafts(
    graph: Graph, target: Target, oracle: Oracle, input_mode: str, goal: Objective, most_ram: float
) -> list[_Draft]:
    """Return the best choices for each arrangement, the cheapest first."""
    drafts = []
    for stages, _, arrangement in _arrangements(graph, target, oracle, input_mode):
        allowed = layouts_of(arrangement.storages, graph, stages, target)
        catalogue = Catalogue(graph, target, oracle, stages, arrangement.storages)
        solution = Optimizer(catalogue, arrangement, allowed, goal, most_ram).best()
        if solution is not None:
            chosen = [
                replace(stage, kernel=candidate.kernel)
                for stage, candidate in zip(stages, solution.candidates, strict=True)
            ]
            storages = catalogue.storages_with(solution.layouts)
            drafts.append(_Draft(chosen, arrangement, storages, solution))
    return sorted(drafts, key=lambda draft: draft.solution.price)


def plan(
    graph: Graph,
    target: Target,
    oracle: Oracle,
    input_mode: str = "const",
    optimize: str = "balanced",
    ram: int | None = None,
) -> Plan:
    """Return a checked plan of `graph` (already simplified) for `target`, with the bits of `oracle`.

    Args:
        graph: the network.
        target: which core, see `codegen.targets`.
        oracle: whose rounding.
        input_mode: "const" (the caller's image is only read), "arena" (it lies in the arena), "rows" (it is pushed).
        optimize: what to strive for, see `codegen.objective`.
        ram: bytes that the arena should keep to; where no plan does, the smallest is returned.

    Raises:
        PlanError: an op that no kernel takes, or an unknown objective.
    """
    if not graph.ops:
        raise PlanError(f"{graph.name} has no operator to generate code for")
    goal = objective(optimize)
    budget = math.inf if ram is None else float(ram)
    made = None
    for _ in range(_ATTEMPTS):
        drafts = _drafts(graph, target, oracle, input_mode, goal, budget)
        if not drafts:
            raise PlanError(f"{graph.name}: no kernels for {target.name} fit together")
        made = check_plan(_write(graph, target, oracle, input_mode, goal, drafts[0]))
        if ram is None or made.arena_bytes <= ram:
            break
        budget -= made.arena_bytes - ram  # the state, and what placement loses
    assert made is not None
    return made


def _write(graph: Graph, target: Target, oracle: Oracle, input_mode: str, goal: Objective, draft: _Draft) -> Plan:
    """Place the buffers and write the tables."""
    stages, storages, schedule = draft.stages, draft.storages, draft.arrangement.schedule
    calls = [call_of(stage, graph, oracle, storages) for stage in stages]
    places, rows_bytes = place(draft.arrangement.boxes(storages))
    buffers = _buffers(graph, draft, places)
    addresses = {name: _slot_addresses(draft, name, places) for name in storages}
    views = [stage.kernel.view(call) for stage, call in zip(stages, calls, strict=True)]
    symbols = symbols_of(graph.name, stages, calls, views)
    writer = TableWriter(graph.name, storages, addresses, {stage.output: stage.name for stage in stages})
    entry_of = [
        writer.op(stage, call, view, symbol)
        for stage, call, view, symbol in zip(stages, calls, views, symbols, strict=True)
    ]
    fills: dict[tuple[str, bool], int] = {}
    steps: list[int] = []
    for step in schedule.steps:
        if step.op == 0:
            steps.append(TAKE)
        elif step.op > 0:
            steps.append(entry_of[step.op - 1][step.number])
        else:
            key = (step.tensor, step.op == FILL_ALL)
            if key not in fills:
                fills[key] = writer.fill(*key)
            steps.append(fills[key])
    source = storages[graph.input]
    return Plan(
        graph=graph,
        target=target,
        oracle=oracle,
        input_mode=input_mode,
        optimize=goal.name,
        storage=storages,
        ops=tuple(
            PlannedOp(stage.name, stage.kernel, call, stage.inputs, stage.output, stage.calls, symbol, view)
            for stage, call, symbol, view in zip(stages, calls, symbols, views, strict=True)
        ),
        entries=tuple(writer.entries),
        constants=writer.constants,
        schedule=tuple(steps),
        row_address=tuple(writer.row_address),
        take_row=writer.first[graph.input] + source.top,
        buffers=buffers,
        rows_bytes=rows_bytes,
        state_bytes=state_size([steps.count(number) for number in range(len(writer.entries))]),
        live_bytes=draft.arrangement.live_bytes(storages),
    )


def _slot_addresses(draft: _Draft, name: str, places: Mapping[str, int]) -> list[int]:
    """Return the byte address of each slot of a tensor; 0 for one that no row ever uses."""
    storage = draft.storages[name]
    slots = [0] * storage.slots
    for unit in draft.arrangement.units:
        if unit.tensor == name and unit.slot is None:
            return [places[name] + storage.slot_offset(slot) for slot in range(storage.slots)]
        if unit.tensor == name and unit.slot is not None:
            slots[unit.slot] = places[unit.name]
    return slots


def _buffers(graph: Graph, draft: _Draft, places: Mapping[str, int]) -> tuple[Buffer, ...]:
    buffers = []
    for unit in draft.arrangement.units:
        size = unit.size(draft.storages[unit.tensor])
        for first, last in unit.spans:
            ends = unit.tensor == graph.output and (first, last) == unit.spans[-1]
            buffers.append(Buffer(unit.tensor, places[unit.name], size, first, FOREVER if ends else last, unit.slot))
    image = draft.arrangement.image
    if image:
        buffers.append(Buffer(image.name, places[image.name], image.size, image.birth, image.death))
    return tuple(buffers)
