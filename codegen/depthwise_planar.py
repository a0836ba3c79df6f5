"""Depthwise of wide kernels (5x5, 7x7) for cores with DSP instructions, on planar rows.

A word holds two neighbouring pixels of a channel, and SMLAD makes two products of it. The windows of some output pixels
begin with the first pixel of a word, those of others with the second one: there are weights for both, with a 0 in the
lane that is left over. Up to six pixels of a channel are made together, so that words of pixels and of weights are
loaded once for several of them; `_steps` plans a kernel row, loads in groups, as loads behind each other take 1 cycle.

Padding columns are not stored: words outside a row are left out, and the last half of an odd row is loaded alone. So
the blocks at both ends differ from those between them, which are a loop. Kernel rows have a pointer each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from codegen.call import Call, Cost
from codegen.depthwise import depthwise_numbers
from codegen.depthwise_cost import addition, in_c, leaving, plain, repeated, total
from codegen.layout import PLANAR16, WIDE8, WIDE16
from codegen.requantize import RequantizationView
from mnet.graph import DepthwiseConv2D, Graph, Op

LARGEST_OFFSET = 4095  # of a load or a store
SUMS = ("r4", "r5", "r6", "r7", "r8", "r9")
TEMPORARIES = ("r2", "r3", "r10", "r11", "r12")
MOST_ROWS = 9  # whose pointers the FPU's registers hold
MOST_COLUMNS = 15
LEAST_COLUMNS = 4  # narrower kernels leave too many lanes empty


@dataclass(frozen=True)
class Load:
    """A word of weights, or of two pixels; `half`: the last pixel of a row alone."""

    register: str
    offset: int  # bytes: of weights from those of the kernel row, of pixels from the block's first
    weights: bool
    half: bool = False


@dataclass(frozen=True)
class Product:
    """Two pixels times two weights, added to a sum."""

    sum: str
    pixels: str
    weights: str


Step = Load | Product


@dataclass(frozen=True)
class Block:
    """Neighbouring output pixels of a channel that are made together; `count` such blocks are a loop."""

    pixels: int
    steps: tuple[Step, ...]  # of each kernel row
    before: int  # bytes by which the position in the rows moves first
    step: int  # and after each turn of the loop
    count: int

    @property
    def sums(self) -> tuple[str, ...]:
        """Return the registers of the sums."""
        return SUMS[: self.pixels]


@dataclass(frozen=True)
class PlanarView:
    """Everything that the text depends on. Distances are in bytes."""

    channels: int
    kernel: tuple[int, int]
    width: int  # pixels of an input row
    left: int  # padding columns
    stride: int  # columns
    outputs: int  # pixels of an output row
    input_channel: int
    output_bytes: int  # of a value: 2 in wide16, 1 in wide8
    output_first: int
    output_pixel: int
    requantization: RequantizationView

    @property
    def parities(self) -> tuple[int, ...]:
        """Return in which lanes windows begin: 0 the lower, 1 the upper."""
        return tuple(sorted({(pixel * self.stride - self.left) % 2 for pixel in range(self.outputs)}))

    def weight_words(self, parity: int) -> int:
        """Return the words of a kernel row that begins in a lane."""
        return (parity + self.kernel[1] + 1) // 2

    @property
    def row_words(self) -> int:
        """Return the words of weights of a kernel row."""
        return sum(map(self.weight_words, self.parities))

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel."""
        return self.requantization.words + 1 + self.kernel[0] * self.row_words

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks of a channel's row."""
        plans = []
        first = 0
        for count in _sizes(self.outputs):
            plans.append((count, *_block(self, first, count)))
            first += count
        blocks, position = [], 0
        for (count, steps), same in groupby(plans, lambda plan: (plan[0], plan[2])):
            bases = [base for _, base, _ in same]
            step = bases[1] - bases[0] if len(bases) > 1 else 0
            blocks.append(Block(count, steps, bases[0] - position, step, len(bases)))
            position = bases[0] + step * len(bases)
        return tuple(blocks)

    def places(self, pixels: int) -> tuple[tuple[int, int], ...]:
        """Return for each output pixel of a block (by how much the pointer moves, offset); then the last movement."""
        found, moved = [], 0
        for pixel in range(pixels + 1):
            offset = pixel * self.output_pixel - moved
            move = offset if offset > LARGEST_OFFSET or pixel == pixels else 0
            found.append((move, offset - move))
            moved += move
        return tuple(found)

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return self.requantization.form in ("fast", "shifts")


def _sizes(outputs: int) -> list[int]:
    """Return how many pixels the blocks of a row make.

    >>> _sizes(24), _sizes(7), _sizes(14)
    ([6, 6, 6, 6], [4, 3], [6, 4, 4])
    """
    whole, rest = divmod(outputs, len(SUMS))
    if not rest:
        return [len(SUMS)] * whole
    if not whole:
        return [rest]
    last = len(SUMS) + rest
    return [len(SUMS)] * (whole - 1) + [-(-last // 2), last // 2]


def _block(view: PlanarView, first: int, count: int) -> tuple[int, tuple[Step, ...]]:
    """Return where the pixels of a block begin, in bytes from the row's, and the steps of a kernel row."""
    todo = []  # (sum, word of the row, parity, word of the weights)
    for pixel in range(count):
        column = (first + pixel) * view.stride - view.left
        parity = column % 2
        for word in range(view.weight_words(parity)):
            taps = [(tap, column + tap) for tap in (2 * word - parity, 2 * word - parity + 1)]
            if any(0 <= tap < view.kernel[1] and 0 <= place < view.width for tap, place in taps):
                todo.append((SUMS[pixel], (column - parity) // 2 + word, parity, word))
    base = min((word for _, word, _, _ in todo), default=0)
    orders = (lambda t: (t[3], t[2], t[0]), lambda t: (t[1], t[2], t[3]))
    plans = [_steps(view, sorted(todo, key=order), base) for order in orders]
    return 4 * base, min(plans, key=lambda steps: _row_cost(steps).cycles)


def _steps(view: PlanarView, todo: Sequence[tuple[str, int, int, int]], base: int) -> tuple[Step, ...]:
    """Return loads and products of one kernel row; values stay in registers while they are needed and there is room."""
    first = {parity: view.parities.index(parity) * view.weight_words(0) for parity in view.parities}
    held = dict[tuple[str, int], str]()
    steps = list[Step]()
    while todo:
        wanted = dict[tuple[str, int], None]()  # in order
        group = []
        for total_, word, parity, weights in todo:
            keys = ("x", word), ("w", first[parity] + weights)
            more = [key for key in keys if key not in wanted]
            if len(wanted) + len(more) > len(TEMPORARIES):
                break
            wanted.update(dict.fromkeys(more))
            group.append((total_, *keys))
        held = {key: register for key, register in held.items() if key in wanted}
        free = [register for register in TEMPORARIES if register not in held.values()]
        missing = [key for key in wanted if key not in held]
        held.update(zip(missing, free, strict=False))
        for key in missing:
            kind, number = key
            half = kind == "x" and 2 * number + 1 == view.width
            steps.append(Load(held[key], 4 * (number - base if kind == "x" else number), kind == "w", half))
        steps += [Product(total_, held[x], held[w]) for total_, x, w in group]
        todo = todo[len(group) :]
    return tuple(steps)


def _row_cost(steps: Sequence[Step]) -> Cost:
    """Return what the steps of a kernel row take."""
    cost, waits = plain(2), True  # a load that follows no other one
    for step in steps:
        if isinstance(step, Load):
            near = step.offset < (64 if step.half else 128) and step.register in ("r2", "r3")
            cost = total(cost, Cost(1 + waits, 2 if near else 4))
        else:
            cost = total(cost, plain(1))
        waits = not isinstance(step, Load)
    return cost


def planar_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    del graph
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    height, width, _ = op.weights.shape
    if op.depth_multiplier != 1:
        return f"the depth multiplier is {op.depth_multiplier}, not 1"
    if op.dilation != (1, 1):
        return f"the dilation is {op.dilation[0]}x{op.dilation[1]}, not 1x1"
    if height > MOST_ROWS or not LEAST_COLUMNS <= width <= MOST_COLUMNS:
        return f"the kernel is {height}x{width}: not at most {MOST_ROWS}, {LEAST_COLUMNS} to {MOST_COLUMNS}"
    return None


def planar_view(call: Call) -> PlanarView:
    """Return what the text depends on: planar16 to wide16 or wide8, one output row a call.

    rows are the rows of the window, padding rows included, then the output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and call.rows == 1
    assert source.layout is PLANAR16 and target.layout in (WIDE16, WIDE8)
    return PlanarView(
        channels=source.tensor.shape[2],
        kernel=(op.weights.shape[0], op.weights.shape[1]),
        width=source.width,
        left=op.padding[2],
        stride=op.stride[1],
        outputs=target.width,
        input_channel=source.channel_bytes,
        output_bytes=target.layout.element_bytes,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        requantization=depthwise_numbers(call)[0],
    )


def planar_pack(call: Call, view: PlanarView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each channel:

    the words of the requantisation, the bias, in the form fast times 256 and with the addend; for each kernel row the
    weights as pairs, for each lane in which windows begin; times 256 in the form fast
    """
    assert phase == 0
    _, weights, bias, requantization = depthwise_numbers(call)
    height, width, channels = weights.shape
    if view.requantization.form == "fast":
        weights = 256 * weights
    rows = []
    for parity in view.parities:
        lanes = np.zeros((channels, height, 2 * view.weight_words(parity)), np.int64)
        lanes[:, :, parity : parity + width] = weights.transpose(2, 0, 1)
        rows.append((lanes[:, :, ::2] & 0xFFFF) | (lanes[:, :, 1::2] & 0xFFFF) << 16)
    words = np.concatenate([requantization, bias[:, None], np.concatenate(rows, axis=2).reshape(channels, -1)], axis=1)
    return tuple(int(word) & 0xFFFFFFFF for word in words.ravel())


def planar_cost(view: PlanarView) -> Cost:
    """Return the cost of one call."""
    height, r = view.kernel[0], view.requantization
    if not view.assembly:
        return in_c(view.channels * view.outputs, height * view.kernel[1])
    fast = r.form == "fast"
    channel = Cost(4 + 4, 20) if fast else Cost(3 + 5, 22)
    for block in view.blocks:
        row = _row_cost(block.steps)
        rows = Cost(height * row.cycles, height * row.code_bytes)
        # one multiplier instead of two; the store of each output is counted with it
        leave = total(leaving(r, block.pixels), plain(-1) if fast else plain(1))
        moves = total(*(addition(move) for move, _ in view.places(block.pixels)))
        body = total(plain(block.pixels), rows, leave, moves, plain(2))
        channel = total(channel, addition(block.before))
        if block.count > 1:
            end = total(addition(block.step), plain(1), Cost(1 + 3, 2 + 4))
            before = total(addition(block.count * block.step, moves=True), plain(1))
            body = total(before, repeated(block.count, total(body, end)), Cost(-2, 0))
        channel = total(channel, body)
    far = plain(view.channels * view.input_channel >= 65536)
    after = total(addition(4 * (view.channel_words - r.words - 1)), plain(5), addition(view.input_channel), far)
    channel = total(channel, after, Cost(1 + 3, 2 + 4))
    before = total(Cost(10 + 2, 8), Cost(3 * height, 6 * height), addition(view.output_first), plain(2))
    return total(before, repeated(view.channels, channel), Cost(-2 + 12, 4))
