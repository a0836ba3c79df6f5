"""Kernels for cores without DSP instructions: two pixels in each multiplication, blocks of a depthwise row.

A word holds the same value of two pixels, X = low + 65536 * high, each of them centred (-128..127). One 32-bit product
with a weight is both products at once, and a *window* of four of them is summed before the lanes are parted:

    t = X0 * w0 + X1 * w1 + X2 * w2 + X3 * w3 = lower sum + 65536 * upper sum                   modulo 2**32
    low += t;  high += (t + 0x8000) >> 16

The second line is exact while the lower sum stays within int16, hence while |w0| + .. + |w3| <= 255 (`WINDOW_REACH`).
At the end `high` is the sum of the upper pixel, low - (high << 16) that of the lower one.

Weights that are too large for their window are split: the window takes what fits, the rest is a *residue*, one product
that is parted by itself. About one window in twelve has one.

Accumulators become bytes in two products of 32 bits: see `short_form`.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import WIDE8, align4
from codegen.plain import as_word, int8_words
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.fixed_point import Int64Array
from mnet.graph import Conv2D, DepthwiseConv2D, Graph, Int8Array, Op

WINDOW = 4  # products that are summed before the lanes are parted
WINDOW_REACH = 255  # 128 * 255 = 2**15 - 128: no lower sum leaves int16
MAX_TAPS = 576  # words on the stack; a window of 3x3x64
PRODUCT_LIMIT = 1 << 32


@dataclass(frozen=True, eq=False)
class ShortRequantization:
    """The form fast in two products that stay within uint32, for cores whose multiplier has no upper half.

    With x = accumulator + offset, and 0 or the greatest value where x is below 0 or above `limit`:

        value = (x * upper + ((x * lower + addend) >> shift)) >> 24        multiplier = upper * 2**shift + lower

    which is floor((x * multiplier + addend) / 2**(24 + shift)), the value of the form fast above the least one.
    """

    offset: Int64Array  # [channels], to be added to the bias
    limit: Int64Array  # [channels]
    upper: Int64Array
    lower: Int64Array
    addend: Int64Array


def short_form(how: Requantizer, low: Int64Array, high: Int64Array) -> ShortRequantization | None:
    """Return the short form of a layer with accumulators low..high [channels], or None where products do not fit."""
    shift, least, most = how.view.shift, how.view.clamp_low, how.view.clamp_high
    if how.view.form != "fast" or shift == 0:
        return None
    multiplier = np.maximum(how.words[:, 0], 1)
    # (256 * x + delta) * multiplier >> (32 + shift) == (x * multiplier + whole) >> (24 + shift): nested floors merge.
    whole = (how.delta * multiplier >> 8) - (least << (24 + shift))
    offset, addend = whole // multiplier, whole % multiplier
    # The last x that makes `most`, or the last that occurs.
    limit = (((most - least + 1) << (24 + shift)) - 1 - addend) // multiplier
    limit = np.minimum(limit, np.maximum(high + offset, 0))
    upper, lower = multiplier >> shift, multiplier & ((1 << shift) - 1)
    inner = limit * lower + addend
    # Where one step of x passes by all values there is no such x: limit is -1, which no code compares with.
    within = (low + offset >= -(1 << 31)) & (high + offset < 1 << 31) & (limit >= 0) & (limit < 1 << 31)
    fits = within & (inner < PRODUCT_LIMIT) & (limit * upper + (inner >> shift) < PRODUCT_LIMIT)
    # A constant channel has accumulator 0 and shows its value.
    value = np.clip((how.delta * multiplier >> (32 + shift)) - least, 0, most - least)
    constant = how.constant
    offset, limit, addend = np.where(constant, 0, offset), np.where(constant, 0, limit), np.where(constant, 0, addend)
    upper, lower = np.where(constant, 0, upper), np.where(constant, 0, lower)
    # x = 1 makes upper >> 24.
    offset, limit, upper = offset + constant, limit + constant, np.where(constant, value << 24, upper)
    return ShortRequantization(offset, limit, upper, lower, addend) if (fits | constant).all() else None


def split_weights(weights: Int8Array) -> tuple[Int8Array, Int8Array]:
    """Return (fitting, rest), fitting + rest == weights; taps lie in the last axis, a multiple of WINDOW of them.

    In each window |fitting| sums up to at most WINDOW_REACH; what is too much is taken from the largest weights.
    """
    windows = weights.astype(np.int64).reshape(*weights.shape[:-1], -1, WINDOW)
    size, rest = np.abs(windows), np.zeros_like(windows)
    for _ in range(WINDOW):
        excess = np.maximum(size.sum(-1) - WINDOW_REACH, 0)
        largest = size.argmax(-1)[..., None]
        # A rest within int8, whatever its sign.
        taken = np.minimum(np.minimum(excess[..., None], np.take_along_axis(size, largest, -1)), 127)
        np.put_along_axis(rest, largest, np.take_along_axis(rest, largest, -1) + taken, -1)
        np.put_along_axis(size, largest, np.take_along_axis(size, largest, -1) - taken, -1)
    rest *= np.sign(windows)
    fitting = windows - rest
    assert (np.abs(fitting).sum(-1) <= WINDOW_REACH).all() and np.abs(rest).max(initial=0) <= 128
    return fitting.reshape(weights.shape).astype(np.int8), rest.reshape(weights.shape).astype(np.int8)


@dataclass(frozen=True)
class PackedView:
    """Everything that the text of a packed convolution depends on. Distances are in bytes."""

    pointers: int  # rows of the window, dilated
    height: int  # of the kernel
    dilation: int
    first: int  # of the first window's first tap in a row
    step: int  # from window to window
    run: int  # taps that follow each other in memory
    runs: int  # of them in a kernel row
    run_step: int  # from run to run
    live_taps: int
    outputs: int  # pixels of a row
    channels: int
    target_first: int
    target_pixel: int
    short: bool  # requantised by ShortRequantization
    requantization: RequantizationView

    @property
    def taps(self) -> int:
        """Return the taps of all windows: a multiple of WINDOW."""
        return align4(self.live_taps)

    @property
    def windows(self) -> int:
        """Return the windows of a channel, without residues."""
        return self.taps // WINDOW

    @property
    def pairs(self) -> int:
        """Return the pairs of channels; the last of an odd number makes a channel again."""
        return (self.channels + 1) // 2

    @property
    def unroll(self) -> int:
        """Return the windows of one round of the loop over them: all of a few, else a divisor."""
        return self.windows if self.windows <= 7 else max(n for n in (1, 2, 3, 4, 5) if self.windows % n == 0)

    @property
    def words(self) -> int:
        """Return the words of a channel's requantisation."""
        return _tail_words(self.requantization, self.short)


def packed_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    if not isinstance(op, Conv2D):
        return "not a convolution"
    channels, height, width, depth = op.weights.shape
    if graph.tensors[op.output].shape[1] < 2:
        return "rows of one pixel"
    if channels < 2:
        return "one output channel"
    if height * width * depth > MAX_TAPS:
        return f"{height * width * depth} taps, more than {MAX_TAPS}"
    return None


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def _tail_words(how: RequantizationView, short: bool) -> int:
    return 4 if short else how.words + (how.form == "fast")


def _tails(call: Call, short: bool) -> tuple[Int64Array, Int64Array]:
    """Return what the bias of each channel gets added, and the words of its requantisation."""
    how = _requantizer(call)
    if not short:
        words = np.concatenate([how.delta[:, None], how.words], 1) if how.view.form == "fast" else how.words
        return np.zeros(len(words), np.int64), words
    form = short_form(how, *accumulator_range(call))
    assert form is not None
    return form.offset, np.stack([form.limit, form.upper, form.lower, form.addend], 1)


def packed_view(call: Call) -> PackedView:
    """Return what the text depends on: rows[0 ..] are the rows of the window, the last pointer is the output row."""
    op, source, target, how = call.op, call.inputs[0], call.output, _requantizer(call)
    assert isinstance(op, Conv2D) and source.layout is WIDE8 and target.layout is WIDE8
    _, height, width, depth = op.weights.shape
    stored = source.pixel_bytes
    merged = op.dilation[1] == 1 and stored == depth
    return PackedView(
        pointers=(height - 1) * op.dilation[0] + 1,
        height=height,
        dilation=op.dilation[0],
        first=(source.left - op.padding[2]) * stored,
        step=op.stride[1] * stored,
        run=width * depth if merged else depth,
        runs=1 if merged else width,
        run_step=op.dilation[1] * stored,
        live_taps=height * width * depth,
        outputs=target.width,
        channels=len(op.bias),
        target_first=target.left * target.pixel_bytes,
        target_pixel=target.pixel_bytes,
        short=short_form(how, *accumulator_range(call)) is not None,
        requantization=how.view,
    )


def packed_pack(call: Call, view: PackedView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each pair of channels c, d:

    biases of c and d: what `high` starts from; `low` starts from bias + (bias << 16), so that both end with it
    int8 weights: c and d of each tap in turn
    number of residues of c; each is a word: 1024 * tap + (weight & 255); the same for d
    the number c, words of the requantisation of c, then of d
    """
    op, source, how = call.op, call.inputs[0], _requantizer(call)
    assert isinstance(op, Conv2D) and phase == 0
    weights = op.weights.reshape(len(op.bias), -1) * ~how.constant[:, None]
    weights = np.pad(weights, ((0, 0), (0, view.taps - view.live_taps)))
    fitting, rest = split_weights(weights)
    # sum of w * (quantized - zero_point) = sum of w * lane + (128 + offset - zero_point) * sum of w
    bias = how.bias(op.bias + (128 + source.offset - source.tensor.zero_point) * weights.astype(np.int64).sum(1))
    offset, tails = _tails(call, view.short)
    bias = bias + offset
    words: list[int] = []
    for pair in range(view.pairs):
        c = min(2 * pair, view.channels - 2)
        both = [c, c + 1]
        words += [as_word(int(bias[o])) for o in both]
        words += int8_words(np.ascontiguousarray(fitting[both].T))
        for o in both:
            residues = np.flatnonzero(rest[o])
            words += [len(residues), *(1024 * int(tap) + (int(rest[o, tap]) & 255) for tap in residues)]
        words += [c, *(as_word(int(word)) for o in both for word in tails[o])]
    return tuple(words)


DEPTHWISE_BLOCK = 5  # outputs of a row whose sums fit the upper registers of an ARMv6-M core
DEPTHWISE_WIDTH = 3  # columns of a kernel whose weights fit its lower ones
DEPTHWISE_HEIGHT = 8


@dataclass(frozen=True)
class DepthwiseBlockView:
    """Everything that the text of a depthwise convolution by blocks of outputs depends on. Distances are in bytes."""

    pointers: int  # rows of the window, dilated
    height: int  # of the kernel
    width: int
    dilation: int  # of rows
    stride: int  # of columns
    first: int  # of the first window's first tap in a row
    pixel: int
    outputs: int  # of a row
    channels: int
    target_first: int
    target_pixel: int
    short: bool  # requantised by ShortRequantization
    requantization: RequantizationView

    @property
    def block(self) -> int:
        """Return the outputs that are made together: few blocks, and few outputs that are made twice.

        A block costs about as much as an output besides its outputs.
        """
        sizes = range(1, min(self.outputs, DEPTHWISE_BLOCK) + 1)
        return min(sizes, key=lambda size: (-(-self.outputs // size) * (size + 1), size))

    @property
    def columns(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return, for each column of the input that a block reads: (output, column of the kernel) of its products."""
        last = (self.block - 1) * self.stride + self.width
        return tuple(
            tuple((o, j - o * self.stride) for o in range(self.block) if 0 <= j - o * self.stride < self.width)
            for j in range(last)
        )

    @property
    def words(self) -> int:
        """Return the words of a channel's requantisation."""
        return _tail_words(self.requantization, self.short)

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body for ARMv6-M; else the C body serves every core."""
        return self.short and max(self.pixel, self.target_pixel) < 1 << 16


def depthwise_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    del graph
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    height, width, _ = op.weights.shape
    if height > DEPTHWISE_HEIGHT or width > DEPTHWISE_WIDTH:
        return f"the kernel is {height}x{width}, more than {DEPTHWISE_HEIGHT}x{DEPTHWISE_WIDTH}"
    if op.depth_multiplier != 1:
        return f"the depth multiplier is {op.depth_multiplier}, not 1"
    if op.dilation[1] != 1:
        return f"columns are dilated by {op.dilation[1]}, not 1"
    return None


def depthwise_view(call: Call) -> DepthwiseBlockView:
    """Return what the text depends on: rows[0 ..] are the rows of the window, the last pointer is the output row."""
    op, source, target, how = call.op, call.inputs[0], call.output, _requantizer(call)
    assert isinstance(op, DepthwiseConv2D) and source.layout is WIDE8 and target.layout is WIDE8
    height, width, channels = op.weights.shape
    return DepthwiseBlockView(
        pointers=(height - 1) * op.dilation[0] + 1,
        height=height,
        width=width,
        dilation=op.dilation[0],
        stride=op.stride[1],
        first=(source.left - op.padding[2]) * source.pixel_bytes,
        pixel=source.pixel_bytes,
        outputs=target.width,
        channels=channels,
        target_first=target.left * target.pixel_bytes,
        target_pixel=target.pixel_bytes,
        short=short_form(how, *accumulator_range(call)) is not None,
        requantization=how.view,
    )


def depthwise_pack(call: Call, view: DepthwiseBlockView, phase: int) -> tuple[int, ...]:
    """Return for each channel: bias, a word of weights (16 bits for the last one) per kernel row, requantisation."""
    op, source, how = call.op, call.inputs[0], _requantizer(call)
    assert isinstance(op, DepthwiseConv2D) and phase == 0
    weights = op.weights.astype(np.int64) * ~how.constant
    offset, tails = _tails(call, view.short)
    bias = how.bias(op.bias + (source.offset - source.tensor.zero_point) * weights.sum((0, 1))) + offset
    padded = np.pad(weights, ((0, 0), (0, DEPTHWISE_WIDTH - view.width), (0, 0)))
    rows = (padded[:, 0] & 255) | (padded[:, 1] & 255) << 8 | (padded[:, 2] & 0xFFFF) << 16
    return tuple(as_word(int(word)) for word in np.concatenate([bias[:, None], rows.T, tails], 1).ravel())
