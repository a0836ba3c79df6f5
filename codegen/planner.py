"""From Graph to Plan: search a schedule for the chosen kernels, place the buffers, write the tables, check it all."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.call import Call
from codegen.layout import SUMS32, Storage, align4
from codegen.memory import Box, live_bytes, place
from codegen.plan import TAKE, Buffer, Plan, PlannedOp, check_plan, state_size
from codegen.schedule import FILL_ALL, FILL_ROW, Rows, Schedule, Work, pull_schedule
from codegen.selection import Stage, call_of, stages_of, storages_of
from codegen.tables import TableWriter, symbols_of
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import DepthwiseConv2D, Graph
from mnet.oracle import Oracle

INPUT_MODES = ("const", "arena", "rows")
FOREVER = 0xFFFF  # death of a buffer that outlives the schedule


def _works(graph: Graph, stages: Sequence[Stage], calls: Sequence[Call], storages: Mapping[str, Storage]) -> list[Work]:
    """Return what the scheduler needs to know; the first work takes the rows of the input."""
    source = storages[graph.input]
    works = [Work((), graph.input, source.height, (), source.top, 1)]
    for stage, call in zip(stages, calls, strict=True):
        windows = tuple(
            tuple(_clipped(stage.kernel.window(call, which, number), storages[name]) for number in range(stage.calls))
            for which, name in enumerate(stage.inputs)
        )
        works.append(Work(stage.inputs, stage.output, stage.calls, windows, storages[stage.output].top, stage.rows))
    return works


def _clipped(window: tuple[int, int], storage: Storage) -> tuple[int, int]:
    """Return the virtual rows of a window of real rows."""
    first, last = window[0] + storage.top, window[1] + storage.top
    return max(first, 0), min(last, storage.virtual_rows - 1)


def _fit_slots(
    stages: Sequence[Stage], storages: Mapping[str, Storage], schedule: Schedule, gathered: Collection[str], output: str
) -> dict[str, Storage]:
    """Return the storages with as few slots as the schedule needs and the kernels can address."""
    fitted = {}
    for name, storage in storages.items():
        slots = schedule.slots[name]
        readers = [stage for stage in stages if name in stage.inputs]
        for reader in readers:
            if reader.rows > 1:
                slots = storage.virtual_rows  # one pointer, all rows
            elif reader.kernel.ring_of_window:
                assert isinstance(reader.op, DepthwiseConv2D)
                height = int(reader.op.weights.shape[0])
                slots = height if slots <= height else storage.virtual_rows
        reads_whole = any(reader.reads_whole for reader in readers)
        if name in gathered or name == output or reads_whole or slots > storage.virtual_rows:
            slots = storage.virtual_rows
        if any(stage.output == name and stage.rows > 1 for stage in stages):
            slots = storage.virtual_rows
        fitted[name] = replace(storage, slots=slots)
    return fitted


def _boxes(
    graph: Graph, works: Sequence[Work], schedule: Schedule, storages: Mapping[str, Storage], input_mode: str
) -> list[Box]:
    birth: dict[str, int] = {}
    death: dict[str, int] = {}
    taken_last = 0
    for number, step in enumerate(schedule.steps):
        birth.setdefault(step.tensor, number)
        death[step.tensor] = number
        if step.op >= 0:
            for name in works[step.op].inputs:
                death[name] = number
        if step.op == 0:
            taken_last = number
    death[graph.output] = FOREVER
    boxes = [Box(name, storage.buffer_bytes, birth[name], death[name]) for name, storage in storages.items()]
    if input_mode == "arena":
        height, width, channels = graph.tensors[graph.input].shape
        boxes.append(Box("image", align4(height * width * channels), 0, taken_last))
    return boxes


@dataclass(frozen=True)
class _Trial:
    schedule: Schedule
    storages: dict[str, Storage]
    boxes: list[Box]
    live: int


def _search(
    graph: Graph, stages: Sequence[Stage], works: Sequence[Work], storages: Mapping[str, Storage], input_mode: str
) -> _Trial:
    """Return the best trial over the tensors to gather: climb from all streamed and from all gathered.

    A streamed network holds all its rings at once; gathering a small tensor cuts it in two stretches that share bytes.
    """
    rows = {
        name: Rows(s.top, s.height, s.bottom, s.padded or bool(s.bottom) or s.layout is SUMS32)
        for name, s in storages.items()
    }
    # Whole-layer calls gather what they read and make in any case.
    gathers = {name for stage in stages if stage.rows > 1 for name in (*stage.inputs, stage.output)}
    choices = [
        stage.output
        for stage in stages
        if stage.output not in gathers and stage.output != graph.output and storages[stage.output].height > 1
    ]

    def attempt(gathered: frozenset[str]) -> _Trial:
        schedule = pull_schedule(works, rows, graph.output, gathered)
        fitted = _fit_slots(stages, storages, schedule, gathered, graph.output)
        # Where every row has a slot, the padding below was filled with the rest.
        steps = (step for step in schedule.steps if step.op != FILL_ROW or not fitted[step.tensor].whole)
        schedule = replace(schedule, steps=tuple(steps))
        boxes = _boxes(graph, works, schedule, fitted, input_mode)
        return _Trial(schedule, fitted, boxes, live_bytes(boxes))

    best: _Trial | None = None
    for start in (frozenset[str](), frozenset(choices)):
        gathered, trial = start, attempt(start)
        improved = True
        while improved:
            improved = False
            moves = itertools.chain(([name] for name in choices), itertools.combinations(choices, 2))
            for move in moves:
                candidate = attempt(gathered.symmetric_difference(move))
                if candidate.live < trial.live:
                    gathered, trial, improved = gathered.symmetric_difference(move), candidate, True
                    break
        if best is None or trial.live < best.live:
            best = trial
    assert best is not None
    return best


def plan(graph: Graph, target: Target, oracle: Oracle, input_mode: str = "const") -> Plan:
    """Return a checked plan of `graph` (already simplified) for `target`, with the bits of `oracle`.

    Args:
        graph: the network.
        target: which core, see `codegen.targets`.
        oracle: whose rounding.
        input_mode: "const" (the caller's image is only read), "arena" (it lies in the arena), "rows" (it is pushed).

    Raises:
        PlanError: an op that no kernel takes.
    """
    if not graph.ops:
        raise PlanError(f"{graph.name} has no operator to generate code for")
    stages, tensors = stages_of(graph, target)
    storages = storages_of(graph, target, stages, tensors)
    provisional = [call_of(stage, graph, oracle, storages) for stage in stages]
    works = _works(graph, stages, provisional, storages)
    trial = _search(graph, stages, works, storages, input_mode)
    calls = [call_of(stage, graph, oracle, trial.storages) for stage in stages]
    addresses, rows_bytes = place(trial.boxes)
    views = [stage.kernel.view(call) for stage, call in zip(stages, calls, strict=True)]
    symbols = symbols_of(graph.name, stages, calls, views)
    makers = {stage.output: stage.name for stage in stages}
    writer = TableWriter(graph.name, trial.storages, addresses, makers)
    entry_of = [
        writer.op(stage, call, view, symbol)
        for stage, call, view, symbol in zip(stages, calls, views, symbols, strict=True)
    ]
    fills: dict[tuple[str, bool], int] = {}
    steps: list[int] = []
    for step in trial.schedule.steps:
        if step.op == 0:
            steps.append(TAKE)
        elif step.op > 0:
            steps.append(entry_of[step.op - 1][step.number])
        else:
            key = (step.tensor, step.op == FILL_ALL)
            if key not in fills:
                fills[key] = writer.fill(*key)
            steps.append(fills[key])
    source = trial.storages[graph.input]
    return check_plan(
        Plan(
            graph=graph,
            target=target,
            oracle=oracle,
            input_mode=input_mode,
            storage=trial.storages,
            ops=tuple(
                PlannedOp(stage.name, stage.kernel, call, stage.inputs, stage.output, stage.calls, symbol, view)
                for stage, call, symbol, view in zip(stages, calls, symbols, views, strict=True)
            ),
            entries=tuple(writer.entries),
            constants=writer.constants,
            schedule=tuple(steps),
            row_address=tuple(writer.row_address),
            take_row=writer.first[graph.input] + source.top,
            buffers=tuple(Buffer(box.name, addresses[box.name], box.size, box.birth, box.death) for box in trial.boxes),
            rows_bytes=rows_bytes,
            state_bytes=state_size([steps.count(number) for number in range(len(writer.entries))]),
            live_bytes=trial.live,
        )
    )
