"""From decisions to a Plan: storages, addresses and tables, without any search; and the check that it is sound."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from codegen.arrangement import IMAGE, Arrangement, Arranger
from codegen.forms import FillKind, Form
from codegen.layout import Storage
from codegen.memory import Box, live_bytes
from codegen.plan import Buffer, Plan, PlannedOp, check_plan, state_size
from codegen.schedule import steps_of
from codegen.selection import Stage, alternatives, call_of, stages_of, storages_of
from codegen.tables import TableWriter, symbols_of
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle

FOREVER = 0xFFFF  # death of a buffer that outlives the schedule


@dataclass(frozen=True)
class Decisions:
    """All that the planner chose, as plain data: a plan is made from it again without a search."""

    largest_map: int  # pixels of the maps that are made in one call, where a kernel can
    calls: tuple[int, ...]  # of each step: number of the input whose row is taken, or behind those the stage
    forms: Mapping[str, tuple[str, bool]]  # of each tensor: layout, whether its rows lie apart
    kernels: tuple[int, ...]  # of each stage, an index of its alternatives
    addresses: Mapping[str, int]  # of each buffer, bytes

    def as_json(self) -> str:
        """Return the decisions as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Decisions":
        """Return the decisions that `as_json` wrote.

        Raises:
            ValueError, LookupError, TypeError: it is something else.
        """
        data = json.loads(text)
        forms = {name: (str(layout), bool(apart)) for name, (layout, apart) in data["forms"].items()}
        addresses = {str(name): int(address) for name, address in data["addresses"].items()}
        return cls(int(data["largest_map"]), tuple(data["calls"]), forms, tuple(data["kernels"]), addresses)


@dataclass(frozen=True, eq=False)
class Draft:
    """All choices made, nothing placed."""

    stages: Sequence[Stage]
    arrangement: Arrangement
    forms: Mapping[str, Form]

    @property
    def storages(self) -> Mapping[str, Storage]:
        """Return how the tensors lie."""
        return {name: form.storage for name, form in self.forms.items()}

    @property
    def boxes(self) -> list[Box]:
        """Return what is to be placed."""
        units = [unit for form in self.forms.values() for unit in form.units]
        return [*(Box(unit.name, unit.size, unit.spans) for unit in units), *self.arrangement.image]


def arranger_of(graph: Graph, target: Target, oracle: Oracle, input_mode: str, largest_map: int) -> Arranger:
    """Return what arranges the network with calls that make whole maps of up to `largest_map` pixels."""
    stages, tensors = stages_of(graph, target, largest_map)
    storages = storages_of(graph, target, stages, tensors)
    usual = {name: found[0] for name, found in storages.items()}
    calls = [call_of(stage, graph, oracle, usual) for stage in stages]
    return Arranger(graph, stages, calls, storages, input_mode)


def assemble(
    graph: Graph, target: Target, oracle: Oracle, input_mode: str, optimize: str, decisions: Decisions
) -> Plan:
    """Return the checked plan that follows from decisions.

    Raises:
        PlanError: they are not sound, or those of another network.
    """
    try:
        draft = _draft(graph, target, oracle, input_mode, decisions)
        places = {box.name: decisions.addresses[box.name] for box in draft.boxes}
    except (LookupError, ValueError, StopIteration) as error:
        raise PlanError(f"{graph.name}: these decisions belong to another network or version ({error})") from error
    return check_plan(_write(graph, target, oracle, input_mode, optimize, draft, places))


def _draft(graph: Graph, target: Target, oracle: Oracle, input_mode: str, decisions: Decisions) -> Draft:
    arranger = arranger_of(graph, target, oracle, input_mode, decisions.largest_map)
    stages = [
        replace(stage, kernel=alternatives(stage, graph, target)[index])
        for stage, index in zip(arranger.stages, decisions.kernels, strict=True)
    ]
    arrangement = arranger.arrange(steps_of(decisions.calls))
    forms = {
        name: next(form for form in found if form.key == decisions.forms[name])
        for name, found in arrangement.forms.items()
    }
    return Draft(stages, arrangement, forms)


def _write(
    graph: Graph,
    target: Target,
    oracle: Oracle,
    input_mode: str,
    optimize: str,
    draft: Draft,
    places: Mapping[str, int],
) -> Plan:
    """Write the tables."""
    stages, storages = draft.stages, draft.storages
    calls = [call_of(stage, graph, oracle, storages) for stage in stages]
    addresses = {name: _slot_addresses(draft, name, places) for name in storages}
    views = [stage.kernel.view(call) for stage, call in zip(stages, calls, strict=True)]
    symbols = symbols_of(graph.name, stages, calls, views)
    writer = TableWriter(graph.name, storages, addresses, {stage.output: stage.name for stage in stages})
    entry_of = [
        writer.op(stage, call, view, symbol)
        for stage, call, view, symbol in zip(stages, calls, views, symbols, strict=True)
    ]
    steps, groups = _steps(draft, entry_of, writer, len(graph.inputs))
    return Plan(
        graph=graph,
        target=target,
        oracle=oracle,
        input_mode=input_mode,
        optimize=optimize,
        storage=storages,
        ops=tuple(
            PlannedOp(stage.name, stage.kernel, call, stage.inputs, stage.output, stage.calls, symbol, view)
            for stage, call, symbol, view in zip(stages, calls, symbols, views, strict=True)
        ),
        entries=tuple(writer.entries),
        constants=writer.constants,
        schedule=tuple(steps),
        row_address=tuple(writer.row_address),
        take_rows=tuple(writer.first[name] + storages[name].top for name in graph.inputs),
        buffers=_buffers(graph, draft, places, groups),
        rows_bytes=max(places[box.name] + box.size for box in draft.boxes),
        state_bytes=state_size([steps.count(number) for number in range(len(writer.entries))], len(graph.inputs)),
        live_bytes=live_bytes(draft.boxes),
    )


def _steps(
    draft: Draft, entry_of: Sequence[Sequence[int]], writer: TableWriter, inputs: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the schedule, and for each step of the arrangement its first and last place there, fills included."""
    fills = sorted(
        ((fill, name) for name, form in draft.forms.items() for fill in form.fills),
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
        steps.append(~step.op if step.op < inputs else entry_of[step.op - inputs][step.number])
        groups.append((begin, len(steps) - 1))
    return steps, groups


def _slot_addresses(draft: Draft, name: str, places: Mapping[str, int]) -> list[int]:
    """Return the byte address of each slot of a tensor; 0 for a row that nobody makes or reads."""
    form = draft.forms[name]
    storage = form.storage
    if not storage.apart:
        return [places[form.units[0].name] + storage.slot_offset(slot) for slot in range(storage.slots)]
    slots = [0] * storage.slots
    for unit in form.units:
        assert unit.row is not None
        slots[unit.row] = places[unit.name]
    return slots


def _buffers(
    graph: Graph, draft: Draft, places: Mapping[str, int], groups: Sequence[tuple[int, int]]
) -> tuple[Buffer, ...]:
    """Return the buffers of all tensors, and of the rows of an image in the arena, in steps of the schedule."""
    buffers = []
    for name, form in draft.forms.items():
        for unit in form.units:
            for first, last in unit.spans:
                ends = name in graph.outputs and (first, last) == unit.spans[-1]
                death = FOREVER if ends else groups[last][1]
                buffers.append(Buffer(name, places[unit.name], unit.size, groups[first][0], death, unit.row))
    for row, box in enumerate(draft.arrangement.image):
        buffers.append(Buffer(IMAGE, places[box.name], box.size, 0, groups[box.death][1], row))
    return tuple(buffers)
