"""Convolutions for cores with vectors (MVE): what the text of `convolution_mve` depends on, and its constants.

VMLADAVA multiplies sixteen int8 taps by sixteen weights and adds them to one sum. The kernel makes up to four pixels of
two output channels at a time, so that six loads serve eight of them:

    sum[pixel][channel] += the taps of the pixel . the weights of the channel

A kernel row of the window is a run of kernel_width * stored_channels neighbouring bytes, read in chunks of sixteen; the
last chunk is predicated, so that nothing behind the run is read. A fully connected layer is one run over its input.

The sums of four pixels become one vector for each channel and are requantized together. Four channels later the bytes
of a lane are the four channels of a pixel. One pixel takes four channels at a time instead, and lanes are channels.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import BYTES8
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.graph import Conv2D, FullyConnected, Graph, Int8Array, Op

CHUNK = 16  # taps of a vector
GROUP = 4  # output channels that leave together
MAX_KERNEL_HEIGHT = 16
STRAIGHT_CHUNKS = 24  # up to here the chunks of a window are unrolled; about 110 bytes of code each
LARGEST_OFFSET = 127  # of a vector load
POINTERS = ("r1", "r7", "r9", "r11")  # to pixels
SUMS = (("r0", "r8"), ("r2", "r10"), ("r4", "r12"), ("r6", "lr"))  # of each pixel, for two channels; even registers
REQUANTIZE_COST = 30  # instructions for four channels of one to four pixels


@dataclass(frozen=True)
class Block:
    """Some pixels made together, `count` times."""

    pixels: int
    count: int


def blocks_of(pixels: int, chunks: int) -> tuple[Block, ...]:
    """Return how to make a row of `pixels` with the fewest instructions, `chunks` being those of a window.

    >>> blocks_of(48, 2), blocks_of(3, 4), blocks_of(5, 4)
    ((Block(pixels=4, count=12),), (Block(pixels=3, count=1),), (Block(pixels=4, count=1), Block(pixels=1, count=1)))
    """

    def cost(block: Block) -> int:
        leaving = 0 if block.pixels == 4 else 3 * block.pixels - 2  # four pixels leave with one store
        return block.count * (2 * chunks * (3 * block.pixels + 2) + REQUANTIZE_COST + leaving)

    plans = []
    for main in range(1, min(4, pixels) + 1):
        count, rest = divmod(pixels, main)
        plans.append((Block(main, count), *((Block(rest, 1),) if rest else ())))
    return min(plans, key=lambda plan: (sum(map(cost, plan)), len(plan)))


@dataclass(frozen=True)
class ConvolutionView:
    """Everything that the text depends on. Distances are in bytes, from the start of a row's slot."""

    kernel_height: int
    run: int  # taps of a kernel row
    pixels: int  # of an output row
    groups: int  # of four output channels
    pointers: int  # input rows
    input_first: int  # the first window
    input_pixel: int  # from window to window
    output_first: int
    output_pixel: int
    requantization: RequantizationView

    @property
    def chunks(self) -> int:
        """Return the whole chunks of a kernel row."""
        return self.run // CHUNK

    @property
    def tail(self) -> int:
        """Return the taps behind them."""
        return self.run % CHUNK

    @property
    def row_chunks(self) -> int:
        """Return the chunks of a kernel row, the last one included."""
        return -(-self.run // CHUNK)

    @property
    def lanes(self) -> int:
        """Return the output channels whose weights lie together."""
        return GROUP if self.pixels == 1 else 2

    @property
    def weight_bytes(self) -> int:
        """Return the weights of `lanes` channels, without what fills the last word."""
        return self.kernel_height * self.run * self.lanes

    @property
    def weight_words(self) -> int:
        """Return the words that they take."""
        return -(-self.weight_bytes // 4)

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel behind the weights."""
        return self.requantization.words + 1

    @property
    def block_words(self) -> int:
        """Return the constants of `lanes` channels."""
        return self.weight_words + self.lanes * self.channel_words

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return how the pixels of a row are made."""
        return blocks_of(self.pixels, self.kernel_height * self.row_chunks)

    @property
    def straight(self) -> bool:
        """Return whether the chunks of a window are unrolled; else those of a kernel row are a loop."""
        return (
            self.kernel_height * self.row_chunks <= STRAIGHT_CHUNKS and CHUNK * (self.row_chunks - 1) <= LARGEST_OFFSET
        )

    def shared(self, pixels: int) -> int:
        """Return how many of `pixels` neighbours one pointer reaches."""
        if not self.straight or pixels == 1:
            return 1
        return min(pixels, 1 + (LARGEST_OFFSET - CHUNK * (self.row_chunks - 1)) // self.input_pixel)

    def resident(self, pixels: int) -> bool:
        """Return whether all pointers of a block stay in registers."""
        return self.straight and self.kernel_height * -(-pixels // self.shared(pixels)) <= len(POINTERS)

    def pointer(self, pixels: int, line: int, pixel: int) -> str:
        """Return the register that points to a pixel of a kernel row."""
        index = pixel // self.shared(pixels)
        if self.resident(pixels):
            index += line * -(-pixels // self.shared(pixels))
        return POINTERS[index]

    def offset(self, pixels: int, pixel: int) -> int:
        """Return the bytes from there to the pixel."""
        return pixel % self.shared(pixels) * self.input_pixel

    @property
    def padding_bytes(self) -> int:
        """Return what fills the last word of weights."""
        return -self.weight_bytes % 4


def _weights(op: Op, stored: int, channels: int) -> Int8Array:
    """Return int8 [channels_out, kernel_height, taps of a row], with zeros for the channels that are stored only."""
    assert isinstance(op, Conv2D | FullyConnected)
    shape = op.weights.shape
    height, width = (1, shape[1] // channels) if isinstance(op, FullyConnected) else shape[1:3]
    weights = np.zeros((shape[0], height, width, stored), np.int8)
    weights[..., :channels] = op.weights.reshape(shape[0], height, width, channels)
    return weights.reshape(shape[0], height, -1)


def convolution_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    if isinstance(op, FullyConnected):
        height, width, channels = graph.tensors[op.input].shape
        return "pixels of the input do not follow each other" if height * width > 1 and channels % 4 else None
    if not isinstance(op, Conv2D):
        return "not a convolution"
    if op.dilation != (1, 1):
        return f"the dilation is {op.dilation[0]}x{op.dilation[1]}, not 1x1"
    if op.weights.shape[1] > MAX_KERNEL_HEIGHT:
        return f"the kernel has {op.weights.shape[1]} rows, more than {MAX_KERNEL_HEIGHT}"
    return None


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def convolution_view(call: Call) -> ConvolutionView:
    """Return what the text depends on. Input and output bytes8, one output row a call."""
    op, source, target = call.op, call.inputs[0], call.output
    assert source.layout is BYTES8 and target.layout is BYTES8 and target.stored_channels % GROUP == 0
    assert call.rows == 1
    if isinstance(op, FullyConnected):
        assert source.contiguous or (source.height == 1 and source.left == 0)
        height, pointers, first, pixel = 1, source.height, 0, 0
        run = source.height * source.width * source.stored_channels
    else:
        assert isinstance(op, Conv2D)
        height = pointers = int(op.weights.shape[1])
        run = int(op.weights.shape[2]) * source.stored_channels
        first, pixel = (source.left - op.padding[2]) * source.pixel_bytes, op.stride[1] * source.pixel_bytes
        assert first >= 0
    return ConvolutionView(
        kernel_height=height,
        run=run,
        pixels=target.width,
        groups=target.stored_channels // GROUP,
        pointers=pointers,
        input_first=first,
        input_pixel=pixel,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        requantization=_requantizer(call).view,
    )


def convolution_pack(call: Call, view: ConvolutionView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them; a convolution has one phase only.

    For each two output channels, or four where a row is one pixel:
        int8 weights [kernel row][chunk][channel][tap of the chunk], filled up to a word
        fast: 256 * bias + addend, multiplier; shifts: bias, multiplier, addend, -shift; the runtimes' own steps: bias
        and their two words. Two channels have theirs one after the other, four have them side by side.
    """
    assert phase == 0
    op, source = call.op, call.inputs[0]
    assert isinstance(op, Conv2D | FullyConnected)
    how, lanes, channels = _requantizer(call), view.lanes, len(op.bias)
    weights = np.zeros((view.groups * GROUP, view.kernel_height, view.run), np.int8)
    weights[:channels] = _weights(op, source.stored_channels, source.tensor.shape[2])
    weights[:channels][how.constant] = 0

    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    sums = weights[:channels].astype(np.int64).sum((1, 2))
    words = np.zeros((len(weights), view.channel_words), np.int64)
    words[:channels, 0] = how.bias(op.bias - (source.tensor.zero_point - source.offset) * sums)
    words[:channels, 1:] = how.words
    if view.requantization.form == "fast":
        words[:channels, 0] = 256 * words[:channels, 0] + how.delta
    elif view.requantization.form == "shifts":
        words[:, 3] *= -1
    packed: list[int] = []
    for start in range(0, len(weights), lanes):
        block = weights[start : start + lanes]
        chunks = [(line, at) for line in range(view.kernel_height) for at in range(0, view.run, CHUNK)]
        parts = [block[:, line, at : at + CHUNK] for line, at in chunks]
        data = b"".join(part.tobytes() for part in parts) + bytes(view.padding_bytes)
        packed += [int(word) for word in np.frombuffer(data, "<u4")]
        some = words[start : start + lanes]
        packed += [int(word) & 0xFFFFFFFF for word in (some.T if lanes == GROUP else some).ravel()]
    assert len(packed) == view.block_words * (len(weights) // lanes)
    return tuple(packed)
