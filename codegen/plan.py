"""The Plan: what runs when, where every row lies, which kernel each op gets. Frozen, printable, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen.call import Call
from codegen.kernels import Kernel
from codegen.layout import SUMS32, Storage, align4
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle

TAKE = -1  # a step of the schedule: take the next row of the input


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


@dataclass(frozen=True)
class Buffer:
    """Bytes of the arena that hold one tensor, from the step that begins it to the last that reads it, inclusive."""

    tensor: str
    offset: int
    size: int
    birth: int
    death: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole program: storage, steps and addresses for one graph, target and oracle."""

    graph: Graph
    target: Target
    oracle: Oracle
    input_mode: str  # const, arena or rows
    storage: Mapping[str, Storage]
    ops: tuple[PlannedOp, ...]
    entries: tuple[Entry, ...]
    constants: Mapping[str, tuple[int, ...]]  # symbol -> words
    schedule: tuple[int, ...]  # entry index or TAKE
    row_address: tuple[int, ...]  # bytes
    take_row: int  # index in row_address of row 0 of the input
    buffers: tuple[Buffer, ...]
    rows_bytes: int  # of the arena, without the state
    state_bytes: int  # of the arena, behind the rows: position and call counters
    live_bytes: int  # most bytes live at any step

    @property
    def arena_bytes(self) -> int:
        """Return what the caller has to provide."""
        return self.rows_bytes + self.state_bytes

    def buffer(self, tensor: str) -> Buffer:
        """Return the buffer of `tensor`."""
        return next(buffer for buffer in self.buffers if buffer.tensor == tensor)

    @property
    def entry_calls(self) -> tuple[int, ...]:
        """Return how often each entry is called in one inference."""
        counts = [0] * len(self.entries)
        for step in self.schedule:
            if step != TAKE:
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
            ring = "whole" if storage.whole else f"ring of {storage.slots}"
            lines.append(
                f"  {op.name:28} {op.kernel.family:16} {f'{height}x{width}x{channels}':>12}  "
                f"{op.calls:3} calls  {storage.layout.name:8} {ring:10} {storage.buffer_bytes:7,} B"
            )
        for buffer in sorted(self.buffers, key=lambda b: (b.birth, b.offset)):
            lines.append(
                f"  arena {buffer.offset:7,} .. {buffer.offset + buffer.size:7,}  "
                f"steps {buffer.birth:4} .. {buffer.death:4}  {buffer.tensor}"
            )
        return "\n".join(lines)


def counter_bytes(entry_calls: Sequence[int]) -> int:
    """Return the width of a call counter that holds the largest count."""
    largest = max(entry_calls, default=0)
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4


def state_size(entry_calls: Sequence[int]) -> int:
    """Return the bytes of the C struct state: position, rows taken, one counter for each entry; a multiple of 4."""
    return align4(8 + len(entry_calls) * counter_bytes(entry_calls))


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
    _replay_rows(plan)
    return plan


def _replay_rows(plan: Plan) -> None:
    """Follow which row (real or padding) each slot holds, and compare with what each call needs."""
    holds: dict[str, dict[int, int]] = {name: {} for name in plan.storage}  # tensor -> slot -> virtual row
    buffers = {buffer.tensor: buffer for buffer in plan.buffers}
    ops = {op.name: op for op in plan.ops}
    done = [0] * len(plan.entries)
    calls = dict.fromkeys(ops, 0)
    taken = 0
    for step, index in enumerate(plan.schedule):
        if index == TAKE:
            storage = plan.storage[plan.graph.input]
            holds[plan.graph.input][(storage.top + taken) % storage.slots] = storage.top + taken
            taken += 1
            continue
        entry = plan.entries[index]
        number = done[index]
        done[index] += 1
        storage = plan.storage[entry.tensor]
        if storage.layout is SUMS32 and not entry.op:
            holds[entry.tensor][0] = 0
            continue
        address = plan.row_address[entry.output + number * entry.output_step]
        slot, rest = divmod(address - buffers[entry.tensor].offset, storage.slot_bytes)
        if rest or not buffers[entry.tensor].birth <= step <= buffers[entry.tensor].death:
            raise PlanError(
                f"plan of {plan.graph.name}, step {step}: {entry.label} writes outside the life of its rows"
            )
        if not entry.op:
            padding = [*range(storage.top), *range(storage.top + storage.height, storage.virtual_rows)]
            if entry.first_row >= 0:
                padding = [entry.first_row + number * entry.row_step]
            elif not storage.whole:
                padding = padding[: storage.top]
            for virtual in padding:
                holds[entry.tensor][virtual % storage.slots] = virtual
            continue
        op = ops[entry.op]
        call = calls[op.name]
        calls[op.name] += 1
        for which, name in enumerate(op.inputs):
            source = plan.storage[name]
            first, last = op.kernel.window(op.call, which, call)
            for row in range(max(first, -source.top), min(last, source.height + source.bottom - 1) + 1):
                virtual = row + source.top
                if holds[name].get(virtual % source.slots) != virtual:
                    raise PlanError(
                        f"plan of {plan.graph.name}, step {step}: {op.name} reads row {row} of {name} too late"
                    )
            if name == op.output or not buffers[name].birth <= step <= buffers[name].death:
                raise PlanError(f"plan of {plan.graph.name}, step {step}: {op.name} reads dead rows of {name}")
        for row in range(max(entry.rows, 1)):
            holds[entry.tensor][(slot + row) % storage.slots] = (
                storage.top + entry.first_row + number * entry.row_step + row
            )
    if any(calls[op.name] != op.calls for op in plan.ops):
        raise PlanError(f"plan of {plan.graph.name}: the schedule ends too early")
