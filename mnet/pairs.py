"""Functions of two int8 values: the integers that an oracle derives from the scales, and the results.

Golden model, interval analysis and generated C take them from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import numpy.typing as npt

from mnet.fixed_point import Int64Array, quantize_multiplier
from mnet.graph import Binary, BinaryFunction, Constant, Graph, Int8Array, Tensor
from mnet.oracle import Oracle, Rounding, ScaleProduct, quotient, scaled

_LEFT_SHIFTS = {BinaryFunction.ADD: 20, BinaryFunction.SUB: 20, BinaryFunction.SQUARED_DIFFERENCE: 7}


@dataclass(frozen=True)
class BinaryArithmetic:
    """The integers of one function of two values.

    With x = q - zero_point of each input, multiply(value, multiplier, shift) = one scaling as `rounding` says, and
    term = multiply(x << left_shift, input multiplier, input shift):

    ADD, SUB            multiply(term_1 + term_2, output_multiplier, output_shift), or the difference
    SQUARED_DIFFERENCE  multiply((term_1 - term_2)**2, output_multiplier, output_shift)
    MUL                 multiply(x_1 * x_2, output_multiplier, output_shift)
    PRELU               the same where x_1 < 0, else multiply(x_1, first input multiplier, its shift)
    MAXIMUM, MINIMUM    one of the quantized values themselves, whatever the scales

    plus zero_point (but for the last two), clamped to `activation`.
    """

    function: BinaryFunction
    input_zero_points: tuple[int, int]
    zero_point: int
    activation: tuple[int, int]
    rounding: Rounding
    left_shift: int = 0
    input_multipliers: tuple[int, int] = (0, 0)
    input_shifts: tuple[int, int] = (0, 0)  # not positive where there is a left_shift
    output_multiplier: int = 0
    output_shift: int = 0  # not positive where there is a left_shift


def quantizations(op: Binary, graph: Graph) -> tuple[Tensor | Constant, Tensor | Constant]:
    """Return what has scale and zero_point of the first and of the second operand."""
    sources: Sequence[Tensor | Constant] = [graph.tensors[name] for name in op.inputs]
    if op.constant is None:
        first, second = sources
        return first, second
    return op.operands(sources, op.constant)


def binary_arithmetic(op: Binary, graph: Graph, oracle: Oracle) -> BinaryArithmetic:
    """Return the integers that `oracle` derives from the scales of `op`.

    Source: TensorFlow Lite, kernels/add.cc, sub.cc, mul.cc, squared_difference.cc, and PreluPrepare of activations.cc;
    tflite-micro, kernels/mul_common.cc, prelu_common.cc, sub_common.cc.
    """
    first, second = quantizations(op, graph)
    target = graph.tensors[op.output]
    how = BinaryArithmetic(
        function=op.function,
        input_zero_points=(first.zero_point, second.zero_point),
        zero_point=target.zero_point,
        activation=op.activation,
        rounding=oracle.elementwise,
    )
    match op.function:
        case BinaryFunction.ADD | BinaryFunction.SUB | BinaryFunction.SQUARED_DIFFERENCE:
            return _with_terms(how, (first.scale, second.scale), target.scale)
        case BinaryFunction.MUL | BinaryFunction.PRELU:
            return _with_product(how, (first.scale, second.scale), target.scale, oracle.elementwise_scale)
        case BinaryFunction.MAXIMUM | BinaryFunction.MINIMUM:
            return how
        case _:
            assert_never(op.function)


def _with_terms(how: BinaryArithmetic, scales: tuple[float, float], target: float) -> BinaryArithmetic:
    """Add integers that bring both inputs to twice the larger scale, so that a sum of them has room."""
    left_shift = _LEFT_SHIFTS[how.function]
    common = 2.0 * max(scales)
    power = 2 if how.function is BinaryFunction.SQUARED_DIFFERENCE else 1
    (first, first_shift), (second, second_shift) = (quantize_multiplier(scale / common) for scale in scales)
    output_multiplier, output_shift = quantize_multiplier(common**power / (2.0 ** (power * left_shift) * target))
    return replace(
        how,
        left_shift=left_shift,
        input_multipliers=(first, second),
        input_shifts=(first_shift, second_shift),
        output_multiplier=output_multiplier,
        output_shift=output_shift,
    )


def _with_product(
    how: BinaryArithmetic, scales: tuple[float, float], target: float, precision: ScaleProduct
) -> BinaryArithmetic:
    """Add the integers that bring a product of both inputs, and for PRELU the first alone, to the output's scale."""
    multiplier, shift = quantize_multiplier(quotient(*scales, by=target, precision=precision))
    how = replace(how, output_multiplier=multiplier, output_shift=shift)
    if how.function is BinaryFunction.MUL:
        return how
    multiplier, shift = quantize_multiplier(quotient(scales[0], by=target, precision=precision))
    return replace(how, input_multipliers=(multiplier, 0), input_shifts=(shift, 0))


def terms(how: BinaryArithmetic, which: int, quantized: npt.NDArray[np.integer]) -> Int64Array:
    """Return what values of input `which` contribute to a sum or difference."""
    x = quantized.astype(np.int64) - how.input_zero_points[which]
    return scaled(x << how.left_shift, how.input_multipliers[which], how.input_shifts[which], how.rounding)


def binary(first: Int8Array, second: Int8Array, how: BinaryArithmetic) -> Int8Array:
    """Return the int8 results for two int8 arrays that broadcast.

    Source: TensorFlow Lite, kernels/internal/reference/add.h, sub.h, prelu.h, maximum_minimum.h, integer_ops/mul.h, and
    kernels/squared_difference.cc.
    """
    match how.function:
        case BinaryFunction.MAXIMUM:
            return np.clip(np.maximum(first, second), *how.activation).astype(np.int8)
        case BinaryFunction.MINIMUM:
            return np.clip(np.minimum(first, second), *how.activation).astype(np.int8)
        case BinaryFunction.ADD:
            whole = terms(how, 0, first) + terms(how, 1, second)
        case BinaryFunction.SUB:
            whole = terms(how, 0, first) - terms(how, 1, second)
        case BinaryFunction.SQUARED_DIFFERENCE:
            whole = (terms(how, 0, first) - terms(how, 1, second)) ** 2
        case BinaryFunction.MUL | BinaryFunction.PRELU:
            x, y = (q.astype(np.int64) - z for q, z in zip((first, second), how.input_zero_points, strict=True))
            whole = x * y
        case _:
            assert_never(how.function)
    result = scaled(whole, how.output_multiplier, how.output_shift, how.rounding)
    if how.function is BinaryFunction.PRELU:
        as_it_is = scaled(x, how.input_multipliers[0], how.input_shifts[0], how.rounding)
        result = np.where(x >= 0, as_it_is, result)
    return np.clip(result + how.zero_point, *how.activation).astype(np.int8)


def compute(op: Binary, graph: Graph, oracle: Oracle, inputs: Sequence[Int8Array]) -> Int8Array:
    """Return the output [n, height, width, channels] of `op` for its inputs."""
    constant = np.empty(0, np.int8) if op.constant is None else op.constant.values
    first, second = op.operands(inputs, constant)
    return binary(first, second, binary_arithmetic(op, graph, oracle))


def is_table(op: Binary) -> bool:
    """Return whether `op` is a function of one value: its other operand is one number."""
    return op.constant is not None and op.constant.values.size == 1


def table(op: Binary, graph: Graph, oracle: Oracle) -> Int8Array:
    """Return [256]: what `oracle` makes of -128, ..., 127 and of the one number that is the other operand."""
    every = np.arange(-128, 128).astype(np.int8)
    return compute(op, graph, oracle, [every[:, None, None, None]]).reshape(256)


def reason_to_refuse(op: Binary, graph: Graph) -> str | None:
    """Return why the runtimes' arithmetic is not defined for these scales, as the end of a sentence; None if it is."""
    first, second = (operand.scale for operand in quantizations(op, graph))
    target, largest = graph.tensors[op.output].scale, max(first, second)
    match op.function:
        case BinaryFunction.ADD | BinaryFunction.SUB:
            fits = 2 * largest < target * (1 << 20)
        case BinaryFunction.SQUARED_DIFFERENCE:
            fits = (2 * largest) ** 2 < target * (1 << 14)
        case BinaryFunction.MUL:
            fits = 2 * 255 * 255 * first * second < target * (1 << 31)
        case BinaryFunction.PRELU:
            fits = 2 * 255 * max(255 * first * second, first) < target * (1 << 31)
        case BinaryFunction.MAXIMUM | BinaryFunction.MINIMUM:
            fits = True
        case _:
            assert_never(op.function)
    return None if fits else f"its output scale {target} is too fine for input scales of {first} and {second}"
