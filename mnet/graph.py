"""The quantized network as pure data: tensors, one frozen class per operator, constants. No TensorFlow in it.

Every activation is int8 with one scale and one zero_point, of shape [height, width, channels] (batch is always 1);
a vector of n values is [1, 1, n], n vectors of k values are [1, n, k]. real = scale * (quantized - zero_point).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mnet.errors import ModelError

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Float64Array = npt.NDArray[np.float64]
Shape = tuple[int, int, int]  # height, width, channels
AXES = ("rows", "columns", "channels")  # along them


def output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return the number of windows along one axis of `size` pixels with `before` and `after` pixels of padding."""
    return (size + before + after - (kernel - 1) * dilation - 1) // stride + 1


def _windows(
    op: "Conv2D | DepthwiseConv2D | Pool2D", source: Shape, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    top, bottom, left, right = op.padding
    return (
        output_size(source[0], kernel[0], op.stride[0], dilation[0], top, bottom),
        output_size(source[1], kernel[1], op.stride[1], dilation[1], left, right),
    )


_T = TypeVar("_T")
_NO_SHAPE = (-1, -1, -1)  # of inputs that do not fit together


@dataclass(frozen=True)
class Tensor:
    """An activation: int8 [height, width, channels], but for indices."""

    name: str  # of the tensor in the .tflite, made unique, so that every later message can point back to it
    shape: Shape
    scale: float
    zero_point: int
    index: int = -1  # of the tensor in the .tflite, where the graph was read from one
    type: str = "int8"  # or int32: indices without a scale, an output that nothing reads
    outside: str = "int8"  # what an input or output is in the file, where that differs: float32, uint8, int64
    live: tuple[int, ...] = ()  # channels of the file's tensor that simplification left, in order; () = all of them
    constants: tuple[tuple[int, int], ...] = ()  # (channel of the file's tensor, quantized value) of those folded away


class Dense(Enum):
    """How many scales the weights of a FULLY_CONNECTED have: runtimes take another road for each."""

    PER_TENSOR = "one scale"
    PER_CHANNEL = "scale per output"


@dataclass(frozen=True, eq=False)
class Conv2D:
    """Convolution; 1x1 with stride 1 is what people call pointwise."""

    name: str
    input: str
    output: str
    weights: Int8Array  # [channels_out, kernel_height, kernel_width, channels_in], read-only
    bias: Int32Array  # [channels_out], scale = input scale * weight scale, read-only
    weight_scales: Float64Array  # [channels_out]; the float32 values of the file, widened
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]  # pixels: top, bottom, left, right; SAME and VALID are resolved on import
    activation: tuple[int, int]  # smallest and largest int8 that the output may hold
    dense: Dense | None = None  # a FULLY_CONNECTED of every pixel: it rounds as that does

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        kernel = self.weights.shape[1:3]
        return (*_windows(self, source, (kernel[0], kernel[1]), self.dilation), int(self.bias.shape[0]))


@dataclass(frozen=True, eq=False)
class DepthwiseConv2D:
    """Each channel convolved with its own kernels; output channel c reads input channel c // depth_multiplier."""

    name: str
    input: str
    output: str
    weights: Int8Array  # [kernel_height, kernel_width, channels_out], read-only
    bias: Int32Array  # [channels_out], read-only
    weight_scales: Float64Array  # [channels_out]
    depth_multiplier: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    activation: tuple[int, int]

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        kernel = self.weights.shape[:2]
        return (*_windows(self, source, (kernel[0], kernel[1]), self.dilation), int(self.bias.shape[0]))


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """Dense layer over the flattened input, in row, column, channel order."""

    name: str
    input: str
    output: str
    weights: Int8Array  # [channels_out, channels_in], read-only
    bias: Int32Array  # [channels_out], read-only
    weight_scales: Float64Array  # [channels_out]; all equal where the file has one scale
    dense: Dense
    activation: tuple[int, int]

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (1, 1, int(self.bias.shape[0]))


@dataclass(frozen=True)
class AveragePool2D:
    """Mean of each window; padding does not count."""

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    activation: tuple[int, int]

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (*_windows(self, source, self.kernel, (1, 1)), source[2])


class Reduction(Enum):
    """What a Reduce makes of many values."""

    MEAN = "mean"
    SUM = "sum"
    MAX = "max"  # MAX and MIN keep scale and zero_point
    MIN = "min"


@dataclass(frozen=True)
class MaxPool2D:
    """Largest value of each window; padding does not count."""

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    activation: tuple[int, int]

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (*_windows(self, source, self.kernel, (1, 1)), source[2])


Pool2D = AveragePool2D | MaxPool2D


class Sampling(Enum):
    """How a Resize makes a pixel."""

    NEAREST = "nearest"  # the pixel that lies nearest
    BILINEAR = "bilinear"  # of four around, each weighted by how near it is


@dataclass(frozen=True)
class Resize:
    """The same picture in another number of rows and columns."""

    name: str
    input: str
    output: str
    sampling: Sampling
    size: tuple[int, int]  # rows, columns of the output
    align_corners: bool  # the centres of the pixels in the corners stay where they are
    half_pixel_centers: bool  # centres of pixels lie at 0.5, 1.5, ... instead of 0, 1, ...

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (*self.size, source[2])


@dataclass(frozen=True)
class Reduce:
    """One value for all that lie along some axes, which become 1 long."""

    name: str
    input: str
    output: str
    function: Reduction
    axes: tuple[int, ...]  # of [height, width, channels], ascending

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        height, width, channels = (1 if axis in self.axes else size for axis, size in enumerate(source))
        return (height, width, channels)


@dataclass(frozen=True)
class ArgMax:
    """The index of the largest channel of each pixel, the first of equals, as int32; the end of a network."""

    name: str
    input: str
    output: str

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (source[0], source[1], 1)


class UnaryFunction(Enum):
    """What is done to each value of a tensor, by the name of the operator in the file."""

    RELU = "RELU"
    RELU6 = "RELU6"
    RELU_N1_TO_1 = "RELU_N1_TO_1"
    RELU_0_TO_1 = "RELU_0_TO_1"
    LEAKY_RELU = "LEAKY_RELU"
    HARD_SWISH = "HARD_SWISH"
    QUANTIZE = "QUANTIZE"  # to another scale and zero_point
    ABS = "ABS"
    NEG = "NEG"
    LOGISTIC = "LOGISTIC"
    TANH = "TANH"
    ELU = "ELU"
    GELU = "GELU"
    GELU_TANH = "GELU, approximate"  # by tanh
    EXP = "EXP"
    LOG = "LOG"


@dataclass(frozen=True)
class Unary:
    """A function of one value, of each value."""

    name: str
    input: str
    output: str
    function: UnaryFunction
    alpha: float = 0.0  # of LEAKY_RELU, the slope below 0; a float32, widened

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return source


class BinaryFunction(Enum):
    """What is done to each two values, by the name of the operator in the file."""

    ADD = "ADD"
    SUB = "SUB"
    MUL = "MUL"
    MAXIMUM = "MAXIMUM"
    MINIMUM = "MINIMUM"
    SQUARED_DIFFERENCE = "SQUARED_DIFFERENCE"
    PRELU = "PRELU"  # the second value is the slope where the first is negative


@dataclass(frozen=True, eq=False)
class Constant:
    """An operand that is part of the network."""

    values: Int8Array  # [height or 1, width or 1, channels or 1], read-only
    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Binary:
    """A function of two values, of each two; an operand of size 1 along an axis has one value for all of it."""

    name: str
    inputs: tuple[str, ...]  # two activations, or the one that is no constant
    output: str
    function: BinaryFunction
    activation: tuple[int, int]
    constant: Constant | None = None
    constant_first: bool = False  # the constant is the first operand, else the second

    def operands(self, sources: Sequence[_T], constant: _T) -> tuple[_T, _T]:
        """Return what belongs to the first and the second operand, of what belongs to the inputs and the constant."""
        if self.constant is None:
            first, second = sources
            return first, second
        (source,) = sources
        return (constant, source) if self.constant_first else (source, constant)

    def output_shape(self, *sources: Shape) -> Shape:
        """Return the shape that the inputs and the constant make."""
        constant = () if self.constant is None else self.constant.values.shape
        try:
            height, width, channels = np.broadcast_shapes(*self.operands(sources, constant))
        except ValueError:
            return _NO_SHAPE
        return (height, width, channels)


@dataclass(frozen=True)
class Pad:
    """One value around a tensor: rows, columns, channels of it."""

    name: str
    input: str
    output: str
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    channels: tuple[int, int]  # before and after the tensor's own
    value: int  # quantized

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        top, bottom, left, right = self.padding
        return (source[0] + top + bottom, source[1] + left + right, source[2] + sum(self.channels))


@dataclass(frozen=True)
class Concat:
    """Tensors one behind the other along an axis; all else of their shapes is equal."""

    name: str
    inputs: tuple[str, ...]
    output: str
    axis: int  # of [height, width, channels]

    def output_shape(self, *sources: Shape) -> Shape:
        """Return the shape that the inputs make."""
        others = {(*shape[: self.axis], 0, *shape[self.axis + 1 :]) for shape in sources}
        if len(others) != 1:
            return _NO_SHAPE
        together = sum(shape[self.axis] for shape in sources)
        height, width, channels = (together if axis == self.axis else size for axis, size in enumerate(sources[0]))
        return height, width, channels


@dataclass(frozen=True)
class Gather:
    """Some rows, columns and channels by their numbers: slices of any step, parts, mirrored edges, repetitions."""

    name: str
    input: str
    output: str
    rows: tuple[int, ...]  # of the input, one for each row of the output
    columns: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def numbers(self) -> tuple[tuple[int, ...], ...]:
        """Return the numbers along each axis."""
        return (self.rows, self.columns, self.channels)

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        inside = all(min(taken) >= 0 and max(taken) < size for taken, size in zip(self.numbers, source, strict=True))
        return (len(self.rows), len(self.columns), len(self.channels)) if inside else _NO_SHAPE


@dataclass(frozen=True)
class Reshape:
    """The same bytes under another shape."""

    name: str
    input: str
    output: str
    shape: Shape

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return self.shape if math.prod(self.shape) == math.prod(source) else _NO_SHAPE


@dataclass(frozen=True)
class Rearrange:
    """A transposition between two reshapes: TRANSPOSE, SPACE_TO_DEPTH, DEPTH_TO_SPACE, a shuffle of channels.

    out = in.reshape(view).transpose(permutation).reshape(shape), as NumPy has it. `mnet.movement.rearrange` makes the
    one of fewest axes.
    """

    name: str
    input: str
    output: str
    view: tuple[int, ...]
    permutation: tuple[int, ...]  # of the axes of the view
    shape: Shape

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        fits = math.prod(self.shape) == math.prod(source) == math.prod(self.view)
        return self.shape if fits and sorted(self.permutation) == list(range(len(self.view))) else _NO_SHAPE


@dataclass(frozen=True)
class L2Normalization:
    """The channels of each pixel divided by their Euclidean length."""

    name: str
    input: str
    output: str

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return source


@dataclass(frozen=True)
class Softmax:
    """Softmax over the channels of each pixel."""

    name: str
    input: str
    output: str
    beta: float

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return source


Move = Pad | Concat | Gather | Reshape | Rearrange  # ops that move values and change none
Op = (
    Conv2D
    | DepthwiseConv2D
    | FullyConnected
    | Pool2D
    | Resize
    | Reduce
    | ArgMax
    | Unary
    | Binary
    | L2Normalization
    | Softmax
    | Move
)


def inputs_of(op: Op) -> tuple[str, ...]:
    """Return the names of the activations that `op` reads."""
    return op.inputs if isinstance(op, Binary | Concat) else (op.input,)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: operators in an order in which they can run."""

    name: str  # an identifier
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]  # in the order of the file, as callers give them
    outputs: tuple[str, ...]  # made by ops, which others may read
    model_hash: str  # first 16 hexadecimal digits of the file's SHA-256

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """Return the ops that read `tensor`, in order."""
        return tuple(op for op in self.ops if tensor in inputs_of(op))


def numbered(kind: str, count: int) -> tuple[str, ...]:
    """Return what `count` inputs or outputs are called in C and in proofs: one has no number.

    >>> numbered("input", 1), numbered("output", 2)
    (('input',), ('output_0', 'output_1'))
    """
    return (kind,) if count == 1 else tuple(f"{kind}_{number}" for number in range(count))


def macs_of(graph: Graph, op: Op) -> int:
    """Return the multiply-adds of `op`, padding taps included, as the field counts them."""
    height, width, _ = graph.tensors[op.output].shape
    return height * width * weights_of(op)


def weights_of(op: Op) -> int:
    """Return how many weights `op` has, biases not counted."""
    return int(op.weights.size) if isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected) else 0


def check_graph(graph: Graph) -> Graph:
    """Return `graph` if it is sound: no dangling tensor, each made once and before use, every shape as its op makes it.

    Inputs and outputs are there, and differ from each other.

    Raises:
        ModelError: a sentence naming the op at fault.
    """
    made = set(graph.inputs)
    for kind, names in (("input", graph.inputs), ("output", graph.outputs)):
        if not names:
            raise ModelError(f"{graph.name}: there is no {kind}")
        for name in names:
            if name not in graph.tensors:
                raise ModelError(f"{graph.name}: tensor {name!r} is missing")
            if names.count(name) > 1:
                raise ModelError(f"{graph.name}: the {kind} {name!r} is listed twice")
    for op in graph.ops:
        for name in (*inputs_of(op), op.output):
            if name not in graph.tensors:
                raise ModelError(f"{graph.name}, {op.name}: tensor {name!r} is missing")
        for name in inputs_of(op):
            if name not in made:
                raise ModelError(f"{graph.name}, {op.name}: reads {name!r} before it is made")
            if graph.tensors[name].type != "int8":
                raise ModelError(f"{graph.name}, {op.name}: reads {name!r}, which is {graph.tensors[name].type}")
        if op.output in made:
            raise ModelError(f"{graph.name}, {op.name}: {op.output!r} is made twice")
        made.add(op.output)
        found = graph.tensors[op.output].shape
        expected = op.output_shape(*(graph.tensors[name].shape for name in inputs_of(op)))
        if expected != found:
            raise ModelError(f"{graph.name}, {op.name}: output is {found}, its input and attributes make {expected}")
    for name in graph.outputs:
        if name not in made - set(graph.inputs):
            raise ModelError(f"{graph.name}: nothing makes the output {name!r}")
    return graph
