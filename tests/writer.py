"""Write a Graph as a .tflite file, to read it back and to give it to other runtimes; and change one that is there."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet.graph import (
    ArgMax,
    AveragePool2D,
    Binary,
    BinaryFunction,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    Int8Array,
    Int32Array,
    L2Normalization,
    MaxPool2D,
    Op,
    Pad,
    Pool2D,
    Rearrange,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Sampling,
    Softmax,
    Tensor,
    Unary,
    UnaryFunction,
    inputs_of,
)
from mnet.movement import rearrange
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
        if isinstance(op, Unary | Binary | L2Normalization | Softmax):
            flat = all(len(shapes[name]) == 2 for name in inputs_of(op)) and shape[:2] == (1, 1)
        shapes[op.output] = [1, shape[2]] if flat else [1, *shape]
        if isinstance(op, ArgMax):
            shapes[op.output] = shapes[op.input][:-1]
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
            known, shape = self.graph.tensors[name], self.shapes[name]
            if known.type == "int32":
                kind = schema.TensorType.INT64 if known.outside == "int64" else schema.TensorType.INT32
                self.numbers[name] = self.tensor(name, kind, shape)
            else:
                self.numbers[name] = self.tensor(
                    name, schema.TensorType.INT8, shape, None, [known.scale], known.zero_point
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
        if isinstance(op, Binary) and op.constant_first:
            made.inputs.reverse()
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
        return packed(model)


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
        case Resize():
            kind = "ResizeBilinear" if op.sampling is Sampling.BILINEAR else "ResizeNearestNeighbor"
            options = getattr(objects, f"{kind}OptionsT")()
            options.alignCorners, options.halfPixelCenters = op.align_corners, op.half_pixel_centers
            written = {"ResizeBilinear": "RESIZE_BILINEAR", "ResizeNearestNeighbor": "RESIZE_NEAREST_NEIGHBOR"}[kind]
            return _Written(written, options, (writer.integers(f"{op.name}_size", op.size),))
        case Reduce():
            options = objects.ReducerOptionsT()
            options.keepDims = True
            axes = [axis + 1 for axis in op.axes]
            return _Written(_REDUCTIONS[op.function], options, (writer.integers(f"{op.name}_axes", axes),))
        case Unary():
            return _unary(objects, op)
        case Binary():
            return _binary(writer, op)
        case Pad():
            top, bottom, left, right = op.padding
            amounts = writer.integers(f"{op.name}_pads", [[0, 0], [top, bottom], [left, right], op.channels])
            if op.value == source.zero_point:
                return _Written("PAD", objects.PadOptionsT(), (amounts,))
            known = (schema.TensorType.INT8, [1], np.array([op.value], np.int8), [source.scale], source.zero_point)
            return _Written("PADV2", objects.PadV2OptionsT(), (amounts, writer.tensor(f"{op.name}_value", *known)))
        case Concat():
            options = objects.ConcatenationOptionsT()
            options.axis = len(writer.shapes[op.output]) - 3 + op.axis
            return _Written("CONCATENATION", options)
        case Gather():
            return _gather(writer, op, source)
        case Rearrange():
            return _rearrange(writer, op, source)
        case Reshape():
            options = objects.ReshapeOptionsT()
            options.newShape = writer.shapes[op.output]
            return _Written("RESHAPE", options, (writer.integers(f"{op.name}_shape", writer.shapes[op.output]),))
        case ArgMax():
            options = objects.ArgMaxOptionsT()
            wide = target.outside == "int64"
            options.outputType = schema.TensorType.INT64 if wide else schema.TensorType.INT32
            axis = len(writer.shapes[op.input]) - 1
            return _Written("ARG_MAX", options, (writer.integers(f"{op.name}_axis", [axis]),))
        case L2Normalization():
            return _Written("L2_NORMALIZATION", objects.L2NormOptionsT())
        case Softmax():
            options = objects.SoftmaxOptionsT()
            options.beta = op.beta
            return _Written("SOFTMAX", options)
        case _:
            assert_never(op)


def _gather(writer: _Writer, op: Gather, source: Tensor) -> _Written:
    """Return a STRIDED_SLICE, or where the numbers along one axis are no slice of it, a GATHER."""
    slices = [_slice_of(taken, size) for taken, size in zip(op.numbers, source.shape, strict=True)]
    if None not in slices:
        options = writer.objects.StridedSliceOptionsT()
        options.endMask = sum(2 << axis for axis, part in enumerate(slices) if part and part.stop is None)
        begin, end, step = zip(*((part.start, part.stop or 0, part.step) for part in slices if part), strict=True)
        words = (("begin", (0, *begin)), ("end", (1, *end)), ("strides", (1, *step)))
        return _Written(
            "STRIDED_SLICE", options, tuple(writer.integers(f"{op.name}_{word}", values) for word, values in words)
        )
    (axis,) = (a for a, size in enumerate(source.shape) if op.numbers[a] != tuple(range(size)))
    options = writer.objects.GatherOptionsT()
    options.axis = 1 + axis
    return _Written("GATHER", options, (writer.integers(f"{op.name}_indices", op.numbers[axis]),))


def _slice_of(taken: Sequence[int], size: int) -> slice | None:
    """Return the slice that gives these numbers, if one does."""
    step = taken[1] - taken[0] if len(taken) > 1 else 1
    if step == 0:
        return None
    end = taken[-1] + step
    part = slice(taken[0], end if end >= 0 else None, step)
    return part if tuple(range(size)[part]) == tuple(taken) else None


def _rearrange(writer: _Writer, op: Rearrange, source: Tensor) -> _Written:
    """Return the operator that makes `op`: one of three."""
    objects = writer.objects
    for order in itertools.permutations(range(3)):
        shape = (source.shape[order[0]], source.shape[order[1]], source.shape[order[2]])
        if rearrange(op.name, op.input, op.output, source.shape, order, shape) == op:
            axes = writer.integers(f"{op.name}_order", [0, *(1 + axis for axis in order)])
            return _Written("TRANSPOSE", objects.TransposeOptionsT(), (axes,))
    size = max(op.shape[0] // source.shape[0], source.shape[0] // op.shape[0])
    deeper = op.shape[2] > source.shape[2]
    options = objects.SpaceToDepthOptionsT() if deeper else objects.DepthToSpaceOptionsT()
    options.blockSize = size
    return _Written("SPACE_TO_DEPTH" if deeper else "DEPTH_TO_SPACE", options)


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


def _binary(writer: _Writer, op: Binary) -> _Written:
    tables = {BinaryFunction.ADD: "Add", BinaryFunction.SUB: "Sub", BinaryFunction.MUL: "Mul"}
    options = None
    if op.function in tables:
        options = getattr(writer.objects, f"{tables[op.function]}OptionsT")()
        options.fusedActivationFunction = _fused(op, writer.graph.tensors[op.output], op.activation)
    if op.constant is None:
        return _Written(op.function.value, options)
    values, how = op.constant.values, op.constant
    flat = values.shape[:2] == (1, 1)  # as converters write what there is for each channel
    shape = [values.shape[2]] if flat else [1, *values.shape]
    index = writer.tensor(f"{op.name}_operand", schema.TensorType.INT8, shape, values, [how.scale], how.zero_point)
    return _Written(op.function.value, options, (index,))


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


def packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Return a .tflite file after `change` had its way with the schema's ModelT."""
    from ai_edge_litert import schema_py_generated as objects

    model = objects.ModelT.InitFromPackedBuf(data, 0)
    change(model)
    return packed(model)


def with_edges(data: bytes, inputs: str = "int8", outputs: str = "int8") -> bytes:
    """Return a .tflite file whose inputs or outputs are float32 or uint8, by operators as a converter adds them."""
    from ai_edge_litert import schema_py_generated as objects

    def change(model: Any) -> None:
        (subgraph,) = model.subgraphs
        subgraph.inputs = [_edge(objects, model, index, inputs, True) for index in subgraph.inputs]
        subgraph.outputs = [_edge(objects, model, index, outputs, False) for index in subgraph.outputs]

    return edited(data, change)


def _edge(objects: Any, model: Any, inner: int, kind: str, is_input: bool) -> int:
    """Add an operator between an int8 tensor and one of another type; return the index of the latter."""
    (subgraph,) = model.subgraphs
    known = subgraph.tensors[inner]
    if kind == "int8" or known.type != schema.TensorType.INT8:
        return int(inner)
    outer = objects.TensorT()
    outer.name, outer.shape = known.name + b"_outside", known.shape
    outer.type = {"float32": schema.TensorType.FLOAT32, "uint8": schema.TensorType.UINT8}[kind]
    if kind == "uint8":
        outer.quantization = objects.QuantizationParametersT()
        outer.quantization.scale = known.quantization.scale
        outer.quantization.zeroPoint = np.array(known.quantization.zeroPoint) + 128
    subgraph.tensors.append(outer)
    name = "QUANTIZE" if is_input or kind == "uint8" else "DEQUANTIZE"
    code, operator = objects.OperatorCodeT(), objects.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 2
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    ends = [len(subgraph.tensors) - 1, inner]
    operator.inputs, operator.outputs = (ends[:1], ends[1:]) if is_input else (ends[1:], ends[:1])
    subgraph.operators.insert(0 if is_input else len(subgraph.operators), operator)
    return len(subgraph.tensors) - 1
