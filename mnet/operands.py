"""What an operator of a .tflite file takes and makes, checked: activations, constants, weights, windows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema

from mnet.axes import axes_of, shape_of
from mnet.elementwise import clamp_of
from mnet.errors import ModelError
from mnet.flatbuffer import RawModel, RawOperator, RawTensor
from mnet.graph import Int8Array, Int32Array, Op, Reshape, Shape, Tensor, UnaryFunction, inputs_of
from mnet.layer_names import unique

# Outside of these no model has its scales, and what runtimes compute in float32 of two of them would leave its range.
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-60, 2.0**60
_LARGEST_ACTIVATION = 1 << 26  # bytes; far beyond any microcontroller, and small enough to compute with


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.require(array, requirements=["C", "ALIGNED"])  # a view of the file where that will do
    array.flags.writeable = False
    return array


_FUSED = {
    schema.ActivationFunctionType.RELU: UnaryFunction.RELU,
    schema.ActivationFunctionType.RELU6: UnaryFunction.RELU6,
    schema.ActivationFunctionType.RELU_N1_TO_1: UnaryFunction.RELU_N1_TO_1,
}


def activation_range(function: int, scale: float, zero_point: int) -> tuple[int, int] | None:
    """Return the int8 range of a fused activation, or None if mnet does not know it.

    >>> activation_range(schema.ActivationFunctionType.RELU6, 0.0235, -128)
    (-128, 127)
    """
    if function == schema.ActivationFunctionType.NONE:
        return -128, 127
    return clamp_of(_FUSED[function], scale, zero_point) if function in _FUSED else None


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the pixels before and after for SAME padding; an odd one goes after.

    Source: TensorFlow Lite, kernels/padding.h, ComputePaddingWithOffset.

    >>> same_padding(96, 3, 2, 1)
    (0, 1)
    """
    count = -(-size // stride)
    total = max((count - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class Operands:
    """Access to a RawModel's tensors as a Graph needs them; `where` is the start of each sentence it raises."""

    def __init__(self, model: RawModel, path: Path) -> None:
        self.model = model
        self.path = path
        self.where = str(path)
        self.tensors: dict[int, Tensor] = {}
        self._used: set[str] = set()
        self.names = []
        for tensor in model.tensors:
            name = self._printable(tensor)
            self.names.append(unique(f"{name}_{tensor.index}" if name in self._used else name, self._used))

    @staticmethod
    def _printable(tensor: RawTensor) -> str:
        name = "".join(c if c.isprintable() else "_" for c in tensor.name)
        return name or f"tensor_{tensor.index}"

    def fail(self, sentence: str) -> ModelError:
        return ModelError(f"{self.where}: {sentence}")

    def option(self, operator: RawOperator, field: str) -> Any:
        """Return a field of the operator's table of options."""
        if field not in operator.options:
            raise self.fail("has no table of options; the file is damaged.")
        return operator.options[field]

    def raw(self, index: int) -> RawTensor:
        if not 0 <= index < len(self.model.tensors):
            raise self.fail(f"names tensor {index} of {len(self.model.tensors)}; the file is damaged.")
        return self.model.tensors[index]

    def operand(self, operator: RawOperator, position: int) -> RawTensor:
        if position >= len(operator.inputs):
            raise self.fail(f"has {len(operator.inputs)} inputs, {position + 1} are needed; the file is damaged.")
        return self.raw(operator.inputs[position])

    def activation(self, tensor: RawTensor) -> str:
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
        if len(tensor.shape) == 4 and tensor.shape[0] != 1:
            raise self.fail(f'tensor "{name}" has shape {list(tensor.shape)}: the batch must be 1.')
        if any(size < 1 for size in tensor.shape) or math.prod(tensor.shape) > _LARGEST_ACTIVATION:
            raise self.fail(f'tensor "{name}" has shape {list(tensor.shape)}, which no microcontroller can hold.')
        scale, zero_point = self.quantization(tensor)
        number = -1 if tensor.is_whole else tensor.index
        self.tensors[tensor.index] = Tensor(name, shape_of(tensor.shape), scale, zero_point, number)
        return name

    def axis(self, tensor: RawTensor, axis: int) -> int | None:
        """Return which axis of [height, width, channels] an axis of a file's tensor is; None: one of size one left out.

        Args:
            tensor: an activation.
            axis: counted from its end where negative.

        Raises:
            ModelError: there is no such axis, or it is rows together with others (see mnet/axes.py).
        """
        rank = len(tensor.shape)
        if not -rank <= axis < rank:
            raise self.fail(f"works along axis {axis} of {list(tensor.shape)}; the file is damaged.")
        axis %= rank
        for ours, group in enumerate(axes_of(tensor.shape)):
            if group == (axis,):
                return ours
            if axis in group:
                raise self.fail(
                    f"works along axis {axis} of {list(tensor.shape)}: mnet takes an activation as rows, columns and "
                    f"channels, and {' and '.join(f'axis {a}' for a in group)} are rows there. Reshape it before."
                )
        return None

    def intermediate(self, name: str, shape: Shape, like: Tensor) -> Tensor:
        """Note a tensor that the file does not have, quantized like another, and return it."""
        made = replace(like, name=unique(name, self._used), shape=shape, index=-1)
        self.tensors[-1 - len(self.tensors)] = made
        return made

    def reshaped(self, name: str, shape: Shape, target: Tensor) -> tuple[str, list[Op]]:
        """Return which tensor the op `name` has to make, and the RESHAPE from there to `target` where that differs.

        Args:
            name: of the op.
            shape: [height, width, channels] that it makes; an operator without keep_dims leaves out some axes.
            target: what the file's operator makes.

        Raises:
            ModelError: they do not hold the same number of values.
        """
        if shape == target.shape:
            return target.name, []
        if math.prod(shape) != math.prod(target.shape):
            raise self.fail(f"makes {shape}, but its output has shape {target.shape}; the file is damaged.")
        between = self.intermediate(f"{target.name}/{name}", shape, target)
        return between.name, [Reshape(f"{name}_reshape", between.name, target.name, target.shape)]

    def quantization(self, tensor: RawTensor) -> tuple[float, int]:
        """Return scale and zero_point of an int8 tensor that has one of each."""
        name = self.names[tensor.index]
        if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
            raise self.fail(f'tensor "{name}" has {len(tensor.scales)} scales; one is needed.')
        scale, zero_point = float(tensor.scales[0]), int(tensor.zero_points[0])
        if not (_SMALLEST_SCALE <= scale <= _LARGEST_SCALE and -128 <= zero_point <= 127):
            raise self.fail(f'tensor "{name}" has scale {scale} and zero_point {zero_point}; the file is damaged.')
        return scale, zero_point

    def constant(self, tensor: RawTensor, dtype: str, what: str) -> npt.NDArray[Any]:
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
        return read_only(
            tensor.data.view(np.dtype(dtype).newbyteorder("<")).reshape(tensor.shape).astype(dtype, copy=False)
        )

    def integers(self, tensor: RawTensor, what: str) -> npt.NDArray[Any]:
        """Return a constant of int32 or int64 in its shape, read-only."""
        return self.constant(tensor, "int64" if tensor.type == "int64" else "int32", what)

    def number(self, tensor: RawTensor, what: str) -> int:
        """Return a constant of one integer."""
        values = self.integers(tensor, what)
        if values.size != 1:
            raise self.fail(f"has {values.size} values for its {what}; the file is damaged.")
        return int(values.reshape(-1)[0])

    def weights(self, tensor: RawTensor, rank: int, axis: int) -> tuple[Int8Array, npt.NDArray[np.float64]]:
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
        if not ((scales >= _SMALLEST_SCALE) & (scales <= _LARGEST_SCALE)).all():
            raise self.fail(f'weights "{name}" have a scale that is not positive, or extreme; the file is damaged.')
        if tensor.zero_points.any():
            raise self.fail(f'weights "{name}" have a zero_point other than 0: quantize the model again with int8.')
        return weights, read_only(np.broadcast_to(scales, channels).copy())

    def bias(self, operator: RawOperator, channels: int, position: int = 2) -> Int32Array:
        """Return the bias of a convolution, zeros where it has none."""
        if len(operator.inputs) <= position or operator.inputs[position] == -1:
            return read_only(np.zeros(channels, np.int32))
        bias: Int32Array = self.constant(self.operand(operator, position), "int32", "bias")
        if bias.size != channels:
            raise self.fail(f"has {channels} output channels but {bias.size} biases.")
        return bias.reshape(channels)

    def output(self, operator: RawOperator, position: int | None = None) -> Tensor:
        """Return an output, or the only one."""
        if position is None and len(operator.outputs) != 1:
            raise self.fail(f"has {len(operator.outputs)} outputs, one is needed.")
        tensor = self.raw(operator.outputs[position or 0])
        self.activation(tensor)
        return self.tensors[tensor.index]

    def indices(self, operator: RawOperator, shape: Shape) -> Tensor:
        """Return the output of an operator that makes int32 or int64 indices: it must be an output of the model.

        Raises:
            ModelError: it is of another type or number, or something reads it.
        """
        if len(operator.outputs) != 1:
            raise self.fail(f"has {len(operator.outputs)} outputs, one is needed.")
        tensor = self.raw(operator.outputs[0])
        if tensor.type not in ("int32", "int64") or math.prod(tensor.shape) != math.prod(shape):
            raise self.fail(f"makes {tensor.type} {list(tensor.shape)} of {list(shape)}; the file is damaged.")
        reader = next((other for other in self.model.operators if tensor.index in other.inputs), None)
        if reader or tensor.index not in self.model.outputs:
            whose = f"{reader.kind} reads its result" if reader else "its result is no output of the model"
            raise self.fail(f"{whose}: only the end of a model can be indices.")
        outside = "int64" if tensor.type == "int64" else "int8"
        made = Tensor(self.names[tensor.index], shape, 1.0, 0, tensor.index, "int32", outside)
        self.tensors[tensor.index] = made
        return made

    def makes(self, operator: RawOperator, shape: Sequence[int], position: int = 0) -> None:
        """Refuse a file that gives an output another shape than the operator makes; one that is open gets this one."""
        tensor = self.raw(operator.outputs[position])
        if tensor.shape == tuple(shape):
            return
        fits = len(tensor.signature) == len(shape) and all(
            found in (-1, size) for found, size in zip(tensor.signature, shape, strict=True)
        )
        if not fits:
            raise self.fail(f"makes {list(shape)}, but its output has shape {list(tensor.shape)}; the file is damaged.")
        self._settle(replace(tensor, shape=tuple(shape)))

    def settle(self, op: Op) -> None:
        """Give an activation whose shape the file leaves open the one that its op makes."""
        by_name = {tensor.name: (index, tensor) for index, tensor in self.tensors.items()}
        shape = op.output_shape(*(by_name[name][1].shape for name in inputs_of(op)))
        index, known = by_name[op.output]
        if index < 0 or known.shape == shape or min(shape) < 1:
            return
        tensor = self.raw(index)
        rank = len(tensor.shape)
        whole = (1,) * (rank - 3) + shape[3 - min(rank, 3) :]
        if -1 in tensor.signature[1:] and math.prod(whole) == math.prod(shape):
            self._settle(replace(tensor, shape=whole))

    def _settle(self, tensor: RawTensor) -> None:
        tensors = (*self.model.tensors[: tensor.index], tensor, *self.model.tensors[tensor.index + 1 :])
        self.model = replace(self.model, tensors=tensors)
        if tensor.index in self.tensors:
            self.tensors[tensor.index] = replace(self.tensors[tensor.index], shape=shape_of(tensor.shape))

    def input(self, operator: RawOperator, position: int = 0) -> Tensor:
        tensor = self.operand(operator, position)
        self.activation(tensor)
        return self.tensors[tensor.index]

    def fused(self, operator: RawOperator, output: Tensor) -> tuple[int, int]:
        function = self.option(operator, "FusedActivationFunction")
        found = activation_range(function, output.scale, output.zero_point)
        if found is None:
            raise self.fail("has a fused activation other than RELU, RELU6 and RELU_N1_TO_1: use a layer of its own.")
        return found

    def geometry(
        self, operator: RawOperator, source: Tensor, kernel: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        """Return stride, dilation and padding in pixels, checked."""
        options = operator.options
        stride = (int(self.option(operator, "StrideH")), int(self.option(operator, "StrideW")))
        dilation = (int(options.get("DilationHFactor", 1)), int(options.get("DilationWFactor", 1)))
        if min(*stride, *dilation, *kernel) < 1 or max(*stride, *dilation, *kernel) > 1 << 15:
            raise self.fail(f"has kernel {kernel}, stride {stride}, dilation {dilation}; the file is damaged.")
        if options["Padding"] == schema.Padding.VALID:
            return stride, dilation, (0, 0, 0, 0)
        if options["Padding"] != schema.Padding.SAME:
            raise self.fail(f"has padding mode {options['Padding']}, neither SAME nor VALID; the file is damaged.")
        top, bottom = same_padding(source.shape[0], kernel[0], stride[0], dilation[0])
        left, right = same_padding(source.shape[1], kernel[1], stride[1], dilation[1])
        height, width, channels = source.shape
        if (top + height + bottom) * (left + width + right) * channels > _LARGEST_ACTIVATION:
            raise self.fail(f"has kernel {kernel} and dilation {dilation}, whose padding no microcontroller can hold.")
        return stride, dilation, (top, bottom, left, right)

    def same_quantization(self, source: Tensor, target: Tensor) -> None:
        if (source.scale, source.zero_point) != (target.scale, target.zero_point):
            raise self.fail(
                f"changes scale or zero_point from ({source.scale}, {source.zero_point}) to "
                f"({target.scale}, {target.zero_point}), which this operator cannot do."
            )
