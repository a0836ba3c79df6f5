"""Depthwise convolutions for cores with vectors (MVE): what the text of `depthwise_mve` depends on, and its constants.

Lanes are eight neighbouring channels of a pixel; two pixels are made together, so that a weight is loaded once for
both. A product of two int8 values has 16 bits, and so has the sum of a few: taps are taken in groups whose sum fits 16
bits for every input and channel, and only the sum of a group is widened and added to the accumulators. Two taps always
fit, unless both weights are -128.

Channels are stored in fours. The last of an odd number of fours shares its eight channels with the four before, which
are made twice; a tensor of four channels alone is read and written with predication.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import BYTES8, align4
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.graph import DepthwiseConv2D, Graph, Int8Array, Op

LANES = 8
LARGEST_OFFSET = 127  # of a load or store of bytes
MOST_TAPS = 64  # they are unrolled, for two pixels
RESIDENT_ROWS = 3  # whose pointers, two each, stay in registers; loads that widen take r0..r7 only


@dataclass(frozen=True)
class DepthwiseView:
    """Everything that the text depends on. Distances are in bytes, from the start of a row's slot."""

    kernel: tuple[int, int]
    groups: tuple[int, ...]  # how many taps, in row order, are summed in 16 bits
    channels: int  # stored ones
    pixels: int  # of an output row
    pointers: int  # input rows
    row_step: int  # input rows from kernel row to kernel row
    input_first: int  # the first window
    input_column: int  # from tap to tap
    input_pixel: int  # from window to window
    output_first: int
    output_pixel: int
    requantization: RequantizationView

    @property
    def starts(self) -> tuple[int, ...]:
        """Return the first channel of each eight."""
        return starts_of(self.channels)

    @property
    def few(self) -> bool:
        """Return whether there are four channels only."""
        return self.channels < LANES

    @property
    def taps(self) -> int:
        """Return the taps of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def block_words(self) -> int:
        """Return the constants of eight channels."""
        return LANES * (1 + self.requantization.words) + LANES // 4 * self.taps

    @property
    def group_ends(self) -> tuple[int, ...]:
        """Return the taps that end a group."""
        return tuple(int(end) - 1 for end in np.cumsum(self.groups))

    @property
    def group_starts(self) -> tuple[int, ...]:
        """Return the taps that start a group."""
        return (0, *(end + 1 for end in self.group_ends[:-1]))

    @property
    def resident(self) -> bool:
        """Return whether the pointers to pixels stay in registers."""
        return self.kernel[0] <= RESIDENT_ROWS

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps


def starts_of(channels: int) -> tuple[int, ...]:
    """Return the first channel of each eight.

    >>> starts_of(4), starts_of(16), starts_of(20)
    ((0,), (0, 8), (0, 8, 12))
    """
    if channels <= LANES:
        return (0,)
    return tuple(min(start, channels - LANES) for start in range(0, channels, LANES))


def groups_of(weights: Int8Array) -> tuple[int, ...]:
    """Return how many of the taps [taps, channels], in their order, are summed together in 16 bits.

    >>> groups_of(np.array([[100], [100], [50], [6], [127], [127]], np.int8))
    (4, 2)
    """
    wide = weights.astype(np.int64)
    groups: list[int] = []
    positive, negative = np.zeros((2, wide.shape[1]), np.int64)
    for tap in wide:
        more = positive + np.maximum(tap, 0), negative - np.minimum(tap, 0)
        # inputs are -128..127
        fits = (127 * more[0] + 128 * more[1] < 1 << 15) & (128 * more[0] + 127 * more[1] <= 1 << 15)
        if groups and fits.all():
            groups[-1] += 1
            positive, negative = more
        else:
            groups.append(1)
            positive, negative = np.maximum(tap, 0), -np.minimum(tap, 0)
    return tuple(groups)


def depthwise_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    if op.depth_multiplier != 1:
        return f"the depth multiplier is {op.depth_multiplier}, not 1"
    height, width, channels = op.weights.shape
    if height * width > MOST_TAPS:
        return f"the kernel is {height}x{width}, more than {MOST_TAPS} taps"
    if op.input in graph.inputs and channels % 4:
        return "the channels of the input are not a multiple of four"
    return None


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def _weights(op: DepthwiseConv2D, how: Requantizer) -> Int8Array:
    """Return int8 [taps, channels as stored], zeros where a channel is constant."""
    weights = op.weights * ~how.constant
    channels = weights.shape[2]
    return np.pad(weights.reshape(-1, channels), ((0, 0), (0, align4(channels) - channels)))


def depthwise_view(call: Call) -> DepthwiseView:
    """Return what the text depends on. Input and output bytes8, one output row a call."""
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and source.layout is BYTES8 and target.layout is BYTES8
    assert source.stored_channels == target.stored_channels and source.stored_channels % 4 == 0 and call.rows == 1
    how = _requantizer(call)
    height, width = int(op.weights.shape[0]), int(op.weights.shape[1])
    return DepthwiseView(
        kernel=(height, width),
        groups=groups_of(_weights(op, how)),
        channels=source.stored_channels,
        pixels=target.width,
        pointers=(height - 1) * op.dilation[0] + 1,
        row_step=op.dilation[0],
        input_first=(source.left - op.padding[2]) * source.pixel_bytes,
        input_column=op.dilation[1] * source.pixel_bytes,
        input_pixel=op.stride[1] * source.pixel_bytes,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        requantization=how.view,
    )


def depthwise_pack(call: Call, view: DepthwiseView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each eight channels:

        8 words: fast: 256 * bias + addend; the other forms: bias
        int8 weights [tap][channel]
        8 words: multipliers; shifts: addends and -shifts too; the runtimes' own steps: their two words

    Eight words are those of the even channels, then those of the odd ones.
    """
    op, source = call.op, call.inputs[0]
    assert phase == 0 and isinstance(op, DepthwiseConv2D)
    how, channels = _requantizer(call), len(op.bias)
    weights = _weights(op, how)
    sums = weights[:, :channels].astype(np.int64).sum(0)
    words = np.zeros((1 + view.requantization.words, max(view.channels, LANES)), np.int64)
    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    words[0, :channels] = how.bias(op.bias - (source.tensor.zero_point - source.offset) * sums)
    words[1:, :channels] = how.words.T
    if view.requantization.form == "fast":
        words[0, :channels] = 256 * words[0, :channels] + how.delta
    elif view.requantization.form == "shifts":
        words[3] *= -1
    packed: list[int] = []
    for start in view.starts:
        lanes = np.zeros((len(weights), LANES), np.int8)
        some = weights[:, start : start + LANES]
        lanes[:, : some.shape[1]] = some
        split = [[int(word) & 0xFFFFFFFF for word in (*row[start::2][:4], *row[start + 1 :: 2][:4])] for row in words]
        packed += split[0]
        packed += [int(word) for word in np.frombuffer(lanes.tobytes(), "<u4")]
        packed += [word for row in split[1:] for word in row]
    assert len(packed) == view.block_words * len(view.starts)
    return tuple(packed)
