"""Read an int8 .tflite file into a Graph.

The file is read with the schema's own classes, but those trust every offset. So it goes in two stages: `_parse` copies
what mnet needs into plain values, and whatever goes wrong there means that the file is damaged; the rest checks plain
values, and each sentence it raises says what to do.
"""

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet.errors import ModelError
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
)
from mnet.oracle import accumulator_bound

_LARGEST_FILE = 1 << 28
_LARGEST_ACTIVATION = 1 << 26  # bytes; far beyond any microcontroller, and small enough to compute with
_LONGEST_NAME = 1000  # bytes; also keeps searches in it short

_OPERATOR_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_TYPE_NAMES = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
_SUPPORTED = "CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, AVERAGE_POOL_2D, MEAN, ADD, PAD, RESHAPE and SOFTMAX"
OPERATORS: Mapping[str, str] = {  # what is read, and how far
    "CONV_2D": "any kernel, stride, dilation and padding; ReLU and ReLU6",
    "DEPTHWISE_CONV_2D": "the same, any depth multiplier",
    "FULLY_CONNECTED": "weights with one scale, or one for each output",
    "AVERAGE_POOL_2D": "any window",
    "MEAN": "over all rows and columns",
    "ADD": "of two activations of one shape",
    "PAD": "of rows and columns",
    "RESHAPE": "that keeps the values, also SQUEEZE and EXPAND_DIMS",
    "SQUEEZE": "as RESHAPE",
    "EXPAND_DIMS": "as RESHAPE",
    "SOFTMAX": "over the classes",
    "SHAPE": "where it only serves a RESHAPE",
    "STRIDED_SLICE": "where it only serves a RESHAPE",
    "PACK": "where it only serves a RESHAPE",
}

_CONVOLUTION = ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction")
_POOL = ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction")
_FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # operator: (its table of options, the fields that mnet reads)
    "CONV_2D": ("Conv2DOptions", _CONVOLUTION),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_CONVOLUTION, "DepthMultiplier")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
}


@dataclass(frozen=True, eq=False)
class _Tensor:
    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    data: npt.NDArray[np.uint8] | None  # of a constant
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    quantized_dimension: int
    sparse: bool


@dataclass(frozen=True)
class _Operator:
    index: int
    kind: str  # "CONV_2D"
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Model:
    tensors: tuple[_Tensor, ...]
    operators: tuple[_Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


# --- stage 1: bytes to plain values -----------------------------------------------------------------------------------


def _vector(found: Any) -> npt.NDArray[Any]:
    """Return what an `...AsNumpy` method gave; the schema classes return the number 0 for an absent vector."""
    return found if isinstance(found, np.ndarray) else np.empty(0, np.int64)


def _ints(found: Any, most: int) -> tuple[int, ...]:
    vector = _vector(found)
    if len(vector) > most:
        raise ValueError(f"a vector of {len(vector)} numbers where {most} are the most")
    return tuple(int(value) for value in vector)


def _count(length: int, data: bytes) -> int:
    if length * 4 > len(data):  # every element is at least an offset of 4 bytes
        raise ValueError(f"a vector of {length} tables in {len(data)} bytes")
    return length


def _parse_tensor(model: Any, table: Any, index: int) -> _Tensor:
    buffer_index = table.Buffer()
    if buffer_index >= model.BuffersLength():
        raise ValueError(f"tensor {index} names buffer {buffer_index} of {model.BuffersLength()}")
    buffer = model.Buffers(buffer_index)
    if buffer.Offset() > 1:
        raise ValueError(f"buffer {buffer_index} lies outside of the model")
    data = _vector(buffer.DataAsNumpy()).astype(np.uint8, copy=False)
    quantization = table.Quantization()
    return _Tensor(
        index=index,
        name=(table.Name() or b"")[:_LONGEST_NAME].decode("utf-8", "replace"),
        shape=_ints(table.ShapeAsNumpy(), 8),
        type=_TYPE_NAMES[table.Type()],
        data=data if len(data) else None,
        scales=_vector(quantization.ScaleAsNumpy() if quantization else 0).astype(np.float32, copy=False),
        zero_points=_vector(quantization.ZeroPointAsNumpy() if quantization else 0).astype(np.int64, copy=False),
        quantized_dimension=quantization.QuantizedDimension() if quantization else 0,
        sparse=table.Sparsity() is not None,
    )


def _parse_operator(model: Any, table: Any, index: int) -> _Operator:
    code_index = table.OpcodeIndex()
    if code_index >= model.OperatorCodesLength():
        raise ValueError(f"operator {index} names operator code {code_index} of {model.OperatorCodesLength()}")
    code = model.OperatorCodes(code_index)
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    kind = _OPERATOR_NAMES.get(number, f"number {number}")
    if kind == "CUSTOM":
        kind = "CUSTOM " + "".join(filter(str.isprintable, (code.CustomCode() or b"").decode("utf-8", "replace")))[:40]
    options: dict[str, Any] = {}
    if kind in _FIELDS:
        table_name, fields = _FIELDS[kind]
        union = table.BuiltinOptions()
        if union is None or table.BuiltinOptionsType() != getattr(schema.BuiltinOptions, table_name):
            raise ValueError(f"operator {index} ({kind}) has no {table_name}")
        view = getattr(schema, table_name)()
        view.Init(union.Bytes, union.Pos)
        options = {field: getattr(view, field)() for field in fields}
    return _Operator(index, kind, _ints(table.InputsAsNumpy(), 256), _ints(table.OutputsAsNumpy(), 256), options)


def _parse(data: bytes, path: Path) -> _Model:
    """Copy the model out of the flatbuffer.

    Raises:
        ModelError: an offset, a length or a number of the file makes no sense.
    """
    try:
        model = schema.Model.GetRootAs(data, 0)
        if model.SubgraphsLength() != 1:
            raise ModelError(
                f"{path} has {model.SubgraphsLength()} subgraphs: mnet reads models with one, without control flow."
            )
        graph = model.Subgraphs(0)
        _count(model.BuffersLength(), data)
        tensors = range(_count(graph.TensorsLength(), data))
        operators = range(_count(graph.OperatorsLength(), data))
        return _Model(
            operators=tuple(_parse_operator(model, graph.Operators(index), index) for index in operators),
            tensors=tuple(_parse_tensor(model, graph.Tensors(index), index) for index in tensors),
            inputs=_ints(graph.InputsAsNumpy(), 256),
            outputs=_ints(graph.OutputsAsNumpy(), 256),
        )
    except (struct.error, LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(f"{path} is damaged, or is no .tflite file: {error}. Make or fetch it again.") from error


# --- stage 2: plain values to a Graph ---------------------------------------------------------------------------------

_LAYER = {  # which part of a tensor's name names the layer: the component before this one
    "CONV_2D": r"(?:Conv2D|convolution)\d*",
    "DEPTHWISE_CONV_2D": r"depthwise\d*",
    "FULLY_CONNECTED": r"(?:MatMul|BiasAdd|Add)\d*",
    "AVERAGE_POOL_2D": r"AvgPool\d*",
    "MEAN": r"Mean\d*",
    "ADD": r"[Aa]dd(?:_\d+)?",
    "PAD": r"Pad\d*",
    "RESHAPE": r"Reshape\d*",
    "SOFTMAX": r"Softmax\d*",
}
_NO_NAME = re.compile(r"(?:Stateful)?PartitionedCall.*|Identity.*|\d*")


def _identifier(text: str, otherwise: str) -> str:
    """Return `text` as a C identifier of at most 48 characters.

    >>> _identifier("conv 1/x", "op"), _identifier("96_int8", "model"), _identifier("++", "op")
    ('conv_1_x', 'model_96_int8', 'op')
    """
    text = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:48]
    if not text:
        return otherwise
    return f"{otherwise}_{text}" if text[0].isdigit() else text


def _unique(name: str, used: set[str]) -> str:
    candidate, number = name, 2
    while candidate in used:
        candidate, number = f"{name}_{number}", number + 1
    used.add(candidate)
    return candidate


def _layer_name(kind: str, tensor_name: str) -> str:
    """Return the layer that a tensor's name tells of; converters chain the names of all that they fused.

    >>> _layer_name("CONV_2D", "m/conv_pw_3_relu/Relu6;m/conv_pw_3_bn/FusedBatchNormV3;m/conv_pw_3/Conv2D1")
    'conv_pw_3'
    >>> _layer_name("SOFTMAX", "StatefulPartitionedCall_1:0")
    'softmax'
    """
    layers: list[str] = re.findall(rf"([^/;]+)/{_LAYER[kind]}(?=;|$)", tensor_name)
    if layers:  # a fused depthwise is named first, a fused convolution last
        return layers[0 if kind == "DEPTHWISE_CONV_2D" else -1]
    pieces = tensor_name.split(";")[0].split("/")
    name = pieces[-2] if len(pieces) > 1 and re.fullmatch(r"[A-Z][A-Za-z0-9]*", pieces[-1]) else pieces[-1]
    return kind.lower() if _NO_NAME.fullmatch(name) else name


def _op_names(operators: Iterable[tuple[str, str]]) -> list[str]:
    """Return unique identifiers for (kind, name of the output tensor) of each operator."""
    pairs = [(kind, _layer_name(kind, name)) for kind, name in operators]
    scoped = [name for kind, name in pairs if name != kind.lower()]
    if len(scoped) > 1 and all(name.endswith("_1") for name in scoped):  # Keras 3 exports every layer as LAYER_1
        pairs = [(kind, name.removesuffix("_1")) for kind, name in pairs]
    used: set[str] = set()
    return [_unique(_identifier(name, kind.lower()), used) for kind, name in pairs]


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.require(array, requirements=["C", "ALIGNED"])  # a view of the file where that will do
    array.flags.writeable = False
    return array


def activation_range(function: int, scale: float, zero_point: int) -> tuple[int, int] | None:
    """Return the int8 range of a fused activation, or None if mnet does not know it.

    Source: TensorFlow Lite, kernels/kernel_util.cc, CalculateActivationRangeQuantized: round(bound / scale) in float32.

    >>> activation_range(schema.ActivationFunctionType.RELU6, 0.0235, -128)
    (-128, 127)
    >>> activation_range(schema.ActivationFunctionType.RELU_N1_TO_1, 0.02, 3)
    (-47, 53)
    """

    def quantized(bound: float) -> int:
        quotient = float(np.float32(bound) / np.float32(scale))
        return zero_point + math.floor(abs(quotient) + 0.5) * (1 if bound >= 0 else -1)

    kinds = schema.ActivationFunctionType
    if function == kinds.NONE:
        return -128, 127
    if function == kinds.RELU:
        return max(-128, zero_point), 127
    if function == kinds.RELU6:
        return max(-128, zero_point), min(127, quantized(6.0))
    if function == kinds.RELU_N1_TO_1:
        return max(-128, quantized(-1.0)), min(127, quantized(1.0))
    return None


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the pixels before and after for SAME padding; an odd one goes after.

    Source: TensorFlow Lite, kernels/padding.h, ComputePaddingWithOffset.

    >>> same_padding(96, 3, 2, 1)
    (0, 1)
    """
    count = -(-size // stride)
    total = max((count - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class _Importer:
    """Turns a _Model into a Graph, one operator at a time; `where` is the start of each sentence it raises."""

    def __init__(self, model: _Model, path: Path) -> None:
        self.model = model
        self.path = path
        self.where = str(path)
        self.tensors: dict[int, Tensor] = {}
        used: set[str] = set()
        self.names = []
        for tensor in model.tensors:
            name = self._printable(tensor)
            self.names.append(_unique(f"{name}_{tensor.index}" if name in used else name, used))
        self.readers: Mapping[str, Callable[[_Operator, str], Op]] = {
            "CONV_2D": self._conv_2d,
            "DEPTHWISE_CONV_2D": self._depthwise_conv_2d,
            "FULLY_CONNECTED": self._fully_connected,
            "AVERAGE_POOL_2D": self._average_pool_2d,
            "MEAN": self._mean,
            "ADD": self._add,
            "PAD": self._pad,
            "RESHAPE": self._reshape,
            "SQUEEZE": self._reshape,
            "EXPAND_DIMS": self._reshape,
            "SOFTMAX": self._softmax,
        }

    @staticmethod
    def _printable(tensor: _Tensor) -> str:
        name = "".join(c if c.isprintable() else "_" for c in tensor.name)
        return name or f"tensor_{tensor.index}"

    def fail(self, sentence: str) -> ModelError:
        return ModelError(f"{self.where}: {sentence}")

    def raw(self, index: int) -> _Tensor:
        if not 0 <= index < len(self.model.tensors):
            raise self.fail(f"names tensor {index} of {len(self.model.tensors)}; the file is damaged.")
        return self.model.tensors[index]

    def operand(self, operator: _Operator, position: int) -> _Tensor:
        if position >= len(operator.inputs):
            raise self.fail(f"has {len(operator.inputs)} inputs, {position + 1} are needed; the file is damaged.")
        return self.raw(operator.inputs[position])

    def activation(self, tensor: _Tensor) -> str:
        """Return the name of a tensor that must be an int8 activation, noted in `self.tensors`."""
        name = self.names[tensor.index]
        if tensor.index in self.tensors:
            return name
        if tensor.type != "int8":
            hint = {
                "float32": "quantize the model to int8 first (mnet quantize)",
                "uint8": "quantize the model again: TensorFlow 2 converters write int8",
                "int16": "quantize the model again with int8 activations",
            }.get(tensor.type, "mnet reads int8 activations only")
            raise self.fail(f'tensor "{name}" is {tensor.type}: {hint}.')
        if tensor.data is not None:
            raise self.fail(f'tensor "{name}" is a constant where an activation is needed.')
        rank = len(tensor.shape)
        first = 0 if rank < 2 else max(1, rank - 3)  # what lies before is the batch
        leading, shape = tensor.shape[:first], tensor.shape[first:]
        if any(size != 1 for size in leading):
            raise self.fail(f'tensor "{name}" has shape {list(tensor.shape)}: the batch must be 1.')
        if any(size < 1 for size in shape) or math.prod(shape) > _LARGEST_ACTIVATION:
            raise self.fail(f'tensor "{name}" has shape {list(tensor.shape)}, which no microcontroller can hold.')
        height, width, channels = (1,) * (3 - len(shape)) + shape
        scale, zero_point = self._quantization(tensor)
        self.tensors[tensor.index] = Tensor(name, (height, width, channels), scale, zero_point, tensor.index)
        return name

    def _quantization(self, tensor: _Tensor) -> tuple[float, int]:
        name = self.names[tensor.index]
        if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
            raise self.fail(f'tensor "{name}" has {len(tensor.scales)} scales; an int8 activation has one.')
        scale, zero_point = float(tensor.scales[0]), int(tensor.zero_points[0])
        if not (math.isfinite(scale) and scale > 0 and -128 <= zero_point <= 127):
            raise self.fail(f'tensor "{name}" has scale {scale} and zero_point {zero_point}; the file is damaged.')
        return scale, zero_point

    def constant(self, tensor: _Tensor, dtype: str, what: str) -> npt.NDArray[Any]:
        """Return a constant in its shape, read-only."""
        name = self.names[tensor.index]
        if tensor.type != dtype:
            raise self.fail(f'{what} "{name}" is {tensor.type}, {dtype} is needed: quantize the model to full int8.')
        if tensor.data is None:
            raise self.fail(f'{what} "{name}" is not a constant.')
        if tensor.sparse:
            raise self.fail(f'{what} "{name}" is sparse: convert the model without sparsity.')
        if any(size < 0 for size in tensor.shape) or math.prod(tensor.shape) * np.dtype(dtype).itemsize != len(
            tensor.data
        ):
            raise self.fail(f'{what} "{name}" has shape {list(tensor.shape)} but {len(tensor.data)} bytes.')
        return _read_only(
            tensor.data.view(np.dtype(dtype).newbyteorder("<")).reshape(tensor.shape).astype(dtype, copy=False)
        )

    def weights(self, tensor: _Tensor, rank: int, axis: int) -> tuple[Int8Array, npt.NDArray[np.float64]]:
        """Return int8 weights and one scale per channel of `axis`."""
        weights = self.constant(tensor, "int8", "weights")
        name = self.names[tensor.index]
        if weights.ndim != rank or not weights.size:
            raise self.fail(f'weights "{name}" have shape {list(weights.shape)}, {rank} dimensions are needed.')
        channels = weights.shape[axis]
        with np.errstate(invalid="ignore"):  # a damaged file may hold signalling NaNs
            scales = tensor.scales.astype(np.float64)
        if len(scales) not in (1, channels) or (len(scales) > 1 and tensor.quantized_dimension != axis):
            raise self.fail(
                f'weights "{name}" have {len(scales)} scales along dimension {tensor.quantized_dimension}; '
                f"one, or {channels} along dimension {axis}, are needed."
            )
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise self.fail(f'weights "{name}" have a scale that is not positive; the file is damaged.')
        if tensor.zero_points.any():
            raise self.fail(f'weights "{name}" have a zero_point other than 0: quantize the model again with int8.')
        return weights, _read_only(np.broadcast_to(scales, channels).copy())

    def bias(self, operator: _Operator, channels: int) -> Int32Array:
        if len(operator.inputs) < 3 or operator.inputs[2] == -1:
            return _read_only(np.zeros(channels, np.int32))
        bias: Int32Array = self.constant(self.operand(operator, 2), "int32", "bias")
        if bias.size != channels:
            raise self.fail(f"has {channels} output channels but {bias.size} biases.")
        return bias.reshape(channels)

    def output(self, operator: _Operator) -> Tensor:
        if len(operator.outputs) != 1:
            raise self.fail(f"has {len(operator.outputs)} outputs, one is needed.")
        tensor = self.raw(operator.outputs[0])
        self.activation(tensor)
        return self.tensors[tensor.index]

    def input(self, operator: _Operator, position: int = 0) -> Tensor:
        tensor = self.operand(operator, position)
        self.activation(tensor)
        return self.tensors[tensor.index]

    def fused(self, operator: _Operator, output: Tensor) -> tuple[int, int]:
        function = operator.options["FusedActivationFunction"]
        found = activation_range(function, output.scale, output.zero_point)
        if found is None:
            raise self.fail("has a fused activation other than RELU, RELU6 and RELU_N1_TO_1: use a layer of its own.")
        return found

    def geometry(
        self, operator: _Operator, source: Tensor, kernel: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        """Return stride, dilation and padding in pixels, checked."""
        options = operator.options
        stride = (int(options["StrideH"]), int(options["StrideW"]))
        dilation = (int(options.get("DilationHFactor", 1)), int(options.get("DilationWFactor", 1)))
        if min(*stride, *dilation, *kernel) < 1 or max(*stride, *dilation, *kernel) > 1 << 15:
            raise self.fail(f"has kernel {kernel}, stride {stride}, dilation {dilation}; the file is damaged.")
        if options["Padding"] == schema.Padding.VALID:
            return stride, dilation, (0, 0, 0, 0)
        if options["Padding"] != schema.Padding.SAME:
            raise self.fail(f"has padding mode {options['Padding']}, neither SAME nor VALID; the file is damaged.")
        top, bottom = same_padding(source.shape[0], kernel[0], stride[0], dilation[0])
        left, right = same_padding(source.shape[1], kernel[1], stride[1], dilation[1])
        return stride, dilation, (top, bottom, left, right)

    def same_quantization(self, source: Tensor, target: Tensor) -> None:
        if (source.scale, source.zero_point) != (target.scale, target.zero_point):
            raise self.fail(
                f"changes scale or zero_point from ({source.scale}, {source.zero_point}) to "
                f"({target.scale}, {target.zero_point}), which this operator cannot do."
            )

    # One method per operator: read, check, return the op.

    def _conv_2d(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        weights, scales = self.weights(self.operand(operator, 1), rank=4, axis=0)
        if weights.shape[3] != source.shape[2]:
            raise self.fail(
                f"its kernels have {weights.shape[3]} channels, its input {source.shape[2]}: "
                "grouped convolutions are not supported, use DepthwiseConv2D or separate layers."
            )
        stride, dilation, padding = self.geometry(operator, source, (weights.shape[1], weights.shape[2]))
        bias, activation = self.bias(operator, weights.shape[0]), self.fused(operator, target)
        return self._checked(
            Conv2D(name, source.name, target.name, weights, bias, scales, stride, dilation, padding, activation)
        )

    def _depthwise_conv_2d(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        weights, scales = self.weights(self.operand(operator, 1), rank=4, axis=3)
        channels_in, channels_out = source.shape[2], weights.shape[3]
        multiplier = channels_out // channels_in
        given = operator.options["DepthMultiplier"]
        if weights.shape[0] != 1 or multiplier * channels_in != channels_out or given not in (0, multiplier):
            raise self.fail(
                f"its kernels have shape {list(weights.shape)}, its input {channels_in} channels and its depth "
                f"multiplier is {given}; these do not fit."
            )
        stride, dilation, padding = self.geometry(operator, source, (weights.shape[1], weights.shape[2]))
        bias, activation = self.bias(operator, channels_out), self.fused(operator, target)
        return self._checked(
            DepthwiseConv2D(
                name,
                source.name,
                target.name,
                weights[0],
                bias,
                scales,
                multiplier,
                stride,
                dilation,
                padding,
                activation,
            )
        )

    def _fully_connected(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        if operator.options["WeightsFormat"] != 0:
            raise self.fail("has shuffled weights: convert the model with a converter of TensorFlow 2.")
        tensor = self.operand(operator, 1)
        weights, scales = self.weights(tensor, rank=2, axis=0)
        if weights.shape[1] != math.prod(source.shape):
            raise self.fail(f"its weights take {weights.shape[1]} values, its input has {math.prod(source.shape)}.")
        if target.shape != (1, 1, weights.shape[0]):
            raise self.fail(f"its output has shape {target.shape}, its weights make {weights.shape[0]} values.")
        bias, activation = self.bias(operator, weights.shape[0]), self.fused(operator, target)
        per_channel = len(tensor.scales) > 1
        return self._checked(
            FullyConnected(name, source.name, target.name, weights, bias, scales, per_channel, activation)
        )

    def _checked(self, op: Conv2D | DepthwiseConv2D | FullyConnected) -> Op:
        """Return `op` if no input can make its int32 arithmetic overflow: there runtimes differ, or C is undefined."""
        by_name = {tensor.name: tensor for tensor in self.tensors.values()}
        graph = Graph("", by_name, (), op.input, op.output, "")
        scales = by_name[op.input].scale * op.weight_scales / by_name[op.output].scale
        if (accumulator_bound(op, graph) * np.maximum(2 * scales, 1.0)).max() >= 1 << 31:
            raise self.fail(
                "its int32 accumulators can overflow: quantize the model again, with more calibration data."
            )
        return op

    def _average_pool_2d(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        kernel = (int(operator.options["FilterHeight"]), int(operator.options["FilterWidth"]))
        stride, _, padding = self.geometry(operator, source, kernel)
        self.same_quantization(source, target)
        return AveragePool2D(name, source.name, target.name, kernel, stride, padding, self.fused(operator, target))

    def _mean(self, operator: _Operator, name: str) -> Op:
        tensor, source, target = self.operand(operator, 0), self.input(operator), self.output(operator)
        rank = len(tensor.shape)
        given = [int(axis) for axis in self.constant(self.operand(operator, 1), "int32", "axes").reshape(-1)]
        axes = {axis + rank if axis < 0 else axis for axis in given}
        inner = {axis for axis in range(1, rank - 1) if tensor.shape[axis] != 1}
        if not (inner <= axes <= set(range(1, rank - 1))):
            raise self.fail(
                f"takes the mean over the axes {sorted(axes)} of {list(tensor.shape)}: only the mean over all rows and "
                "columns (GlobalAveragePooling2D) is supported."
            )
        # |sum of count values| <= 255 * count, and the reference kernel's int32 also holds its product with the scales
        if 255 * source.shape[0] * source.shape[1] >= 1 << 31 or 512 * source.scale >= (1 << 31) * target.scale:
            raise self.fail("its int32 sums can overflow: use a smaller image, or quantize the model again.")
        return Mean(name, source.name, target.name)

    def _add(self, operator: _Operator, name: str) -> Op:
        first, second, target = self.input(operator, 0), self.input(operator, 1), self.output(operator)
        if first.shape != second.shape:
            raise self.fail(f"adds {first.shape} and {second.shape}: both inputs must have one shape.")
        if 2 * max(first.scale, second.scale) >= target.scale * (1 << 20):
            raise self.fail("its output scale is 500,000 times finer than its inputs'; quantize the model again.")
        return Add(name, (first.name, second.name), target.name, self.fused(operator, target))

    def _pad(self, operator: _Operator, name: str) -> Op:
        tensor, source, target = self.operand(operator, 0), self.input(operator), self.output(operator)
        pads = self.operand(operator, 1)
        dtype = "int64" if pads.type == "int64" else "int32"
        amounts = self.constant(pads, dtype, "paddings").tolist()
        if pads.shape != (len(tensor.shape), 2) or any(pixels < 0 for pair in amounts for pixels in pair):
            raise self.fail(f"has paddings of shape {list(pads.shape)} for {list(tensor.shape)}; the file is damaged.")
        others = amounts[: max(1, len(amounts) - 3)] + amounts[-1:]  # the batch and the channels
        if any(any(pair) for pair in others):
            raise self.fail(f"pads by {amounts}: only rows and columns can be padded.")
        self.same_quantization(source, target)
        (top, bottom), (left, right) = ([[0, 0]] * 4 + amounts)[-3:-1]
        return Pad(name, source.name, target.name, (top, bottom, left, right))

    def _reshape(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        self.same_quantization(source, target)
        return Reshape(name, source.name, target.name)

    def _softmax(self, operator: _Operator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        beta = float(operator.options["Beta"])
        if target.zero_point != -128 or abs(target.scale * 256 - 1) > 0.001:
            raise self.fail(f"its output must have scale 1/256 and zero_point -128, not {target.scale}.")
        if not (math.isfinite(beta) and beta * source.scale * (1 << 26) > 1.0):
            raise self.fail(
                f"beta {beta} with an input scale of {source.scale} is too small; quantize the model again."
            )
        if source.shape[2] >= 4096:
            raise self.fail(f"has {source.shape[2]} classes; the runtimes' sum overflows at 4,096.")
        return Softmax(name, source.name, target.name, beta)

    def run(self, name: str, model_hash: str) -> Graph:
        model = self.model
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise self.fail(f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; mnet reads one of each.")
        ends = [self.raw(index) for index in (model.inputs[0], model.outputs[0])]
        kinds = {operator.kind for operator in model.operators}
        for tensor, end in zip(ends, ("input", "output"), strict=True):
            if tensor.type == "float32" and kinds & {"QUANTIZE", "DEQUANTIZE"}:
                raise self.fail(
                    f"its {end} is float32: convert the model with inference_{end}_type = tf.int8 (mnet quantize does)."
                )
            if tensor.type != "int8":
                raise self.fail(f"is a {tensor.type} model: quantize it to int8 first (mnet quantize).")
            self.activation(tensor)
        todo = [operator for operator in model.operators if not self.computes_a_shape(operator)]
        for operator in todo:
            self.where = self._place(operator)
            if operator.kind not in self.readers:
                raise self.fail(f"not supported. mnet reads {_SUPPORTED}: end the model before it, or replace it.")
            self.output(operator)
        names = _op_names(
            ("RESHAPE" if o.kind in ("SQUEEZE", "EXPAND_DIMS") else o.kind, self.names[o.outputs[0]]) for o in todo
        )
        ops = []
        for operator, op_name in zip(todo, names, strict=True):
            self.where = self._place(operator)
            ops.append(self.readers[operator.kind](operator, op_name))
        by_name = {tensor.name: tensor for tensor in self.tensors.values()}
        source, target = self.names[model.inputs[0]], self.names[model.outputs[0]]
        try:
            check_graph(Graph(name, by_name, tuple(ops), source, target, model_hash))
        except ModelError as error:
            raise ModelError(f"{self.path} contradicts itself: {error}. Make or fetch it again.") from error
        needed = {target}
        for op in reversed(ops):  # what nobody reads is left out
            needed |= set(inputs_of(op)) if op.output in needed else set()
        kept = tuple(op for op in ops if op.output in needed)
        tensors = {tensor: by_name[tensor] for tensor in (source, *(op.output for op in kept))}
        return check_graph(Graph(name, tensors, kept, source, target, model_hash))

    def computes_a_shape(self, operator: _Operator) -> bool:
        """Return whether `operator` only serves a RESHAPE: its result is known, the output's shape is in the file."""
        return operator.kind in ("SHAPE", "STRIDED_SLICE", "PACK") and all(
            0 <= index < len(self.model.tensors) and self.model.tensors[index].type in ("int32", "int64")
            for index in operator.outputs
        )

    def _place(self, operator: _Operator) -> str:
        index = operator.outputs[0] if operator.outputs else -1
        name = f' "{self.names[index][:80]}"' if 0 <= index < len(self.names) else ""
        return f"{self.path}, operator {operator.index}{name} ({operator.kind})"


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a file, as `list_operators` found it."""

    index: int
    kind: str
    output: str  # name of the tensor that it makes
    shape: tuple[int, ...]
    type: str  # of the tensor
    is_read: bool  # whether mnet reads this kind of operator, in an int8 model


def list_operators(path: str | Path) -> tuple[OperatorRow, ...]:
    """Return the operators of a .tflite file, of any kind and type.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path)
    data = _content(path)
    importer = _Importer(_parse(data, path), path)
    rows = []
    for operator in importer.model.operators:
        index = operator.outputs[0] if operator.outputs else -1
        is_known = 0 <= index < len(importer.model.tensors)
        tensor = importer.model.tensors[index] if is_known else None
        rows.append(
            OperatorRow(
                operator.index,
                operator.kind,
                importer.names[index] if is_known else "",
                tensor.shape if tensor else (),
                tensor.type if tensor else "",
                operator.kind in importer.readers or importer.computes_a_shape(operator),
            )
        )
    return tuple(rows)


def read_model(path: str | Path) -> Graph:
    """Read an int8 .tflite file.

    Args:
        path: the file. Its stem, made an identifier, names the graph.

    Returns:
        The graph, checked. Each Tensor's `index` is the one that LiteRT's `get_tensor` takes.

    Raises:
        ModelError: the file is missing, damaged, not int8, or has an operator that mnet does not read.
    """
    path = Path(path)
    return parse_model(_content(path), path)


def parse_model(data: bytes, path: str | Path) -> Graph:
    """Read the bytes of an int8 .tflite file; `path` is for its name and for messages. See `read_model`."""
    path = Path(path)
    _check_mark(data, path)
    importer = _Importer(_parse(data, path), path)
    return importer.run(_identifier(path.stem, "model"), hashlib.sha256(data).hexdigest()[:16])


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path} has more than {_LARGEST_FILE >> 20} MiB: no microcontroller holds it.")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    _check_mark(data, path)
    return data


def _check_mark(data: bytes, path: Path) -> None:
    if not data:
        raise ModelError(f"{path} is empty: make or fetch it again.")
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path} is no .tflite file: it lacks the mark TFL3 at byte 4.")
