"""Pools by rows: one call makes one row of the output from the rows of the input that its windows cover.

Rows above and below the map are never read. A maximum reads the row at the edge again instead; a mean reads as many
rows as there are, and gets other constants. Channels are taken four at a time where they are whole words: bytes become
two pairs of 16-bit lanes, which hold the sum of 257 stored values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, wide_rows
from codegen.passes import Passes, passes, plus
from codegen.plain import as_word
from codegen.targets import Target
from mnet.graph import AveragePool2D, Graph, MaxPool2D, Op, Pool2D

SHIFT = 24  # of a mean: quantized + 128 = (sum * factor + addend) >> 24, in 32 bits
MOST_TAPS = 25  # of a window that is written tap by tap
MOST_LANES = 65535 // 255  # values that 16 bits hold the sum of


@dataclass(frozen=True)
class PoolView:
    """A row of a pool."""

    over: Passes
    kernel: tuple[int, int]  # rows that a call gets, columns of the widest window
    stride: int
    left: int  # columns of padding
    window: int  # columns of the kernel, padding included
    maximum: bool  # else mean
    exact: bool  # a mean by factor and addend; else by a division
    all_rows: bool  # every call reads all the rows that it gets; else the first constant says how many
    columns: int  # the least number of columns in a window
    low: int
    high: int

    @property
    def all_columns(self) -> bool:
        """Return whether every window lies between the first and the last column."""
        return self.columns == self.window

    @property
    def unrolled(self) -> bool:
        """Return whether whole windows are written tap by tap."""
        return self.kernel[0] * self.kernel[1] <= MOST_TAPS

    @property
    def loops(self) -> bool:
        """Return whether there are windows that are not."""
        return not (self.unrolled and self.all_rows and self.all_columns)

    @property
    def whole(self) -> str:
        """Return the condition that a window is as large as the largest."""
        conditions = [f"height == {self.kernel[0]}"] * (not self.all_rows)
        return " && ".join([*conditions, *[f"width == {self.kernel[1]}"] * (not self.all_columns)])

    @property
    def in_bytes(self) -> bool:
        """Return whether the largest values are found in bytes, all four in one word."""
        return self.over.words and self.maximum and not self.over.halves

    @property
    def gathered(self) -> tuple[str, ...]:
        """Return the variables that a window is gathered in."""
        return ("first", "second") if self.over.words and not self.in_bytes else ("first",)

    @property
    def start(self) -> str:
        """Return what they start from."""
        if not self.maximum:
            return "0"
        return ("0x80808080u" if self.over.signed else "0") if self.over.words else "INT16_MIN"

    def tap(self, name: str, loads: Sequence[str]) -> list[str]:
        """Return the statements that take in the units of one pixel."""
        over = self.over
        if over.words and self.maximum:
            larger = f"{name}_umax16" if over.halves else f"{name}_smax8" if over.signed else f"{name}_umax8"
            return [f"{v} = {larger}({v}, {load});" for v, load in zip(self.gathered, loads, strict=True)]
        if over.words and not over.halves:  # bytes become lanes
            word = f"word = {loads[0]}{' ^ 0x80808080u' * over.signed};"
            return [word, f"first = {name}_uxtab16(first, word);", f"second = {name}_uxtab16_odd(second, word);"]
        if over.words:
            return [f"{v} += {load};" for v, load in zip(self.gathered, loads, strict=True)]
        return [f"first = {loads[0]} > first ? {loads[0]} : first;" if self.maximum else f"first += {loads[0]};"]

    @property
    def values(self) -> tuple[str, ...]:
        """Return quantized + 128 of each channel of a pass."""
        over = self.over
        if not self.exact:
            return ("mean + 128",)
        if not self.maximum:
            sums = over.lanes if over.words else ("(uint32_t)first",)
            return tuple(f"(int32_t)(({total} * factor + addend) >> {SHIFT})" for total in sums)
        if self.in_bytes:
            flipped = " ^ 0x80808080u" * over.signed
            return tuple(f"(int32_t)((first{flipped}) >> {shift} & 0xffu)" for shift in (0, 8, 16, 24))
        return (
            tuple(f"(int32_t){lane}" for lane in over.lanes)
            if over.words
            else (f"first{plus(over.source.offset + 128)}",)
        )

    def stores(self, name: str) -> list[str]:
        """Return the statements that store the channels of a pass; words as they are where that will do."""
        clamps = (self.low, self.high) != (-128, 127)
        if self.maximum and self.over.words and self.over.same and not clamps:
            return [f"(({name}_word *)out)[{i}] = {variable};" for i, variable in enumerate(self.gathered)]
        limits = f"{self.low + 128}, {self.high + 128}"
        return self.over.stores([f"{name}_limit({v}, {limits})" if clamps else v for v in self.values])


def _pool(call: Call) -> Pool2D:
    assert isinstance(call.op, AveragePool2D | MaxPool2D)
    return call.op


def _covered(op: Pool2D, axis: int, number: int, size: int) -> range:
    """Return the rows (axis 0) or columns (1) of the map that lie in window `number`."""
    first = number * op.stride[axis] - op.padding[2 * axis]
    return range(max(first, 0), min(first + op.kernel[axis], size))


def _counts(call: Call, axis: int) -> list[int]:
    """Return how many rows or columns each window has."""
    size, windows = ((s.height, s.width)[axis] for s in (call.inputs[0], call.output))
    return [len(_covered(_pool(call), axis, number, size)) for number in range(windows)]


def rows_read(call: Call, which: int, number: int) -> tuple[int, ...]:
    """Return the rows that a call gets: those of its windows, the last one repeated up to as many as others have."""
    rows = _covered(_pool(call), 0, number, call.inputs[0].height)
    return (*rows, *[rows[-1]] * (max(_counts(call, 0)) - len(rows)))


def phase(call: Call, number: int) -> int:
    """Return how many rows fewer than others a mean is taken of."""
    counts = _counts(call, 0)
    return 0 if isinstance(call.op, MaxPool2D) else max(counts) - counts[number]


@lru_cache(maxsize=4096)
def solve_mean(count: int) -> tuple[int, int] | None:
    """Return (factor, addend) so that (sum * factor + addend) >> 24 is the mean of `count` values, or None.

    Values are quantized + 128, the sum of them is 0..255 * count. The mean reaches k at the sum count * k - count / 2,
    rounded up; where count is even one later for k <= 128, since halves go away from zero. A slope that is steeper than
    1 / count by 1 / (512 * count**2) crosses k between that sum and the one before on both sides of 128. Both sides of
    the equation rise with the sum, so they agree everywhere if they do at these 255 sums and the ones before.
    """
    factor = round(Fraction(1 << SHIFT, count) * (1 + Fraction(count % 2 == 0, 512 * count)))
    starts = [(count * k - count // 2 + (count % 2 == 0 and k <= 128), k << SHIFT) for k in range(1, 256)]
    least = max(0, *(bound - start * factor for start, bound in starts))
    most = min(
        (256 << SHIFT) - 1 - 255 * count * factor, *(bound - 1 - (start - 1) * factor for start, bound in starts)
    )
    return (factor, (least + most) // 2) if least <= most else None


def pool_view(call: Call, dsp: bool) -> PoolView:
    """Return the view of a pool; `dsp`: for a core whose instructions find the larger values of two words."""
    op, source = _pool(call), call.inputs[0]
    maximum = isinstance(op, MaxPool2D)
    rows, columns = _counts(call, 0), _counts(call, 1)
    largest = max(rows) * max(columns)
    exact = maximum or all(solve_mean(r * c) for r in set(rows) for c in range(min(columns), max(columns) + 1))
    fits = dsp if maximum else exact and largest <= MOST_LANES
    return PoolView(
        over=passes(source, call.output, fits),
        kernel=(max(rows), max(columns)),
        stride=op.stride[1],
        left=op.padding[2],
        window=op.kernel[1],
        maximum=maximum,
        exact=exact,
        all_rows=maximum or min(rows) == max(rows),
        columns=min(columns),
        low=op.activation[0],
        high=op.activation[1],
    )


def pool_pack(call: Call, view: PoolView, phase: int) -> tuple[int, ...]:
    """Return of a mean the number of rows, if it varies, and for each number of columns factor and addend.

    The addend is for the sum of stored values, of words that are quantized + 128. Without a factor: the number of
    values, and what their offsets add to the sum.
    """
    if view.maximum:
        return ()
    rows = view.kernel[0] - phase
    words = [] if view.all_rows else [rows]
    offset = 0 if view.over.words else view.over.source.offset + 128
    for columns in range(view.columns, view.kernel[1] + 1):
        count = rows * columns
        solved = solve_mean(count)
        if view.exact:
            assert solved is not None
            words += [solved[0], as_word(solved[1] + count * offset * solved[0])]
        else:
            words += [count, as_word(count * view.over.source.offset)]
    return tuple(words)


def pool_cost(view: PoolView) -> Cost:
    """Return what compiled C takes, roughly: a window tap by tap, or in loops over rows and columns."""
    over = view.over
    lefts = [pixel * view.stride - view.left for pixel in range(over.target.width)]
    widths = [min(left + view.window, over.source.width) - max(left, 0) for left in lefts]
    height, width = view.kernel
    tap = {True: 9 if over.halves else 4.5, False: 7 if over.halves else 5.5}[view.maximum] if over.words else 4.5
    store = (6 if over.same else 16) if view.maximum else 22
    windows = 0.0
    for columns in widths:
        looped = height * (20 + columns * (tap + 3))
        windows += height * columns * tap if view.unrolled and columns == width else looped
        windows += store if over.words else 3
    of_tap = 24 if over.words and over.halves and view.maximum else 13
    code = (90 if over.words and not (view.maximum and over.same) else 40) + 150 * view.loops
    return Cost(
        round(10 + 5 * len(widths) + windows * len(over.channels)),
        code + of_tap * height * width * view.unrolled,
    )


def _accepts(op: Op, graph: Graph, target: Target, dsp: bool) -> str | None:
    if not isinstance(op, AveragePool2D | MaxPool2D):
        return "not a pool"
    return None if target.dsp == dsp else "other instructions do better"


KERNELS = tuple(
    Kernel(
        family="pool",
        template="pool.c.j2",
        accepts=partial(_accepts, dsp=dsp),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=partial(pool_view, dsp=dsp),
        pack=pool_pack,
        cost=lambda call, view: pool_cost(view),
        rows_read=rows_read,
        phase=phase,
    )
    for dsp in (True, False)
)
