"""Depthwise of any kernel, stride and dilation for cores with DSP instructions, on rows of interleaved channels.

A word holds two neighbouring channels of a pixel, and so does a word of weights: SMLABB and SMLATT make a product for
each. Two output pixels are made together, so that a weight is loaded once for both; where their windows overlap, a
pixel is too. `row_steps` plans a kernel row: what is loaded when, in groups, as loads behind each other take 1 cycle.

Padding lies in memory. All kernel rows and columns are unrolled; pairs of pixels and pairs of channels are loops.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call, Cost
from codegen.depthwise import depthwise_numbers
from codegen.depthwise_cost import addition, in_c, leaving, plain, repeated, total
from codegen.layout import WIDE8, WIDE16
from codegen.requantize import RequantizationView
from mnet.graph import DepthwiseConv2D, Graph, Op

LARGEST_OFFSET = 4095  # of a load or a store
TEMPORARIES = ("r2", "r3", "r4", "r5", "r6", "r7", "r8")
MOST_ROWS = 9  # whose pointers the FPU's registers hold
MOST_TAPS = 81  # unrolled


@dataclass(frozen=True)
class Load:
    """A word of weights, which follow each other, or of a pixel."""

    register: str
    column: int | None  # None: weights


@dataclass(frozen=True)
class Widen:
    """Two bytes become the lanes of a word."""

    widened: str


@dataclass(frozen=True)
class Product:
    """A word of a pixel times one of weights, for one of the output pixels."""

    pixel: int
    values: str
    weights: str


Step = Load | Widen | Product


@dataclass(frozen=True)
class WideView:
    """Everything that the text depends on. Distances are in bytes."""

    channels: int  # even where there is an assembly body
    kernel: tuple[int, int]
    row_step: int  # row pointers from kernel row to kernel row
    dilation: int  # columns
    stride: int  # columns
    outputs: int  # pixels of a row
    input_bytes: int  # of a value: 2 in wide16, 1 in wide8
    input_first: int
    input_pixel: int
    output_bytes: int  # of a value: 2 in wide16, 1 in wide8
    output_first: int
    output_pixel: int
    requantization: RequantizationView

    @property
    def pixels(self) -> int:
        """Return how many output pixels are made together."""
        return min(2, self.outputs)

    @property
    def blocks(self) -> int:
        """Return the blocks of a row; of an odd row the second one begins with the last pixel of the first."""
        return -(-self.outputs // self.pixels)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the plan of a kernel row."""
        return row_steps(self.kernel[1], self.stride, self.dilation, self.pixels, self.input_bytes == 1)

    @property
    def channel_words(self) -> int:
        """Return the constants of two channels."""
        return 2 + 2 * self.requantization.words + self.kernel[0] * self.kernel[1]

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        reach = (self.stride + (self.kernel[1] - 1) * self.dilation) * self.input_pixel
        return (
            self.requantization.form in ("fast", "shifts")
            and self.channels % 2 == 0
            and reach <= LARGEST_OFFSET
            and self.input_first + self.input_pixel < 65536
            and self.output_pixel <= LARGEST_OFFSET
            and self.input_pixel % (2 * self.input_bytes) == 0
            and self.output_pixel % (2 * self.output_bytes) == 0
        )


def row_steps(taps: int, stride: int, dilation: int, pixels: int, packed: bool) -> tuple[Step, ...]:
    """Return loads and products of one kernel row; values stay in registers while they are needed and there is room."""
    todo = [(pixel, pixel * stride + tap * dilation, tap) for tap in range(taps) for pixel in range(pixels)]
    held = dict[tuple[str, int], str]()
    steps = list[Step]()
    while todo:
        wanted = dict[tuple[str, int], None]()  # in order
        group = list[tuple[int, int, int]]()
        for product in todo:
            more = [key for key in (("w", product[2]), ("x", product[1])) if key not in wanted]
            if len(wanted) + len(more) > len(TEMPORARIES):
                break
            wanted.update(dict.fromkeys(more))
            group.append(product)
        held = {key: register for key, register in held.items() if key in wanted}
        free = [register for register in TEMPORARIES if register not in held.values()]
        missing = [key for key in wanted if key not in held]
        held.update(zip(missing, free, strict=False))
        steps += [Load(held[key], key[1] if key[0] == "x" else None) for key in missing]
        steps += [Widen(held[key]) for key in missing if packed and key[0] == "x"]
        steps += [Product(pixel, held["x", column], held["w", tap]) for pixel, column, tap in group]
        todo = todo[len(group) :]
    return tuple(steps)


def wide_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    del graph
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    if op.depth_multiplier != 1:
        return f"the depth multiplier is {op.depth_multiplier}, not 1"
    if op.weights.shape[0] > MOST_ROWS:
        return f"the kernel has {op.weights.shape[0]} rows, more than {MOST_ROWS}"
    if op.weights.shape[0] * op.weights.shape[1] > MOST_TAPS:
        return f"the kernel has {op.weights.shape[0] * op.weights.shape[1]} taps, more than {MOST_TAPS}"
    return None


def wide_view(call: Call) -> WideView:
    """Return what the text depends on: wide16 or wide8, input with its padding in memory, one output row a call.

    rows are the rows of the window, those between dilated kernel rows included, then the output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and call.rows == 1
    assert source.layout in (WIDE16, WIDE8) and target.layout in (WIDE16, WIDE8)
    # An odd channel gets a partner where memory has one, so that channels can be taken two at a time.
    channels = source.tensor.shape[2]
    channels += channels % 2 and min(source.stored_channels, target.stored_channels) > channels
    return WideView(
        channels=channels,
        kernel=(op.weights.shape[0], op.weights.shape[1]),
        row_step=op.dilation[0],
        dilation=op.dilation[1],
        stride=op.stride[1],
        outputs=target.width,
        input_bytes=source.layout.element_bytes,
        input_first=(source.left - op.padding[2]) * source.pixel_bytes,
        input_pixel=source.pixel_bytes,
        output_bytes=target.layout.element_bytes,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        requantization=depthwise_numbers(call)[0],
    )


def wide_pack(call: Call, view: WideView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each two channels:

    the words of the requantisation of both, then the biases of both, in the form fast times 256 and with the addend
    for each tap, row by row, a word of the weights of both; times 256 in the form fast
    """
    assert phase == 0
    _, weights, bias, requantization = depthwise_numbers(call)
    live, r = len(bias), view.requantization
    pairs = (view.channels + 1) // 2
    numbers = np.zeros((2 * pairs, r.words + 1), np.int64)
    numbers[:live, : r.words], numbers[:live, -1] = requantization, bias
    lanes = np.zeros((2 * pairs, view.kernel[0] * view.kernel[1]), np.int64)
    lanes[:live] = weights.reshape(-1, live).T * (256 if r.form == "fast" else 1)
    words = np.concatenate(
        [
            numbers[:, : r.words].reshape(pairs, -1),
            numbers[:, -1].reshape(pairs, 2),
            (lanes[::2] & 0xFFFF) | (lanes[1::2] & 0xFFFF) << 16,
        ],
        axis=1,
    )
    return tuple((words.ravel() & 0xFFFFFFFF).tolist())


def wide_cost(view: WideView) -> Cost:
    """Return the cost of one call."""
    if not view.assembly:
        return in_c(view.channels * view.outputs, view.kernel[0] * view.kernel[1])
    kernel_row = Cost(2, 6)
    waits = True  # a load that follows no other one
    for step in view.steps:
        if isinstance(step, Load):
            near = step.column is not None and step.column * view.input_pixel < 64 * view.input_bytes
            kernel_row = total(kernel_row, Cost(1 + waits, 2 if near and step.register != TEMPORARIES[-1] else 4))
        else:
            kernel_row = total(kernel_row, plain(2))
        waits = not isinstance(step, Load)
    height = view.kernel[0]
    rows = Cost(height * kernel_row.cycles, height * kernel_row.code_bytes)
    # The constants of both channels are taken; stores are joined.
    fast = view.requantization.form == "fast"
    leave = total(leaving(view.requantization, 2 * view.pixels), plain(1) if fast else Cost(7 - 2, 4 - 8))
    if view.outputs % view.pixels:
        move = Cost(6, 20)
    else:
        move = total(addition(view.pixels * view.stride * view.input_pixel), addition(view.pixels * view.output_pixel))
    end = total(move, plain(2), addition(view.outputs * view.stride * view.input_pixel), Cost(1 + 3, 2 + 4))
    block = total(plain(1 + 2 * view.pixels), rows, leave, end)
    next_pair = total(plain(4), addition(2 * view.output_bytes - view.outputs * view.output_pixel), Cost(1 + 3, 2 + 4))
    pair = total(Cost(5 + 6, 28) if fast else Cost(3 + 6, 28), repeated(view.blocks, block), Cost(-2, 0), next_pair)
    before = total(Cost(10 + 2, 8), Cost(3 * height, 6 * height), addition(view.output_first), plain(2))
    return total(before, repeated(view.channels // 2, pair), Cost(-2 + 12, 4))
