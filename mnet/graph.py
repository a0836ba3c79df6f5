"""The quantized network as pure data: tensors, one frozen class per operator, constants. No TensorFlow in it.

Every activation is int8 with one scale and one zero_point, of shape [height, width, channels] (batch is always 1);
a vector of n values is [1, 1, n], n vectors of k values are [1, n, k]. real = scale * (quantized - zero_point).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnet.errors import ModelError

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Float64Array = npt.NDArray[np.float64]
Shape = tuple[int, int, int]  # height, width, channels


def output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return the number of windows along one axis of `size` pixels with `before` and `after` pixels of padding."""
    return (size + before + after - (kernel - 1) * dilation - 1) // stride + 1


def _windows(
    op: "Conv2D | DepthwiseConv2D | AveragePool2D", source: Shape, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    top, bottom, left, right = op.padding
    return (
        output_size(source[0], kernel[0], op.stride[0], dilation[0], top, bottom),
        output_size(source[1], kernel[1], op.stride[1], dilation[1], left, right),
    )


_NO_SHAPE = (-1, -1, -1)  # of inputs that do not fit together


@dataclass(frozen=True)
class Tensor:
    """An activation: int8 [height, width, channels]."""

    name: str  # of the tensor in the .tflite, made unique, so that every later message can point back to it
    shape: Shape
    scale: float
    zero_point: int
    index: int = -1  # of the tensor in the .tflite, where the graph was read from one
    live: tuple[int, ...] = ()  # channels of the file's tensor that simplification left, in order; () = all of them
    constants: tuple[tuple[int, int], ...] = ()  # (channel of the file's tensor, quantized value) of those folded away


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
    per_channel: bool  # whether the file has one scale per output (runtimes take another road then)
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


@dataclass(frozen=True)
class Mean:
    """Mean over all rows and columns: [height, width, channels] -> [1, 1, channels]."""

    name: str
    input: str
    output: str

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return (1, 1, source[2])


@dataclass(frozen=True)
class Add:
    """Elementwise sum of two tensors of one shape, each with its own scale."""

    name: str
    inputs: tuple[str, str]
    output: str
    activation: tuple[int, int]

    def output_shape(self, first: Shape, second: Shape) -> Shape:
        """Return the shape that the inputs make."""
        return first if first == second else _NO_SHAPE


@dataclass(frozen=True)
class Pad:
    """Rows and columns of the zero_point around a tensor."""

    name: str
    input: str
    output: str
    padding: tuple[int, int, int, int]  # top, bottom, left, right

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        top, bottom, left, right = self.padding
        return (source[0] + top + bottom, source[1] + left + right, source[2])


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
class Softmax:
    """Softmax over the channels of [1, 1, channels]."""

    name: str
    input: str
    output: str
    beta: float

    def output_shape(self, source: Shape) -> Shape:
        """Return the shape that the input and the attributes make."""
        return source


Op = Conv2D | DepthwiseConv2D | FullyConnected | AveragePool2D | Mean | Add | Pad | Reshape | Softmax


def inputs_of(op: Op) -> tuple[str, ...]:
    """Return the names of the activations that `op` reads."""
    return op.inputs if isinstance(op, Add) else (op.input,)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: operators in an order in which they can run."""

    name: str  # an identifier
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    input: str
    output: str
    model_hash: str  # first 16 hexadecimal digits of the file's SHA-256

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """Return the ops that read `tensor`, in order."""
        return tuple(op for op in self.ops if tensor in inputs_of(op))


def macs_of(graph: Graph, op: Op) -> int:
    """Return the multiply-adds of `op`, padding taps included, as the field counts them."""
    height, width, _ = graph.tensors[op.output].shape
    return height * width * weights_of(op)


def weights_of(op: Op) -> int:
    """Return how many weights `op` has, biases not counted."""
    return int(op.weights.size) if isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected) else 0


def check_graph(graph: Graph) -> Graph:
    """Return `graph` if it is sound: no dangling tensor, each made once and before use, every shape as its op makes it.

    Raises:
        ModelError: a sentence naming the op at fault.
    """
    made = {graph.input}
    for name in (graph.input, graph.output):
        if name not in graph.tensors:
            raise ModelError(f"{graph.name}: tensor {name!r} is missing")
    for op in graph.ops:
        for name in (*inputs_of(op), op.output):
            if name not in graph.tensors:
                raise ModelError(f"{graph.name}, {op.name}: tensor {name!r} is missing")
        for name in inputs_of(op):
            if name not in made:
                raise ModelError(f"{graph.name}, {op.name}: reads {name!r} before it is made")
        if op.output in made:
            raise ModelError(f"{graph.name}, {op.name}: {op.output!r} is made twice")
        made.add(op.output)
        found = graph.tensors[op.output].shape
        expected = op.output_shape(*(graph.tensors[name].shape for name in inputs_of(op)))
        if expected != found:
            raise ModelError(f"{graph.name}, {op.name}: output is {found}, its input and attributes make {expected}")
    if graph.output not in made:
        raise ModelError(f"{graph.name}: nothing makes the output {graph.output!r}")
    return graph
