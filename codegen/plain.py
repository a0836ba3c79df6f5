"""Views and constants of the kernels written in plain C: any shape, any core.

A view holds everything that the C text depends on and no weights, so that layers with equal views share one function.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from codegen.call import Call
from codegen.layout import Storage
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.fixed_point import (
    multiply_rounding_once,
    multiply_rounding_twice,
)
from mnet.graph import (
    Add,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Int8Array,
    Int32Array,
)
from mnet.oracle import AddArithmetic, Rounding, add


def as_word(value: int) -> int:
    """Return the 32 bits of a signed or unsigned integer."""
    return int(value) & 0xFFFFFFFF


def int8_words(values: Int8Array) -> list[int]:
    """Return int8 values, four to a little-endian word, padded with zeros."""
    data = values.astype(np.int8).tobytes()
    return [int(word) for word in np.frombuffer(data + bytes(-len(data) % 4), "<u4")]


@dataclass(frozen=True)
class Access:
    """How a kernel reaches the elements of a tensor through the pointer to a row."""

    c_type: str
    first: int  # element of the first real pixel
    pixel: int  # elements from pixel to pixel
    channel: int  # elements from channel to channel
    row: int  # elements from slot to slot
    offset: int  # quantized value = stored value + offset
    width: int
    height: int
    channels: int


def access(storage: Storage) -> Access:
    """Return how to reach the elements of `storage`."""
    size = storage.layout.element_bytes
    return Access(
        c_type=storage.layout.c_type,
        first=storage.left * storage.pixel_bytes // size,
        pixel=storage.pixel_bytes // size,
        channel=storage.channel_bytes // size,
        row=storage.slot_bytes // size,
        offset=storage.offset,
        width=storage.width,
        height=storage.height,
        channels=storage.tensor.shape[2],
    )


def _requantizer(call: Call) -> Requantizer:
    assert call.requantization is not None
    return requantizer(call.requantization, *accumulator_range(call))


def _channel_words(call: Call, weight_sums: Int32Array) -> list[list[int]]:
    """Return bias and requantisation words of each channel: (bias, [delta,] words of the form).

    The bias is for stored values: sum w * (q - zero_point) = sum w * stored - (zero_point - offset) * sum w.
    """
    op, source, how = call.op, call.inputs[0], _requantizer(call)
    assert isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected)
    bias = how.bias(op.bias - (source.tensor.zero_point - source.offset) * weight_sums.astype(np.int64))
    delta = [[int(d)] if how.view.form == "fast" else [] for d in how.delta]
    return [[as_word(word) for word in (b, *d, *words)] for b, d, words in zip(bias, delta, how.words, strict=True)]


@dataclass(frozen=True)
class ConvolutionView:
    """A convolution over rows of interleaved channels; fully connected layers are one pixel with many channels."""

    source: Access
    target: Access
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    step: int  # elements from window to window
    first: int  # element of the first window's first tap
    run: int  # taps that follow each other in memory
    runs: int  # of them in a kernel row
    run_step: int  # elements from run to run
    pointers: int
    outputs: int  # windows in a row
    pixels: int  # of a block
    block: int  # output channels of a block
    head: int  # words of a channel before the weights
    requantization: RequantizationView


def convolution_view(call: Call) -> ConvolutionView:
    """Return the view of a Conv2D or FullyConnected."""
    op, source = call.op, call.inputs[0]
    assert isinstance(op, Conv2D | FullyConnected)
    how = _requantizer(call).view
    stored = source.stored_channels
    if isinstance(op, FullyConnected):  # a window that is the whole tensor
        kernel, dilation, stride, padding = (source.height, source.width), (1, 1), 1, 0
    else:
        kernel, dilation, stride, padding = op.weights.shape[1:3], op.dilation, op.stride[1], op.padding[2]
    channels = source.tensor.shape[2]
    merged = dilation[1] == 1 and stored == channels
    return ConvolutionView(
        source=access(source),
        target=access(call.output),
        kernel=(int(kernel[0]), int(kernel[1])),
        dilation=dilation,
        step=stride * stored,
        first=(source.left - padding) * stored,
        run=kernel[1] * channels if merged else channels,
        runs=1 if merged else kernel[1],
        run_step=dilation[1] * stored,
        pointers=(kernel[0] - 1) * dilation[0] + 1,
        outputs=call.output.width,
        pixels=2 if call.output.width > 1 else 1,
        block=2,
        head=1 + how.words + (how.form == "fast"),
        requantization=how,
    )


def convolution_pack(call: Call, view: ConvolutionView, phase: int) -> tuple[int, ...]:
    """Return, per block of output channels: the words of each channel, then int8 weights [tap][channel]."""
    op = call.op
    assert isinstance(op, Conv2D | FullyConnected)
    weights = op.weights.reshape(op.weights.shape[0], -1) * ~_requantizer(call).constant[:, None]
    heads = _channel_words(call, weights.astype(np.int32).sum(axis=1))
    words: list[int] = []
    for start in range(0, len(heads), view.block):
        chosen = [
            min(start + lane, len(heads) - 1) for lane in range(view.block)
        ]  # the last block may repeat a channel
        words += [word for c in chosen for word in heads[c]]
        words += int8_words(np.ascontiguousarray(weights[chosen].T))
    return tuple(words)


@dataclass(frozen=True)
class DepthwiseView:
    """A depthwise convolution over rows of interleaved channels."""

    source: Access
    target: Access
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    step: int
    first: int
    multiplier: int
    pointers: int
    outputs: int
    weight_words: int  # per channel
    head: int  # words of a channel before the weights
    requantization: RequantizationView


def depthwise_view(call: Call) -> DepthwiseView:
    """Return the view of a DepthwiseConv2D."""
    op, source = call.op, call.inputs[0]
    assert isinstance(op, DepthwiseConv2D)
    how = _requantizer(call).view
    kernel_height, kernel_width, _ = op.weights.shape
    return DepthwiseView(
        source=access(source),
        target=access(call.output),
        kernel=(kernel_height, kernel_width),
        dilation=op.dilation,
        step=op.stride[1] * source.stored_channels,
        first=(source.left - op.padding[2]) * source.stored_channels,
        multiplier=op.depth_multiplier,
        pointers=(kernel_height - 1) * op.dilation[0] + 1,
        outputs=call.output.width,
        weight_words=(kernel_height * kernel_width + 3) // 4,
        head=1 + how.words + (how.form == "fast"),
        requantization=how,
    )


def depthwise_pack(call: Call, view: DepthwiseView, phase: int) -> tuple[int, ...]:
    """Return, per channel: its words, then int8 weights in row order."""
    op = call.op
    assert isinstance(op, DepthwiseConv2D)
    weights = op.weights * ~_requantizer(call).constant
    words: list[int] = []
    for channel, head in enumerate(_channel_words(call, op.weights.astype(np.int32).sum(axis=(0, 1)))):
        words += head
        words += int8_words(weights[:, :, channel].reshape(-1))
    return tuple(words)


@dataclass(frozen=True)
class AddView:
    """Elementwise sum of two rows.

    In the form fast, stored = usat8(first * constants[0] + second * constants[1] + constants[2] >> shift); in the
    others what each value of an input contributes is looked up, and the sum is requantized.
    """

    first: Access
    second: Access
    target: Access
    form: str  # fast; shifts: NAME_requantize_shifts, see codegen/requantize.py; else the oracle's own steps
    multiplier: int
    shift: int  # of the runtime's steps (positive = left), or of the forms fast and shifts (positive = right)
    addend: int  # of the form shifts
    zero: int  # zero_point, which the runtime's own steps leave to be added; 0 in the other forms
    low: int
    high: int

    @property
    def flat(self) -> bool:
        """Return whether the values of a row follow each other in all three tensors."""
        return all(a.channel == 1 and a.pixel == a.channels for a in (self.first, self.second, self.target))


@lru_cache(maxsize=64)
def solve_add(how: AddArithmetic) -> tuple[int, int, int, int] | None:
    """Return factors, addend and shift that give the runtime's sum of every pair of int8 values, or None.

    usat8((q1 + 128) * factor_1 + (q2 + 128) * factor_2 + addend >> shift) is its stored value, up to a clamp to the
    activation. Two factors leave an interval of addends for each of the 65,536 pairs; they do if all intersect.
    """
    quantized = np.arange(-128, 128, dtype=np.int64).astype(np.int8)
    wanted = add(quantized[:, None], quantized[None, :], how).astype(np.int64) + 128
    low, high = how.activation[0] + 128, how.activation[1] + 128
    output = how.output_multiplier * 2.0 ** (how.output_shift - 31)
    slopes = [
        multiplier * 2.0 ** (shift - 31 + how.left_shift) * output
        for multiplier, shift in zip(how.input_multipliers, how.input_shifts, strict=True)
    ]
    if not min(slopes) > 0:
        return None
    shift = min(30 - math.ceil(math.log2(255 * sum(slopes) + 256)), 22)
    x = np.arange(256, dtype=np.int64)
    for tilt, skew in itertools.product((0, 1, -1, 2, -2, 4, -4, 8, -8, 16, 32), (0, 1, -1, 2, -2)):
        first, second = (round(slope * 2**shift) + tilt for slope in slopes)
        second += skew
        sums = first * x[:, None] + second * x[None, :]
        least = ((wanted << shift) - sums)[wanted > low].max(initial=-(1 << 30))
        most = (((wanted + 1) << shift) - 1 - sums)[wanted < high].min(initial=1 << 30)
        addend = int(least + most) // 2
        if least <= most and abs(addend) + int(sums.max()) < 1 << 31:
            return first, second, addend, shift
    return None


def add_view(call: Call) -> AddView:
    """Return the view of an Add."""
    op, how = call.op, call.arithmetic
    assert isinstance(op, Add) and isinstance(how, AddArithmetic)
    right = -how.output_shift
    fast = solve_add(how)
    # |sum| <= 2 * (255 << 20) / 2 < 2**28 and addend < 2**(right + 8): up to a shift of 21 all stays within int32.
    shifts = fast is None and how.rounding is Rounding.DOUBLE and 1 <= right <= 21
    zero = how.zero_point
    form, shift = how.rounding.name.lower(), how.output_shift
    if fast is not None:
        form, shift = "fast", fast[3]
    elif shifts:
        form, shift = "shifts", right
    return AddView(
        first=access(call.inputs[0]),
        second=access(call.inputs[1]),
        target=access(call.output),
        form=form,
        multiplier=how.output_multiplier if fast is None else 0,
        shift=shift,
        addend=(1 << (right - 1)) + ((zero + 128) << right) if shifts else 0,
        zero=0 if shifts or fast is not None else zero,
        low=op.activation[0],
        high=op.activation[1],
    )


def add_pack(call: Call, view: AddView, phase: int) -> tuple[int, ...]:
    """Return factors and addend of the form fast; or the 256 scaled contributions of each input's quantized values."""
    how = call.arithmetic
    assert isinstance(how, AddArithmetic)
    if view.form == "fast":
        solved = solve_add(how)
        assert solved is not None
        first, second, addend, _ = solved
        # stored value + offset + 128 is what the factors are for
        addend += first * (view.first.offset + 128) + second * (view.second.offset + 128)
        return as_word(first), as_word(second), as_word(addend)
    scale = {Rounding.DOUBLE: multiply_rounding_twice, Rounding.SINGLE: multiply_rounding_once}[how.rounding]
    quantized = np.arange(-128, 128, dtype=np.int64)
    words: list[int] = []
    for which in (0, 1):
        shifted = (quantized - how.input_zero_points[which]) << how.left_shift
        words += [as_word(int(v)) for v in scale(shifted, how.input_multipliers[which], how.input_shifts[which])]
    return tuple(words)


def no_constants(call: Call, view: object, phase: int) -> tuple[int, ...]:
    """Return no words: everything is in the code."""
    return ()
