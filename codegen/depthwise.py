"""Depthwise 3x3 for cores with DSP instructions: what the text of `depthwise_dsp` depends on, and its constants.

The input is planar and centred: padding is 0. How the pixels of a row meet the weights is in codegen/depthwise_row.py.

The three rows of a window are reached through one pointer. They lie one behind the other in a tensor that is stored
whole; in a ring of three slots they lie in any rotation, and the kernel rows are rotated with them: `depthwise_pack`.
Rows that lie apart have a pointer each. Their distances are the same in all channels, so that one pointer moves, word
by word through all channels of the first row, and the others are found from it.

One call makes one row, or all rows of a tensor that is stored whole. Small maps are written out row by row; larger
ones loop over the rows that do not touch padding.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from codegen.call import Call
from codegen.depthwise_row import Quad, Word, row_quads, row_words
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16, Storage, align4
from codegen.requantize import RequantizationView, accumulator_range, requantizer
from mnet.fixed_point import Int64Array
from mnet.graph import DepthwiseConv2D, Graph, Op

LARGEST_OFFSET = 4095  # of a load or a store
MAX_STRAIGHT_WORDS = 96  # words of all the rows of a channel that are unrolled; about 100 bytes of code each
STRAIGHT_PIXELS = 64  # maps up to this size are written out row by row
ROUND_WORDS = 6  # a round of the loop over rows takes as many rows as give so many words
PAIRED_OUTPUTS = 24  # up to here two channels are unrolled, to share the loop
FEW_OUTPUTS = 8  # and up to here four


@dataclass(frozen=True)
class Line:
    """One output row: (row of the window, bytes from the pointer) of the input rows that are not padding."""

    taps: tuple[tuple[int, int], ...]
    output: int  # bytes from the output pointer


@dataclass(frozen=True)
class Block:
    """Lines that are written out. With several rounds they are a loop, and each round moves both pointers."""

    lines: tuple[Line, ...]
    rounds: int = 1
    input_step: int = 0  # bytes
    output_step: int = 0


@dataclass(frozen=True)
class Layer:
    """What the C body has to know where rows are looped over."""

    rows: int  # of the output
    height: int  # of the input
    top: int  # padding rows
    slot: int  # bytes from row to row


@dataclass(frozen=True)
class Output:
    """How many channels there are, and where their values go. Distances are in bytes."""

    channels: int
    first: int
    pixel: int
    row: int


@dataclass(frozen=True)
class DepthwiseView:
    """Everything that the text of a depthwise convolution depends on. Distances are in bytes."""

    width: int  # of the input
    left: int  # padding columns, which are not stored
    stride: int
    outputs: int  # pixels of a row
    blocks: tuple[Block, ...]
    layer: Layer | None  # None: one block of one round
    input_bytes: int  # of a pixel: 2 in planar16, 1 in planar8
    input_channel: int
    output_bytes: int  # of a value: 2 in wide16, 1 in wide8
    output: Output | None  # None: read from the constants, so that layers of one map share the text
    constants: Literal["pairs", "bytes", "phases"]  # of depthwise_pack
    requantization: RequantizationView
    apart: bool  # a pointer for each row of the window

    @property
    def lines(self) -> tuple[Line, ...]:
        """Return the output rows that are written out."""
        return tuple(line for block in self.blocks for line in block.lines)

    @property
    def rows(self) -> int:
        """Return the output rows of a call."""
        return sum(block.rounds * len(block.lines) for block in self.blocks)

    @property
    def words(self) -> tuple[Word, ...]:
        """Return the plan of one row, by words of two pixels; none where there are quads."""
        if self.quads:
            return ()
        return row_words(self.width, self.left, self.stride, self.outputs, self.input_bytes == 1)

    @property
    def quads(self) -> tuple[Quad, ...]:
        """Return the plan of one row by words of four pixels, where that is cheaper."""
        return row_quads(self.width, self.left, self.outputs) if (self.input_bytes, self.stride) == (1, 2) else ()

    @property
    def pointers(self) -> int:
        """Return the pointers to input rows."""
        return 3 if self.apart else 1

    @property
    def advance(self) -> tuple[int, int]:
        """Return by how much a round of the channel loop moves the pointers to input and output, before its end."""
        if self.apart:
            return self.unroll * self.input_channel, 0
        return (
            sum(block.rounds * block.input_step for block in self.blocks),
            sum(block.rounds * block.output_step for block in self.blocks),
        )

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel."""
        return {"pairs": 7, "bytes": 4, "phases": 6}[self.constants] + self.requantization.words

    @property
    def _reach(self) -> int:
        return max(offset for line in self.lines for _, offset in line.taps) + align4(self.input_bytes * self.width)

    @property
    def unroll(self) -> int:
        """Return the channels of one round of the channel loop."""
        outputs = self.rows * self.outputs
        most = 4 if outputs <= FEW_OUTPUTS else 2 if outputs <= PAIRED_OUTPUTS else 1
        if self.layer or not self.output:  # the rows move the pointers
            return 1
        channels = self.output.channels
        return next(
            count
            for count in (4, 2, 1)
            if count <= most
            and channels % count == 0
            and (count == 1 or (count - 1) * self.input_channel + self._reach <= LARGEST_OFFSET)
        )

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return (
            self.requantization.form in ("fast", "shifts")
            and self._reach <= LARGEST_OFFSET
            and len(self.lines) * self.width <= 2 * MAX_STRAIGHT_WORDS
        )


def depthwise_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    del graph
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    if op.weights.shape[:2] != (3, 3):
        return f"the kernel is {op.weights.shape[0]}x{op.weights.shape[1]}, not 3x3"
    if op.depth_multiplier != 1:
        return f"the depth multiplier is {op.depth_multiplier}, not 1"
    if op.stride not in ((1, 1), (2, 2)):
        return f"the stride is {op.stride[0]}x{op.stride[1]}, not 1x1 or 2x2"
    if op.dilation != (1, 1):
        return f"the dilation is {op.dilation[0]}x{op.dilation[1]}, not 1x1"
    if max(op.padding) > 1:
        return "more than one pixel of padding"
    return None


def depthwise_numbers(call: Call) -> tuple[RequantizationView, Int64Array, Int64Array, Int64Array]:
    """Return (form, weights [3, 3, channels], bias [channels], words of the requantisation [channels, words]).

    The bias is for stored inputs, and ready for the requantisation: in the form fast times 256 and with the addend.
    """
    op, source = call.op, call.inputs[0]
    assert isinstance(op, DepthwiseConv2D) and call.requantization is not None
    how = requantizer(call.requantization, *accumulator_range(call))
    weights = op.weights.astype(np.int64)
    weights[:, :, how.constant] = 0
    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    bias = how.bias(op.bias - (source.tensor.zero_point - source.offset) * weights.sum((0, 1)))
    if how.view.form == "fast":
        bias = 256 * bias + how.delta
    return how.view, weights, bias, how.words


def _blocks(call: Call, source: Storage, row: int, straight: int) -> tuple[Block, ...]:
    """Return the output rows of a call: written out, or with a loop over those that do not touch padding.

    `row` is the distance of output rows in bytes; maps of up to `straight` pixels are written out.
    """
    op = call.op
    assert isinstance(op, DepthwiseConv2D)
    slot = source.slot_bytes
    if call.rows == 1:
        return (Block((Line(tuple((i, 0 if source.apart else i * slot) for i in range(3)), 0),)),)

    def line(number: int, first: int = 0) -> Line:
        """Return output row `number`, seen from pointers that stand at output row `first`."""
        top = number * op.stride[0] - op.padding[0]
        moved = first * op.stride[0]
        taps = ((i, (top + i - moved) * slot) for i in range(3) if 0 <= top + i < source.height)
        return Line(tuple(taps), (number - first) * row)

    if max(source.height * source.width, call.rows * call.output.width) <= straight:
        return (Block(tuple(map(line, range(call.rows)))),)
    inner = [number for number in range(call.rows) if len(line(number).taps) == 3]
    each = -(-2 * ROUND_WORDS // (source.width + 1))
    rounds = len(inner) // each
    if rounds < 2:
        return (Block(tuple(map(line, range(call.rows)))),)
    first = inner[0] + len(inner) % each  # what does not fill a round comes before the loop
    after = rounds * each
    return (
        Block(tuple(map(line, range(first)))),
        Block(tuple(map(line, range(first, first + each))), rounds, each * op.stride[0] * slot, each * row),
        Block(tuple(line(number, after) for number in range(first + after, call.rows))),
    )


def _ring(call: Call) -> bool:
    return call.rows == 1 and call.inputs[0].slots == 3 and not call.inputs[0].apart


def depthwise_shares(call: Call, compact: bool) -> bool:
    """Return whether a view may be `shared`: its outputs lie one behind the other, its constants have one form."""
    target = call.output
    in_turn = call.rows == 1 or target.slot_bytes == target.width * target.pixel_bytes
    return in_turn and not (compact and _ring(call))


def depthwise_view(
    call: Call, compact: bool = False, shared: bool = False, straight: int = STRAIGHT_PIXELS
) -> DepthwiseView:
    """Return what the text depends on. Input planar16 or planar8, output wide16 or wide8.

    rows[0] is, for one output row, the first slot of a ring of three, or the top row of the window in a tensor stored
    whole, padding rows included; for several output rows it is row 0 of the tensor. rows[1] is the first output row.
    Of rows that lie apart, rows[0..2] are the rows of the window, padding rows included, and rows[3] is the output row.

    `compact`: a third of the constants, for some more cycles per channel and call. `shared`: the text serves any number
    of channels and any distance of output pixels, for 1.5 cycles more per output. `straight`: whole maps of up to so
    many pixels are written out, larger ones loop over rows, in less code.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D)
    assert source.layout in (PLANAR16, PLANAR8) and target.layout in (WIDE16, WIDE8)
    assert source.slots == 3 or source.whole or (source.apart and call.rows == 1)
    # An odd channel gets a partner where memory has one, so that the loop can take two at a time.
    channels = source.tensor.shape[2]
    channels += channels % 2 and min(source.stored_channels, target.stored_channels) > channels
    output = Output(channels, target.left * target.pixel_bytes, target.pixel_bytes, target.slot_bytes)
    assert not shared or depthwise_shares(call, compact)
    blocks = _blocks(call, source, 0 if shared else target.slot_bytes, straight)
    return DepthwiseView(
        width=source.width,
        left=op.padding[2],
        stride=op.stride[1],
        outputs=target.width,
        blocks=blocks,
        layer=Layer(call.rows, source.height, op.padding[0], source.slot_bytes) if len(blocks) > 1 else None,
        input_bytes=source.layout.element_bytes,
        input_channel=source.channel_bytes,
        output_bytes=target.layout.element_bytes,
        output=None if shared else output,
        constants="pairs" if not compact else "phases" if _ring(call) else "bytes",
        requantization=depthwise_numbers(call)[0],
        apart=source.apart,
    )


def _pairs(weights: Int64Array, words: Int64Array) -> None:
    """Write P of three kernel rows, then Q of them, as pairs of 16 bits."""
    for row in range(3):
        words[:, row] = (weights[row, 0] & 0xFFFF) | (weights[row, 1] & 0xFFFF) << 16
        words[:, 3 + row] = (weights[row, 1] & 0xFFFF) | (weights[row, 2] & 0xFFFF) << 16


def depthwise_pack(call: Call, view: DepthwiseView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each channel:

        pairs   P of the rows in slots 0, 1, 2 of the input, then Q of them; times 256 in the form fast
        bytes   a word for each kernel row, w0 w1 w1 w2: bytes 0 and 2 are P, bytes 1 and 3 are Q
        phases  the same of rows 2 1 0 2 1: for phase p, those that meet slots 2, 1, 0 begin at word p
        then    the words of the requantisation, then the bias, in the form fast times 256 and with the addend

    `phase` is the slot of the ring that holds the top row of the window: that slot meets kernel row 0. It is 0 unless
    the input is a ring of three slots.

    In the form phases, three words before the first channel say how far its requantisation is from its kernel rows.
    The constants of phase p are those of phase 0 without the first p words: one array serves all three.

    Without an output in the view, three words before the first channel are the distances, in bytes, of the first
    output from the start of the output row, of pixels, and of the end of the channels.
    """
    target = call.output
    assert phase == 0 or _ring(call)
    _, weights, bias, requantization = depthwise_numbers(call)
    live, fast = len(bias), view.requantization.form == "fast"
    channels = view.output.channels if view.output else live
    ends = [target.left * target.pixel_bytes, target.pixel_bytes, live * view.output_bytes] if not view.output else []
    words = np.zeros((channels, view.channel_words), np.int64)
    words[:live, -1] = bias
    words[:live, -1 - view.requantization.words : -1] = requantization
    if view.constants == "pairs":
        # slot (phase + i) % 3 holds row i of the window
        _pairs(np.roll(weights, phase, axis=0) * (256 if fast else 1), words[:live])
        return tuple(int(word) & 0xFFFFFFFF for word in [*ends, *words.ravel()])
    count = 5 if view.constants == "phases" else 3
    for place in range(count):
        row = weights[place if count == 3 else (2 - place) % 3] & 0xFF
        words[:live, place] = row[0] | row[1] << 8 | row[1] << 16 | row[2] << 24
    before = [4 * (count - i) for i in range(3)] if view.constants == "phases" else ends
    return tuple(int(word) & 0xFFFFFFFF for word in [*before, *words.ravel()][phase:])
