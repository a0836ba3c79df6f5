"""Views and constants of the kernels written in plain C: any shape, any core.

A view holds everything that the C text depends on and no weights, so that layers with equal views share one function.
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.layout import Storage
from codegen.requantize import RequantizationView, Requantizer, accumulator_range, requantizer
from mnet.graph import (
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Int8Array,
    Int32Array,
)


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


def no_constants(call: Call, view: object, phase: int) -> tuple[int, ...]:
    """Return no words: everything is in the code."""
    return ()
