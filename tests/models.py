"""Small networks for tests: a builder of Graphs, three fixed ones, and a writer that makes .tflite files of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet import golden
from mnet.fixed_point import Float64Array
from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Int8Array,
    Int32Array,
    Mean,
    Op,
    Pad,
    Reshape,
    Softmax,
    Tensor,
    check_graph,
    inputs_of,
    output_size,
)
from mnet.operands import activation_range, same_padding
from mnet.oracle import LITERT

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
    ) -> None:
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
        self.values[target.name] = golden.compute(op, graph, LITERT, tuple(self.values[n] for n in inputs_of(op)))
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
        padding, size = _geometry((height, width), kernel, stride, dilation, same)
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
        padding, size = _geometry((height, width), kernel, stride, dilation, same)
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
        per_channel = per_channel and channels > 1
        if not per_channel:
            scales = _frozen(np.full(channels, scales[0]))
        name, bias = self._name("dense"), np.zeros(channels, np.int32)
        op = FullyConnected(name, source, f"{name}_out", weights, bias, scales, per_channel, (-128, 127))
        return self._finish(op, (1, 1, channels), activation, zero_point, fill)

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
        tensor, name = self.tensors[source], self._name("pool")
        padding, size = _geometry(tensor.shape[:2], kernel, stride, (1, 1), same)
        chosen = activation_range(ACTIVATIONS[activation], tensor.scale, tensor.zero_point)
        assert chosen is not None
        op = AveragePool2D(name, source, f"{name}_out", kernel, stride, padding, chosen)
        return self._append(op, replace(tensor, name=op.output, shape=(*size, tensor.shape[2])))

    def mean(self, source: str, *, zero_point: int = -128, ratio: float = 1.0) -> str:
        """Add a MEAN; output scale = input scale * ratio."""
        tensor, name = self.tensors[source], self._name("mean")
        op = Mean(name, source, f"{name}_out")
        target = Tensor(op.output, (1, 1, tensor.shape[2]), _float32(tensor.scale * ratio), zero_point)
        return self._append(op, target)

    def add(self, first: str, second: str, *, activation: str = "none", zero_point: int = 0, fill: float = 1.0) -> str:
        """Add an ADD."""
        sources, name = (self.tensors[first], self.tensors[second]), self._name("add")
        real = sum((self.values[t.name].astype(np.int32) - t.zero_point) * t.scale for t in sources)
        finest = max(tensor.scale for tensor in sources) / 8
        scale = _float32(max(float(np.abs(real).max(initial=0)) / (127 * fill), finest))
        chosen = activation_range(ACTIVATIONS[activation], scale, zero_point)
        assert chosen is not None
        op = Add(name, (first, second), f"{name}_out", chosen)
        return self._append(op, Tensor(op.output, sources[0].shape, scale, zero_point))

    def pad(self, source: str, padding: tuple[int, int, int, int]) -> str:
        """Add a PAD of (top, bottom, left, right)."""
        tensor, name = self.tensors[source], self._name("pad")
        height, width, channels = tensor.shape
        shape = (height + padding[0] + padding[1], width + padding[2] + padding[3], channels)
        op = Pad(name, source, f"{name}_out", padding)
        return self._append(op, replace(tensor, name=op.output, shape=shape))

    def reshape(self, source: str, shape: tuple[int, int, int]) -> str:
        """Add a RESHAPE."""
        name = self._name("reshape")
        op = Reshape(name, source, f"{name}_out")
        return self._append(op, replace(self.tensors[source], name=op.output, shape=shape))

    def softmax(self, source: str, *, beta: float = 1.0) -> str:
        """Add a SOFTMAX."""
        name = self._name("softmax")
        op = Softmax(name, source, f"{name}_out", _float32(beta))
        return self._append(op, Tensor(op.output, self.shape(source), 1 / 256, -128))


def _geometry(
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


def tiny_autoencoder(seed: int = 0, width: int = 24) -> Graph:
    """Return dense layers only, from a vector to a vector of the same length."""
    build = Builder(seed, (1, 1, width), scale=0.1, zero_point=7)
    x = "input"
    for channels in (16, 4, 16):
        x = build.fully_connected(x, channels, activation="relu", zero_point=-128)
    return build.graph(build.fully_connected(x, width, zero_point=20), "tiny_autoencoder")


# --- writing ----------------------------------------------------------------------------------------------------------


def _fused(op: Op, target: Tensor, activation: tuple[int, int]) -> int:
    for function in ACTIVATIONS.values():
        if activation_range(function, target.scale, target.zero_point) == activation:
            return function
    raise ValueError(f"{op.name}: no fused activation gives the range {activation}")


def _padding(
    op: Op, source: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]
) -> int:
    padding = op.padding  # type: ignore[union-attr]
    if padding == (0, 0, 0, 0):
        return int(schema.Padding.VALID)
    if padding == _geometry(source.shape[:2], (kernel[0], kernel[1]), stride, dilation, True)[0]:
        return int(schema.Padding.SAME)
    raise ValueError(f"{op.name}: padding {padding} is neither SAME nor VALID")


def _file_shapes(graph: Graph) -> Mapping[str, list[int]]:
    """Return the shape of each tensor in the file: dense layers make [1, n], which what follows them keeps."""
    shapes = {name: [1, *graph.tensors[name].shape] for name in graph.inputs}
    for op in graph.ops:
        shape = graph.tensors[op.output].shape
        dense = all(isinstance(reader, FullyConnected | Softmax) for reader in graph.consumers(op.output))
        flat = isinstance(op, FullyConnected) or (isinstance(op, Reshape) and shape[:2] == (1, 1) and dense)
        if isinstance(op, Add | Softmax):
            flat = len(shapes[inputs_of(op)[0]]) == 2
        shapes[op.output] = [1, shape[2]] if flat else [1, *shape]
    return shapes


def serialise(graph: Graph) -> bytes:
    """Return a .tflite file that says what `graph` says.

    Raises:
        ValueError: a padding or an activation range has no name in the format.
    """
    from ai_edge_litert import schema_py_generated as objects

    buffers = [objects.BufferT()]
    tensors: list[Any] = []
    codes: list[int] = []
    operators: list[Any] = []
    numbers: dict[str, int] = {}

    def tensor(
        name: str,
        kind: int,
        shape: list[int],
        data: npt.NDArray[Any] | None = None,
        scales: npt.ArrayLike | None = None,
        zero_point: int = 0,
        dimension: int = 0,
    ) -> int:
        made = objects.TensorT()
        made.name, made.type, made.shape = name, kind, shape
        if data is not None:
            buffer = objects.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            buffers.append(buffer)
            made.buffer = len(buffers) - 1
        if scales is not None:
            made.quantization = objects.QuantizationParametersT()
            made.quantization.scale = np.asarray(scales, np.float32).reshape(-1)
            made.quantization.zeroPoint = np.full(len(made.quantization.scale), zero_point, np.int64)
            made.quantization.quantizedDimension = dimension
        tensors.append(made)
        return len(tensors) - 1

    def constants(op: Conv2D | DepthwiseConv2D | FullyConnected, weights: Int8Array, dimension: int) -> list[int]:
        scales = op.weight_scales
        if isinstance(op, FullyConnected) and not op.per_channel:
            scales = scales[:1]
        bias_scales = graph.tensors[op.input].scale * scales
        shape, int8, int32 = list(weights.shape), schema.TensorType.INT8, schema.TensorType.INT32
        return [
            tensor(f"{op.name}_weights", int8, shape, weights, scales, 0, dimension),
            tensor(f"{op.name}_bias", int32, [len(op.bias)], op.bias, bias_scales, 0, 0),
        ]

    def integers(name: str, values: npt.ArrayLike) -> int:
        data: Int32Array = np.asarray(values, np.int32)
        return tensor(name, schema.TensorType.INT32, list(data.shape), data)

    shapes = _file_shapes(graph)

    def activation(name: str) -> int:
        if name not in numbers:
            known = graph.tensors[name]
            numbers[name] = tensor(name, schema.TensorType.INT8, shapes[name], None, [known.scale], known.zero_point)
        return numbers[name]

    for name in graph.inputs:
        activation(name)
    for op in graph.ops:
        source, target = graph.tensors[inputs_of(op)[0]], graph.tensors[op.output]
        more: list[int] = []
        options: Any
        match op:
            case Conv2D():
                kind, options = "CONV_2D", objects.Conv2DOptionsT()
                kernel = op.weights.shape[1:3]
                more = constants(op, op.weights, 0)
            case DepthwiseConv2D():
                kind, options = "DEPTHWISE_CONV_2D", objects.DepthwiseConv2DOptionsT()
                kernel = op.weights.shape[:2]
                options.depthMultiplier = op.depth_multiplier
                more = constants(op, op.weights[None], 3)
            case FullyConnected():
                kind, options = "FULLY_CONNECTED", objects.FullyConnectedOptionsT()
                more = constants(op, op.weights, 0)
            case AveragePool2D():
                kind, options = "AVERAGE_POOL_2D", objects.Pool2DOptionsT()
                kernel = op.kernel
                options.filterHeight, options.filterWidth = op.kernel
            case Mean():
                kind, options = "MEAN", objects.ReducerOptionsT()
                options.keepDims = True
                more = [integers(f"{op.name}_axes", [1, 2])]
            case Add():
                kind, options = "ADD", objects.AddOptionsT()
            case Pad():
                kind, options = "PAD", objects.PadOptionsT()
                top, bottom, left, right = op.padding
                more = [integers(f"{op.name}_pads", [[0, 0], [top, bottom], [left, right], [0, 0]])]
            case Reshape():
                kind, options = "RESHAPE", objects.ReshapeOptionsT()
                options.newShape = shapes[op.output]
                more = [integers(f"{op.name}_shape", shapes[op.output])]
            case Softmax():
                kind, options = "SOFTMAX", objects.SoftmaxOptionsT()
                options.beta = op.beta
            case _:
                assert_never(op)
        if isinstance(op, Conv2D | DepthwiseConv2D | AveragePool2D):
            dilation = (1, 1) if isinstance(op, AveragePool2D) else op.dilation
            options.strideH, options.strideW = op.stride
            options.padding = _padding(op, source, kernel, op.stride, dilation)
            if not isinstance(op, AveragePool2D):
                options.dilationHFactor, options.dilationWFactor = dilation
        if isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected | AveragePool2D | Add):
            options.fusedActivationFunction = _fused(op, target, op.activation)
        number = getattr(schema.BuiltinOperator, kind)
        if number not in codes:
            codes.append(number)
        made = objects.OperatorT()
        made.opcodeIndex = codes.index(number)
        made.inputs = [*(activation(name) for name in inputs_of(op)), *more]
        made.outputs = [activation(op.output)]
        made.builtinOptionsType = getattr(objects.BuiltinOptions, type(options).__name__.removesuffix("T"))
        made.builtinOptions = options
        operators.append(made)

    model, subgraph = objects.ModelT(), objects.SubGraphT()
    model.version, model.description, model.buffers, model.subgraphs = 3, "made by a test", buffers, [subgraph]
    model.operatorCodes = []
    for number in codes:
        code = objects.OperatorCodeT()
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = 1
        model.operatorCodes.append(code)
    subgraph.name, subgraph.tensors, subgraph.operators = graph.name, tensors, operators
    subgraph.inputs = [numbers[name] for name in graph.inputs]
    subgraph.outputs = [numbers[name] for name in graph.outputs]
    return _packed(model)


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Return a .tflite file after `change` had its way with the schema's ModelT."""
    from ai_edge_litert import schema_py_generated as objects

    model = objects.ModelT.InitFromPackedBuf(data, 0)
    change(model)
    return _packed(model)
