"""How a tensor may lie while a given order of calls runs: together in a ring, or each row apart; and what that takes.

Together, the rows of a tensor lie in the slots of one buffer at a fixed address. Apart, every row has an address of its
own and its bytes are free as soon as it is dead: least RAM, but a kernel needs a pointer for each row, and what lies
beside a row has to be set for each anew.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from codegen.layout import SUMS32, Storage
from codegen.memory import merged
from codegen.schedule import Span
from codegen.selection import Stage
from mnet.graph import DepthwiseConv2D

FILL_STEP_CYCLES = 50  # the loop's and the fill's own
FILL_WORD_CYCLES = 1.3

Lives = Mapping[int, Span]  # virtual row -> steps


class FillKind(Enum):
    """What a fill sets."""

    ALL = "all"  # once, before the first row: padding above and beside, or sums that start at 0
    ROW = "row"  # one padding row
    SIDES = "sides"  # the padding beside one row


@dataclass(frozen=True)
class Fill:
    """Padding to be set before a step."""

    step: int
    kind: FillKind
    row: int  # virtual


@dataclass(frozen=True)
class Unit:
    """One buffer: all slots of a tensor, or one row that lies apart, and when it is live."""

    tensor: str
    row: int | None  # virtual; None: all slots
    size: int  # bytes
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Return a name that no other unit has."""
        return self.tensor if self.row is None else f"{self.tensor}[{self.row}]"


@dataclass(frozen=True, eq=False)
class Form:
    """One way in which a tensor may lie, and what it takes."""

    storage: Storage
    units: tuple[Unit, ...]
    fills: tuple[Fill, ...]
    live: npt.NDArray[np.int64]  # [steps]: bytes
    cycles: int  # of the fills

    @property
    def key(self) -> tuple[str, bool]:
        """Return what tells the forms of one tensor in one order from each other."""
        return self.storage.layout.name, self.storage.apart


def form_of(storage: Storage, stages: Sequence[Stage], lives: Lives, steps: int, output: bool) -> Form:
    """Return what a tensor takes in this storage, whose slots are fitted to the rows that live together.

    Args:
        storage: as a reader needs it.
        stages: all; those that make and read the tensor matter.
        lives: of its rows.
        steps: how many there are.
        output: whether it is one of the network's, which stay to the end.
    """
    name = storage.tensor.name
    lives = _in_order(storage, lives)
    real = range(storage.top, storage.top + storage.height)
    begin = min(lives[row][0] for row in real if row in lives)
    known = {row: (begin, span[1]) if row < storage.top and not storage.apart else span for row, span in lives.items()}
    if storage.apart:
        fitted = storage
        size = storage.slot_bytes
        units = [Unit(name, row, size, (span,)) for row, span in sorted(known.items())]
        fills = _fills_apart(storage, known)
    else:
        wanted = storage.virtual_rows if output else _most_together(known)
        fitted = replace(storage, slots=_slots(storage, stages, wanted))
        if fitted.filled_below:
            known |= {row: (begin, span[1]) for row, span in known.items() if row >= real.stop}
        spans = merged(known.values())
        if output:
            spans = merged([*spans, (begin, steps - 1)])
        if fitted.filled_beside or fitted.layout is SUMS32:
            spans = ((spans[0][0], spans[-1][1]),)  # what lies beside the rows was set once
        units = [Unit(name, None, fitted.buffer_bytes, spans)]
        fills = _fills_together(fitted, known, begin)
    return Form(fitted, tuple(units), tuple(fills), _live(units, steps), _cycles(fitted, fills))


def live_of(storage: Storage, stages: Sequence[Stage], lives: Lives, steps: int, output: bool) -> npt.NDArray[np.int64]:
    """Return `form_of(...).live`, the bytes at each step, and nothing else: searches for an order ask often."""
    if not storage.apart:
        return form_of(storage, stages, lives, steps, output).live
    changes, size = [0] * (steps + 1), storage.slot_bytes
    for first, last in _in_order(storage, lives).values():
        changes[first] += size
        changes[last + 1] -= size
    return np.cumsum(changes[:-1])


def _in_order(storage: Storage, lives: Lives) -> Lives:
    """Return lives in which padding rows are set one after the other, none left out: the table of fills counts upwards.

    Readers with different windows may want the second row above before the first, or leave one out.
    """
    if storage.top < 2 and storage.bottom < 2:
        return lives
    ordered = dict(lives)
    end = storage.top + storage.height
    for rows in ([row for row in lives if row < storage.top], [row for row in lives if row >= end]):
        for row in range(max(rows, default=0) - 1, min(rows, default=0) - 1, -1):
            step = ordered[row + 1][0]
            ordered[row] = (min(step, lives[row][0]), lives[row][1]) if row in lives else (step, step)
    return ordered


def _most_together(lives: Lives) -> int:
    """Return how many slots keep rows that live at one time from each other."""
    rows = sorted(lives)
    births = np.maximum.accumulate([lives[row][0] for row in rows])
    newest = np.searchsorted(births, [lives[row][1] for row in rows], side="right") - 1
    return max(rows[int(last)] - row for row, last in zip(rows, newest, strict=True)) + 1


def _slots(storage: Storage, stages: Sequence[Stage], wanted: int) -> int:
    """Return as few slots as do for `wanted` rows and the kernels can address."""
    name = storage.tensor.name
    if wanted >= storage.height or any(stage.output == name and stage.rows > 1 for stage in stages):
        return storage.virtual_rows
    slots = wanted
    for reader in stages:
        if name not in reader.inputs:
            continue
        if reader.rows > 1 or reader.reads_whole:
            return storage.virtual_rows  # one pointer, all rows
        if storage.layout.planar and isinstance(reader.op, DepthwiseConv2D):  # one pointer, a ring of the window
            height = int(reader.op.weights.shape[0])
            slots = height if slots <= height else storage.virtual_rows
    return min(slots, storage.virtual_rows)


def _fills_together(storage: Storage, lives: Lives, begin: int) -> list[Fill]:
    fills = [Fill(begin, FillKind.ALL, 0)] if storage.padded or storage.layout is SUMS32 else []
    end = storage.top + storage.height
    if not storage.filled_below:
        fills += [Fill(lives[row][0], FillKind.ROW, row) for row in sorted(lives) if row >= end]
    return fills


def _fills_apart(storage: Storage, lives: Lives) -> list[Fill]:
    real = range(storage.top, storage.top + storage.height)
    fills = [Fill(lives[row][0], FillKind.ROW, row) for row in sorted(lives) if row not in real]
    if storage.filled_beside:
        fills += [Fill(lives[row][0], FillKind.SIDES, row) for row in sorted(lives) if row in real]
    return fills


def _live(units: Sequence[Unit], steps: int) -> npt.NDArray[np.int64]:
    changes = np.zeros(steps + 1, np.int64)
    for unit in units:
        for first, last in unit.spans:
            changes[first] += unit.size
            changes[last + 1] -= unit.size
    return np.cumsum(changes[:-1])


def _cycles(storage: Storage, fills: Sequence[Fill]) -> int:
    words = {
        FillKind.ALL: storage.buffer_bytes if not storage.layout.planar else storage.top * storage.slot_bytes,
        FillKind.ROW: storage.slot_bytes,
        FillKind.SIDES: len(storage.padding_columns) * storage.pixel_bytes,
    }
    if storage.layout.planar and not storage.apart:
        words = {kind: count * storage.stored_channels for kind, count in words.items() if kind != FillKind.SIDES}
    return round(sum(FILL_STEP_CYCLES + FILL_WORD_CYCLES * words[fill.kind] / 4 for fill in fills))


def _sides_are_runs(storage: Storage) -> bool:
    """Return whether the padding beside a row is one run of words, or two of equal length."""
    left, right = storage.left * storage.pixel_bytes, storage.right * storage.pixel_bytes
    behind = left + storage.width * storage.pixel_bytes if right else 0  # where that on the right begins
    return left % 4 == right % 4 == behind % 4 == 0 and (left == right or not left or not right)


def is_one_buffer(storage: Storage, stages: Sequence[Stage], output: bool) -> bool:
    """Return whether a tensor lies in one buffer of all its rows in any order, live without a gap."""
    name = storage.tensor.name
    if output or storage.layout is SUMS32 or storage.virtual_rows == 1:
        return True
    whole_rows = any(stage.rows > 1 for stage in stages)
    return whole_rows or any(stage.reads_whole for stage in stages if name in stage.inputs)


def may_lie_apart(storage: Storage, stages: Sequence[Stage], outputs: Collection[str]) -> bool:
    """Return whether each row of a tensor may have an address of its own, if its readers take a pointer for each."""
    name = storage.tensor.name
    if name in outputs or storage.layout is SUMS32 or storage.virtual_rows == 1:
        return False
    if storage.filled_beside and not _sides_are_runs(storage):
        return False
    makers = [stage for stage in stages if stage.output == name]
    readers = [stage for stage in stages if name in stage.inputs]
    return all(stage.rows == 1 for stage in makers) and not any(
        stage.rows > 1 or stage.reads_whole for stage in readers
    )
