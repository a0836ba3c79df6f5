"""Convolutions for cores with DSP instructions: what the text of `convolution_dsp` depends on, and its constants.

The kernel makes two pixels of four output channels at a time. Two int8 weights share a 16-bit lane,

    lane = w[c] + 256 * w[c + 1]

and a word has two lanes, of two neighbouring taps. SMLAD on the word as it is sums D + 256 * E, of the accumulators D
of channel c and E of channel c + 1; SXTB16 leaves w[c], for D alone; the difference is 256 * E, exactly, modulo 2**32.
That takes as long as 16-bit weights would, with half the flash.

A kernel row of the window is a run of kernel_width * stored_channels neighbouring int16 values, read in pairs; a zero
weight meets what lies behind an odd run. A fully connected layer is one run over its whole input. Where windows overlap
by whole words, word i + n of a pixel is word i of the next one, and is loaded once.

The last three pixels of an odd row are taken with two channels at a time, where the window is short enough. Where a
call makes several odd rows of a pointwise convolution, pairs of pixels go over the ends of rows instead.

An input in bytes is widened: the windows of the pixels that go together, once for all output channels, on the stack; or
in registers, word by word for every four output channels, where a window is one run.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from codegen.stores import OutputView, Stores, output_view
from mnet.graph import Conv2D, FullyConnected, Graph, Int8Array, Op

INPUTS = (WIDE16, WIDE8)
OUTPUTS = (WIDE16, WIDE8, PLANAR16, PLANAR8)
BLOCK = 4  # output channels
MAX_KERNEL_HEIGHT = 10  # row pointers are kept in s0..s9
WIDENED_WORDS = 16  # of four bytes each, in the body of the loop that widens them
LARGEST_OFFSET = 4095  # of a load
SAVED_BYTES = 36  # r4-r11, lr
WORDS_OF_INPUT = ("r2", "r3", "r4")  # of the pixels that are summed together
SUMS = (("r6", "r7", "r8", "r9"), ("r10", "r11", "r12", "lr"))  # of each pixel, for each channel
TRIPLE_SUMS = (("r6", "r7"), ("r8", "r9"), ("r10", "r11"))


@dataclass(frozen=True)
class Unrolling:
    """How many words of two taps the text spells out, about 48 bytes of code each: cycles against code."""

    straight: int  # windows of up to so many words have no loop, for two pixels
    loop: int  # else so many at most are in the body of a loop
    single: int  # the same for the last pixel of an odd row
    lone: int  # and where there is no other pixel
    triple: bool  # the last three pixels of an odd row go together, in a text of their own


FAST = Unrolling(straight=72, loop=48, single=16, lone=64, triple=True)
COMPACT = Unrolling(straight=24, loop=24, single=8, lone=24, triple=False)  # 3 % more cycles, 6 % where rows are odd
SMALL = Unrolling(straight=8, loop=8, single=4, lone=8, triple=False)  # 7 to 10 %


@dataclass(frozen=True)
class Step:
    """One word of a kernel row: where the pixels' words are, after these loads."""

    word: int
    loads: tuple[tuple[str, int], ...]  # register, bytes from the kernel row
    registers: tuple[str, ...]  # one for each pixel


@dataclass(frozen=True)
class Loop:
    """The words of each column of one kernel row: `count` times `pairs`, then `rest`."""

    pairs: int
    count: int
    rest: int


def _loop(pairs: int, most: int) -> Loop:
    """Return the fewest rounds of at most `most` words.

    >>> _loop(96, 48), _loop(101, 48)
    (Loop(pairs=48, count=2, rest=0), Loop(pairs=33, count=3, rest=2))
    """
    count = -(-pairs // most)
    return Loop(pairs // count, count, pairs % count)


@dataclass(frozen=True)
class Run:
    """Words of four bytes, `first` bytes from the first window of a kernel row, that are widened."""

    first: int
    loop: Loop

    @property
    def words(self) -> int:
        """Return how many they are."""
        return self.loop.pairs * self.loop.count + self.loop.rest


@dataclass(frozen=True)
class ConvolutionView:
    """Everything that the text of a convolution depends on. Distances are in bytes, from the start of a row's slot."""

    kernel_height: int
    pairs: int  # words of two taps in a kernel row
    columns: int  # pixels in it, where they are whole words: rounds of a loop take some words of each; else 1
    rows: int  # output rows of one call; more than 1 only with a kernel of one row
    pixels: int  # of an output row, or of all of them where the rows follow each other without gaps
    groups: int  # of four output channels
    input_first: int  # the first window
    input_pixel: int  # from window to window
    input_row: int
    input_bytes: int  # of a value: 2, or 1, which are widened on the stack
    output: OutputView
    requantization: RequantizationView
    unrolling: Unrolling
    in_registers: bool = False  # bytes are widened where they are multiplied

    @property
    def straddles(self) -> bool:
        """Return whether all rows of the call are one line of pixels, so that a pair of them may straddle two rows."""
        return self.output.wrap > 0

    @property
    def lines(self) -> int:
        """Return the runs of pixels of one call."""
        return 1 if self.straddles else self.rows

    @property
    def line_pixels(self) -> int:
        """Return the pixels of each."""
        return self.rows * self.pixels if self.straddles else self.pixels

    @property
    def group_words(self) -> int:
        """Return the constants of four output channels."""
        return BLOCK + 2 * self.kernel_height * self.pairs + self._tail_words

    @property
    def _tail_words(self) -> int:
        return 6 if self.requantization.form == "fast" else BLOCK * self.requantization.words

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps

    @property
    def straight(self) -> bool:
        """Return whether the taps of two pixels are unrolled; else rows are a loop, their pointers on the stack."""
        return self.kernel_height * self.pairs <= self.unrolling.straight

    @property
    def triple(self) -> bool:
        """Return whether the last three pixels of a row go together, two channels at a time."""
        return self.line_pixels % 2 == 1 and self.line_pixels > 1 and self.straight and self.unrolling.triple

    @property
    def double_pixels(self) -> int:
        """Return how many times two pixels go together in a row."""
        return (self.line_pixels - 3) // 2 if self.triple else self.line_pixels // 2

    @property
    def column_pairs(self) -> int:
        """Return the words of a column of a kernel row."""
        return self.pairs // self.columns

    @property
    def loop(self) -> Loop:
        """Return how a kernel row is read for two pixels."""
        if self.straight:
            return Loop(self.column_pairs, 1, 0)
        return self._rounds(max(self.unrolling.loop // self.columns, 1))

    @property
    def single_straight(self) -> bool:
        """Return whether the taps of a single pixel are unrolled."""
        return self.kernel_height * self.pairs <= self._single_words

    @property
    def _single_words(self) -> int:
        return self.unrolling.single if self.line_pixels > 1 else self.unrolling.lone

    @property
    def single_loop(self) -> Loop:
        """Return how a kernel row is read for one pixel."""
        if self.single_straight:
            return Loop(self.column_pairs, 1, 0)
        unrolled = self.columns * (self.kernel_height if self.straight else 1)
        return self._rounds(max(self._single_words // unrolled, 2))

    def _rounds(self, most: int) -> Loop:
        unit = 2 if self.in_registers else 1  # words that come of one of memory stay together
        how = _loop(self.column_pairs // unit, max(most // unit, 1))
        return Loop(unit * how.pairs, how.count, unit * how.rest)

    @property
    def widens(self) -> bool:
        """Return whether some windows at a time are widened on the stack, for all output channels."""
        return self.input_bytes == 1 and not self.in_registers

    @property
    def word_bytes(self) -> int:
        """Return the bytes of memory that a word of two taps comes from."""
        return 2 if self.in_registers else 4

    def place(self, word: int) -> int:
        """Return the bytes from the window to what is loaded for a word of two taps."""
        return word // 2 * 4 if self.in_registers else 4 * word

    @property
    def window_pixel(self) -> int:
        """Return the bytes from window to window where the taps are read."""
        return min(2 * self.input_pixel, 4 * self.pairs) if self.widens else self.input_pixel

    @property
    def widened_row(self) -> int:
        """Return the bytes from kernel row to kernel row of widened windows."""
        pixels = 3 if self.triple else min(self.line_pixels, 2)
        return 4 * self.pairs + (pixels - 1) * self.window_pixel

    def runs(self, pixels: int) -> tuple[Run, ...]:
        """Return the words that make widened windows of so many pixels, of one kernel row."""
        if self.input_pixel <= 2 * self.pairs:
            return (Run(0, _loop((2 * self.pairs + (pixels - 1) * self.input_pixel) // 4, WIDENED_WORDS)),)
        return tuple(Run(i * self.input_pixel, _loop(self.pairs // 2, WIDENED_WORDS)) for i in range(pixels))

    @property
    def rows_on_stack(self) -> bool:
        """Return whether the pointers to the rows of the window are on the stack, not in s0.."""
        return self.widens or (self.kernel_height > 1 and not self.straight)

    @property
    def frame(self) -> int:
        """Return the bytes of the stack behind the saved registers."""
        if self.widens:
            return self.kernel_height * (4 + self.widened_row)
        return 4 * self.kernel_height + 4 if self.rows_on_stack else 0

    @property
    def stack_bytes(self) -> int:
        """Return the bytes of stack that a call takes."""
        return SAVED_BYTES + self.frame

    def words(self, count: int) -> tuple[int, ...]:
        """Return `count` words of each column of a kernel row."""
        return tuple(column * self.column_pairs + i for column in range(self.columns) for i in range(count))

    def steps(self, pixels: int, count: int) -> tuple[Step, ...]:
        """Return `count` words of each column, in an order in which words that pixels share are loaded once."""
        words = list(self.words(count))
        overlap = self.window_pixel // 4 if self.window_pixel % 4 == 0 and not self.in_registers else 0
        steps = []
        while words:
            word, registers, first = words[0], WORDS_OF_INPUT[:pixels], 0
            while word in words:
                words.remove(word)
                loads = tuple((registers[i], i * self.window_pixel + self.place(word)) for i in range(first, pixels))
                steps.append(Step(word, loads, registers))
                registers, first, word = (*registers[1:], registers[0]), pixels - 1, word + overlap
        return tuple(steps)

    @property
    def group_step(self) -> int:
        """Return the bytes from four output channels to the next four."""
        return BLOCK * self.output.channel

    def stores(self, pixels: int) -> tuple[Stores, ...]:
        """Return how four output channels of one or two pixels, the first one even, come into memory.

        The second of two pixels that may straddle rows has stores of its own, from a pointer of its own.
        """
        if pixels == 2 and self.straddles:
            return tuple(self.output.stores((sums,), 0, False) for sums in SUMS)
        return (self.output.stores(SUMS[:pixels], 0, self._in_words),)

    @property
    def triple_stores(self) -> Stores:
        """Return the same of two output channels of the last three pixels of a line."""
        return self.output.stores(TRIPLE_SUMS, self.line_pixels - 3, self._in_words)

    @property
    def _in_words(self) -> bool:
        return self.output.size == 2 and not self.straddles


def _weights(op: Op) -> Int8Array:
    """Return int8 [channels_out, kernel_height, run, channels_in]."""
    if isinstance(op, FullyConnected):
        return op.weights[:, None, None, :]
    assert isinstance(op, Conv2D)
    return op.weights


def convolution_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    del graph
    if not isinstance(op, Conv2D | FullyConnected):
        return "not a convolution"
    if isinstance(op, Conv2D):
        if op.dilation != (1, 1):
            return f"the dilation is {op.dilation[0]}x{op.dilation[1]}, not 1x1"
        if op.weights.shape[1] > MAX_KERNEL_HEIGHT:
            return f"the kernel has {op.weights.shape[1]} rows, more than {MAX_KERNEL_HEIGHT}"
    weights = _weights(op).astype(np.int64)
    paired = weights[: len(weights) // 2 * 2]
    if ((paired[1::2] == -128) & (paired[0::2] < 0)).any():
        return "a weight of -128 does not fit beside a negative one in a 16-bit lane"
    return None


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def widens_in_registers(call: Call) -> bool:
    """Return whether windows of bytes are one run each, from a whole word on: pointwise, or fully connected."""
    op, source = call.op, call.inputs[0]
    if source.layout is not WIDE8:
        return False
    if isinstance(op, Conv2D):
        return op.weights.shape[1:3] == (1, 1) and source.stored_channels % 4 == 0
    return isinstance(op, FullyConnected) and (source.height * source.width == 1 or source.stored_channels % 4 == 0)


def convolution_view(call: Call, unrolling: Unrolling = FAST, in_registers: bool = False) -> ConvolutionView:
    """Return what the text depends on. Input wide16 or wide8; any output; for several rows a kernel of one row.

    rows[0 .. kernel_height - 1] are the rows of the window, rows[kernel_height] is the first output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert source.layout in INPUTS and target.layout in OUTPUTS and target.stored_channels % BLOCK == 0
    assert widens_in_registers(call) if in_registers else source.layout is not WIDE8 or source.stored_channels % 4 == 0
    height, width, row, columns = 1, 1, (0, 0), 1
    if isinstance(op, FullyConnected):
        assert source.contiguous or (source.height == 1 and source.left == 0)
        taps, first, pixel = source.height * source.width * source.stored_channels, 0, 0
    else:
        assert isinstance(op, Conv2D)
        height, width = int(op.weights.shape[1]), target.width
        assert call.rows == 1 or height == 1
        taps = int(op.weights.shape[2]) * source.stored_channels
        if source.stored_channels % 2 == 0 and 4 * taps + 4 * WIDE16.element_bytes <= LARGEST_OFFSET:
            columns = int(op.weights.shape[2])
        first, pixel = (source.left - op.padding[2]) * source.pixel_bytes, op.stride[1] * source.pixel_bytes
        assert first >= 0
        row = op.stride[0] * source.slot_bytes, target.slot_bytes
    rows = call.rows
    gapless = row[0] == width * pixel and source.contiguous
    if gapless and row[1] == width * target.pixel_bytes and target.contiguous:
        rows, width, row = 1, rows * width, (0, 0)  # rows without gaps are one long row
    # Odd rows: rather than the last three pixels of each row, those of the last row alone.
    near = width < 1 << 10 and 2 * target.pixel_bytes + target.slot_bytes < 1 << 15
    straddles = rows > 1 and width % 2 == 1 and gapless and near
    return ConvolutionView(
        kernel_height=height,
        pairs=2 * ((taps + 3) // 4) if in_registers else (taps + 1) // 2,
        columns=columns,
        rows=rows,
        pixels=width,
        groups=target.stored_channels // BLOCK,
        input_first=first,
        input_pixel=pixel,
        input_row=row[0],
        input_bytes=source.layout.element_bytes,
        output=output_view(target, row[1], width if straddles else 0),
        requantization=_requantizer(call).view,
        unrolling=unrolling,
        in_registers=in_registers,
    )


def convolution_pack(call: Call, view: ConvolutionView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them; a convolution has one phase only.

    First `view.output.walk`. Then, for each group of four output channels c..c+3:
        4 words: bias of c; bias of c and 256 * bias of c+1, with the addend of c+1; the same for c+2 and c+3
        2 words for each pair of taps, rows outermost: lanes of c and c+1, lanes of c+2 and c+3; of an input in bytes
            the pairs are channels 0, 2 and 1, 3 of each four
        fast: addend of c, multipliers of c and c+1; the same for c+2 and c+3. Other forms: the words of each channel.
    In the runtimes' own steps every bias stands for itself.
    """
    assert phase == 0
    op, source = call.op, call.inputs[0]
    assert isinstance(op, Conv2D | FullyConnected)
    how = _requantizer(call)
    channels, groups = len(op.bias), view.groups
    stored = np.zeros((groups * BLOCK, view.kernel_height, 2 * view.pairs), np.int64)
    pixels = _weights(op).astype(np.int64).reshape(channels, view.kernel_height, -1, source.tensor.shape[2])
    pixels[how.constant] = 0
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, source.stored_channels - source.tensor.shape[2])))
    taps = pixels.reshape(channels, view.kernel_height, -1)
    stored[:channels, :, : taps.shape[2]] = taps
    if view.input_bytes == 1:  # UXTB16 makes words of channels 0, 2 and 1, 3
        stored = stored.reshape(-1, 4)[:, (0, 2, 1, 3)].reshape(stored.shape)

    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    folded = op.bias - (source.tensor.zero_point - source.offset) * taps.sum((1, 2))
    bias, delta = np.zeros(len(stored), np.int64), np.zeros(len(stored), np.int64)
    bias[:channels], delta[:channels] = how.bias(folded), how.delta
    if not view.requantization.own_steps:
        bias[1::2] = bias[0::2] + 256 * bias[1::2] + delta[1::2]
    words = np.zeros((len(stored), view.requantization.words), np.int64)
    words[:channels] = how.words
    if view.requantization.form == "fast":
        words = np.stack([delta[0::2], words[0::2, 0], words[1::2, 0]], 1)

    lanes = stored[0::2] + 256 * stored[1::2]
    assert lanes.min(initial=0) >= -(1 << 15) and lanes.max(initial=0) < 1 << 15
    pairs = (lanes[..., 0::2] & 0xFFFF) | (lanes[..., 1::2] & 0xFFFF) << 16
    pairs = pairs.reshape(groups, 2, -1).transpose(0, 2, 1)
    rows = [part.reshape(groups, -1) for part in (bias, pairs, words)]
    packed = np.concatenate(rows, 1) & 0xFFFFFFFF
    assert packed.shape[1] == view.group_words
    return (*view.output.walk, *packed.ravel().tolist())
