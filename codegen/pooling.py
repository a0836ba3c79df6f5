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
from codegen.layout import BYTES8, WIDE8, WIDE16, Storage
from codegen.plain import Access, access, as_word
from codegen.targets import Target
from mnet.graph import AveragePool2D, Graph, MaxPool2D, Op, Pool2D

SHIFT = 24  # of a mean: quantized + 128 = (sum * factor + addend) >> 24, in 32 bits
MOST_TAPS = 25  # of a window that is written tap by tap
_BYTES = (("first", ""), ("second", "_odd"))  # lanes of bytes 0, 2 and of bytes 1, 3
MOST_LANES = 65535 // 255  # values that 16 bits hold the sum of


@dataclass(frozen=True)
class PoolView:
    """A row of a pool."""

    source: Access
    target: Access
    kernel: tuple[int, int]  # rows that a call gets, columns of the widest window
    stride: int
    left: int  # columns of padding
    window: int  # columns of the kernel, padding included
    maximum: bool  # else mean
    words: bool  # four channels at a time
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
    def passes(self) -> range:
        """Return the first channel of each pass over a window."""
        return range(0, self.target.channels, 4 if self.words else 1)

    @property
    def signed(self) -> bool:
        """Return whether bytes are quantized as they are, not + 128."""
        return self.source.c_type == "int8_t"

    @property
    def halves(self) -> bool:
        """Return whether a word is two channels; else it is four."""
        return self.source.c_type == "int16_t"

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a stored value of the input."""
        return 2 if self.halves else 1

    @property
    def units(self) -> int:
        """Return the loads that one pass takes from each pixel: words, or a value."""
        return self.value_bytes if self.words else 1

    @property
    def unit_step(self) -> int:
        """Return the units from one pass to the next."""
        return self.units if self.words else self.source.channel

    @property
    def pixel(self) -> int:
        """Return the units from pixel to pixel."""
        return self.in_units(self.source.pixel)

    def in_units(self, elements: int) -> int:
        """Return a distance in units."""
        return elements * self.value_bytes // 4 if self.words else elements

    def loads(self, row: str, place: str, first: int) -> list[str]:
        """Return the units of one pixel, `first` units from a place in a row."""
        return [f"{row}[{place}{_plus(first + unit)}]" for unit in range(self.units)]

    @property
    def whole(self) -> str:
        """Return the condition that a window is as large as the largest."""
        conditions = [f"height == {self.kernel[0]}"] * (not self.all_rows)
        return " && ".join([*conditions, *[f"width == {self.kernel[1]}"] * (not self.all_columns)])

    @property
    def gathered(self) -> tuple[str, ...]:
        """Return the variables that a window is gathered in."""
        return ("first", "second") if self.words and (self.halves or not self.maximum) else ("first",)

    @property
    def start(self) -> str:
        """Return what they start from."""
        if not self.maximum:
            return "0"
        return ("0x80808080u" if self.signed else "0") if self.words else "INT16_MIN"

    def tap(self, name: str, loads: Sequence[str]) -> list[str]:
        """Return the statements that take in the units of one pixel."""
        if self.words and self.maximum:
            larger = f"{name}_umax16" if self.halves else f"{name}_smax8" if self.signed else f"{name}_umax8"
            return [f"{v} = {larger}({v}, {load});" for v, load in zip(self.gathered, loads, strict=True)]
        if self.words and not self.halves:  # bytes become lanes
            word = f"{loads[0]} ^ 0x80808080u" if self.signed else loads[0]
            return [f"word = {word};", *(f"{v} = {name}_uxtab16{odd}({v}, word);" for v, odd in _BYTES)]
        if self.words:
            return [f"{v} += {load};" for v, load in zip(self.gathered, loads, strict=True)]
        return [f"first = {loads[0]} > first ? {loads[0]} : first;" if self.maximum else f"first += {loads[0]};"]

    @property
    def values(self) -> tuple[str, ...]:
        """Return the stored value of each channel of a pass."""
        if self.maximum and self.words and not self.halves:
            raw = [f"(int32_t)(first >> {shift} & 0xffu)" for shift in (0, 8, 16, 24)]
            raw = [f"({value} ^ 128)" for value in raw] if self.signed else raw
        elif self.words:
            lanes = [(v, upper) for v in self.gathered for upper in (False, True)]
            if not self.halves:  # bytes 0, 2 and 1, 3
                lanes = [lanes[i] for i in (0, 2, 1, 3)]
            raw = [f"({v} >> 16)" if upper else f"({v} & 0xffffu)" for v, upper in lanes]
            raw = [f"(int32_t){value}" for value in raw] if self.maximum else raw
        else:
            raw = [f"first{_plus(self.source.offset + 128)}" if self.maximum else "(uint32_t)first"]
        if not self.exact:
            return ("mean + 128",)
        if not self.maximum:
            raw = [f"(int32_t)(({value} * factor + addend) >> {SHIFT})" for value in raw]
        return tuple(raw)

    @property
    def copies(self) -> bool:
        """Return whether words are stored as they are: a maximum within one layout."""
        same = (self.source.c_type, self.source.offset) == (self.target.c_type, self.target.offset)
        return self.maximum and self.words and same and self.target.channel == 1 and not self.clamps

    @property
    def clamps(self) -> bool:
        """Return whether the activation limits what int8 does not."""
        return (self.low, self.high) != (-128, 127)


def _plus(constant: int) -> str:
    return f" {'+' if constant > 0 else '-'} {abs(constant)}" if constant else ""


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


def _words(source: Storage, target: Storage) -> bool:
    """Return whether channels can be taken four at a time, those behind the last one included."""
    return source.layout in (WIDE16, WIDE8, BYTES8) and source.stored_channels % 4 == target.stored_channels % 4 == 0


def pool_view(call: Call, dsp: bool) -> PoolView:
    """Return the view of a pool; `dsp`: for a core whose instructions find the larger values of two words."""
    op, source = _pool(call), call.inputs[0]
    maximum = isinstance(op, MaxPool2D)
    rows, columns = _counts(call, 0), _counts(call, 1)
    largest = max(rows) * max(columns)
    exact = maximum or all(solve_mean(r * c) for r in set(rows) for c in range(min(columns), max(columns) + 1))
    fits = dsp if maximum else exact and largest <= MOST_LANES
    return PoolView(
        source=access(source),
        target=access(call.output),
        kernel=(max(rows), max(columns)),
        stride=op.stride[1],
        left=op.padding[2],
        window=op.kernel[1],
        maximum=maximum,
        words=fits and _words(source, call.output),
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
    offset = 0 if view.words else view.source.offset + 128
    for columns in range(view.columns, view.kernel[1] + 1):
        count = rows * columns
        solved = solve_mean(count)
        if view.exact:
            assert solved is not None
            words += [solved[0], as_word(solved[1] + count * offset * solved[0])]
        else:
            words += [count, as_word(count * view.source.offset)]
    return tuple(words)


def pool_cost(view: PoolView) -> Cost:
    """Return what compiled C takes, roughly: a window tap by tap, or in loops over rows and columns."""
    lefts = [pixel * view.stride - view.left for pixel in range(view.target.width)]
    widths = [min(left + view.window, view.source.width) - max(left, 0) for left in lefts]
    height, width = view.kernel
    tap = {True: 9 if view.halves else 4.5, False: 7 if view.halves else 5.5}[view.maximum] if view.words else 4.5
    store = (6 if view.copies else 16) if view.maximum else 22
    windows = 0.0
    for columns in widths:
        looped = height * (20 + columns * (tap + 3))
        windows += height * columns * tap if view.unrolled and columns == width else looped
        windows += store if view.words else 3
    of_tap = 24 if view.words and view.halves and view.maximum else 13
    code = (90 if view.words and not view.copies else 40) + 150 * view.loops
    return Cost(
        round(10 + 5 * len(widths) + windows * len(view.passes)),
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
