"""Convolutions of few taps that read rows in bytes, of any number of channels, for cores with DSP instructions.

First layers of networks: a pixel of three bytes, or of one, has no alignment, so that its window cannot be widened word
by word in the order of memory. The kernel takes four pixels at a time. First their windows become pairs of 16 bits on
the stack, once for all output channels:

    two kernel rows     joined to each other, column by column: a word is (row 0, row 1) of one byte of the rows
    the last row of an odd kernel     its columns in pairs: a word is (column, next column)

A pair of rows costs less than three instructions a word, and every window may begin in any column of it. Then, for
two output channels after the other, words of the stack meet words of weights, as in `convolution_dsp`:

    lane = w[c] + 256 * w[c + 1]

Where windows overlap, most words of a pixel are those of its neighbour, and are loaded once. Rows are read in aligned
words only, which lie within the row's slot whatever its length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from codegen.call import Call, Cost
from codegen.convolution import MAX_KERNEL_HEIGHT, OUTPUTS, SAVED_BYTES, convolution_accepts
from codegen.convolution_fpu import paired_numbers
from codegen.convolution_parts import (
    BRANCH_BACK,
    C_BYTES,
    LOAD,
    LOW_REGISTERS,
    NARROW,
    NOTHING,
    POP,
    PUSH,
    WIDE,
    Part,
    addition,
    loaded,
    repeated,
    requantized,
    stored,
    total,
)
from codegen.layout import WIDE8, align4
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from codegen.stores import OutputView, Stores, output_view
from mnet.graph import Conv2D, Graph, Op

BLOCK = 4  # pixels
MOST_WORDS = 100  # of weights of two channels: all are unrolled, about 50 bytes of code each
LARGEST_SCRATCH = 1024  # bytes of the stack for widened windows
WORDS_OF_INPUT = ("r2", "r3", "r4", "r5")  # of the pixels of a block
SUMS = (("r6", "r7", "r8", "r9"), ("r10", "r11", "r12", "lr"))  # of each channel, for each pixel
WIDENED = (("r2", "r3", "r4", "r5"), ("r6", "r7", "r8", "r9"))  # words of the rows of a pair as they come


@dataclass(frozen=True)
class Step:
    """One word of the windows: where the pixels' words are, after these loads, and the weights that they meet."""

    loads: tuple[tuple[str, int], ...]  # register, bytes from the stack pointer
    words: tuple[str, ...]  # registers, one for each pixel
    weight: int  # of the channels' words


@dataclass(frozen=True)
class Line:
    """One or two kernel rows as they are on the stack."""

    rows: tuple[int, ...]
    first: int  # bytes from the stack pointer to the first window
    start: int  # and to what is widened first
    pixel: int  # bytes from window to window
    words: int  # of a window
    weight: int  # the first one's


@dataclass(frozen=True)
class BytesView:
    """Everything that the text of the kernel depends on. Distances are in bytes, from the start of a row's slot."""

    kernel_height: int
    taps: int  # of a kernel row
    pixels: int
    channel_pairs: int  # of the output
    input_first: int  # the first window
    input_pixel: int  # from window to window
    output: OutputView
    requantization: RequantizationView

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps

    @property
    def blocks(self) -> int:
        """Return how often four pixels go together."""
        return self.pixels // BLOCK

    @property
    def rest(self) -> int:
        """Return the pixels behind them."""
        return self.pixels % BLOCK

    @property
    def skipped(self) -> int:
        """Return the bytes between a word of memory and the first window of a block."""
        return self.input_first % 4

    def row_words(self, pixels: int) -> int:
        """Return the words of memory that hold the windows of so many pixels, of one kernel row."""
        return align4(self.skipped + self.taps + (pixels - 1) * self.input_pixel) // 4

    @property
    def lines(self) -> tuple[Line, ...]:
        """Return the kernel rows, two by two, as they lie on the stack."""
        lines, start, weight = [], 0, 0
        words = self.row_words(min(self.pixels, BLOCK))
        for row in range(0, self.kernel_height, 2):
            two = row + 1 < self.kernel_height
            value = 4 if two else 2
            lines.append(
                Line(
                    rows=(row, row + 1) if two else (row,),
                    first=start + value * self.skipped,
                    start=start,
                    pixel=value * self.input_pixel,
                    words=self.taps if two else (self.taps + 1) // 2,
                    weight=weight,
                )
            )
            start, weight = start + 4 * value * words, weight + lines[-1].words
        return tuple(lines)

    @property
    def weight_words(self) -> int:
        """Return the weights of two channels."""
        return weight_words(self.kernel_height, self.taps)

    @property
    def pair_words(self) -> int:
        """Return the constants of two channels."""
        return 2 + self.weight_words + (3 if self.requantization.form == "fast" else 2 * self.requantization.words)

    @property
    def frame(self) -> int:
        """Return the bytes of the stack behind the saved registers."""
        return scratch_bytes(self.kernel_height, self.row_words(min(self.pixels, BLOCK)))

    @property
    def stack_bytes(self) -> int:
        """Return the bytes of stack that a call takes."""
        return SAVED_BYTES + self.frame

    def widened(self, pixels: int) -> tuple[tuple[int, ...], ...]:
        """Return the words of a kernel row of so many pixels, in the groups in which they are loaded."""
        words = tuple(range(self.row_words(pixels)))
        return tuple(words[i : i + len(WIDENED[0])] for i in range(0, len(words), len(WIDENED[0])))

    def stores(self, pixels: int) -> Stores:
        """Return how two output channels of a block come into memory."""
        return self.output.stores(tuple(zip(*SUMS, strict=True))[:pixels], 0, True)

    def steps(self, pixels: int) -> tuple[Step, ...]:
        """Return the words of the windows of a block, in the order of use."""
        return tuple(step for line in self.lines for step in _steps(line, pixels))


def _steps(line: Line, pixels: int) -> Iterator[Step]:
    lag = 2 if line.pixel % 4 else 1  # so many pixels on, the same words come again
    overlap = lag * line.pixel // 4
    for first in range(min(overlap, line.words)):
        registers = WORDS_OF_INPUT[:pixels]
        for word in range(first, line.words, overlap):
            known = max(pixels - lag, 0) if word > first else 0
            if word > first:
                registers = (*registers[lag:], *registers[:lag])
            loads = tuple((registers[i], line.first + i * line.pixel + 4 * word) for i in range(known, pixels))
            yield Step(loads, registers, line.weight + word)


def weight_words(height: int, taps: int) -> int:
    """Return the words of weights of two channels.

    >>> weight_words(3, 9), weight_words(10, 4)
    (14, 20)
    """
    return height // 2 * taps + height % 2 * ((taps + 1) // 2)


def scratch_bytes(height: int, words: int) -> int:
    """Return the bytes of widened windows that are so many words in each kernel row.

    >>> scratch_bytes(3, 7)
    168
    """
    return (16 * (height // 2) + 8 * (height % 2)) * words


def bytes_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    if not isinstance(op, Conv2D):
        return "not a convolution"
    refused = convolution_accepts(op, graph)
    if refused:
        return refused
    height, width, channels = (int(size) for size in op.weights.shape[1:])
    stored_channels = channels if op.input in graph.inputs else align4(channels)
    return _refused(height, width * stored_channels, op.stride[1] * stored_channels)


def _refused(height: int, taps: int, step: int) -> str | None:
    """Return None if windows of `height` rows of `taps` bytes, `step` bytes apart, are small enough, or why not."""
    if weight_words(height, taps) > MOST_WORDS:
        return f"{height} x {taps} taps are too many to unroll"
    if scratch_bytes(height, align4(3 + taps + (BLOCK - 1) * step) // 4) > LARGEST_SCRATCH:
        return f"widened windows take more than {LARGEST_SCRATCH} bytes of stack"
    return None


def bytes_makes(call: Call) -> bool:
    """Return whether the kernel can make rows of such a call, with its channels as they are stored."""
    op, source = call.op, call.inputs[0]
    if not isinstance(op, Conv2D) or call.rows > 1:
        return False
    height, width = op.weights.shape[1:3]
    return _refused(height, width * source.stored_channels, op.stride[1] * source.stored_channels) is None


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def bytes_view(call: Call) -> BytesView:
    """Return what the text depends on. Input wide8; any output; one row.

    rows[0 .. kernel_height - 1] are the rows of the window, rows[kernel_height] is the output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, Conv2D) and call.rows == 1 and op.weights.shape[1] <= MAX_KERNEL_HEIGHT
    assert source.layout is WIDE8 and target.layout in OUTPUTS and target.stored_channels % 2 == 0
    first = (source.left - op.padding[2]) * source.pixel_bytes
    assert first >= 0
    return BytesView(
        kernel_height=int(op.weights.shape[1]),
        taps=int(op.weights.shape[2]) * source.stored_channels,
        pixels=target.width,
        channel_pairs=target.stored_channels // 2,
        input_first=first,
        input_pixel=op.stride[1] * source.pixel_bytes,
        output=output_view(target, 0, 0),
        requantization=_requantizer(call).view,
    )


def bytes_pack(call: Call, view: BytesView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each pair of output channels c and c+1:

    2 words: bias of c; bias of c and 256 * bias of c+1, with the addend of c+1
    1 word for each tap of two kernel rows, their lanes; 1 for two taps of the last row of an odd kernel
    fast: addend of c, multipliers of c and c+1. Other forms: the words of each channel.
    In the runtimes' own steps every bias stands for itself.
    """
    assert phase == 0
    taps, bias, delta, words = paired_numbers(call, view.channel_pairs)
    if not view.requantization.own_steps:
        bias[1::2] = bias[0::2] + 256 * bias[1::2] + delta[1::2]
    requantization = words.reshape(view.channel_pairs, -1)
    if view.requantization.form == "fast":
        requantization = np.concatenate([delta[0::2, None], requantization], 1)

    lanes = np.pad(taps[0::2] + 256 * taps[1::2], ((0, 0), (0, 0), (0, view.taps % 2)))
    assert lanes.min(initial=0) >= -(1 << 15) and lanes.max(initial=0) < 1 << 15
    parts = [bias.reshape(-1, 2)]
    for line in view.lines:
        rows = lanes[:, line.rows]
        if len(line.rows) == 2:
            low, high = rows[:, 0, : view.taps], rows[:, 1, : view.taps]
        else:
            low, high = rows[:, 0, 0::2], rows[:, 0, 1::2]
        parts.append((low & 0xFFFF) | (high & 0xFFFF) << 16)
    packed = np.concatenate([*parts, requantization], 1) & 0xFFFFFFFF
    assert packed.shape[1] == view.pair_words
    return tuple(packed.ravel().tolist())


def _widen(view: BytesView, pixels: int, moves: bool) -> Part:
    """Return how the windows of a block come to the stack."""
    part = NOTHING
    for line in view.lines:
        two = len(line.rows) == 2
        part += WIDE.copies(len(line.rows)) + (addition(BLOCK * view.input_pixel) + WIDE).copies(len(line.rows) * moves)
        for words in view.widened(pixels):
            loads = [(WIDENED[row][i], 4 * word) for row in range(1 + two) for i, word in enumerate(words)]
            part += loaded(loads) + WIDE.copies((6 if two else 4) * len(words))
            for i, word in enumerate(words):
                low = WIDENED[0][i]
                kept = (low, "r10", low, WIDENED[1][i]) if two else (low, "r7")
                part += _kept(
                    [(register, line.start + 4 * len(kept) * word + 4 * j) for j, register in enumerate(kept)]
                )
    return part


def _kept(stores: Sequence[tuple[str, int]]) -> Part:
    """Return stores to the stack: register, offset."""
    return total(NARROW if register in LOW_REGISTERS and offset < 1024 else WIDE for register, offset in stores)


def _products(view: BytesView, pixels: int) -> Part:
    """Return all products of a block with two output channels, from the biases on."""
    part = NOTHING
    for number, step in enumerate(view.steps(pixels)):
        biases = [(SUMS[0][pixels - 1], 0), (SUMS[1][pixels - 1], 4)] if number == 0 else []
        part += loaded([*biases, ("r1", 8 + 4 * step.weight)])
        part += Part(len(step.loads), _kept(step.loads).code) + WIDE.copies(1 + 2 * pixels)
    return part


def _outputs(view: BytesView, pixels: int, moves: bool) -> Part:
    """Return some pixels of all output channels."""
    stores = view.stores(pixels)
    pair = _products(view, pixels) + addition(8 + 4 * view.weight_words)
    pair += requantized(view.requantization, view.output.offset, pixels) + WIDE.copies(2)
    pair += stored(stores, 2 * view.output.channel) + WIDE + NARROW + BRANCH_BACK
    part = _widen(view, pixels, moves) + WIDE + repeated(pair, view.channel_pairs)
    if moves:
        part += addition(BLOCK * view.output.pixel - 2 * view.channel_pairs * view.output.channel) + WIDE
    return part


@lru_cache(maxsize=4096)
def bytes_cost(view: BytesView) -> Cost:
    """Return what one call takes."""
    if not view.assembly:
        return Cost(20 * view.pixels * view.channel_pairs * (view.weight_words + 4), C_BYTES)
    part = PUSH + POP + addition(view.frame).copies(2) + WIDE.copies(3) + LOAD + addition(view.output.first)
    part += addition(4 * view.channel_pairs * view.pair_words)
    part += (LOAD + addition(view.input_first - view.skipped) + WIDE).copies(view.kernel_height)
    if view.blocks > 1:
        part += Part(2, 8) + repeated(_outputs(view, BLOCK, True) + Part(3, 10) + BRANCH_BACK, view.blocks)
    elif view.blocks:
        part += _outputs(view, BLOCK, view.rest > 0)
    if view.rest:
        part += _outputs(view, view.rest, False)
    return Cost(part.cycles, part.code)
