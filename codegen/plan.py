"""The Plan: what runs when, where every row lies, which kernel each op gets. Frozen, printable, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen.call import Call
from codegen.forms import FillKind
from codegen.kernel import Kernel
from codegen.layout import SUMS32, Storage, align4
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle


@dataclass(frozen=True, eq=False)
class PlannedOp:
    """One op, or one stage of it, as the planner sees it."""

    name: str
    kernel: Kernel
    call: Call
    inputs: tuple[str, ...]
    output: str
    calls: int
    symbol: str  # of the C function, shared by ops whose views are equal
    view: object


@dataclass(frozen=True)
class Entry:
    """One line of the C table: an op, a phase of it, or a fill of padding rows."""

    label: str  # of the enumeration, for the reader
    symbol: str
    constants: str  # symbol of the constants, or ""
    first_word: int  # of them: the phase of a ring, where one array serves all phases
    input: int  # index in row_address of the first input row of the first call
    output: int
    inputs: int  # input row pointers
    input_step: int  # row_address entries from call to call
    output_step: int
    op: str  # planned op, or "" for a fill
    tensor: str  # whose rows it makes
    first_row: int  # of the tensor, at the first call; -1 for padding
    row_step: int
    rows: int  # rows made by a call; 0 = nothing to trace yet
    fills: FillKind | None = None  # what a fill sets; None: an op


@dataclass(frozen=True)
class Buffer:
    """Bytes of the arena that hold a tensor, or one slot of it, from the step that birth names to death, inclusive.

    A buffer that is free for others between two bursts of rows appears once for each span of its life.
    """

    tensor: str
    offset: int
    size: int
    birth: int
    death: int
    slot: int | None = None  # None: all of them


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole program: storage, steps and addresses for one graph, target and oracle."""

    graph: Graph
    target: Target
    oracle: Oracle
    input_mode: str  # const, arena or rows
    optimize: str  # what it strives for, see codegen.objective
    storage: Mapping[str, Storage]
    ops: tuple[PlannedOp, ...]
    entries: tuple[Entry, ...]
    constants: Mapping[str, tuple[int, ...]]  # symbol -> words
    schedule: tuple[int, ...]  # an entry, or ~number of the input whose next row is taken: -1 for the first
    row_address: tuple[int, ...]  # bytes
    take_rows: tuple[int, ...]  # of each input: index in row_address of its row 0
    buffers: tuple[Buffer, ...]
    rows_bytes: int  # of the arena, without the state
    state_bytes: int  # of the arena, behind the rows: position and call counters
    live_bytes: int  # most bytes live at any step

    @property
    def arena_bytes(self) -> int:
        """Return what the caller has to provide."""
        return self.rows_bytes + self.state_bytes

    def buffer(self, tensor: str) -> Buffer:
        """Return the first buffer of `tensor`."""
        return next(buffer for buffer in self.buffers if buffer.tensor == tensor)

    def address(self, tensor: str, virtual_row: int) -> int:
        """Return the byte of the arena where a row of `tensor` begins."""
        storage = self.storage[tensor]
        slot = virtual_row % storage.slots
        for buffer in self.buffers:
            if buffer.tensor == tensor and buffer.slot in (None, slot):
                return buffer.offset + (storage.slot_offset(slot) if buffer.slot is None else 0)
        raise PlanError(f"plan of {self.graph.name}: row {virtual_row} of {tensor} has no place")

    @property
    def entry_calls(self) -> tuple[int, ...]:
        """Return how often each entry is called in one inference."""
        counts = [0] * len(self.entries)
        for step in self.schedule:
            if step >= 0:
                counts[step] += 1
        return tuple(counts)

    def __str__(self) -> str:
        """Return the plan as a table of ops and a map of the arena."""
        lines = [
            f"{self.graph.name} for {self.target.name}, oracle {self.oracle.name}, input {self.input_mode}: "
            f"{len(self.schedule)} steps, {self.arena_bytes:,} B of arena ({self.live_bytes:,} B of rows live at once)"
        ]
        for op in self.ops:
            height, width, channels = op.call.output.tensor.shape
            storage = self.storage[op.output]
            ring = "apart" if storage.apart else "whole" if storage.whole else f"ring of {storage.slots}"
            lines.append(
                f"  {op.name:28} {op.kernel.family:16} {f'{height}x{width}x{channels}':>12}  "
                f"{op.calls:3} calls  {storage.layout.name:8} {ring:10} {storage.buffer_bytes:7,} B"
            )
        lives: dict[tuple[str, int | None], list[Buffer]] = {}
        for buffer in sorted(self.buffers, key=lambda b: (b.birth, b.offset)):
            lives.setdefault((buffer.tensor, buffer.slot), []).append(buffer)
        for (tensor, slot), spans in lives.items():
            which = "" if slot is None else f", slot {slot}"
            lines.append(
                f"  arena {spans[0].offset:7,} .. {spans[0].offset + spans[0].size:7,}  "
                f"steps {spans[0].birth:4} .. {spans[-1].death:5}, {len(spans):2} spans  {tensor}{which}"
            )
        return "\n".join(lines)


def counter_bytes(entry_calls: Sequence[int]) -> int:
    """Return the width of a call counter that holds the largest count."""
    largest = max(entry_calls, default=0)
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4


def state_size(entry_calls: Sequence[int], inputs: int) -> int:
    """Return the bytes of the C struct state: position, rows taken, a counter for each entry; a multiple of 4."""
    return align4(4 + 4 * inputs + len(entry_calls) * counter_bytes(entry_calls))


def check_plan(plan: Plan) -> Plan:
    """Return `plan` if it is sound.

    Checks alignment, that buffers stay inside the arena and never share a live byte, and, by replaying the schedule row
    by row, that every row that a call reads was made before and not overwritten since, and that no call reads what it
    writes.

    Raises:
        PlanError: naming the step and the tensors at fault (a bug of the planner, never the user's).
    """
    for number, a in enumerate(plan.buffers):
        if a.offset % 4 or a.offset < 0 or a.offset + a.size > plan.rows_bytes:
            raise PlanError(f"plan of {plan.graph.name}: buffer of {a.tensor} leaves the arena or is not aligned")
        for b in plan.buffers[:number]:
            apart_in_time = a.death < b.birth or b.death < a.birth
            if not apart_in_time and a.offset < b.offset + b.size and b.offset < a.offset + a.size:
                raise PlanError(f"plan of {plan.graph.name}: {a.tensor} and {b.tensor} share bytes")
    _Replay(plan).run()
    return plan


class _Replay:
    """Follows which row (real or padding) each slot holds, and compares with what each call needs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ops = {op.name: op for op in plan.ops}
        self.holds: dict[str, dict[int, int]] = {name: {} for name in plan.storage}  # slot -> virtual row
        self.sides: set[tuple[str, int]] = set()  # rows that lie apart whose padding beside them is set
        self.calls = dict.fromkeys(self.ops, 0)
        self.buffers: dict[str, list[Buffer]] = {name: [] for name in plan.storage}
        for buffer in plan.buffers:
            if buffer.tensor in self.buffers:
                self.buffers[buffer.tensor].append(buffer)

    def fail(self, step: int, what: str) -> None:
        raise PlanError(f"plan of {self.plan.graph.name}, step {step}: {what}")

    def lives(self, tensor: str, virtual: int, step: int) -> bool:
        """Return whether some buffer holds this row at this step."""
        slot = virtual % self.plan.storage[tensor].slots
        return any(
            buffer.birth <= step <= buffer.death and buffer.slot in (None, slot) for buffer in self.buffers[tensor]
        )

    def make(self, tensor: str, virtual: int, step: int, address: int | None = None) -> None:
        """Note that a row is made, where the tables say."""
        storage = self.plan.storage[tensor]
        if not self.lives(tensor, virtual, step):
            self.fail(step, f"a row of {tensor} is written outside the life of its buffer")
        if address is not None and address != self.plan.address(tensor, virtual):
            self.fail(step, f"row {virtual - storage.top} of {tensor} is written elsewhere than in its slot")
        self.holds[tensor][virtual % storage.slots] = virtual
        real = storage.top <= virtual < storage.top + storage.height
        if storage.apart and storage.filled_beside and real and (tensor, virtual) not in self.sides:
            self.fail(step, f"row {virtual - storage.top} of {tensor} is made without its padding")

    def read(self, op: PlannedOp, step: int) -> None:
        """Check that all rows of the window of the next call are there."""
        call = self.calls[op.name]
        self.calls[op.name] += 1
        for which, name in enumerate(op.inputs):
            source = self.plan.storage[name]
            first, last = op.kernel.window(op.call, which, call)
            for row in range(max(first, -source.top), min(last, source.height + source.bottom - 1) + 1):
                virtual = row + source.top
                if self.holds[name].get(virtual % source.slots) != virtual:
                    self.fail(step, f"{op.name} reads row {row} of {name} too late")
                if name == op.output or not self.lives(name, virtual, step):
                    self.fail(step, f"{op.name} reads dead rows of {name}")

    def fill(self, entry: Entry, number: int, step: int) -> None:
        """Note that padding rows are made: one, or all that lie in memory before the first row."""
        storage = self.plan.storage[entry.tensor]
        if entry.fills is FillKind.SIDES:
            self.sides.add((entry.tensor, entry.first_row + number * entry.row_step))
            return
        if storage.layout is SUMS32:
            rows = [0]
        elif entry.fills is FillKind.ROW:
            rows = [entry.first_row + number * entry.row_step]
        else:
            below = range(storage.top + storage.height, storage.virtual_rows) if storage.filled_below else ()
            rows = [*range(storage.top), *below]
        for virtual in rows:
            self.make(entry.tensor, virtual, step)

    def run(self) -> None:
        plan = self.plan
        done, taken = [0] * len(plan.entries), [0] * len(plan.graph.inputs)
        for step, index in enumerate(plan.schedule):
            if index < 0:
                name = plan.graph.inputs[~index]
                address = plan.row_address[plan.take_rows[~index] + taken[~index]]
                self.make(name, plan.storage[name].top + taken[~index], step, address)
                taken[~index] += 1
                continue
            entry, number = plan.entries[index], done[index]
            done[index] += 1
            if not entry.op:
                self.fill(entry, number, step)
                continue
            self.read(self.ops[entry.op], step)
            address = plan.row_address[entry.output + number * entry.output_step]
            first = plan.storage[entry.tensor].top + entry.first_row + number * entry.row_step
            self.make(entry.tensor, first, step, address)
            for row in range(1, entry.rows):
                self.make(entry.tensor, first + row, step)
        whole = [plan.storage[name].height for name in plan.graph.inputs]
        if taken != whole or any(self.calls[op.name] != op.calls for op in plan.ops):
            raise PlanError(f"plan of {plan.graph.name}: the schedule ends too early")
        for name in plan.graph.outputs:
            storage = plan.storage[name]
            for virtual in range(storage.top, storage.top + storage.height):
                if self.holds[name].get(virtual % storage.slots) != virtual or not self.lives(
                    name, virtual, len(plan.schedule)
                ):
                    self.fail(len(plan.schedule), f"row {virtual - storage.top} of the output {name} is not there")
