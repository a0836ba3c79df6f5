"""Copy a .tflite file into plain, frozen values, whatever its bytes are.

The file is read with the schema's own classes, but those trust every offset. So all reading of it is here, bounded, and
whatever goes wrong means that the file is damaged. What the values mean is checked by who takes them (`mnet.tflite`).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet.errors import ModelError

_LARGEST_FILE = 1 << 28
_MOST_OPERATORS = 4096
_LONGEST_NAME = 1000  # bytes; also keeps searches in it short

_OPERATOR_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_TYPE_NAMES = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}

_CONVOLUTION = ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction")
_POOL = ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction")
_FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # operator: (its table of options, the fields that mnet reads)
    "CONV_2D": ("Conv2DOptions", _CONVOLUTION),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_CONVOLUTION, "DepthMultiplier")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat")),
    "TRANSPOSE_CONV": ("TransposeConvOptions", ("Padding", "StrideH", "StrideW", "FusedActivationFunction")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "SUB": ("SubOptions", ("FusedActivationFunction",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "ARG_MAX": ("ArgMaxOptions", ("OutputType",)),
    "L2_NORMALIZATION": ("L2NormOptions", ("FusedActivationFunction",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "GELU": ("GeluOptions", ("Approximate",)),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", ("AlignCorners", "HalfPixelCenters")),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", ("AlignCorners", "HalfPixelCenters")),
    "SPLIT": ("SplitOptions", ("NumSplits",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset"),
    ),
    "PACK": ("PackOptions", ("Axis", "ValuesCount")),
    "UNPACK": ("UnpackOptions", ("Axis", "Num")),
    "GATHER": ("GatherOptions", ("Axis", "BatchDims")),
    "MIRROR_PAD": ("MirrorPadOptions", ("Mode",)),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", ("BlockSize",)),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("BlockSize",)),
}


@dataclass(frozen=True, eq=False)
class RawTensor:
    """A tensor as the file has it; nothing says yet that its numbers fit each other."""

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]  # the same, -1 for a size that is open; () where none is
    type: str
    data: npt.NDArray[np.uint8] | None  # of a constant
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    quantized_dimension: int
    sparse: bool
    is_whole: bool = False  # one image of what the file has in pieces, as a batch: see mnet/dilation.py


@dataclass(frozen=True)
class RawOperator:
    """An operator as the file has it; its tensors may not exist."""

    index: int
    kind: str  # "CONV_2D"
    inputs: tuple[int, ...]  # -1 for one left out
    outputs: tuple[int, ...]
    options: Mapping[str, Any]  # the fields of _FIELDS, or none where the file has no such table


@dataclass(frozen=True, eq=False)
class RawModel:
    """All that mnet reads of a file; indices are into `tensors`."""

    tensors: tuple[RawTensor, ...]
    operators: tuple[RawOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_bytes(path: Path) -> bytes:
    """Return what the file holds.

    Raises:
        ModelError: it cannot be read, or is too large for any use of mnet.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path} has more than {_LARGEST_FILE >> 20} MiB: no microcontroller holds it.")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def _check_mark(data: bytes, path: Path) -> None:
    if not data:
        raise ModelError(f"{path} is empty: make or fetch it again.")
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path} is no .tflite file: it lacks the mark TFL3 at byte 4.")


def _vector(found: Any) -> npt.NDArray[Any]:
    """Return what an `...AsNumpy` method gave; the schema classes return the number 0 for an absent vector."""
    return found if isinstance(found, np.ndarray) else np.empty(0, np.int64)


def _ints(found: Any, most: int) -> tuple[int, ...]:
    vector = _vector(found)
    if len(vector) > most:
        raise ValueError(f"a vector of {len(vector)} numbers where {most} are the most")
    return tuple(int(value) for value in vector)


def _shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape whose batch, where the file leaves it open (-1), is 1."""
    return (1, *sizes[1:]) if sizes[:1] == (-1,) else sizes


def _count(length: int, data: bytes) -> int:
    if length * 4 > len(data):  # every element is at least an offset of 4 bytes
        raise ValueError(f"a vector of {length} tables in {len(data)} bytes")
    return length


def _parse_tensor(model: Any, table: Any, index: int) -> RawTensor:
    buffer_index = table.Buffer()
    if buffer_index >= model.BuffersLength():
        raise ValueError(f"tensor {index} names buffer {buffer_index} of {model.BuffersLength()}")
    buffer = model.Buffers(buffer_index)
    if buffer.Offset() > 1:
        raise ValueError(f"buffer {buffer_index} lies outside of the model")
    data = _vector(buffer.DataAsNumpy()).astype(np.uint8, copy=False)
    quantization = table.Quantization()
    return RawTensor(
        index=index,
        name=(table.Name() or b"")[:_LONGEST_NAME].decode("utf-8", "replace"),
        shape=_shape(_ints(table.ShapeAsNumpy(), 8)),
        signature=_ints(table.ShapeSignatureAsNumpy(), 8),
        type=_TYPE_NAMES[table.Type()],
        data=data if len(data) else None,
        scales=_vector(quantization.ScaleAsNumpy() if quantization else 0).astype(np.float32, copy=False),
        zero_points=_vector(quantization.ZeroPointAsNumpy() if quantization else 0).astype(np.int64, copy=False),
        quantized_dimension=quantization.QuantizedDimension() if quantization else 0,
        sparse=table.Sparsity() is not None,
    )


def _parse_operator(model: Any, table: Any, index: int) -> RawOperator:
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
        if union is not None and table.BuiltinOptionsType() == getattr(schema.BuiltinOptions, table_name):
            view = getattr(schema, table_name)()
            view.Init(union.Bytes, union.Pos)
            options = {field: getattr(view, field)() for field in fields}
    return RawOperator(index, kind, _ints(table.InputsAsNumpy(), 256), _ints(table.OutputsAsNumpy(), 256), options)


def parse(data: bytes, path: Path) -> RawModel:
    """Copy the model out of the bytes of a .tflite file; `path` is for messages.

    Raises:
        ModelError: they are no .tflite file, or an offset, a length or a number of it makes no sense.
    """
    _check_mark(data, path)
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
        if len(operators) > _MOST_OPERATORS:
            raise ModelError(f"{path} has {len(operators)} operators: no microcontroller runs as many.")
        return RawModel(
            operators=tuple(_parse_operator(model, graph.Operators(index), index) for index in operators),
            tensors=tuple(_parse_tensor(model, graph.Tensors(index), index) for index in tensors),
            inputs=_ints(graph.InputsAsNumpy(), 256),
            outputs=_ints(graph.OutputsAsNumpy(), 256),
        )
    except (struct.error, LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(f"{path} is damaged, or is no .tflite file: {error}. Make or fetch it again.") from error
