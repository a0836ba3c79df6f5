"""Functions of one int8 value: the 256 results, in the steps of an oracle.

Whatever a runtime does to each value of a tensor, the result depends on 256 values only: a table says it all. Golden
model, interval analysis and generated C take it from here.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from mnet.errors import ModelError
from mnet.fixed_point import (
    Float64Array,
    Int64Array,
    logistic,
    multiply_in_float64,
    quantize_multiplier,
    rounding_divide_by_power_of_two,
    tanh,
)
from mnet.graph import Graph, Int8Array, Tensor, Unary, UnaryFunction
from mnet.oracle import Curve, Oracle, Rounding, ScaleProduct, quotient, scaled

Float32Array = npt.NDArray[np.float32]

_QUANTIZED = np.arange(-128, 128, dtype=np.int64)
_CLAMPS = {  # real bounds
    UnaryFunction.RELU: (0.0, math.inf),
    UnaryFunction.RELU6: (0.0, 6.0),
    UnaryFunction.RELU_N1_TO_1: (-1.0, 1.0),
    UnaryFunction.RELU_0_TO_1: (0.0, 1.0),
}


def clamp_of(function: UnaryFunction, scale: float, zero_point: int) -> tuple[int, int] | None:
    """Return the least and the greatest int8 that a clamping function leaves, or None for any other function.

    Source: TensorFlow Lite, kernels/kernel_util.cc, CalculateActivationRangeQuantized, and activations.cc,
    QuantizedReluX: round(bound / scale) in float32.

    >>> clamp_of(UnaryFunction.RELU6, 0.0235, -128), clamp_of(UnaryFunction.RELU_N1_TO_1, 0.02, 3)
    ((-128, 127), (-47, 53))
    """

    def quantized(bound: float) -> int:
        quotient = float(np.float32(bound) / np.float32(scale))
        return zero_point + math.floor(abs(quotient) + 0.5) * (1 if bound >= 0 else -1)

    if function not in _CLAMPS:
        return None
    low, high = _CLAMPS[function]
    return max(-128, quantized(low)), 127 if math.isinf(high) else min(127, quantized(high))


def _exactly(function: Callable[[Float64Array], Float64Array]) -> Callable[[Float32Array], Float32Array]:
    """Return a function of float32 that rounds what `function` says to the nearest float32.

    The C libraries that runtimes call may be off by the last bit. It shows only where the result divided by the scale
    is within 2**-24 of a half; `mnet verify` then says so.
    """
    return lambda x: np.asarray(function(x.astype(np.float64)), np.float32)


def _erfc(x: Float64Array) -> Float64Array:
    return np.array([math.erfc(value) for value in x])


_exp, _log, _tanh = _exactly(np.exp), _exactly(np.log), _exactly(np.tanh)
_complement = _exactly(_erfc)


def _gelu_by_tanh(x: Float32Array) -> Float32Array:
    root = np.float32(math.sqrt(2 / math.pi))
    cubic = x + np.float32(0.044715) * x * x * x
    return np.float32(0.5) * x * (np.float32(1) + _tanh(root * cubic))


# As LiteRT writes them, every operation rounded to float32; -inf stands for the least value that the output has.
_CURVES: Mapping[UnaryFunction, Callable[[Float32Array], Float32Array]] = {
    UnaryFunction.LOGISTIC: lambda x: np.float32(1) / (np.float32(1) + _exp(-x)),
    UnaryFunction.TANH: _tanh,
    UnaryFunction.ELU: lambda x: np.where(x < 0, _exp(x) - np.float32(1), x),  # not expm1: a half is a half then
    UnaryFunction.GELU: lambda x: np.float32(0.5) * x * _complement(x * np.float32(-math.sqrt(0.5))),
    UnaryFunction.GELU_TANH: _gelu_by_tanh,
    UnaryFunction.EXP: _exp,
    UnaryFunction.LOG: lambda x: np.where(x > 0, _log(x), -np.inf),
}


def _curve(function: UnaryFunction, source: Tensor, target: Tensor) -> Float32Array:
    """Return [256] values in units of the output's scale, not rounded yet.

    Source: LiteRT, kernels/internal/common.h, LUTPopulateInt8.
    """
    x = np.float32(source.scale) * (_QUANTIZED - source.zero_point).astype(np.float32)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # where `reason_to_refuse` refuses
        y = _CURVES[function](x).astype(np.float32)
        least = np.float32(-128 - target.zero_point) * np.float32(target.scale)
        y = np.where(np.isneginf(y), least, y)
        result: Float32Array = y * (np.float32(1) / np.float32(target.scale))
    return result


def _fixed_curve(function: UnaryFunction, source: Tensor) -> Int64Array:
    """Return the 256 results of LOGISTIC (scale 1/256, zero_point -128) or TANH (1/128, 0) in fixed point.

    Source: tflite-micro, kernels/logistic_common.cc and tanh.cc; TensorFlow Lite,
    kernels/internal/reference/integer_ops/logistic.h and tanh.h.
    """
    multiplier, shift = quantize_multiplier(source.scale * 2.0**27)
    radius = math.floor(15 * 2.0**27 / 2.0**shift)
    x = _QUANTIZED - source.zero_point
    inside = np.where(np.abs(x) < radius, x, 0)
    raw = scaled(inside, multiplier, shift, Rounding.DOUBLE)
    if function is UnaryFunction.LOGISTIC:
        y = rounding_divide_by_power_of_two(logistic(raw), 31 - 8) - 128
    else:
        y = rounding_divide_by_power_of_two(tanh(raw), 31 - 7)
    return np.where(x <= -radius, -128, np.where(x >= radius, 127, y))


def _int16(x: Int64Array) -> Int64Array:
    """Return `x` modulo 2**16, as an int16 would hold it."""
    return ((x + (1 << 15)) & 0xFFFF) - (1 << 15)


def _saturated16(x: Int64Array) -> Int64Array:
    return np.clip(x, -(1 << 15), (1 << 15) - 1)


def _high_multiply16(x: Int64Array, multiplier: int) -> Int64Array:
    """Return x * multiplier / 2**15 of int16, rounded to nearest, halves upwards.

    Source: gemmlowp, fixedpoint/fixedpoint.h, SaturatingRoundingDoublingHighMul for int16; no multiplier is negative.
    """
    return (x * multiplier + (1 << 14)) >> 15


def _multiplier16(real: float) -> tuple[int, int]:
    """Return multiplier and exponent of a scale, the multiplier rounded to 15 bits.

    Source: TensorFlow Lite, kernels/internal/common.h, DownScaleInt32ToInt16Multiplier.
    """
    multiplier, exponent = quantize_multiplier(real)
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1), exponent


def _hard_swish_scales(source: Tensor, target: Tensor, precision: ScaleProduct) -> tuple[float, float]:
    """Return the scales of the input, times 2**7, in those of the output and of x / 3 as an int16."""
    fine = source.scale / 128
    return quotient(fine, by=target.scale, precision=precision), quotient(fine, by=3 / 32768, precision=precision)


def _hard_swish(source: Tensor, target: Tensor, precision: ScaleProduct) -> Int64Array:
    """Return x * min(max(x + 3, 0), 6) / 6 in 16 bits, zero_point included.

    Source: TensorFlow Lite, kernels/internal/reference/hard_swish.h, and activations.cc, HardSwishPrepare.
    """
    to_output, to_thirds = _hard_swish_scales(source, target, precision)
    output_multiplier, output_exponent = _multiplier16(to_output)
    multiplier, exponent = _multiplier16(to_thirds)
    x = (_QUANTIZED - source.zero_point) << 7
    share = _saturated16(x << max(exponent - 1, 0))
    share = _high_multiply16(share, multiplier)
    if exponent > 0:
        share = _saturated16(share << 1)
    share = rounding_divide_by_power_of_two(share, max(-exponent, 0))
    share = (share + (1 << 15)) >> 1  # from -1..1 to 0..1
    product = share * _high_multiply16(x, output_multiplier)
    product = np.sign(product) * (np.abs(product) >> 15)  # this one truncates
    return _int16(rounding_divide_by_power_of_two(product, -output_exponent) + target.zero_point)


def _rescaled(x: Int64Array, scale: float, rounding: Rounding) -> Int64Array:
    return scaled(x, *quantize_multiplier(scale), rounding)


def _stepwise(op: Unary, source: Tensor, target: Tensor, oracle: Oracle) -> Int64Array:
    """Return [256] results before the clamp to int8, of the functions that rescale an integer.

    Source: TensorFlow Lite, kernels/activations.cc (ReluPrepare, LeakyReluPrepare), elementwise.cc (AbsEvalQuantized),
    quantize.cc; kernels/internal/optimized/optimized_ops.h (ReluX), reference/leaky_relu.h, reference/requantize.h.
    """
    x, rounding = _QUANTIZED - source.zero_point, oracle.elementwise
    ratio = quotient(source.scale, by=target.scale, precision=oracle.elementwise_scale)
    match op.function:
        case function if function in _CLAMPS:
            low, high = clamp_of(function, target.scale, target.zero_point) or (-128, 127)
            y = _rescaled(x, ratio, rounding) + target.zero_point
            return np.minimum(np.maximum(y, low), high)  # in this order: high may lie below low
        case UnaryFunction.LEAKY_RELU:
            slope = quotient(source.scale, abs(op.alpha), by=target.scale, precision=oracle.elementwise_scale)
            below = _rescaled(x, slope, rounding) * (1 if op.alpha >= 0 else -1)
            return np.where(x >= 0, _rescaled(x, ratio, rounding), below) + target.zero_point
        case UnaryFunction.QUANTIZE:
            return _rescaled(x, source.scale / target.scale, rounding) + target.zero_point
        case UnaryFunction.ABS:
            return _rescaled(np.abs(x), ratio, rounding) + target.zero_point
        case UnaryFunction.NEG:  # of the quantized value itself; -(-128) wraps
            return (-_QUANTIZED + 128) % 256 - 128
        case UnaryFunction.HARD_SWISH:
            return _hard_swish(source, target, oracle.elementwise_scale)
        case _:
            raise ValueError(f"{op.function} is a curve")


def table(op: Unary, graph: Graph, oracle: Oracle) -> Int8Array:
    """Return [256]: what `oracle` makes of -128, ..., 127.

    Raises:
        ModelError: the runtime has no such operator on int8.
    """
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    if op.function not in oracle.functions:
        raise ModelError(
            f"{graph.name}, {op.name}: the runtime {oracle.name} has no {op.function.value} on int8; choose another "
            "with --oracle, or end the model before it."
        )
    if op.function in (UnaryFunction.LOGISTIC, UnaryFunction.TANH) and oracle.curve is Curve.FIXED:
        y = _fixed_curve(op.function, source)
    elif op.function in _CURVES:
        y = multiply_in_float64(1, _curve(op.function, source, target)) + target.zero_point
    elif op.function is UnaryFunction.RELU6 and not oracle.relu6_rescales:
        clamp = clamp_of(op.function, source.scale, source.zero_point)
        assert clamp is not None
        y = np.clip(_QUANTIZED, *clamp)
    else:
        y = _stepwise(op, source, target, oracle)
    return np.clip(y, -128, 127).astype(np.int8)


def unary_words(function: UnaryFunction, oracle: Oracle) -> str:
    """Return in words how `oracle` computes a function."""
    if function is UnaryFunction.HARD_SWISH:
        return "products of 16 bits, the last of which is truncated"
    if function is UnaryFunction.NEG:
        return "the quantized value's sign changes, whatever the zero_points"
    if function in (UnaryFunction.LOGISTIC, UnaryFunction.TANH):
        return oracle.curve.value
    if function in _CURVES:
        return Curve.FLOAT32.value
    if function is UnaryFunction.RELU6 and not oracle.relu6_rescales:
        return "a clamp that takes both scales for equal"
    return oracle.elementwise.value


def reason_to_refuse(op: Unary, source: Tensor, target: Tensor) -> str | None:
    """Return why the runtimes' arithmetic is not defined for these scales, as the end of a sentence; None if it is."""
    match op.function:
        case UnaryFunction.LOGISTIC if (target.scale, target.zero_point) != (1 / 256, -128):
            return f"must have an output of scale 1/256 and zero_point -128, not {target.scale} and {target.zero_point}"
        case UnaryFunction.TANH if (target.scale, target.zero_point) != (1 / 128, 0):
            return f"must have an output of scale 1/128 and zero_point 0, not {target.scale} and {target.zero_point}"
        case UnaryFunction.LOGISTIC | UnaryFunction.TANH:
            fits = 2.0**-27 < source.scale < 2.0**30
        case UnaryFunction.HARD_SWISH:  # exponents of int16 shifts
            to_output, to_thirds = _hard_swish_scales(source, target, ScaleProduct.FLOAT64)
            fits = 2.0**-15 <= to_output < 1 - 2.0**-20 and 2.0**-15 <= to_thirds < 2.0**30
        case UnaryFunction.NEG:
            fits = True
        case function if function in _CURVES:
            fits = bool((np.abs(_curve(function, source, target)) < 1 << 30).all())
        case _:
            largest = max(1.0, abs(op.alpha)) * source.scale
            fits = math.isfinite(op.alpha) and 2 * 255 * largest < (1 << 31) * target.scale
    return None if fits else f"its input scale {source.scale} and output scale {target.scale} do not fit each other"
