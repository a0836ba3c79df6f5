"""A lower bound of the live bytes of all orders: the largest, over all calls, of the fewest when that call can run.

Every order passes each call in some state. The fewest live bytes over all states in which it can run are found by
min-sum elimination: a unit's bytes depend on the counts of the few ops that touch it only, and so do the conditions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.minimax import CallOf, Problem

_LARGEST = 1 << 22  # cells of a table; a unit that asks for more counts until the first of its last calls only

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """A function of the counts of some ops: one axis for each, in this order."""

    ops: tuple[int, ...]
    values: Array


def lower_bound(problem: Problem) -> int:
    """Return bytes that every order has live at some call; one that needs no search."""
    tables = [*_conditions(problem), *_live(problem)]
    born = list(_born(problem))
    bound = float(sum(unit.size for unit in problem.units if not unit.born))
    for op, count in enumerate(problem.calls):
        can_run = np.full(count + 1, np.inf)
        can_run[:count] = 0
        running = [_Table((op,), can_run), *_ready(problem, op), *(table for maker, table in born if maker == op)]
        others = [*range(op), *range(len(problem.calls) - 1, op, -1)]
        bound = max(bound, float(_minimum([*tables, *running], others)[:count].max(initial=0)))
    return int(bound)


def _conditions(problem: Problem) -> Iterator[_Table]:
    """Yield for each two ops 0 where the counts may be, else infinity."""
    for op, calls in enumerate(problem.needs):
        for other in {other for before in calls for other, _ in before}:
            values = np.full((problem.calls[other] + 1, len(calls) + 1), np.inf)
            needed = 0
            for number, before in enumerate([(), *calls]):
                needed = max([needed, *(count for source, count in before if source == other)])
                values[needed:, number] = 0
            yield _Table((other, op), values)


def _ready(problem: Problem, op: int) -> Iterator[_Table]:
    """Yield 0 where the next call of `op` has what it needs, else infinity."""
    calls = problem.needs[op]
    for other in {other for before in calls for other, _ in before}:
        values = np.full((problem.calls[other] + 1, len(calls) + 1), np.inf)
        for number, before in enumerate(calls):
            values[max((count for source, count in before if source == other), default=0) :, number] = 0
        yield _Table((other, op), values)


def _mask(problem: Problem, ops: Sequence[int], calls: Sequence[CallOf]) -> npt.NDArray[np.bool_]:
    """Return over the counts of `ops` whether all of `calls` are done."""
    done = np.ones([1] * len(ops), bool)
    for op, number in calls:
        shape = [1] * len(ops)
        shape[ops.index(op)] = problem.calls[op] + 1
        done = done & (np.arange(problem.calls[op] + 1) > number).reshape(shape)
    return done


def _begun(problem: Problem, ops: Sequence[int], calls: Sequence[CallOf]) -> npt.NDArray[np.bool_]:
    """Return over the counts of `ops` whether one of `calls` is done."""
    none = np.ones([1] * len(ops), bool)
    for call in calls:
        none = none & ~_mask(problem, ops, [call])
    return ~none


def _live(problem: Problem) -> Iterator[_Table]:
    """Yield the live bytes between calls: a table for each set of ops that touch some units."""
    sums: dict[tuple[int, ...], Array] = {}
    for unit in problem.units:
        dies = unit.dies
        ops = tuple(sorted({op for op, _ in (*unit.born, *dies)}))
        if math.prod(problem.calls[op] + 1 for op in ops) > _LARGEST:
            dies = dies[:1]
            ops = tuple(sorted({op for op, _ in (*unit.born[:1], *dies)}))
        born = unit.born if all(op in ops for op, _ in unit.born) else unit.born[:1]
        live = _begun(problem, ops, born) if born else np.ones([1] * len(ops), bool)
        if dies:
            live = live & ~_mask(problem, ops, dies)
        if ops not in sums:
            sums[ops] = np.zeros([problem.calls[op] + 1 for op in ops])
        sums[ops] += unit.size * live
    return (_Table(ops, values) for ops, values in sums.items())


def _born(problem: Problem) -> Iterator[tuple[int, _Table]]:
    """Yield the bytes that the next call of an op makes live, with that op."""
    sums: dict[tuple[int, tuple[int, ...]], Array] = {}
    for unit in problem.units:
        ops = tuple(sorted(op for op, _ in unit.born))
        if math.prod(problem.calls[op] + 1 for op in ops) > _LARGEST:
            continue
        for op, number in unit.born:
            others = [call for call in unit.born if call[0] != op]
            shape = [1] * len(ops)
            shape[ops.index(op)] = problem.calls[op] + 1
            next_call = (np.arange(problem.calls[op] + 1) == number).reshape(shape)
            if (op, ops) not in sums:
                sums[op, ops] = np.zeros([problem.calls[other] + 1 for other in ops])
            sums[op, ops] += unit.size * (next_call & ~_begun(problem, ops, others))
    return ((op, _Table(ops, values)) for (op, ops), values in sums.items())


def _sum(tables: Sequence[_Table]) -> _Table:
    """Return the sum of tables over all their counts."""
    ops = tuple(dict.fromkeys(op for table in tables for op in table.ops))
    total: Array = np.zeros([1] * len(ops))
    for table in tables:
        axes = sorted(range(len(table.ops)), key=lambda axis: ops.index(table.ops[axis]))
        shape = [1] * len(ops)
        for axis in axes:
            shape[ops.index(table.ops[axis])] = table.values.shape[axis]
        total = total + table.values.transpose(axes).reshape(shape)
    return _Table(ops, total)


def _minimum(tables: Sequence[_Table], eliminated: Sequence[int]) -> Array:
    """Return the least sum of `tables` over the `eliminated` counts: a vector over the one that is left.

    Where a table would be too large, the least of each part of the sum is taken, which is no more than that of all.
    """
    left = list(tables)
    for op in eliminated:
        groups = _grouped([table for table in left if op in table.ops])
        left = [table for table in left if op not in table.ops]
        for group in groups:
            total = _sum(group)
            axis = total.ops.index(op)
            ops = tuple(other for other in total.ops if other != op)
            left.append(_Table(ops, total.values.min(axis=axis)))
    return _sum(left).values.reshape(-1)


def _grouped(tables: Sequence[_Table]) -> list[list[_Table]]:
    """Return the tables in groups, as few as have sums of at most so many cells."""
    groups: list[tuple[dict[int, int], list[_Table]]] = []
    for table in tables:
        sizes = dict(zip(table.ops, table.values.shape, strict=True))
        for known, group in groups:
            if math.prod((known | sizes).values()) <= _LARGEST:
                known |= sizes
                group.append(table)
                break
        else:
            groups.append((sizes, [table]))
    return [group for _, group in groups]
