"""Reductions, and what ends a network: operators over whole axes."""

import math
from collections.abc import Callable, Mapping

from mnet.flatbuffer import RawOperator
from mnet.graph import ArgMax, L2Normalization, Op, Reduce, Reduction, Softmax
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _reduce(function: Reduction) -> Callable[[Operands, RawOperator, str], list[Op]]:
    def read(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
        tensor, source, target = operands.operand(operator, 0), operands.input(operator), operands.output(operator)
        given = operands.constant(operands.operand(operator, 1), "int32", "axes").reshape(-1)
        found = {operands.axis(tensor, int(axis)) for axis in given}
        op = Reduce(name, source.name, target.name, function, tuple(axis for axis in range(3) if axis in found))
        ratio, count = source.scale / target.scale, math.prod(source.shape[axis] for axis in op.axes)
        if function in (Reduction.MAX, Reduction.MIN):
            operands.same_quantization(source, target)
        # |sum| <= 255 * count; it is shifted to the left by the exponent of the multiplier: 2**shift <= 2 * ratio, and
        # half as much or less where the count is folded into it.
        elif 255 * max(count, 2 * ratio * (count if function is Reduction.SUM else 1)) >= 1 << 31:
            raise operands.fail("its int32 sums can overflow: use a smaller image, or quantize the model again.")
        output, reshape = operands.reshaped(name, op.output_shape(source.shape), target)
        return [Reduce(name, source.name, output, function, op.axes), *reshape]

    return read


def _arg_max(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensor, source = operands.operand(operator, 0), operands.input(operator)
    axis = operands.operand(operator, 1)
    given = operands.constant(axis, "int64" if axis.type == "int64" else "int32", "axis").reshape(-1)
    if len(given) != 1 or operands.axis(tensor, int(given[0])) != 2:
        raise operands.fail(f"looks along axis {given.tolist()} of {list(tensor.shape)}: only channels are supported.")
    target = operands.indices(operator, (source.shape[0], source.shape[1], 1))
    return [ArgMax(name, source.name, target.name)]


def _l2_normalization(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    if (target.scale, target.zero_point) != (1 / 128, 0):
        raise operands.fail(f"its output must have scale 1/128 and zero_point 0, not {target.scale}.")
    if operands.fused(operator, target) != (-128, 127):
        raise operands.fail("has a fused activation: use a layer of its own.")
    if source.shape[2] * 255**2 >= 1 << 31:
        raise operands.fail(f"has {source.shape[2]} channels; the runtimes' sum overflows at 33,026.")
    return [L2Normalization(name, source.name, target.name)]


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
    "MEAN": Reader(_reduce(Reduction.MEAN), "over any axes"),
    "SUM": Reader(_reduce(Reduction.SUM), "over any axes; with --oracle tflm (LiteRT's reference kernel reads uint8)"),
    "REDUCE_MAX": Reader(_reduce(Reduction.MAX), "over any axes"),
    "REDUCE_MIN": Reader(_reduce(Reduction.MIN), "over any axes"),
    "ARG_MAX": Reader(_arg_max, "over the channels, as an output of the model"),
    "L2_NORMALIZATION": Reader(_l2_normalization, "over the channels of any shape"),
    "SOFTMAX": Reader(_softmax, "over the channels of any shape"),
}
