"""From Graph to Plan: choose schedule, layouts and kernels together, place the buffers, write the tables, check."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.arrangement import (
    IMAGE,
    Arrangement,
    Arranger,
    distinct,
    least_storages,
    usual_storages,
)
from codegen.choices import Catalogue
from codegen.forms import FillKind
from codegen.layout import Storage
from codegen.memory import Box, place
from codegen.objective import Objective, objective
from codegen.optimize import Optimizer, Solution
from codegen.plan import TAKE, Buffer, Plan, PlannedOp, check_plan, state_size
from codegen.selection import Stage, call_of, stages_of, storages_of
from codegen.tables import TableWriter, symbols_of
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle

INPUT_MODES = ("const", "arena", "rows")
FOREVER = 0xFFFF  # death of a buffer that outlives the schedule
LARGEST_MAPS = (64, 0, 16, math.inf)  # pixels of the maps that are made in one call, where a kernel can
_ATTEMPTS = 3  # to keep a budget


@dataclass(frozen=True, eq=False)
class _Draft:
    """All choices made, nothing placed."""

    stages: Sequence[Stage]
    arrangement: Arrangement
    solution: Solution

    @property
    def storages(self) -> Mapping[str, Storage]:
        """Return how the tensors lie."""
        return {name: form.storage for name, form in self.solution.forms.items()}


def _arrangements(
    graph: Graph, target: Target, oracle: Oracle, input_mode: str
) -> Iterator[tuple[Catalogue, Arrangement]]:
    """Yield different ways to run the network: by rows or by whole layers, in orders for fast and for small forms."""
    seen = set()
    for largest_map in LARGEST_MAPS:
        stages, tensors = stages_of(graph, target, largest_map)
        rows = tuple(stage.rows for stage in stages)
        if rows in seen:
            continue
        seen.add(rows)
        storages = storages_of(graph, target, stages, tensors)
        usual = {name: found[0] for name, found in storages.items()}
        calls = [call_of(stage, graph, oracle, usual) for stage in stages]
        arranger = Arranger(graph, stages, calls, storages, input_mode)
        catalogue = Catalogue(graph, target, oracle, stages)
        for order in distinct([arranger.search(pick(arranger)) for pick in (least_storages, usual_storages)]):
            yield catalogue, arranger.arrange(order)


def _drafts(
    graph: Graph, target: Target, oracle: Oracle, input_mode: str, goal: Objective, most_ram: float
) -> list[_Draft]:
    """Return the best choices for each arrangement, the cheapest first."""
    drafts = []
    for catalogue, arrangement in _arrangements(graph, target, oracle, input_mode):
        solution = Optimizer(catalogue, arrangement, goal, most_ram).best()
        if solution is not None:
            chosen = [
                replace(stage, kernel=candidate.kernel)
                for stage, candidate in zip(catalogue.stages, solution.candidates, strict=True)
            ]
            drafts.append(_Draft(chosen, arrangement, solution))
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
    stages, storages = draft.stages, draft.storages
    calls = [call_of(stage, graph, oracle, storages) for stage in stages]
    places, rows_bytes = place(_boxes(draft))
    addresses = {name: _slot_addresses(draft, name, places) for name in storages}
    views = [stage.kernel.view(call) for stage, call in zip(stages, calls, strict=True)]
    symbols = symbols_of(graph.name, stages, calls, views)
    writer = TableWriter(graph.name, storages, addresses, {stage.output: stage.name for stage in stages})
    entry_of = [
        writer.op(stage, call, view, symbol)
        for stage, call, view, symbol in zip(stages, calls, views, symbols, strict=True)
    ]
    steps, groups = _steps(draft, entry_of, writer)
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
        buffers=_buffers(graph, draft, places, groups),
        rows_bytes=rows_bytes,
        state_bytes=state_size([steps.count(number) for number in range(len(writer.entries))]),
        live_bytes=draft.solution.ram,
    )


def _boxes(draft: _Draft) -> list[Box]:
    """Return what is to be placed."""
    units = [unit for form in draft.solution.forms.values() for unit in form.units]
    return [*(Box(unit.name, unit.size, unit.spans) for unit in units), *draft.arrangement.image]


def _steps(
    draft: _Draft, entry_of: Sequence[Sequence[int]], writer: TableWriter
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the schedule, and for each step of the arrangement its first and last place there: fills come before it."""
    fills = sorted(
        ((fill, name) for name, form in draft.solution.forms.items() for fill in form.fills),
        key=lambda found: found[0].step,
    )
    entries: dict[tuple[str, FillKind, bool], int] = {}
    steps: list[int] = []
    groups = []
    for number, step in enumerate(draft.arrangement.steps):
        begin = len(steps)
        while fills and fills[0][0].step == number:
            fill, name = fills.pop(0)
            key = name, fill.kind, fill.row < draft.storages[name].top
            if key not in entries:
                entries[key] = writer.fill(name, fill.kind, fill.row)
            steps.append(entries[key])
        steps.append(entry_of[step.op - 1][step.number] if step.op else TAKE)
        groups.append((begin, len(steps) - 1))
    return steps, groups


def _slot_addresses(draft: _Draft, name: str, places: Mapping[str, int]) -> list[int]:
    """Return the byte address of each slot of a tensor; 0 for a row that nobody makes or reads."""
    form = draft.solution.forms[name]
    storage = form.storage
    if not storage.apart:
        return [places[form.units[0].name] + storage.slot_offset(slot) for slot in range(storage.slots)]
    slots = [0] * storage.slots
    for unit in form.units:
        assert unit.row is not None
        slots[unit.row] = places[unit.name]
    return slots


def _buffers(
    graph: Graph, draft: _Draft, places: Mapping[str, int], groups: Sequence[tuple[int, int]]
) -> tuple[Buffer, ...]:
    """Return the buffers of all tensors, and of the rows of an image in the arena, in steps of the schedule."""
    buffers = []
    for name, form in draft.solution.forms.items():
        for unit in form.units:
            for first, last in unit.spans:
                ends = name == graph.output and (first, last) == unit.spans[-1]
                death = FOREVER if ends else groups[last][1]
                buffers.append(Buffer(name, places[unit.name], unit.size, groups[first][0], death, unit.row))
    for row, box in enumerate(draft.arrangement.image):
        buffers.append(Buffer(IMAGE, places[box.name], box.size, 0, groups[box.death][1], row))
    return tuple(buffers)
