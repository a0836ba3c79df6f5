"""Convolutions of few taps for cores with DSP instructions and an FPU: two output channels stay in the FPU's registers.

The kernel takes two output channels at a time, loads their weights and constants into s0.., and runs along the row
with four pixels at a time: a word of two neighbouring taps of each pixel meets a word of weights, which comes back from
the FPU in one cycle. Compared with `convolution_dsp` the requantisation's constants are loaded once for the row.

Weights are int16, times 256 (or 2) where that spares the requantisation a shift, if they fit the registers ("wide");
else both channels share a word, as in `convolution_dsp`:

    lane = w[c] + 256 * w[c + 1]

Where windows overlap by whole words, word i + n of a pixel is word i of the next one: three of four loads vanish; two
of four where it takes two pixels to come to a whole word.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.convolution import OUTPUTS, SAVED_BYTES, convolution_accepts
from codegen.layout import WIDE16, align4
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from codegen.stores import OutputView, Stores, output_view
from mnet.fixed_point import Int64Array
from mnet.graph import Conv2D, Graph, Op

BLOCK = 4  # pixels
REGISTERS = 32  # of the FPU
FREE_REGISTERS = 16  # those that a function need not restore
WIDE_WORDS = 28  # weights of two channels; behind them the output pointer and the distances of three rows
SHARED_WORDS = 22  # behind them at most 8 constants and two pointers
MAX_KERNEL_HEIGHT = 3
# Words of input of a pixel that a round of the loop may have, over its blocks; about 56 bytes of code each.
UNROLLED_WORDS = 48
COMPACT_WORDS = 12  # 2 to 3 % more cycles
SMALL_WORDS = 1  # one block: up to 10 %
LARGEST_OFFSET = 4095  # of a load
WORDS_OF_INPUT = ("r2", "r3", "r4", "r5")  # of the pixels of a block
SUMS = (("r6", "r7", "r8", "r9"), ("r10", "r11", "r12", "lr"))  # of each channel, for each pixel


@dataclass(frozen=True)
class Step:
    """One word of the window: where the pixels' words are, after these loads, and the weights they meet."""

    loads: tuple[tuple[str, int], ...]  # register, bytes from the row's pointer
    words: tuple[str, ...]  # registers, one for each pixel
    weight: int  # of the channels' weights
    instruction: str


@dataclass(frozen=True)
class Block:
    """Some pixels of a row whose sums are made together, at these bytes from the pointers."""

    pixels: int
    input: int
    output: int


@dataclass(frozen=True)
class FpuView:
    """Everything that the text of the kernel depends on. Distances are in bytes, from the start of a row's slot."""

    kernel_height: int
    taps: int  # of a kernel row
    pixels: int
    channel_pairs: int  # of the output
    input_first: int  # the first window
    input_pixel: int  # from window to window
    output: OutputView
    requantization: RequantizationView
    unrolled_words: int

    @property
    def wide(self) -> bool:
        """Return whether each channel has weight words of its own."""
        return wide_words(self.kernel_height, self.taps) <= WIDE_WORDS

    @property
    def scale(self) -> int:
        """Return what wide weights are multiplied with, for the requantisation's sake."""
        return {"fast": 256, "shifts": 2}.get(self.requantization.form, 1)

    @property
    def whole_pairs(self) -> int:
        """Return the words of a kernel row, but for a last tap that stands alone in wide weights."""
        return self.taps // 2 if self.wide else (self.taps + 1) // 2

    @property
    def alone(self) -> bool:
        """Return whether the last tap of each kernel row has a lane of its own, behind the other weights."""
        return self.wide and self.taps % 2 == 1

    @property
    def weight_words(self) -> int:
        """Return the weights of two channels."""
        if self.wide:
            return wide_words(self.kernel_height, self.taps)
        return self.kernel_height * self.whole_pairs

    @property
    def constant_words(self) -> int:
        """Return the words of two channels behind the weights: biases, then the requantisation."""
        if self.requantization.form == "fast":
            return 4 if self.wide else 5
        return 2 + 2 * self.requantization.words

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps

    @property
    def rounds(self) -> int:
        """Return how often the loop over full blocks runs; 1: the row has no loop."""
        full = self.pixels // BLOCK
        words = self.kernel_height * ((self.taps + 1) // 2)
        reach = BLOCK * self.input_pixel
        most = max(1, min(self.unrolled_words // words, (LARGEST_OFFSET - 2 * self.taps - 4) // reach - 1))
        return next(rounds for rounds in range(1, full + 2) if full % rounds == 0 and full // rounds <= most)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the full blocks of one round."""
        return tuple(
            Block(BLOCK, BLOCK * i * self.input_pixel, BLOCK * i * self.output.pixel)
            for i in range(self.pixels // BLOCK // self.rounds)
        )

    @property
    def last(self) -> Block | None:
        """Return the pixels behind the full blocks."""
        done = len(self.blocks) * BLOCK if self.rounds == 1 else 0
        rest = self.pixels % BLOCK
        return Block(rest, done * self.input_pixel, done * self.output.pixel) if rest else None

    @property
    def homes(self) -> dict[str, str]:
        """Return where each value lives: a register of the FPU, or a word of the stack.

        c0.. are the constants of the channels, d1.. the distances from row to row of the window, the last one back to
        the first row. What the loop over blocks reads comes first.
        """
        distances = [f"d{row + 1}" for row in range(self.kernel_height)] if self.kernel_height > 1 else []
        room = REGISTERS - self.weight_words - 1 - len(distances)
        held = max(min(self.constant_words, room), 0)
        inner = [*(f"c{i}" for i in range(held)), "output", *distances]
        outer = ["end", *(f"c{i}" for i in range(held, self.constant_words)), "input", "constants", "constants_end"]
        used = self.weight_words + len(inner)
        free = FREE_REGISTERS if used + 1 <= FREE_REGISTERS else min(used + 1, REGISTERS)
        registers = [f"s{i}" for i in range(self.weight_words, free)]
        names = [*inner, *outer]
        stack = [f"[sp, #{4 * i}]" for i in range(len(names) - len(registers))]
        return dict(zip(names, [*registers, *stack], strict=False))

    @property
    def held_constants(self) -> int:
        """Return the constants of two channels that live in registers."""
        return sum(name.startswith("c") and name[1:].isdigit() and home[0] == "s" for name, home in self.homes.items())

    @property
    def frame(self) -> int:
        """Return the bytes of the stack that values live in."""
        return 4 * sum(home.startswith("[") for home in self.homes.values())

    @property
    def stack_bytes(self) -> int:
        """Return the bytes of stack that a call takes."""
        return SAVED_BYTES + 4 * max(self.last_register - FREE_REGISTERS + 1, 0) + self.frame

    @property
    def last_register(self) -> int:
        """Return the number of the last FPU register that is used."""
        return max(int(home[1:]) for home in self.homes.values() if home.startswith("s"))

    def stores(self, block: Block) -> Stores:
        """Return how two output channels of a block come into memory."""
        return self.output.stores(tuple(zip(*SUMS, strict=True))[: block.pixels], 0, True, block.output)

    def steps(self, block: Block) -> tuple[tuple[Step, ...], ...]:
        """Return, for each kernel row, its words in the order of use."""
        return tuple(tuple(self._row(row, block)) for row in range(self.kernel_height))

    def _row(self, row: int, block: Block) -> Iterator[Step]:
        words = (self.taps + 1) // 2
        lag = 2 if self.input_pixel % 4 else 1  # so many pixels on, the same words come again
        overlap = lag * self.input_pixel // 4
        for first in range(min(overlap, words)):
            registers = WORDS_OF_INPUT[: block.pixels]
            for word in range(first, words, overlap):
                known = max(block.pixels - lag, 0) if word > first else 0
                if word > first:
                    registers = (*registers[lag:], *registers[:lag])
                fresh = range(known, block.pixels)
                loads = tuple((registers[i], block.input + i * self.input_pixel + 4 * word) for i in fresh)
                if word == self.whole_pairs:
                    weight = 2 * (self.kernel_height * self.whole_pairs + row // 2)
                    yield Step(loads, registers, weight, "smlabt" if row % 2 else "smlabb")
                else:
                    weight = (row * self.whole_pairs + word) * (2 if self.wide else 1)
                    yield Step(loads, registers, weight, "smlad")


def wide_words(height: int, taps: int) -> int:
    """Return the words of int16 weights of two channels; last taps of odd kernel rows share a word, two by two.

    >>> wide_words(3, 9), wide_words(1, 8)
    (28, 8)
    """
    return 2 * height * (taps // 2) + taps % 2 * (height + 1) // 2 * 2


def fits(height: int, taps: int) -> bool:
    """Return whether the weights of two channels fit the FPU's registers, in one form or the other.

    >>> fits(3, 9), fits(1, 44), fits(1, 46)
    (True, True, False)
    """
    shared = height * ((taps + 1) // 2)
    return wide_words(height, taps) <= WIDE_WORDS or shared <= SHARED_WORDS - 3 * (height > 1)


def fpu_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op` and is expected to be faster than `convolution_dsp`, or why not."""
    if not isinstance(op, Conv2D):
        return "not a convolution"
    refused = convolution_accepts(op, graph)
    if refused:
        return refused
    height = int(op.weights.shape[1])
    if height > MAX_KERNEL_HEIGHT:
        return f"the kernel has {height} rows, more than {MAX_KERNEL_HEIGHT}"
    channels = int(op.weights.shape[3])
    taps = int(op.weights.shape[2]) * (channels if op.input in graph.inputs else align4(channels))
    if not fits(height, taps):
        return f"{height} x {taps} taps do not fit the FPU's registers"
    if op.stride[1] * taps * 2 * BLOCK * 2 > LARGEST_OFFSET:
        return "the pixels are too far apart"
    width = graph.tensors[op.output].shape[1]
    if _cycles(width, height, taps) >= _cycles_of_pairs(width, height, taps):
        return f"a row of {width} pixels is too short"
    return None


def _cycles(width: int, height: int, taps: int) -> float:
    """Return about how long this kernel takes for a row of four channels."""
    words = height * ((taps + 1) // 2)
    wide = wide_words(height, taps) <= WIDE_WORDS
    weights = wide_words(height, taps) if wide else words
    blocks = [BLOCK] * (width // BLOCK) + [width % BLOCK] * (width % BLOCK > 0)
    fixed = 14 + (2 * height if height > 1 else 0)
    each = sum((3 * pixels + 3) * words + (4 if wide else 6) * pixels + fixed for pixels in blocks)
    return 2 * (each + weights + 16)


def _cycles_of_pairs(width: int, height: int, taps: int) -> float:
    """Return about how long `convolution_dsp` takes for a row of four channels."""
    words = height * ((taps + 1) // 2)
    return width // 2 * (15 * words + 57) + width % 2 * (9.5 * words + 40)


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def fpu_view(call: Call, unrolled_words: int = UNROLLED_WORDS) -> FpuView:
    """Return what the text depends on. Input wide16; any output; one row.

    rows[0 .. kernel_height - 1] are the rows of the window, rows[kernel_height] is the output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, Conv2D) and call.rows == 1
    assert source.layout is WIDE16 and target.layout in OUTPUTS and target.stored_channels % 2 == 0
    first = (source.left - op.padding[2]) * source.pixel_bytes
    assert first >= 0
    return FpuView(
        kernel_height=int(op.weights.shape[1]),
        taps=int(op.weights.shape[2]) * source.stored_channels,
        pixels=target.width,
        channel_pairs=target.stored_channels // 2,
        input_first=first,
        input_pixel=op.stride[1] * source.pixel_bytes,
        output=output_view(target, 0, 0),
        requantization=_requantizer(call).view,
        unrolled_words=unrolled_words,
    )


def paired_numbers(call: Call, pairs: int) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Return for pairs of output channels, zeros where a pair has but one:

    (taps [channels, kernel rows, taps of a row], bias [channels], addend [channels], words of the requantisation
    [channels, words]); the bias is for stored inputs, without the addend.
    """
    op, source = call.op, call.inputs[0]
    assert isinstance(op, Conv2D)
    how, live, count = _requantizer(call), len(op.bias), 2 * pairs
    _, height, width, channels = op.weights.shape
    stored = np.zeros((count, height, width, source.stored_channels), np.int64)
    stored[:live, :, :, :channels] = op.weights
    stored[:live][how.constant] = 0
    taps = stored.reshape(count, height, -1)

    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    bias, delta = np.zeros(count, np.int64), np.zeros(count, np.int64)
    bias[:live] = how.bias(op.bias - (source.tensor.zero_point - source.offset) * taps[:live].sum((1, 2)))
    delta[:live] = how.delta
    words = np.zeros((count, how.view.words), np.int64)
    words[:live] = how.words
    return taps, bias, delta, words


def fpu_pack(call: Call, view: FpuView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each pair of output channels c and c+1:

    wide: 2 words, of c and c+1, for each pair of taps, rows outermost; where kernel rows are odd 2 words for each
        two rows, with their last taps in the lanes; all times `view.scale`
    else: 1 word for each pair of taps, lanes of c and c+1
    the biases: as they are scaled and with the addends; not wide: of c, and of both as in `convolution_dsp`
    fast: addend of c unless wide, multipliers of c and c+1. Other forms: the words of each channel.
    """
    assert phase == 0
    taps, bias, delta, words = paired_numbers(call, view.channel_pairs)
    fast = view.requantization.form == "fast"
    requantization = words.reshape(view.channel_pairs, -1)
    if view.wide:
        bias = view.scale * bias + (delta if fast else 0)
        lanes = view.scale * taps
        parts = [_words(lanes[:, :, : 2 * view.whole_pairs])]
        if view.alone:
            alone = lanes[:, :, -1]
            parts.append(_words(np.pad(alone, ((0, 0), (0, view.kernel_height % 2)))))
    else:
        if not view.requantization.own_steps:
            bias[1::2] = bias[0::2] + 256 * bias[1::2] + delta[1::2]
        lanes = np.pad(taps[0::2] + 256 * taps[1::2], ((0, 0), (0, 0), (0, view.taps % 2)))
        parts = [_words(lanes)]
        if fast:
            requantization = np.concatenate([delta[0::2, None], requantization], 1)
    assert lanes.min(initial=0) >= -(1 << 15) and lanes.max(initial=0) < 1 << 15
    channels = 2 if view.wide else 1
    weights = [part.reshape(view.channel_pairs, channels, -1).transpose(0, 2, 1) for part in parts]
    columns = [*weights, bias, requantization]
    packed = np.concatenate([part.reshape(view.channel_pairs, -1) for part in columns], 1) & 0xFFFFFFFF
    assert packed.shape[1] == view.weight_words + view.constant_words
    return tuple(packed.ravel().tolist())


def _words(lanes: np.ndarray) -> np.ndarray:
    """Return words of two neighbouring lanes of the last axis."""
    return (lanes[..., 0::2] & 0xFFFF) | (lanes[..., 1::2] & 0xFFFF) << 16
