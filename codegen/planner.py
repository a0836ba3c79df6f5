"""From Graph to Plan: choose kernels and layouts, search a schedule, place the buffers, write down entries and constants."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.call import Arithmetic, Call
from codegen.kernels import AVERAGE, ROW_SUM, Kernel, Needs, candidates, wide
from codegen.layout import PLANAR16, SUMS32, Layout, Storage, align4
from codegen.memory import Box, live_bytes, place
from codegen.plan import TAKE, Buffer, Entry, Plan, PlannedOp, check_plan, state_size
from codegen.schedule import FILL_ALL, FILL_ROW, Rows, Schedule, Work, pull_schedule
from codegen.simplify import is_global
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Mean,
    Op,
    Softmax,
    Tensor,
    inputs_of,
)
from mnet.oracle import (
    Oracle,
    Requantization,
    add_arithmetic,
    mean_arithmetic,
    requantization,
    softmax_arithmetic,
)

INPUT_MODES = ("const", "arena", "rows")
FOREVER = 0xFFFF  # death of a buffer that outlives the schedule


@dataclass(frozen=True)
class Stage:
    """One op, or one stage of it, with its kernel."""

    name: str
    op: Op
    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    rows: int  # per call
    calls: int


def _stages(graph: Graph, target: Target) -> tuple[list[Stage], dict[str, Tensor]]:
    """Choose a kernel for each op; return the stages and all tensors, the sums between pooling stages included."""
    tensors = dict(graph.tensors)
    stages: list[Stage] = []
    for op in graph.ops:
        height = tensors[op.output].shape[0]
        if isinstance(op, AveragePool2D | Mean) and is_global(op, graph):
            source = tensors[op.input]
            sums = Tensor(f"{op.output}/sums", (1, 1, source.shape[2]), 1.0, 0)
            tensors[sums.name] = sums
            stages.append(Stage(f"{op.name}_sum", op, ROW_SUM, (op.input,), sums.name, 0, source.shape[0]))
            stages.append(Stage(op.name, op, AVERAGE, (sums.name,), op.output, 1, 1))
            continue
        kernel = _choose(op, graph, target)
        rows = height if kernel.whole_layer(op, graph) else 1
        stages.append(Stage(op.name, op, kernel, inputs_of(op), op.output, rows, height // rows))
    return stages, tensors


def _choose(op: Op, graph: Graph, target: Target) -> Kernel:
    """Return the first kernel that accepts `op`, whose layout its neighbours can write and share.

    Raises:
        PlanError: no kernel takes it.
    """
    interleaved = wide(target)
    for kernel in candidates(op, graph, target):
        layout = kernel.needs(op, graph, target).layout
        if layout == interleaved or _can_have(op, graph, target, layout):
            return kernel
    raise PlanError(f"{graph.name}, {op.name} ({type(op).__name__}): no kernel for {target.name}")


def _can_have(op: Op, graph: Graph, target: Target, layout: Layout) -> bool:
    """Return whether the input of `op` can lie in `layout`: nobody else reads it, and its producer can write it."""
    (name,) = inputs_of(op)
    if len(graph.consumers(name)) > 1 or name == graph.output:
        return False
    producer = next((other for other in graph.ops if other.output == name), None)
    if producer is None:
        return True
    if isinstance(producer, AveragePool2D | Mean) and is_global(producer, graph):
        return layout.name in AVERAGE.writes
    return all(layout.name in kernel.writes for kernel in candidates(producer, graph, target)[:1])


def _storages(
    graph: Graph, target: Target, stages: Sequence[Stage], tensors: Mapping[str, Tensor]
) -> dict[str, Storage]:
    """Return how each tensor lies, every row with a slot of its own: layout and padding as its readers need them."""
    storages = {}
    for name, tensor in tensors.items():
        readers = [stage for stage in stages if name in stage.inputs]
        made = name == graph.input or any(stage.output == name for stage in stages)
        if not made:
            continue
        if any(stage.kernel.consumes_rows and stage.output == name for stage in stages):
            layout, needs = SUMS32, [Needs(SUMS32)]
        else:
            needs = [reader.kernel.needs(reader.op, graph, target) for reader in readers] or [Needs(wide(target))]
            layout = needs[0].layout
        top, bottom, left, right = (max(need.padding[side] for need in needs) for side in range(4))
        channels = tensor.shape[2]
        if target.dsp and name != graph.input and layout is not SUMS32:
            channels = align4(channels)  # the blocks of the DSP kernels; the rest meets zero weights
        storages[name] = Storage(
            tensor=tensor,
            layout=layout,
            slots=top + tensor.shape[0] + bottom,
            top=top,
            bottom=bottom,
            left=left,
            right=right,
            stored_channels=channels,
            slack_bytes=max(need.slack_bytes for need in needs),
        )
    return storages


def _arithmetic(op: Op, graph: Graph, oracle: Oracle) -> tuple[Requantization | None, Arithmetic | None]:
    match op:
        case Conv2D() | DepthwiseConv2D() | FullyConnected():
            return requantization(op, graph, oracle), None
        case Add():
            return None, add_arithmetic(op, graph, oracle)
        case Mean():
            return None, mean_arithmetic(op, graph, oracle)
        case Softmax():
            return None, softmax_arithmetic(op, graph, oracle)
        case _:
            return None, None


def _call(stage: Stage, graph: Graph, oracle: Oracle, storages: Mapping[str, Storage]) -> Call:
    how, arithmetic = _arithmetic(stage.op, graph, oracle)
    source = graph.tensors[inputs_of(stage.op)[0]].shape
    return Call(
        op=stage.op,
        inputs=tuple(storages[name] for name in stage.inputs),
        output=storages[stage.output],
        rows=stage.rows,
        requantization=how,
        arithmetic=arithmetic,
        pooled=source[0] * source[1],
    )


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
        whole_readers = any(reader.kernel.family in ("average_pool", "copy") for reader in readers)
        if name in gathered or name == output or whole_readers or slots > storage.virtual_rows:
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


def _runs(phases: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (phase, first call, step between calls) for each phase that occurs."""
    firsts: dict[int, list[int]] = {}
    for number, phase in enumerate(phases):
        firsts.setdefault(phase, []).append(number)
    return [
        (phase, numbers[0], numbers[1] - numbers[0] if len(numbers) > 1 else 1) for phase, numbers in firsts.items()
    ]


def _symbols(name: str, stages: Sequence[Stage], calls: Sequence[Call], views: Sequence[object]) -> list[str]:
    """Return the name of each stage's C function; equal views of one kernel share it."""
    known: dict[tuple[str, object], str] = {}
    taken: set[str] = set()
    symbols = []
    for stage, call, view in zip(stages, calls, views, strict=True):
        key = (stage.kernel.family, view)
        if key not in known:
            source, target = call.inputs[0], call.output
            base = f"{name}_{stage.kernel.family}_{target.width}x{source.tensor.shape[2]}_{target.tensor.shape[2]}"
            variants = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
            symbol = next(variant for variant in variants if variant not in taken)
            taken.add(symbol)
            known[key] = symbol
        symbols.append(known[key])
    return symbols


def _phase(stage: Stage, call: Call, number: int) -> int:
    """Return the slot that holds the top row of the window, where the constants have to know it."""
    source = call.inputs[0]
    if not stage.kernel.ring_of_window or stage.rows > 1 or source.whole:
        return 0
    first, _ = stage.kernel.window(call, 0, number)
    return (first + source.top) % source.slots


class _Writer:
    """Collects the tables of a plan."""

    def __init__(
        self, name: str, storages: Mapping[str, Storage], addresses: Mapping[str, int], makers: Mapping[str, str]
    ) -> None:
        self.name, self.storages, self.addresses = name, storages, addresses
        self.makers = makers  # tensor -> the stage that makes it, whose name is shorter
        self.entries: list[Entry] = []
        self.row_address: list[int] = []
        self.constants: dict[str, tuple[int, ...]] = {}
        self.first: dict[str, int] = {}
        for tensor, storage in storages.items():
            self.first[tensor] = len(self.row_address)
            self.row_address += [addresses[tensor] + storage.slot_offset(row) for row in range(storage.virtual_rows)]

    def fill(self, tensor: str, every: bool) -> int:
        """Add the entry that fills a buffer, or its padding rows below one by one; return its index."""
        storage = self.storages[tensor]
        label = f"fill_{_identifier(self.makers.get(tensor, tensor))}" + ("" if every else "_below")
        value = 0 if storage.layout is SUMS32 else storage.padding_value
        bits = 8 * storage.layout.element_bytes
        pattern = sum((value & ((1 << bits) - 1)) << shift for shift in range(0, 32, bits))
        planar = storage.layout.planar
        repeats, step = (storage.stored_channels, storage.channel_bytes // 4) if planar else (1, 0)
        words = storage.slot_bytes // 4
        if every and planar and not storage.whole:
            words *= storage.top  # the ring's other slots get rows before anybody reads them
        elif every:
            words, repeats, step = storage.buffer_bytes // 4, 1, 0
        symbol = f"{self.name}_{label}"
        self.constants[symbol] = (pattern, words, repeats, step)
        first_row = -1 if every else storage.top + storage.height
        output = self.first[tensor] + max(first_row, 0)
        if every:  # address of the buffer itself: slot 0, whichever row lies there
            output = len(self.row_address)
            self.row_address.append(self.addresses[tensor])
        self.entries.append(Entry(label, f"{self.name}_fill", symbol, 0, output, 0, 0, 1, "", tensor, first_row, 1, 0))
        return len(self.entries) - 1

    def op(self, stage: Stage, call: Call, view: object, symbol: str) -> list[int]:
        """Add the entries of an op, one for each phase; return the entry of each call."""
        phases = [_phase(stage, call, number) for number in range(stage.calls)]
        index_of: dict[int, int] = {}
        for phase, first_call, call_step in _runs(phases):
            words = stage.kernel.pack(call, view, phase)
            name = f"{self.name}_{_identifier(stage.name)}" + (f"_phase{phase}" if len(set(phases)) > 1 else "")
            if words:
                self.constants[name] = words
            source, pointers, step = self._input(stage, call, first_call, call_step)
            output = self.first[stage.output] + call.output.top
            index_of[phase] = len(self.entries)
            self.entries.append(
                Entry(
                    label=name.removeprefix(f"{self.name}_"),
                    symbol=symbol,
                    constants=name if words else "",
                    input=source,
                    output=output + first_call * stage.rows,
                    inputs=pointers,
                    input_step=step,
                    output_step=call_step * stage.rows,
                    op=stage.name,
                    tensor=stage.output,
                    first_row=first_call * stage.rows,
                    row_step=call_step * stage.rows,
                    rows=stage.rows,
                )
            )
        return [index_of[phase] for phase in phases]

    def _input(self, stage: Stage, call: Call, first_call: int, call_step: int) -> tuple[int, int, int]:
        """Return index, count and step of the input pointers, adding a list of their own where rows do not do."""
        pointers = stage.kernel.pointers(call)
        first, _ = stage.kernel.window(call, 0, first_call)
        if len(stage.inputs) > 1:  # the rows of several tensors, side by side
            index = len(self.row_address)
            for number in range(first_call, stage.calls):
                for which, tensor in enumerate(stage.inputs):
                    row = stage.kernel.window(call, which, number)[0] + self.storages[tensor].top
                    self.row_address.append(self.row_address[self.first[tensor] + row])
            return index, len(stage.inputs), len(stage.inputs)
        storage = call.inputs[0]
        index = self.first[stage.inputs[0]]
        if stage.kernel.ring_of_window and not storage.whole:
            return index, 1, 0  # the ring itself: virtual row 0 lies in slot 0
        following = min(first_call + call_step, stage.calls - 1)
        step = stage.kernel.window(call, 0, following)[0] - first if following > first_call else 0
        return index + first + storage.top, pointers, step


def _identifier(text: str) -> str:
    """Return `text` with everything that C does not allow in a name replaced."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)


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
    stages, tensors = _stages(graph, target)
    storages = _storages(graph, target, stages, tensors)
    provisional = [_call(stage, graph, oracle, storages) for stage in stages]
    works = _works(graph, stages, provisional, storages)
    trial = _search(graph, stages, works, storages, input_mode)
    calls = [_call(stage, graph, oracle, trial.storages) for stage in stages]
    addresses, rows_bytes = place(trial.boxes)
    views = [stage.kernel.view(call) for stage, call in zip(stages, calls, strict=True)]
    symbols = _symbols(graph.name, stages, calls, views)
    makers = {stage.output: stage.name for stage in stages}
    writer = _Writer(graph.name, trial.storages, addresses, makers)
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
