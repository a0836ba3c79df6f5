"""Write a Graph as a .tflite file, to read it back and to give it to other runtimes; and change one that is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Int8Array,
    Int32Array,
    MaxPool2D,
    Op,
    Pad,
    Pool2D,
    Reduce,
    Reduction,
    Reshape,
    Softmax,
    Tensor,
    Unary,
    UnaryFunction,
    inputs_of,
)
from mnet.operands import activation_range
from tests.models import ACTIVATIONS, geometry

_REDUCTIONS = {
    Reduction.MEAN: "MEAN",
    Reduction.SUM: "SUM",
    Reduction.MAX: "REDUCE_MAX",
    Reduction.MIN: "REDUCE_MIN",
}


def _fused(op: Op, target: Tensor, activation: tuple[int, int]) -> int:
    for function in ACTIVATIONS.values():
        if activation_range(function, target.scale, target.zero_point) == activation:
            return function
    raise ValueError(f"{op.name}: no fused activation gives the range {activation}")


def _padding(
    op: Conv2D | DepthwiseConv2D | Pool2D,
    source: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> int:
    padding = op.padding
    if padding == (0, 0, 0, 0):
        return int(schema.Padding.VALID)
    if padding == geometry(source.shape[:2], (kernel[0], kernel[1]), stride, dilation, True)[0]:
        return int(schema.Padding.SAME)
    raise ValueError(f"{op.name}: padding {padding} is neither SAME nor VALID")


def _file_shapes(graph: Graph) -> Mapping[str, list[int]]:
    """Return the shape of each tensor in the file: dense layers make [1, n], which what follows them keeps."""
    shapes = {name: [1, *graph.tensors[name].shape] for name in graph.inputs}
    for op in graph.ops:
        shape = graph.tensors[op.output].shape
        dense = all(isinstance(reader, FullyConnected | Softmax) for reader in graph.consumers(op.output))
        flat = isinstance(op, FullyConnected) or (isinstance(op, Reshape) and shape[:2] == (1, 1) and dense)
        if isinstance(op, Unary | Add | Softmax):
            flat = len(shapes[inputs_of(op)[0]]) == 2
        shapes[op.output] = [1, shape[2]] if flat else [1, *shape]
    return shapes


@dataclass(frozen=True)
class _Written:
    """One operator: its kind, its table of options, the indices of its constant inputs."""

    kind: str
    options: Any
    constants: tuple[int, ...] = ()


class _Writer:
    """Collects the tensors, buffers and operators of one file."""

    def __init__(self, graph: Graph) -> None:
        from ai_edge_litert import schema_py_generated as objects

        self.graph, self.objects = graph, objects
        self.shapes = _file_shapes(graph)
        self.buffers = [objects.BufferT()]
        self.tensors: list[Any] = []
        self.codes: list[int] = []
        self.operators: list[Any] = []
        self.numbers: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        kind: int,
        shape: Sequence[int],
        data: npt.NDArray[Any] | None = None,
        scales: npt.ArrayLike | None = None,
        zero_point: int = 0,
        dimension: int = 0,
    ) -> int:
        """Add a tensor, a constant where it has data; return its index."""
        made = self.objects.TensorT()
        made.name, made.type, made.shape = name, kind, list(shape)
        if data is not None:
            buffer = self.objects.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        if scales is not None:
            made.quantization = self.objects.QuantizationParametersT()
            made.quantization.scale = np.asarray(scales, np.float32).reshape(-1)
            made.quantization.zeroPoint = np.full(len(made.quantization.scale), zero_point, np.int64)
            made.quantization.quantizedDimension = dimension
        self.tensors.append(made)
        return len(self.tensors) - 1

    def integers(self, name: str, values: npt.ArrayLike) -> int:
        """Add an int32 constant; return its index."""
        data: Int32Array = np.asarray(values, np.int32)
        return self.tensor(name, schema.TensorType.INT32, data.shape, data)

    def activation(self, name: str) -> int:
        """Return the index of an activation, added when it is first asked for."""
        if name not in self.numbers:
            known = self.graph.tensors[name]
            self.numbers[name] = self.tensor(
                name, schema.TensorType.INT8, self.shapes[name], None, [known.scale], known.zero_point
            )
        return self.numbers[name]

    def weights(
        self, op: Conv2D | DepthwiseConv2D | FullyConnected, weights: Int8Array, dimension: int
    ) -> tuple[int, int]:
        """Add weights and bias; return their indices."""
        scales = op.weight_scales
        if not isinstance(op, DepthwiseConv2D) and op.dense is Dense.PER_TENSOR:
            scales = scales[:1]
        bias_scales = self.graph.tensors[op.input].scale * scales
        int8, int32 = schema.TensorType.INT8, schema.TensorType.INT32
        return (
            self.tensor(f"{op.name}_weights", int8, weights.shape, weights, scales, 0, dimension),
            self.tensor(f"{op.name}_bias", int32, op.bias.shape, op.bias, bias_scales, 0, 0),
        )

    def add(self, op: Op) -> None:
        """Add an operator."""
        written = _written(self, op)
        number = getattr(schema.BuiltinOperator, written.kind)
        if number not in self.codes:
            self.codes.append(number)
        made = self.objects.OperatorT()
        made.opcodeIndex = self.codes.index(number)
        made.inputs = [*(self.activation(name) for name in inputs_of(op)), *written.constants]
        made.outputs = [self.activation(op.output)]
        if written.options is not None:
            table = type(written.options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(self.objects.BuiltinOptions, table)
            made.builtinOptions = written.options
        self.operators.append(made)

    def file(self) -> bytes:
        """Return the bytes of the file."""
        model, subgraph = self.objects.ModelT(), self.objects.SubGraphT()
        model.version, model.description = 3, "made by a test"
        model.buffers, model.subgraphs, model.operatorCodes = self.buffers, [subgraph], []
        for number in self.codes:
            code = self.objects.OperatorCodeT()
            code.builtinCode = number
            code.deprecatedBuiltinCode = min(number, 127)
            code.version = 1
            model.operatorCodes.append(code)
        subgraph.name, subgraph.tensors, subgraph.operators = self.graph.name, self.tensors, self.operators
        subgraph.inputs = [self.numbers[name] for name in self.graph.inputs]
        subgraph.outputs = [self.numbers[name] for name in self.graph.outputs]
        return _packed(model)


def _written(writer: _Writer, op: Op) -> _Written:
    graph, objects = writer.graph, writer.objects
    source, target = graph.tensors[inputs_of(op)[0]], graph.tensors[op.output]
    options: Any
    match op:
        case Conv2D(dense=Dense()):
            options = objects.FullyConnectedOptionsT()
            options.keepNumDims = True
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("FULLY_CONNECTED", options, writer.weights(op, op.weights[:, 0, 0], 0))
        case Conv2D():
            options = objects.Conv2DOptionsT()
            _set_window(options, op, source, op.weights.shape[1:3], op.dilation)
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("CONV_2D", options, writer.weights(op, op.weights, 0))
        case DepthwiseConv2D():
            options = objects.DepthwiseConv2DOptionsT()
            _set_window(options, op, source, op.weights.shape[:2], op.dilation)
            options.depthMultiplier = op.depth_multiplier
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("DEPTHWISE_CONV_2D", options, writer.weights(op, op.weights[None], 3))
        case FullyConnected():
            options = objects.FullyConnectedOptionsT()
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("FULLY_CONNECTED", options, writer.weights(op, op.weights, 0))
        case AveragePool2D() | MaxPool2D():
            options = objects.Pool2DOptionsT()
            _set_window(options, op, source, op.kernel)
            options.filterHeight, options.filterWidth = op.kernel
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("MAX_POOL_2D" if isinstance(op, MaxPool2D) else "AVERAGE_POOL_2D", options)
        case Reduce():
            options = objects.ReducerOptionsT()
            options.keepDims = True
            axes = [axis + 1 for axis in op.axes]
            return _Written(_REDUCTIONS[op.function], options, (writer.integers(f"{op.name}_axes", axes),))
        case Unary():
            return _unary(objects, op)
        case Add():
            options = objects.AddOptionsT()
            options.fusedActivationFunction = _fused(op, target, op.activation)
            return _Written("ADD", options)
        case Pad():
            top, bottom, left, right = op.padding
            pads = [[0, 0], [top, bottom], [left, right], [0, 0]]
            return _Written("PAD", objects.PadOptionsT(), (writer.integers(f"{op.name}_pads", pads),))
        case Reshape():
            options = objects.ReshapeOptionsT()
            options.newShape = writer.shapes[op.output]
            return _Written("RESHAPE", options, (writer.integers(f"{op.name}_shape", writer.shapes[op.output]),))
        case Softmax():
            options = objects.SoftmaxOptionsT()
            options.beta = op.beta
            return _Written("SOFTMAX", options)
        case _:
            assert_never(op)


def _unary(objects: Any, op: Unary) -> _Written:
    match op.function:
        case UnaryFunction.LEAKY_RELU:
            options = objects.LeakyReluOptionsT()
            options.alpha = op.alpha
            return _Written(op.function.value, options)
        case UnaryFunction.GELU | UnaryFunction.GELU_TANH:
            options = objects.GeluOptionsT()
            options.approximate = op.function is UnaryFunction.GELU_TANH
            return _Written("GELU", options)
        case _:
            return _Written(op.function.value, None)


def _set_window(
    options: Any,
    op: Conv2D | DepthwiseConv2D | Pool2D,
    source: Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, int] | None = None,
) -> None:
    options.strideH, options.strideW = op.stride
    options.padding = _padding(op, source, kernel, op.stride, dilation or (1, 1))
    if dilation:
        options.dilationHFactor, options.dilationWFactor = dilation


def serialise(graph: Graph) -> bytes:
    """Return a .tflite file that says what `graph` says.

    Raises:
        ValueError: a padding or an activation range has no name in the format.
    """
    writer = _Writer(graph)
    for name in graph.inputs:
        writer.activation(name)
    for op in graph.ops:
        writer.add(op)
    return writer.file()


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
