"""The certificate of a plan: a lower bound of the arena, and why no schedule of its class gets below it.

The class: whole rows, made from the top down, each once (no recompute), in other bytes than those that the call reads.
A state of such a run is one count for each op: the calls that are done. While a call runs, the rows that it reads, the
row that it makes, and every other row that was made and will still be read are live. The bound is the largest over all
calls of the fewest live bytes over all states in which that call can run: every run passes each call in some state. A
call that makes several rows is never better than one call for each, in the same order.

The fewest live bytes are found by min-sum elimination: the bytes of a tensor depend on its own count and on those of
its readers only. Two bounds come out: at a byte for each value, which no layout beats, and with the plan's layouts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from codegen.layout import SUMS32, Storage
from codegen.plan import Plan, PlannedOp

_LARGEST = 1 << 22  # cells of a table; where more were needed, a tensor counts for its first reader only
_NEVER = np.inf

Array = npt.NDArray[np.float64]
RowBytes = Callable[[Storage], int]


@dataclass(frozen=True)
class Certificate:
    """How far a plan is from what is possible."""

    arena_bytes: int
    live_bytes: int  # most bytes live at one step of the plan
    bound_bytes: int  # no plan of whole rows and these layouts has fewer
    value_bound_bytes: int  # the same at a byte for each value: whatever the layouts

    @property
    def percent(self) -> float:
        """Return how much the arena exceeds the bound of its layouts."""
        return 100 * (self.arena_bytes / self.bound_bytes - 1)

    @property
    def value_percent(self) -> float:
        """Return how much the arena exceeds the bound of any layouts."""
        return 100 * (self.arena_bytes / self.value_bound_bytes - 1)


def certificate(plan: Plan) -> Certificate:
    """Return the lower bounds of a plan and its distance from them."""
    return Certificate(
        plan.arena_bytes, plan.live_bytes, lower_bound(plan, stored_row_bytes), lower_bound(plan, value_row_bytes)
    )


def stored_row_bytes(storage: Storage) -> int:
    """Return the bytes of one row as it lies in the arena."""
    return storage.buffer_bytes // storage.slots


def value_row_bytes(storage: Storage) -> int:
    """Return the bytes of one row at a byte for each value; sums have four."""
    _, width, channels = storage.tensor.shape
    return width * channels * (4 if storage.layout.element_bytes == 4 else 1)


@dataclass(frozen=True)
class _Table:
    """A function of some counts: one axis for each, in this order."""

    names: tuple[str, ...]
    values: Array


def lower_bound(plan: Plan, row_bytes: RowBytes = value_row_bytes) -> int:
    """Return bytes that every run of the plan's ops has live at some call; see the head of this file for the argument.

    Args:
        plan: its ops are read, not its schedule or addresses.
        row_bytes: of one row of a tensor.
    """
    counts = _counts(plan)
    tables = [table for name in counts for table in _tables(plan, name, counts, row_bytes(plan.storage[name]))]
    order = list(counts)
    bound = 0.0
    for name in order:
        new = np.full(counts[name] + 1, float(row_bytes(plan.storage[name])))
        new[counts[name] :] = _NEVER  # no call is left
        if plan.storage[name].layout is SUMS32:  # all calls add to one row
            new[1 : counts[name]] = 0
        running = [_Table((name,), new)]
        maker = next((op for op in plan.ops if op.output == name), None)
        if maker:
            running += [_ready(plan, maker, source, counts) for source in maker.inputs]
        before, after = order[: order.index(name)], order[order.index(name) + 1 :]
        least = _minimum([*tables, *running], [*before, *reversed(after)])
        bound = max(bound, float(least[: counts[name]].max(initial=0)))
    if plan.input_mode == "arena":
        bound = max(bound, float(sum(np.prod(plan.graph.tensors[name].shape) for name in plan.graph.inputs)))
    return int(bound)


def _counts(plan: Plan) -> dict[str, int]:
    """Return for each tensor the calls that make it, at one row each, in topological order."""
    counts = {name: plan.storage[name].height for name in plan.graph.inputs}
    for op in plan.ops:
        counts[op.output] = op.calls if op.kernel.consumes_rows else plan.storage[op.output].height
    return counts


def _window(op: PlannedOp, source: str, call: int) -> tuple[int, int]:
    """Return first row and end of the rows of `source` that one row of `op` takes."""
    single = op.call if op.kernel.consumes_rows else replace(op.call, rows=1)
    height = op.call.inputs[op.inputs.index(source)].height
    first, last = op.kernel.window(single, op.inputs.index(source), call)
    return min(max(first, 0), height), min(max(last + 1, 0), height)


def _calls_for(plan: Plan, source: str, rows: int, counts: Mapping[str, int]) -> int:
    """Return after how many calls so many rows of `source` are complete."""
    return counts[source] if plan.storage[source].layout is SUMS32 and rows else rows


def _ready(plan: Plan, op: PlannedOp, source: str, counts: Mapping[str, int]) -> _Table:
    """Return 0 where the rows are there that the next call of `op` reads, else infinity: [source, op]."""
    table = np.full((counts[source] + 1, counts[op.output] + 1), _NEVER)
    for call in range(counts[op.output]):
        table[_calls_for(plan, source, _window(op, source, call)[1], counts) :, call] = 0
    return _Table((source, op.output), table)


def _possible(plan: Plan, op: PlannedOp, source: str, counts: Mapping[str, int]) -> _Table:
    """Return 0 where the rows are there that the calls of `op` read so far, else infinity: [source, op]."""
    table = np.full((counts[source] + 1, counts[op.output] + 1), _NEVER)
    needed = 0
    for call in range(counts[op.output] + 1):
        table[needed:, call] = 0
        if call < counts[op.output]:
            needed = max(needed, _calls_for(plan, source, _window(op, source, call)[1], counts))
    return _Table((source, op.output), table)


def _live_rows(plan: Plan, op: PlannedOp, source: str, counts: Mapping[str, int]) -> Array:
    """Return how many rows are made that `op` will still read: [count of source, count of op]."""
    windows = [_window(op, source, call) for call in range(counts[op.output])]
    height = plan.storage[source].height
    live = np.zeros((counts[source] + 1, counts[op.output] + 1))
    wanted = np.zeros(height, bool)  # by the calls from this one on; rows between strides are not
    for call in range(counts[op.output] - 1, -1, -1):
        wanted[slice(*windows[call])] = True
        rows = np.concatenate(([0], np.cumsum(wanted)))
        if plan.storage[source].layout is SUMS32:
            live[1:, call] = rows[-1]
        else:
            live[:, call] = rows
    return live


def _tables(plan: Plan, name: str, counts: Mapping[str, int], row_bytes: int) -> list[_Table]:
    """Return the bytes of a tensor's live rows and what its readers may have done."""
    readers = [op for op in plan.ops if name in op.inputs]
    tables = [_possible(plan, op, name, counts) for op in readers]
    sizes = [counts[name] + 1, *(counts[op.output] + 1 for op in readers)]
    if np.prod(sizes) > _LARGEST:
        readers, sizes = readers[:1], sizes[:2]
    live = np.zeros(sizes)
    for axis, op in enumerate(readers, 1):
        shape = [sizes[0], *(size if other == axis else 1 for other, size in enumerate(sizes[1:], 1))]
        live = np.maximum(live, _live_rows(plan, op, name, counts).reshape(shape))
    if name in plan.graph.outputs:  # stays
        live = np.maximum(live, np.arange(sizes[0], dtype=np.float64).reshape(-1, *[1] * len(readers)))
    return [*tables, _Table((name, *(op.output for op in readers)), live * row_bytes)]


def _sum(tables: Sequence[_Table]) -> _Table:
    """Return the sum of tables over all their counts."""
    names = tuple(dict.fromkeys(name for table in tables for name in table.names))
    total: Array = np.zeros([1] * len(names))
    for table in tables:
        axes = sorted(range(len(table.names)), key=lambda axis: names.index(table.names[axis]))
        shape = [1] * len(names)
        for axis in axes:
            shape[names.index(table.names[axis])] = table.values.shape[axis]
        total = total + table.values.transpose(axes).reshape(shape)
    return _Table(names, total)


def _minimum(tables: Sequence[_Table], eliminated: Sequence[str]) -> Array:
    """Return the least sum of `tables` over the `eliminated` counts: a vector over the one that is left.

    Where a table would be too large, the least of each part of the sum is taken, which is no more than that of all.
    """
    left = list(tables)
    for name in eliminated:
        groups = _grouped([table for table in left if name in table.names])
        left = [table for table in left if name not in table.names]
        for group in groups:
            total = _sum(group)
            axis = total.names.index(name)
            names = tuple(other for other in total.names if other != name)
            left.append(_Table(names, total.values.min(axis=axis)))
    return _sum(left).values.reshape(-1)


def _grouped(tables: Sequence[_Table]) -> list[list[_Table]]:
    """Return the tables in groups, as few as have sums of at most so many cells."""
    groups: list[tuple[dict[str, int], list[_Table]]] = []
    for table in tables:
        sizes = dict(zip(table.names, table.values.shape, strict=True))
        for known, group in groups:
            if math.prod((known | sizes).values()) <= _LARGEST:
                known |= sizes
                group.append(table)
                break
        else:
            groups.append((sizes, [table]))
    return [group for _, group in groups]
