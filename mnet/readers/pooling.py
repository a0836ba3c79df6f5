"""Pooling, reductions and what ends a network: operators over windows or whole axes."""

import math
from collections.abc import Mapping

from mnet.flatbuffer import RawOperator
from mnet.graph import AveragePool2D, Mean, Op, Softmax
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _average_pool_2d(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    kernel = (int(operands.option(operator, "FilterHeight")), int(operands.option(operator, "FilterWidth")))
    stride, _, padding = operands.geometry(operator, source, kernel)
    operands.same_quantization(source, target)
    return [AveragePool2D(name, source.name, target.name, kernel, stride, padding, operands.fused(operator, target))]


def _mean(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensor, source, target = operands.operand(operator, 0), operands.input(operator), operands.output(operator)
    given = [int(axis) for axis in operands.constant(operands.operand(operator, 1), "int32", "axes").reshape(-1)]
    axes = {operands.axis(tensor, axis) for axis in given} - {None}
    if not {axis for axis in (0, 1) if source.shape[axis] != 1} <= axes <= {0, 1}:
        raise operands.fail(
            f"takes the mean over the axes {given} of {list(tensor.shape)}: only the mean over all rows and "
            "columns (GlobalAveragePooling2D) is supported."
        )
    # |sum of count values| <= 255 * count, and the reference kernel's int32 also holds its product with the scales
    if 255 * source.shape[0] * source.shape[1] >= 1 << 31 or 512 * source.scale >= (1 << 31) * target.scale:
        raise operands.fail("its int32 sums can overflow: use a smaller image, or quantize the model again.")
    return [Mean(name, source.name, target.name)]


def _softmax(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    beta = float(operands.option(operator, "Beta"))
    if target.zero_point != -128 or abs(target.scale * 256 - 1) > 0.001:
        raise operands.fail(f"its output must have scale 1/256 and zero_point -128, not {target.scale}.")
    if not (math.isfinite(beta) and beta * source.scale * (1 << 26) > 1.0):
        raise operands.fail(
            f"beta {beta} with an input scale of {source.scale} is too small; quantize the model again."
        )
    if source.shape[2] >= 4096:
        raise operands.fail(f"has {source.shape[2]} classes; the runtimes' sum overflows at 4,096.")
    return [Softmax(name, source.name, target.name, beta)]


READERS: Mapping[str, Reader] = {
    "AVERAGE_POOL_2D": Reader(_average_pool_2d, "any window"),
    "MEAN": Reader(_mean, "over all rows and columns"),
    "SOFTMAX": Reader(_softmax, "over the classes"),
}
