"""Read an int8 .tflite file into a Graph.

`mnet.flatbuffer` copies the file into plain values, `mnet.operands` checks what an operator takes and makes, and here
each operator becomes an op. Each sentence that is raised says what to do.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnet.errors import ModelError
from mnet.flatbuffer import RawModel, RawOperator, parse, read_bytes
from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Mean,
    Op,
    Pad,
    Reshape,
    Softmax,
    check_graph,
    inputs_of,
)
from mnet.layer_names import identifier, op_names
from mnet.operands import Operands
from mnet.oracle import accumulator_bound

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


class _Importer(Operands):
    """Turns a RawModel into a Graph, one operator at a time."""

    def __init__(self, model: RawModel, path: Path) -> None:
        super().__init__(model, path)
        self.readers: Mapping[str, Callable[[RawOperator, str], Op]] = {
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

    # One method per operator: read, check, return the op.

    def _conv_2d(self, operator: RawOperator, name: str) -> Op:
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

    def _depthwise_conv_2d(self, operator: RawOperator, name: str) -> Op:
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

    def _fully_connected(self, operator: RawOperator, name: str) -> Op:
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
        graph = Graph("", by_name, (), (op.input,), (op.output,), "")
        scales = by_name[op.input].scale * op.weight_scales / by_name[op.output].scale
        if (accumulator_bound(op, graph) * np.maximum(2 * scales, 1.0)).max() >= 1 << 31:
            raise self.fail(
                "its int32 accumulators can overflow: quantize the model again, with more calibration data."
            )
        return op

    def _average_pool_2d(self, operator: RawOperator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        kernel = (int(operator.options["FilterHeight"]), int(operator.options["FilterWidth"]))
        stride, _, padding = self.geometry(operator, source, kernel)
        self.same_quantization(source, target)
        return AveragePool2D(name, source.name, target.name, kernel, stride, padding, self.fused(operator, target))

    def _mean(self, operator: RawOperator, name: str) -> Op:
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

    def _add(self, operator: RawOperator, name: str) -> Op:
        first, second, target = self.input(operator, 0), self.input(operator, 1), self.output(operator)
        if first.shape != second.shape:
            raise self.fail(f"adds {first.shape} and {second.shape}: both inputs must have one shape.")
        if 2 * max(first.scale, second.scale) >= target.scale * (1 << 20):
            raise self.fail("its output scale is 500,000 times finer than its inputs'; quantize the model again.")
        return Add(name, (first.name, second.name), target.name, self.fused(operator, target))

    def _pad(self, operator: RawOperator, name: str) -> Op:
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

    def _reshape(self, operator: RawOperator, name: str) -> Op:
        source, target = self.input(operator), self.output(operator)
        self.same_quantization(source, target)
        return Reshape(name, source.name, target.name)

    def _softmax(self, operator: RawOperator, name: str) -> Op:
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
        for indices, end in ((model.inputs, "input"), (model.outputs, "output")):
            self._end(indices, end)
        todo = [operator for operator in model.operators if not self.computes_a_shape(operator)]
        for operator in todo:
            self.where = self._place(operator)
            if operator.kind not in self.readers:
                raise self.fail(f"not supported. mnet reads {_SUPPORTED}: end the model before it, or replace it.")
            self.output(operator)
        names = op_names(
            ("RESHAPE" if o.kind in ("SQUEEZE", "EXPAND_DIMS") else o.kind, self.names[o.outputs[0]]) for o in todo
        )
        ops = []
        for operator, op_name in zip(todo, names, strict=True):
            self.where = self._place(operator)
            ops.append(self.readers[operator.kind](operator, op_name))
        by_name = {tensor.name: tensor for tensor in self.tensors.values()}
        sources, targets = (tuple(self.names[index] for index in ends) for ends in (model.inputs, model.outputs))
        try:
            check_graph(Graph(name, by_name, tuple(ops), sources, targets, model_hash))
        except ModelError as error:
            raise ModelError(f"{self.path} contradicts itself: {error}. Make or fetch it again.") from error
        needed = set(targets)
        for op in reversed(ops):  # what nobody reads is left out
            needed |= set(inputs_of(op)) if op.output in needed else set()
        kept = tuple(op for op in ops if op.output in needed)
        tensors = {tensor: by_name[tensor] for tensor in (*sources, *(op.output for op in kept))}
        return check_graph(Graph(name, tensors, kept, sources, targets, model_hash))

    def _end(self, indices: tuple[int, ...], end: str) -> None:
        """Check the tensors that the file lists as its inputs or its outputs, and make activations of them."""
        if not indices:
            raise self.fail(f"has no {end}; the file is damaged.")
        kinds = {operator.kind for operator in self.model.operators}
        for tensor in (self.raw(index) for index in indices):
            if tensor.type == "float32" and kinds & {"QUANTIZE", "DEQUANTIZE"}:
                raise self.fail(
                    f"its {end} is float32: convert the model with inference_{end}_type = tf.int8 (mnet quantize does)."
                )
            if tensor.type != "int8":
                raise self.fail(f"this is a {tensor.type} model: quantize it to int8 first (mnet quantize).")
            if indices.count(tensor.index) > 1:
                raise self.fail(f"lists its {end} {tensor.name!r} twice: convert the model with each {end} once.")
            if end == "output" and tensor.index in self.model.inputs:
                raise self.fail(
                    f"its output {tensor.name!r} is an input, which no operator makes: leave that output out."
                )
            self.activation(tensor)

    def computes_a_shape(self, operator: RawOperator) -> bool:
        """Return whether `operator` only serves a RESHAPE: its result is known, the output's shape is in the file."""
        return operator.kind in ("SHAPE", "STRIDED_SLICE", "PACK") and all(
            0 <= index < len(self.model.tensors) and self.model.tensors[index].type in ("int32", "int64")
            for index in operator.outputs
        )

    def _place(self, operator: RawOperator) -> str:
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
    importer = _Importer(parse(read_bytes(path), path), path)
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
    return parse_model(read_bytes(path), path)


def parse_model(data: bytes, path: str | Path) -> Graph:
    """Read the bytes of an int8 .tflite file; `path` is for its name and for messages. See `read_model`."""
    path = Path(path)
    importer = _Importer(parse(data, path), path)
    return importer.run(identifier(path.stem, "model"), hashlib.sha256(data).hexdigest()[:16])
