"""Depthwise 3x3 for cores with DSP instructions: what the text of `depthwise_dsp` depends on, and its constants.

The input is planar and centred: a word holds two neighbouring pixels of a channel, padding is 0. A kernel row
(w0, w1, w2) is packed twice, as P = (w0, w1) and Q = (w1, w2), so that each word is used as it is loaded; for stride 1:

    out[2k - 1] += low * w2;  out[2k] += (low, high) . Q;  out[2k + 1] += (low, high) . P;  out[2k + 2] += high * w0

`_words` makes that plan for any width, padding and stride: which products a word takes part in, in which of three
accumulators, and when finished outputs leave. What would meet padding columns is not emitted.

The three rows of a window are reached through one pointer. They lie one behind the other in a tensor that is stored
whole; in a ring of three slots they lie in any rotation, and the kernel rows are rotated with them: `depthwise_pack`.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import PLANAR16, WIDE16, Storage
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.graph import DepthwiseConv2D, Graph, Op

ACCUMULATORS = ("r10", "r11", "r12")
ROW_WORDS = ("r7", "r8", "r9")  # the loaded words of the three rows
LARGEST_OFFSET = 4095  # of a load or a store
MAX_STRAIGHT_WORDS = 96  # words of all the rows of a channel that are unrolled; about 100 bytes of code each
PAIRED_OUTPUTS = 24  # up to here two channels are unrolled, to share the loop
FEW_OUTPUTS = 8  # and up to here four


@dataclass(frozen=True)
class Product:
    """A word times a kernel row, summed in one accumulator: once for each row of the window."""

    accumulator: str
    first: bool  # starts the sum, from the bias
    instruction: str
    weights: str  # P or Q


@dataclass(frozen=True)
class Leave:
    """A finished output."""

    accumulator: str
    pixel: int


@dataclass(frozen=True)
class Word:
    """What one word of a row does: products that finish outputs, outputs that leave, products that start others."""

    offset: int  # bytes in the row
    finish: tuple[Product, ...]
    leave: tuple[Leave, ...]
    scratch: str  # a register that is free while outputs leave
    start: tuple[Product, ...]


@dataclass(frozen=True)
class Line:
    """One output row: (row of the window, bytes from the pointer) of the input rows that are not padding."""

    taps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DepthwiseView:
    """Everything that the text of a depthwise convolution depends on. Distances are in bytes."""

    channels: int
    width: int  # of the input
    left: int  # padding columns, which are not stored
    stride: int
    outputs: int  # pixels of a row
    lines: tuple[Line, ...]
    input_channel: int
    output_first: int
    output_pixel: int
    output_row: int
    requantization: RequantizationView

    @property
    def words(self) -> tuple[Word, ...]:
        """Return the plan of one row."""
        return _words(self.width, self.left, self.stride, self.outputs)

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel."""
        return 7 + self.requantization.words

    @property
    def _reach(self) -> int:
        return max(offset for line in self.lines for _, offset in line.taps) + 2 * self.width

    @property
    def unroll(self) -> int:
        """Return the channels of one round of the channel loop."""
        outputs = len(self.lines) * self.outputs
        most = 4 if outputs <= FEW_OUTPUTS else 2 if outputs <= PAIRED_OUTPUTS else 1
        return next(
            count
            for count in (4, 2, 1)
            if count <= most
            and self.channels % count == 0
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


_BOTH = {0: ("smlad", "P"), 1: ("smlad", "Q"), 2: ("smlabt", "Q"), -1: ("smlatb", "P")}
_LOW_ONLY = {0: ("smlabb", "P"), 1: ("smlabb", "Q"), 2: ("smlabt", "Q")}


def _words(width: int, left: int, stride: int, outputs: int) -> tuple[Word, ...]:
    """Return the plan of a row: column x * stride - left + j of the input meets weight j of output x."""
    count = (width + 1) // 2

    def products(word: int) -> dict[int, tuple[str, str]]:
        """Return the instruction and the weights for each output that `word` takes part in."""
        table = _BOTH if 2 * word + 1 < width else _LOW_ONLY
        taps = {x: 2 * word - (x * stride - left) for x in range(outputs)}  # which weight meets the lower lane
        return {x: table[tap] for x, tap in taps.items() if tap in table}

    plans = [products(word) for word in range(count)]
    last = {x: word for word, plan in enumerate(plans) for x in plan}
    free, register, finished = list(ACCUMULATORS), dict[int, str](), list[int]()
    words = []

    def product(x: int, instruction: str, weights: str) -> Product:
        first = x not in register
        if first:
            register[x] = free.pop(0)
        return Product(register[x], first, instruction, weights)

    for word, plan in enumerate(plans):
        finish = tuple(product(x, *plan[x]) for x in plan if last[x] == word)
        finished += [x for x in plan if last[x] == word]
        others = [x for x in plan if last[x] != word]
        leave: tuple[Leave, ...] = ()
        scratch = free[0] if free else ROW_WORDS[0]
        crowded = len(free) <= sum(x not in register for x in others)  # a register must stay free, as scratch
        if finished and (len(finished) >= 2 or crowded or word == count - 1):
            assert free or not others  # the loaded words are still needed where outputs go on
            leave = tuple(Leave(register[x], x) for x in finished)
            free = sorted([*free, *(register[x] for x in finished)])
            finished = []
        start = tuple(product(x, *plan[x]) for x in others)
        words.append(Word(4 * word, finish, leave, scratch, start))
    assert sorted(leaving.pixel for word in words for leaving in word.leave) == list(range(outputs))
    return tuple(words)


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


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def _lines(call: Call, source: Storage) -> tuple[Line, ...]:
    op = call.op
    assert isinstance(op, DepthwiseConv2D)
    if call.rows == 1:
        return (Line(tuple((i, i * source.slot_bytes) for i in range(3))),)
    return tuple(
        Line(
            tuple((i, row * source.slot_bytes) for i, row in enumerate(range(top, top + 3)) if 0 <= row < source.height)
        )
        for top in range(-op.padding[0], call.rows * op.stride[0] - op.padding[0], op.stride[0])
    )


def depthwise_view(call: Call) -> DepthwiseView:
    """Return what the text depends on. Input planar16, output wide16.

    rows[0] is, for one output row, the first slot of a ring of three, or the top row of the window in a tensor stored
    whole, padding rows included; for several output rows it is row 0 of the tensor. rows[1] is the first output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and source.layout is PLANAR16 and target.layout is WIDE16
    assert source.slots == 3 or source.whole
    # An odd channel gets a partner where memory has one, so that the loop can take two at a time.
    channels = source.tensor.shape[2]
    channels += channels % 2 and min(source.stored_channels, target.stored_channels) > channels
    return DepthwiseView(
        channels=channels,
        width=source.width,
        left=op.padding[2],
        stride=op.stride[1],
        outputs=target.width,
        lines=_lines(call, source),
        input_channel=source.channel_bytes,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        output_row=target.slot_bytes,
        requantization=_requantizer(call).view,
    )


def depthwise_pack(call: Call, view: DepthwiseView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each channel:

        6 words: P of the rows in slots 0, 1, 2 of the input, then Q of them; times 256 in the form fast
        the words of the requantisation, then the bias, in the form fast times 256 and with the addend

    `phase` is the slot of the ring that holds the top row of the window: that slot meets kernel row 0. It is 0 unless
    the input is a ring of three slots.
    """
    op, source = call.op, call.inputs[0]
    assert isinstance(op, DepthwiseConv2D) and (phase == 0 or (call.rows == 1 and source.slots == 3))
    how, live = _requantizer(call), len(op.bias)
    weights = op.weights.astype(np.int64)
    weights[:, :, how.constant] = 0
    # accumulator = sum of w * (quantized - zero_point) + b, and quantized = stored value + offset
    bias = how.bias(op.bias - (source.tensor.zero_point - source.offset) * weights.sum((0, 1)))
    if view.requantization.form == "fast":
        weights, bias = 256 * weights, 256 * bias + how.delta

    weights = np.roll(weights, phase, axis=0)  # slot (phase + i) % 3 holds row i of the window
    words = np.zeros((view.channels, view.channel_words), np.int64)
    for slot in range(3):
        words[:live, slot] = (weights[slot, 0] & 0xFFFF) | (weights[slot, 1] & 0xFFFF) << 16
        words[:live, 3 + slot] = (weights[slot, 1] & 0xFFFF) | (weights[slot, 2] & 0xFFFF) << 16
    words[:live, 6:-1] = how.words
    words[:live, -1] = bias
    return tuple(int(word) & 0xFFFFFFFF for word in words.ravel())
