"""Reductions and softmax: the integers that a runtime derives from their scales, and what it makes of values."""

import math
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from mnet.fixed_point import (
    exp_on_negative_values,
    inverse_square_root,
    multiply_rounding_twice,
    quantize_multiplier,
    reciprocal,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_multiply,
)
from mnet.graph import Graph, Int8Array, Int32Array, Reduce, Reduction, Softmax
from mnet.oracle import Oracle, Rounding, scaled


@dataclass(frozen=True)
class SumArithmetic:
    """The integers of a MEAN or SUM: out = clamp(zero_point + multiply(sum - count * input_zero_point)), a sum of int8.

    multiply(x) = x * multiplier / 2**31 * 2**shift, rounded as `rounding` says.
    """

    count: int  # values in a sum
    input_zero_point: int
    multiplier: int  # of a MEAN below 2**30 where count is no power of two
    shift: int  # positive = left
    zero_point: int
    rounding: Rounding


def sum_arithmetic(op: Reduce, graph: Graph, oracle: Oracle) -> SumArithmetic:
    """Return the integers that `oracle` derives from the scales and the size of a MEAN or SUM.

    Source: TensorFlow Lite, kernels/internal/reference/reduce.h, QuantizedMeanOrSum: the multiplier is that of
    input scale / output scale; MEAN folds the division by the count into it, truncated.
    """
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    count = math.prod(source.shape[axis] for axis in op.axes)
    multiplier, shift = quantize_multiplier(source.scale / target.scale)
    if op.function is Reduction.MEAN:
        fold = min(count.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << fold) // count, shift - fold
    return SumArithmetic(count, source.zero_point, multiplier, shift, target.zero_point, oracle.sums)


def from_sums(sums: npt.NDArray[np.integer], how: SumArithmetic) -> Int8Array:
    """Return the int8 means or sums that the runtime makes of `sums` of int8 values."""
    offset = sums.astype(np.int64) - how.count * how.input_zero_point
    total = scaled(offset, how.multiplier, how.shift, how.rounding) + how.zero_point
    return np.clip(total, -128, 127).astype(np.int8)


def reduce(op: Reduce, graph: Graph, oracle: Oracle, x: Int8Array) -> Int8Array:
    """Return [n, height, width, channels] of x [n, height, width, channels], the reduced axes 1 long."""
    axes = tuple(axis + 1 for axis in op.axes)
    match op.function:
        case Reduction.MEAN | Reduction.SUM:
            sums = x.sum(axis=axes, keepdims=True, dtype=np.int64)
            return from_sums(sums, sum_arithmetic(op, graph, oracle))
        case Reduction.MAX:
            return np.asarray(x.max(axis=axes, keepdims=True))
        case Reduction.MIN:
            return np.asarray(x.min(axis=axes, keepdims=True))
        case _:
            assert_never(op.function)


def l2_normalize(x: Int8Array, zero_point: int) -> Int8Array:
    """Return x divided by the length of its last axis, of scale 1/128 and zero_point 0.

    Source: TensorFlow Lite, kernels/internal/reference/integer_ops/l2normalization.h, L2Normalization.
    """
    values = x.astype(np.int64) - zero_point
    root, bits = inverse_square_root((values * values).sum(axis=-1, keepdims=True))
    return np.clip(multiply_rounding_twice(values, root, 7 - bits), -128, 127).astype(np.int8)


def arg_max(x: Int8Array) -> Int32Array:
    """Return the index of the largest value of the last axis, which becomes 1 long; of equals the first.

    Source: TensorFlow Lite, kernels/internal/reference/arg_min_max.h, ArgMinMax.
    """
    return np.asarray(x.argmax(axis=-1, keepdims=True), np.int32)


@dataclass(frozen=True)
class SoftmaxArithmetic:
    """The integers of one SOFTMAX: exp of ((q - largest q) << left_shift) * multiplier / 2**31, 26 fractional bits.

    Differences below `difference_min` count as exp = 0 and give -128. Where the sum of the exponentials is 512 or more
    every output is -128 (the runtimes stop the program there).
    """

    multiplier: int
    left_shift: int
    difference_min: int


def softmax_arithmetic(op: Softmax, graph: Graph) -> SoftmaxArithmetic:
    """Return the integers that both runtimes derive from the input's scale.

    Source: TensorFlow Lite, kernels/internal/quantization_util.cc, PreprocessSoftmaxScaling and CalculateInputRadius
    with 5 integer bits.
    """
    integer_bits = 5
    real = min(op.beta * graph.tensors[op.input].scale * (1 << (31 - integer_bits)), (1 << 31) - 1.0)
    multiplier, left_shift = quantize_multiplier(real)
    radius = math.floor(((1 << integer_bits) - 1) * (1 << (31 - integer_bits)) / (1 << left_shift))
    return SoftmaxArithmetic(multiplier=multiplier, left_shift=left_shift, difference_min=-radius)


def softmax(x: Int8Array, how: SoftmaxArithmetic) -> Int8Array:
    """Return the softmax over the last axis, of scale 1/256 and zero_point -128.

    Source: TensorFlow Lite, kernels/internal/reference/softmax.h, Softmax for int8.
    """
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True)
    counts = difference >= how.difference_min
    inside = saturating_rounding_doubling_high_multiply(
        np.where(counts, difference, 0) << how.left_shift, how.multiplier
    )
    exponentials = np.where(counts, exp_on_negative_values(inside), 0)
    total = rounding_divide_by_power_of_two(exponentials, 12).sum(axis=-1, keepdims=True)
    scale, bits_over_unit = reciprocal(total, 12)
    exponent = bits_over_unit + 31 - 8
    result = rounding_divide_by_power_of_two(
        saturating_rounding_doubling_high_multiply(scale, exponentials), np.minimum(exponent, 31)
    )
    # From 512 equal classes on every share is below half a step. The runtimes stop the program there; 0 is the limit.
    result = np.where(exponent > 31, 0, result)
    return np.where(counts, np.clip(result - 128, -128, 127), -128).astype(np.int8)
