"""Architecture -> the int8 Graph that its training would end in, with random weights: for costs before any training.

Planner and kernels look at shapes, strides, scales and zero points, hardly at weights: none is zero for a whole
channel, so nothing is dropped as dead. Operators, padding and quantization are those of the converter, see
`tests/test_untrained.py`.
"""

from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from mnet.architecture import Architecture, Kind, Layer, layers
from mnet.graph import (
    Conv2D,
    DepthwiseConv2D,
    Graph,
    Op,
    Reduce,
    Reduction,
    Reshape,
    Softmax,
    Tensor,
    check_graph,
)

_RELU6 = float(np.float32(6 / 255)), -128  # scale and zero_point
_LINEAR = float(np.float32(0.07)), -128  # of networks trained here: 0.05 to 0.09; `mnet quantize` moves them to -128
_LOGITS = float(np.float32(0.1)), -20
_PROBABILITIES = 1 / 256, -128
_SPREAD = 50  # standard deviation of int8 weights whose largest is 127


@dataclass(eq=False)
class _Growing:
    """A chain of operators, and what its end is called."""

    random: np.random.Generator
    tensors: dict[str, Tensor]
    end: str
    ops: list[Op] = field(default_factory=list)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # of a ZeroPadding2D, for the layer that follows
    middle: int = (
        0  # of the end's values, in steps above its zero_point: a linear output begins at 0, others are sparse
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tensors[self.end].shape

    def append(self, op: Op, scale: float, zero_point: int) -> None:
        """Let `op` end the chain."""
        self.tensors[op.output] = Tensor(op.output, op.output_shape(self.shape), scale, zero_point)
        self.ops.append(op)
        self.end, self.padding, self.middle = op.output, (0, 0, 0, 0), 0


def untrained_graph(architecture: Architecture, seed: int = 0) -> Graph:
    """Return the quantized network of `architecture` with random weights, the same for the same seed."""
    a = architecture
    source = Tensor("image", (a.height, a.width, a.channels), 1 / 128, 0)
    chain = _Growing(np.random.default_rng(seed), {source.name: source}, source.name)
    table = layers(a)
    clamped = {layer.name.removesuffix("_relu") for layer in table if layer.kind is Kind.RELU6}
    for layer in table:
        match layer.kind:
            case Kind.INPUT | Kind.NORMALIZATION | Kind.RELU6 | Kind.DROPOUT:
                pass  # folded into the operator before
            case Kind.ZERO_PADDING:
                chain.padding = layer.padding
            case Kind.CONVOLUTION | Kind.DEPTHWISE:
                _convolve(chain, layer, layer.name in clamped)
            case Kind.POOLING:
                op = Reduce(layer.name, chain.end, f"{layer.name}_out", Reduction.MEAN, (0, 1))
                chain.append(op, _RELU6[0] / 2, -128)
            case Kind.RESHAPE:
                before = chain.tensors[chain.end]
                shape = (1, 1, a.classes)
                chain.append(
                    Reshape(layer.name, chain.end, f"{layer.name}_out", shape), before.scale, before.zero_point
                )
            case Kind.SOFTMAX:
                chain.append(Softmax(layer.name, chain.end, f"{layer.name}_out", 1.0), *_PROBABILITIES)
            case _:
                assert_never(layer.kind)
    return check_graph(Graph("net", chain.tensors, tuple(chain.ops), (source.name,), (chain.end,), "0" * 16))


def _convolve(chain: _Growing, layer: Layer, clamped: bool) -> None:
    height, width, channels_in = chain.shape
    channels = layer.output_shape[-1]
    padding = chain.padding
    if not any(padding):
        padding = (*_same(height, layer.kernel, layer.stride), *_same(width, layer.kernel, layer.stride))
    if layer.name == "conv_preds":
        scale, zero_point = _LOGITS
    else:
        scale, zero_point = _RELU6 if clamped else _LINEAR
    linear = not clamped and layer.name != "conv_preds"
    depthwise = layer.kind is Kind.DEPTHWISE
    weights = layer.kernel**2 * (1 if depthwise else channels_in)
    # The standard deviation of what is summed is about 1 if that of the weights is 1 / sqrt(their number).
    scales = chain.random.uniform(1.5, 3, channels).astype(np.float32) / np.float32(127 * np.sqrt(weights))
    kernel = (layer.kernel, layer.kernel)
    drawn = _weights(chain.random, (*kernel, channels) if depthwise else (channels, *kernel, channels_in))
    middle = 128 if linear else 0
    bias = chain.random.normal(middle * scale, 0.3, channels) / (chain.tensors[chain.end].scale * scales)
    bias -= chain.middle * drawn.sum(axis=(0, 1) if depthwise else (1, 2, 3), dtype=np.int64)
    values: dict[str, Any] = {
        "name": layer.name,
        "input": chain.end,
        "output": f"{layer.name}_out",
        "bias": _frozen(np.rint(bias).astype(np.int32)),
        "weight_scales": _frozen(scales.astype(np.float64)),
        "stride": (layer.stride, layer.stride),
        "dilation": (1, 1),
        "padding": padding,
        "activation": (-128, 127),
    }
    if depthwise:
        chain.append(DepthwiseConv2D(weights=drawn, depth_multiplier=1, **values), scale, zero_point)
    else:
        chain.append(Conv2D(weights=drawn, **values), scale, zero_point)
    chain.middle = middle


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    return _frozen(np.rint(np.clip(random.normal(0, _SPREAD, shape), -127, 127)).astype(np.int8))


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the pixels that "SAME" adds before and after."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
