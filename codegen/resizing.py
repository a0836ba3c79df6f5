"""Resizing by rows: one call makes one row of the output from the one or two rows of the input around it.

Bilinear weights are 10 bits in the runtimes. Those of a whole network's rows and columns often end in zeros, for a
picture of twice the size in eight of them; without these the four weights of a mean may add up to 256 or less, and the
weighted sum of stored values fits into 16 bits: then two channels share a word.
"""

from dataclasses import dataclass, replace

import numpy as np

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, wide_rows
from codegen.passes import Passes, passes
from codegen.targets import Target
from mnet.graph import Graph, Op, Resize, Sampling
from mnet.windows import Grid, grid, nearest

FRACTION = 10  # bits of a position
MOST_LANE_BITS = 4  # of a weight along one axis: 255 * 2**8 + 2**7 < 2**16


def _resize(call: Call) -> Resize:
    assert isinstance(call.op, Resize)
    return call.op


def _position(call: Call, number: int) -> int:
    op = _resize(call)
    return int(grid(op, call.inputs[0].height, 0).positions(op.size[0])[number])


def rows_read(call: Call, which: int, number: int) -> tuple[int, ...]:
    """Return the row that is nearest, or the two that lie around; twice the same where the other has no weight."""
    op, height = _resize(call), call.inputs[0].height
    if op.sampling is Sampling.NEAREST:
        return (int(nearest(op, height, 0)[number]),)
    row, weight = divmod(_position(call, number), 1 << FRACTION)
    return row, min(row + (weight > 0), height - 1)


def phase(call: Call, number: int) -> int:
    """Return the weight of the second row, in 1024ths."""
    if _resize(call).sampling is Sampling.NEAREST:
        return 0
    first, second = rows_read(call, 0, number)
    return _position(call, number) % (1 << FRACTION) if first != second else 0


@dataclass(frozen=True)
class NearestView:
    """A row of pixels that are copied; which ones, the constants say."""

    over: Passes


def nearest_view(call: Call) -> NearestView:
    """Return the view of a Resize that takes the nearest pixel; in words where they are stored as they are loaded."""
    over = passes(call.inputs[0], call.output, True)
    return NearestView(replace(over, words=over.words and over.same))


def nearest_pack(call: Call, view: NearestView, phase: int) -> tuple[int, ...]:
    """Return the column that each pixel of the output takes, two to a word."""
    columns = nearest(_resize(call), call.inputs[0].width, 1).astype("<u2")
    return tuple(int(word) for word in np.append(columns, np.zeros(len(columns) % 2, "<u2")).view("<u4"))


def nearest_cost(view: NearestView) -> Cost:
    """Return what compiled C takes, roughly."""
    each = 4 + 4 * view.over.units if view.over.words else 9
    return Cost(20 + view.over.target.width * (12 + each * len(view.over.channels)), 80)


@dataclass(frozen=True)
class BilinearView:
    """A row of means of four pixels: of each two neighbours in two rows."""

    over: Passes
    columns: Grid
    bits: int  # of a weight along one axis

    @property
    def shift(self) -> int:
        """Return the bits of the product of two weights."""
        return 2 * self.bits

    @property
    def ones(self) -> int:
        """Return 1 in each lane."""
        return 0x10001 if self.over.words else 1

    @property
    def start(self) -> int:
        """Return what a sum starts from: what rounds to nearest, halves down, and what makes quantized + 128 of it."""
        addend = 0 if self.over.words else (self.over.source.offset + 128) << self.shift
        return ((1 << (self.shift - 1)) - 1 + addend) * self.ones & 0xFFFFFFFF

    @property
    def gathered(self) -> tuple[str, ...]:
        """Return the variables of the sums."""
        return ("first", "second") if self.over.words else ("first",)

    def tap(self, name: str, row: str, place: str, weight: str) -> list[str]:
        """Return the statements that add the units of one pixel."""
        loads = self.over.loads(row, place)
        if self.over.words and not self.over.halves:
            word = f"word = {loads[0]}{' ^ 0x80808080u' * self.over.signed};"
            parts = (f"{name}_uxtab16(0, word)", f"{name}_uxtab16_odd(0, word)")
            return [word, *(f"{v} += {part} * {weight};" for v, part in zip(self.gathered, parts, strict=True))]
        if self.over.words:
            return [f"{v} += {load} * {weight};" for v, load in zip(self.gathered, loads, strict=True)]
        return [f"first += (uint32_t){loads[0]} * {weight};"]

    def rounded(self, value: str) -> str:
        """Return quantized + 128 of a sum; halves go up from 0 on, away from it.

        The highest bit of a sum is that of 128, which stands for 0. Below 0 it is set from -0.5 on, excluded, too; one
        more does not take such a sum over 0.
        """
        mask = "0x00ff00ffu" if self.over.words else "0xffu"
        return f"({value} + ({value} >> {self.shift + 7} & {self.ones:#x}u)) >> {self.shift} & {mask}"

    def stores(self, name: str) -> list[str]:
        """Return the statements that store the channels of a pass; words as they are where that will do."""
        over = self.over
        if not over.words:
            return over.stores(["(int32_t)first"])
        if not over.same:
            return over.stores([f"(int32_t){lane}" for lane in over.lanes])
        words = ["first", "second"] if over.halves else [f"(first | second << 8){' ^ 0x80808080u' * over.signed}"]
        return [f"(({name}_word *)out)[{i}] = {word};" for i, word in enumerate(words)]


def bilinear_view(call: Call) -> BilinearView:
    """Return the view of a bilinear Resize."""
    op, source = _resize(call), call.inputs[0]
    columns = grid(op, source.width, 1)
    weights = [phase(call, number) for number in range(op.size[0])]
    weights += [int(p) % (1 << FRACTION) for p in columns.positions(op.size[1]) if p >> FRACTION < source.width - 1]
    zeros = min(((weight & -weight).bit_length() - 1 for weight in weights if weight), default=FRACTION)
    bits = max(FRACTION - zeros, 1)
    return BilinearView(passes(source, call.output, bits <= MOST_LANE_BITS), columns, bits)


def bilinear_pack(call: Call, view: BilinearView, phase: int) -> tuple[int, ...]:
    """Return the weight of the second row."""
    return (phase >> (FRACTION - view.bits),)


def bilinear_cost(view: BilinearView) -> Cost:
    """Return what compiled C takes, roughly."""
    each = (49 if view.over.same else 56) if view.over.words else 22
    return Cost(40 + view.over.target.width * (22 + each * len(view.over.channels)), 280 if view.over.words else 185)


def _samples(op: Op, graph: Graph, target: Target, sampling: Sampling) -> str | None:
    return None if isinstance(op, Resize) and op.sampling is sampling else f"not a {sampling.value} resize"


KERNELS = (
    Kernel(
        family="resize_nearest",
        template="resize_nearest.c.j2",
        accepts=lambda op, graph, target: _samples(op, graph, target, Sampling.NEAREST),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=nearest_view,
        pack=nearest_pack,
        cost=lambda call, view: nearest_cost(view),
        rows_read=rows_read,
    ),
    Kernel(
        family="resize_bilinear",
        template="resize_bilinear.c.j2",
        accepts=lambda op, graph, target: _samples(op, graph, target, Sampling.BILINEAR),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=bilinear_view,
        pack=bilinear_pack,
        cost=lambda call, view: bilinear_cost(view),
        rows_read=rows_read,
        phase=phase,
    ),
)
