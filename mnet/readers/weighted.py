"""Convolutions and fully connected layers: operators with weights."""

import math
from collections.abc import Mapping

import numpy as np

from mnet.flatbuffer import RawOperator
from mnet.graph import Conv2D, Dense, DepthwiseConv2D, FullyConnected, Graph, Op, Reshape
from mnet.operands import Operands
from mnet.oracle import accumulator_bound
from mnet.readers.reader import Reader


def checked(operands: Operands, op: Conv2D | DepthwiseConv2D | FullyConnected) -> list[Op]:
    """Return `op` if no input can make its int32 arithmetic overflow: there runtimes differ, or C is undefined."""
    by_name = {tensor.name: tensor for tensor in operands.tensors.values()}
    graph = Graph("", by_name, (), (op.input,), (op.output,), "")
    scales = by_name[op.input].scale * op.weight_scales / by_name[op.output].scale
    if (accumulator_bound(op, graph) * np.maximum(2 * scales, 1.0)).max() >= 1 << 31:
        raise operands.fail(
            "its int32 accumulators can overflow: quantize the model again, with more calibration data."
        )
    return [op]


def _conv_2d(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    weights, scales = operands.weights(operands.operand(operator, 1), rank=4, axis=0)
    if weights.shape[3] != source.shape[2]:
        raise operands.fail(
            f"its kernels have {weights.shape[3]} channels, its input {source.shape[2]}: "
            "grouped convolutions are not supported, use DepthwiseConv2D or separate layers."
        )
    stride, dilation, padding = operands.geometry(operator, source, (weights.shape[1], weights.shape[2]))
    bias, activation = operands.bias(operator, weights.shape[0]), operands.fused(operator, target)
    return checked(
        operands, Conv2D(name, source.name, target.name, weights, bias, scales, stride, dilation, padding, activation)
    )


def _depthwise_conv_2d(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    weights, scales = operands.weights(operands.operand(operator, 1), rank=4, axis=3)
    channels_in, channels_out = source.shape[2], weights.shape[3]
    multiplier = channels_out // channels_in
    given = operands.option(operator, "DepthMultiplier")
    if weights.shape[0] != 1 or multiplier * channels_in != channels_out or given not in (0, multiplier):
        raise operands.fail(
            f"its kernels have shape {list(weights.shape)}, its input {channels_in} channels and its depth "
            f"multiplier is {given}; these do not fit."
        )
    stride, dilation, padding = operands.geometry(operator, source, (weights.shape[1], weights.shape[2]))
    bias, activation = operands.bias(operator, channels_out), operands.fused(operator, target)
    return checked(
        operands,
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
        ),
    )


def _fully_connected(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read a layer over all values of its input, or over those of each of several rows of the weights' length."""
    source, target = operands.input(operator), operands.output(operator)
    if operands.option(operator, "WeightsFormat") != 0:
        raise operands.fail("has shuffled weights: convert the model with a converter of TensorFlow 2.")
    tensor = operands.operand(operator, 1)
    weights, scales = operands.weights(tensor, rank=2, axis=0)
    (outputs, taken), given = weights.shape, math.prod(source.shape)
    if given % taken:
        raise operands.fail(f"its weights take {taken} values, its input has {given}.")
    if given > taken and operands.raw(operator.outputs[0]).signature == (-1, outputs):  # rows, not the batch
        operands.makes(operator, (given // taken, outputs))
        target = operands.output(operator)
    bias, activation = operands.bias(operator, outputs), operands.fused(operator, target)
    dense = Dense.PER_CHANNEL if len(tensor.scales) > 1 else Dense.PER_TENSOR
    if given == taken:
        output, after = operands.reshaped(name, (1, 1, outputs), target)
        layer: Conv2D | FullyConnected = FullyConnected(
            name, source.name, output, weights, bias, scales, dense, activation
        )
        return [*checked(operands, layer), *after]
    before: list[Op] = []
    if source.shape[2] != taken:
        rows = operands.intermediate(f"{source.name}/{name}", (1, given // taken, taken), source)
        before = [Reshape(f"{name}_rows", source.name, rows.name, rows.shape)]
        source = rows
    output, after = operands.reshaped(name, (*source.shape[:2], outputs), target)
    pointwise = weights.reshape(outputs, 1, 1, taken)
    one, no_padding = (1, 1), (0, 0, 0, 0)
    layer = Conv2D(name, source.name, output, pointwise, bias, scales, one, one, no_padding, activation, dense)
    return [*before, *checked(operands, layer), *after]


READERS: Mapping[str, Reader] = {
    "CONV_2D": Reader(_conv_2d, "any kernel, stride, dilation and padding; ReLU and ReLU6"),
    "DEPTHWISE_CONV_2D": Reader(_depthwise_conv_2d, "the same, any depth multiplier"),
    "FULLY_CONNECTED": Reader(
        _fully_connected, "of a vector or of each pixel; weights with one scale, or one for each output"
    ),
}
