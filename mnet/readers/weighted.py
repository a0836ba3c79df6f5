"""Convolutions and fully connected layers: operators with weights."""

import math
from collections.abc import Mapping

import numpy as np

from mnet.flatbuffer import RawOperator
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, Op
from mnet.operands import Operands
from mnet.oracle import accumulator_bound
from mnet.readers.reader import Reader


def _checked(operands: Operands, op: Conv2D | DepthwiseConv2D | FullyConnected) -> list[Op]:
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
    return _checked(
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
    return _checked(
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
    source, target = operands.input(operator), operands.output(operator)
    if operands.option(operator, "WeightsFormat") != 0:
        raise operands.fail("has shuffled weights: convert the model with a converter of TensorFlow 2.")
    tensor = operands.operand(operator, 1)
    weights, scales = operands.weights(tensor, rank=2, axis=0)
    if weights.shape[1] != math.prod(source.shape):
        raise operands.fail(f"its weights take {weights.shape[1]} values, its input has {math.prod(source.shape)}.")
    if target.shape != (1, 1, weights.shape[0]):
        raise operands.fail(f"its output has shape {target.shape}, its weights make {weights.shape[0]} values.")
    bias, activation = operands.bias(operator, weights.shape[0]), operands.fused(operator, target)
    per_channel = len(tensor.scales) > 1
    return _checked(
        operands, FullyConnected(name, source.name, target.name, weights, bias, scales, per_channel, activation)
    )


READERS: Mapping[str, Reader] = {
    "CONV_2D": Reader(_conv_2d, "any kernel, stride, dilation and padding; ReLU and ReLU6"),
    "DEPTHWISE_CONV_2D": Reader(_depthwise_conv_2d, "the same, any depth multiplier"),
    "FULLY_CONNECTED": Reader(_fully_connected, "weights with one scale, or one for each output"),
}
