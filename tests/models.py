"""Small networks for tests: a builder of Graphs, three fixed ones, and a writer that makes .tflite files of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet import golden
from mnet.elementwise import reason_to_refuse
from mnet.fixed_point import Float64Array
from mnet.graph import (
    ArgMax,
    AveragePool2D,
    Binary,
    BinaryFunction,
    Concat,
    Constant,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    Int8Array,
    L2Normalization,
    MaxPool2D,
    Move,
    Op,
    Pad,
    Pool2D,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Sampling,
    Softmax,
    Tensor,
    Unary,
    UnaryFunction,
    check_graph,
    inputs_of,
    output_size,
)
from mnet.movement import rearrange
from mnet.operands import activation_range, same_padding
from mnet.oracle import LITERT, Oracle
from mnet.pairs import quantizations

ACTIVATIONS = {"none": 0, "relu": 1, "relu_n1_to_1": 2, "relu6": 3}  # as schema.ActivationFunctionType numbers them


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _float32(value: float) -> float:
    return float(np.float32(value))


class Builder:
    """Grows a Graph op by op with random weights, and chooses scales by running the golden model along.

    The same seed and calls give the same graph on every machine. Each method takes the name of its input and returns
    the name of its output; `fill` says how much of the int8 range the outputs take (above 1 they saturate).
    """

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int],
        *,
        scale: float = 1 / 64,
        zero_point: int = 0,
        weight_scale: float = 0.01,  # smaller for deep networks, or their activations overflow
        oracle: Oracle = LITERT,  # whose arithmetic the samples take
    ) -> None:
        self.oracle = oracle
        self.random = np.random.default_rng(seed)
        self.weight_scale = np.float32(weight_scale)
        self.ops: list[Op] = []
        self.tensors = {"input": Tensor("input", shape, _float32(scale), zero_point)}
        self.inputs = ["input"]
        self.values: dict[str, Int8Array] = {"input": self._samples(shape)}

    def graph(self, outputs: str | Sequence[str], name: str = "tiny") -> Graph:
        """Return the graph, checked, that ends in one output or several."""
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        return check_graph(Graph(name, dict(self.tensors), tuple(self.ops), tuple(self.inputs), outputs, "0" * 16))

    def input(self, shape: tuple[int, int, int], *, scale: float = 1 / 64, zero_point: int = 0) -> str:
        """Add another input."""
        name = f"input_{len(self.inputs) + 1}"
        self.inputs.append(name)
        self.tensors[name] = Tensor(name, shape, _float32(scale), zero_point)
        self.values[name] = self._samples(shape)
        return name

    def _samples(self, shape: tuple[int, int, int]) -> Int8Array:
        samples = self.random.integers(-128, 128, (4, *shape)).astype(np.int8)
        samples[1] = self.random.choice(np.array([-128, 127], np.int8), shape)
        return samples

    def shape(self, tensor: str) -> tuple[int, int, int]:
        """Return [height, width, channels] of a tensor."""
        return self.tensors[tensor].shape

    def _name(self, kind: str) -> str:
        return f"{kind}_{len(self.ops)}"

    def _append(self, op: Op, target: Tensor) -> str:
        self.tensors[target.name] = target
        self.ops.append(op)
        graph = Graph("", self.tensors, (), ("input",), (target.name,), "")
        self.values[target.name] = golden.compute(op, graph, self.oracle, tuple(self.values[n] for n in inputs_of(op)))
        return target.name

    def _weights(self, shape: tuple[int, ...], channel_axis: int, dead: float) -> tuple[Int8Array, Float64Array]:
        weights = np.rint(np.clip(self.random.normal(0, 50, shape), -127, 127)).astype(np.int8)
        channels = shape[channel_axis]
        silent = self.random.random(channels) < dead
        np.moveaxis(weights, channel_axis, 0)[silent] = 0
        scales = self.weight_scale * np.exp2(self.random.integers(-8, 9, channels) / 4).astype(np.float32)
        return _frozen(weights), _frozen(scales.astype(np.float64))

    def _finish(
        self,
        op: Conv2D | DepthwiseConv2D | FullyConnected,
        shape: tuple[int, int, int],
        activation: str,
        zero_point: int,
        fill: float,
    ) -> str:
        """Give `op` a bias, and its output a scale that fits what the samples make."""
        graph = Graph("", self.tensors, (), ("input",), (), "")
        spread = int(np.abs(golden.accumulate(op, graph, self.values[op.input])).max(initial=1)) // 2 + 1
        bias = self.random.integers(-spread, spread + 1, op.bias.shape).astype(np.int32)
        op = replace(op, bias=_frozen(bias))
        real = golden.accumulate(op, graph, self.values[op.input]) * (self.tensors[op.input].scale * op.weight_scales)
        finest = self.tensors[op.input].scale * float(op.weight_scales.max()) / 8  # keeps multipliers sensible
        scale = _float32(max(float(np.abs(real).max(initial=0)) / (127 * fill), finest))
        chosen = activation_range(ACTIVATIONS[activation], scale, zero_point)
        assert chosen is not None
        return self._append(replace(op, activation=chosen), Tensor(op.output, shape, scale, zero_point))

    def conv(
        self,
        source: str,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        *,
        same: bool = True,
        activation: str = "relu",
        zero_point: int = -128,
        fill: float = 1.0,
        dead: float = 0.0,
    ) -> str:
        """Add a CONV_2D; a share `dead` of its channels has zero weights."""
        height, width, channels_in = self.shape(source)
        weights, scales = self._weights((channels, *kernel, channels_in), 0, dead)
        padding, size = geometry((height, width), kernel, stride, dilation, same)
        name, bias = self._name("conv"), np.zeros(channels, np.int32)
        op = Conv2D(name, source, f"{name}_out", weights, bias, scales, stride, dilation, padding, (-128, 127))
        return self._finish(op, (*size, channels), activation, zero_point, fill)

    def depthwise(
        self,
        source: str,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        *,
        multiplier: int = 1,
        same: bool = True,
        activation: str = "relu",
        zero_point: int = -128,
        fill: float = 1.0,
        dead: float = 0.0,
    ) -> str:
        """Add a DEPTHWISE_CONV_2D."""
        height, width, channels_in = self.shape(source)
        channels = channels_in * multiplier
        weights, scales = self._weights((*kernel, channels), 2, dead)
        padding, size = geometry((height, width), kernel, stride, dilation, same)
        name, bias = self._name("depthwise"), np.zeros(channels, np.int32)
        op = DepthwiseConv2D(
            name,
            source,
            f"{name}_out",
            weights,
            bias,
            scales,
            multiplier,
            stride,
            dilation,
            padding,
            (-128, 127),
        )
        return self._finish(op, (*size, channels), activation, zero_point, fill)

    def fully_connected(
        self,
        source: str,
        channels: int,
        *,
        per_channel: bool = False,
        activation: str = "none",
        zero_point: int = 0,
        fill: float = 1.0,
    ) -> str:
        """Add a FULLY_CONNECTED."""
        weights, scales = self._weights((channels, math.prod(self.shape(source))), 0, 0.0)
        dense = Dense.PER_CHANNEL if per_channel and channels > 1 else Dense.PER_TENSOR
        if dense is Dense.PER_TENSOR:
            scales = _frozen(np.full(channels, scales[0]))
        name, bias = self._name("dense"), np.zeros(channels, np.int32)
        op = FullyConnected(name, source, f"{name}_out", weights, bias, scales, dense, (-128, 127))
        return self._finish(op, (1, 1, channels), activation, zero_point, fill)

    def dense_of_pixels(
        self,
        source: str,
        channels: int,
        *,
        per_channel: bool = False,
        activation: str = "none",
        zero_point: int = 0,
        fill: float = 1.0,
        dead: float = 0.0,
    ) -> str:
        """Add a FULLY_CONNECTED of each of two pixels or more."""
        height, width, taken = self.shape(source)
        assert height * width > 1  # of one pixel it is a FullyConnected
        weights, scales = self._weights((channels, 1, 1, taken), 0, dead)
        dense = Dense.PER_CHANNEL if per_channel and channels > 1 else Dense.PER_TENSOR
        if dense is Dense.PER_TENSOR:
            scales = _frozen(np.full(channels, scales[0]))
        name, bias = self._name("dense"), np.zeros(channels, np.int32)
        window = (1, 1), (1, 1), (0, 0, 0, 0)
        op = Conv2D(name, source, f"{name}_out", weights, bias, scales, *window, (-128, 127), dense)
        return self._finish(op, (height, width, channels), activation, zero_point, fill)

    def average_pool(
        self,
        source: str,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        *,
        same: bool = False,
        activation: str = "none",
    ) -> str:
        """Add an AVERAGE_POOL_2D."""
        return self._pool(AveragePool2D, source, kernel, stride, same, activation)

    def max_pool(
        self,
        source: str,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        *,
        same: bool = False,
        activation: str = "none",
    ) -> str:
        """Add a MAX_POOL_2D."""
        return self._pool(MaxPool2D, source, kernel, stride, same, activation)

    def _pool(
        self,
        kind: type[Pool2D],
        source: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        same: bool,
        activation: str,
    ) -> str:
        tensor, name = self.tensors[source], self._name("pool")
        padding, size = geometry(tensor.shape[:2], kernel, stride, (1, 1), same)
        chosen = activation_range(ACTIVATIONS[activation], tensor.scale, tensor.zero_point)
        assert chosen is not None
        op = kind(name, source, f"{name}_out", kernel, stride, padding, chosen)
        return self._append(op, replace(tensor, name=op.output, shape=(*size, tensor.shape[2])))

    def resize(
        self,
        source: str,
        size: tuple[int, int],
        sampling: Sampling = Sampling.NEAREST,
        *,
        align_corners: bool = False,
        half_pixel_centers: bool = False,
    ) -> str:
        """Add a RESIZE_NEAREST_NEIGHBOR or a RESIZE_BILINEAR."""
        tensor, name = self.tensors[source], self._name("resize")
        op = Resize(name, source, f"{name}_out", sampling, size, align_corners, half_pixel_centers)
        return self._append(op, replace(tensor, name=op.output, shape=(*size, tensor.shape[2])))

    def reduce(
        self,
        source: str,
        function: Reduction = Reduction.MEAN,
        axes: tuple[int, ...] = (0, 1),
        *,
        zero_point: int = -128,
        ratio: float = 1.0,
    ) -> str:
        """Add a MEAN or SUM of output scale = input scale * ratio, or a REDUCE_MAX or REDUCE_MIN."""
        tensor, name = self.tensors[source], self._name(function.value)
        op = Reduce(name, source, f"{name}_out", function, axes)
        target = replace(tensor, name=op.output, shape=op.output_shape(tensor.shape))
        if function in (Reduction.MEAN, Reduction.SUM):
            target = replace(target, scale=_float32(tensor.scale * ratio), zero_point=zero_point)
        return self._append(op, target)

    def mean(self, source: str, *, zero_point: int = -128, ratio: float = 1.0) -> str:
        """Add a MEAN over rows and columns."""
        return self.reduce(source, zero_point=zero_point, ratio=ratio)

    def unary(
        self,
        source: str,
        function: UnaryFunction,
        *,
        alpha: float = 0.1,
        zero_point: int = -128,
        ratio: float = 1.0,
    ) -> str:
        """Add a function of one value; output scale = input scale * ratio, where the function does not say."""
        tensor, name = self.tensors[source], self._name(function.name.lower())
        scale = _float32(tensor.scale * ratio)
        if function is UnaryFunction.LOGISTIC:
            scale, zero_point = 1 / 256, -128
        if function is UnaryFunction.TANH:
            scale, zero_point = 1 / 128, 0
        alpha = _float32(alpha) if function is UnaryFunction.LEAKY_RELU else 0.0
        op = Unary(name, source, f"{name}_out", function, alpha)
        target = Tensor(op.output, tensor.shape, scale, zero_point)
        if reason := reason_to_refuse(op, tensor, target):
            raise ValueError(reason)
        return self._append(op, target)

    def add(self, first: str, second: str, *, activation: str = "none", zero_point: int = 0, fill: float = 1.0) -> str:
        """Add an ADD of two tensors."""
        return self.binary(BinaryFunction.ADD, first, second, activation=activation, zero_point=zero_point, fill=fill)

    def constant(self, shape: tuple[int, int, int], *, scale: float = 0.02, zero_point: int = 0) -> Constant:
        """Return random values for an operand."""
        return Constant(_frozen(self.random.integers(-128, 128, shape).astype(np.int8)), _float32(scale), zero_point)

    def binary(
        self,
        function: BinaryFunction,
        first: str | Constant,
        second: str | Constant,
        *,
        activation: str = "none",
        zero_point: int = 0,
        fill: float = 1.0,
    ) -> str:
        """Add a function of two values, of two tensors or of one and a constant."""
        name = self._name(function.value.lower())
        constants = [operand for operand in (first, second) if isinstance(operand, Constant)]
        inputs = tuple(operand for operand in (first, second) if isinstance(operand, str))
        constant = constants[0] if constants else None
        op = Binary(name, inputs, f"{name}_out", function, (-128, 127), constant, isinstance(first, Constant))
        real = self._real(op)
        finest = max(operand.scale for operand in quantizations(op, self._so_far())) / 8
        if function in (BinaryFunction.MUL, BinaryFunction.SQUARED_DIFFERENCE):
            finest = finest**2
        scale = _float32(max(float(np.abs(real).max(initial=0)) / (127 * fill), finest))
        chosen = activation_range(ACTIVATIONS[activation], scale, zero_point)
        assert chosen is not None
        target = Tensor(op.output, (real.shape[1], real.shape[2], real.shape[3]), scale, zero_point)
        return self._append(replace(op, activation=chosen), target)

    def _so_far(self) -> Graph:
        return Graph("", self.tensors, (), ("input",), (), "")

    def _real(self, op: Binary) -> Float64Array:
        """Return the real numbers that `op` makes of the samples."""
        constant = np.empty(0, np.int8) if op.constant is None else op.constant.values
        values = op.operands([self.values[name] for name in op.inputs], constant)
        first, second = (
            (value.astype(np.float64) - how.zero_point) * how.scale
            for value, how in zip(values, quantizations(op, self._so_far()), strict=True)
        )
        match op.function:
            case BinaryFunction.ADD:
                return np.asarray(first + second)
            case BinaryFunction.SUB:
                return np.asarray(first - second)
            case BinaryFunction.MUL:
                return np.asarray(first * second)
            case BinaryFunction.MAXIMUM:
                return np.maximum(first, second)
            case BinaryFunction.MINIMUM:
                return np.minimum(first, second)
            case BinaryFunction.SQUARED_DIFFERENCE:
                return np.asarray((first - second) ** 2)
            case BinaryFunction.PRELU:
                return np.where(first >= 0, first, first * second)

    def l2_normalization(self, source: str) -> str:
        """Add an L2_NORMALIZATION."""
        name = self._name("l2")
        op = L2Normalization(name, source, f"{name}_out")
        return self._append(op, Tensor(op.output, self.shape(source), 1 / 128, 0))

    def arg_max(self, source: str) -> str:
        """Add an ARG_MAX over channels; the end of a network."""
        name = self._name("argmax")
        op = ArgMax(name, source, f"{name}_out")
        return self._append(op, Tensor(op.output, op.output_shape(self.shape(source)), 1.0, 0, type="int32"))

    def _moved(self, op: Move) -> str:
        """Add an op that keeps scale and zero_point."""
        source = self.tensors[inputs_of(op)[0]]
        shape = op.output_shape(*(self.shape(name) for name in inputs_of(op)))
        return self._append(op, replace(source, name=op.output, shape=shape))

    def pad(
        self,
        source: str,
        padding: tuple[int, int, int, int],
        channels: tuple[int, int] = (0, 0),
        value: int | None = None,
    ) -> str:
        """Add a PAD of (top, bottom, left, right) and channels, with a value other than the zero_point a PADV2."""
        name = self._name("pad")
        value = self.tensors[source].zero_point if value is None else value
        return self._moved(Pad(name, source, f"{name}_out", padding, channels, value))

    def concat(self, sources: tuple[str, ...], axis: int) -> str:
        """Add a CONCATENATION along an axis of [height, width, channels]."""
        name = self._name("concat")
        return self._moved(Concat(name, sources, f"{name}_out", axis))

    def gather(self, source: str, rows: Sequence[int], columns: Sequence[int], channels: Sequence[int]) -> str:
        """Add a Gather: a STRIDED_SLICE, or a GATHER along one axis."""
        name = self._name("gather")
        return self._moved(Gather(name, source, f"{name}_out", tuple(rows), tuple(columns), tuple(channels)))

    def transpose(self, source: str, order: tuple[int, int, int]) -> str:
        """Add a TRANSPOSE of [height, width, channels]."""
        shape, name = self.shape(source), self._name("transpose")
        height, width, channels = (shape[axis] for axis in order)
        return self._moved(rearrange(name, source, f"{name}_out", shape, order, (height, width, channels)))

    def space_to_depth(self, source: str, size: int) -> str:
        """Add a SPACE_TO_DEPTH."""
        (height, width, channels), name = self.shape(source), self._name("space_to_depth")
        view = (height // size, size, width // size, size, channels)
        shape = (height // size, width // size, channels * size * size)
        return self._moved(rearrange(name, source, f"{name}_out", view, (0, 2, 1, 3, 4), shape))

    def depth_to_space(self, source: str, size: int) -> str:
        """Add a DEPTH_TO_SPACE."""
        (height, width, channels), name = self.shape(source), self._name("depth_to_space")
        view = (height, width, size, size, channels // (size * size))
        shape = (height * size, width * size, channels // (size * size))
        return self._moved(rearrange(name, source, f"{name}_out", view, (0, 2, 1, 3, 4), shape))

    def reshape(self, source: str, shape: tuple[int, int, int]) -> str:
        """Add a RESHAPE."""
        name = self._name("reshape")
        return self._moved(Reshape(name, source, f"{name}_out", shape))

    def softmax(self, source: str, *, beta: float = 1.0) -> str:
        """Add a SOFTMAX."""
        name = self._name("softmax")
        op = Softmax(name, source, f"{name}_out", _float32(beta))
        return self._append(op, Tensor(op.output, self.shape(source), 1 / 256, -128))


def geometry(
    size: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], same: bool
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    (top, bottom), (left, right) = (
        same_padding(size[axis], kernel[axis], stride[axis], dilation[axis]) if same else (0, 0) for axis in (0, 1)
    )
    return (top, bottom, left, right), (
        output_size(size[0], kernel[0], stride[0], dilation[0], top, bottom),
        output_size(size[1], kernel[1], stride[1], dilation[1], left, right),
    )


def tiny_mobilenet(seed: int = 0, size: int = 16, classes: int = 3) -> Graph:
    """Return a MobileNet V1 in small: stem, three separable blocks (one with stride 2), mean, dense, softmax."""
    build = Builder(seed, (size, size, 3), scale=1 / 128, zero_point=0)
    x = build.conv("input", 8, (3, 3), (2, 2))
    for channels, stride in ((8, 1), (16, 2), (16, 1)):
        x = build.depthwise(x, (3, 3), (stride, stride))
        x = build.conv(x, channels)
    x = build.mean(x)
    x = build.fully_connected(x, classes)
    return build.graph(build.softmax(x), "tiny_mobilenet")


def tiny_residual(seed: int = 0, size: int = 8) -> Graph:
    """Return a residual network in small: an identity and a projected shortcut, average pool, reshape, dense."""
    build = Builder(seed, (size, size, 3), scale=1 / 128, zero_point=0)
    x = build.conv("input", 8, (3, 3))
    y = build.conv(x, 8, (3, 3))
    y = build.conv(y, 8, (3, 3), activation="none", zero_point=3)
    x = build.add(x, y, activation="relu", zero_point=-128)
    y = build.conv(x, 16, (3, 3), (2, 2))
    y = build.conv(y, 16, (3, 3), activation="none", zero_point=-7)
    x = build.conv(x, 16, (1, 1), (2, 2), activation="none", zero_point=11)
    x = build.add(x, y, activation="relu", zero_point=-128)
    x = build.average_pool(x, build.shape(x)[:2])
    x = build.reshape(x, (1, 1, 16))
    return build.graph(build.softmax(build.fully_connected(x, 4, per_channel=True)), "tiny_residual")


def tiny_fusion(seed: int = 0, size: int = 8) -> Graph:
    """Return a network of two inputs and three outputs: a sum that is read on, features in the middle, classes."""
    build = Builder(seed, (size, size, 3), scale=1 / 128, zero_point=0)
    other = build.input((size // 2, size // 2, 5), scale=1 / 64, zero_point=3)
    x = build.conv("input", 8, (3, 3), (2, 2))
    total = build.add(x, build.conv(other, 8, (3, 3), activation="none", zero_point=5))
    features = build.conv(build.depthwise(total), 6, (3, 3))
    classes = build.softmax(build.fully_connected(build.mean(features), 4))
    return build.graph([classes, total, features], "tiny_fusion")


def tiny_autoencoder(seed: int = 0, width: int = 24) -> Graph:
    """Return dense layers only, from a vector to a vector of the same length."""
    build = Builder(seed, (1, 1, width), scale=0.1, zero_point=7)
    x = "input"
    for channels in (16, 4, 16):
        x = build.fully_connected(x, channels, activation="relu", zero_point=-128)
    return build.graph(build.fully_connected(x, width, zero_point=20), "tiny_autoencoder")
