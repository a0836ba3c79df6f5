"""The integer arithmetic that the runtimes build on, vectorised over NumPy arrays.

Arguments and results hold int32 values; they are carried as int64 so that no product overflows. Where a runtime's own
int32 would wrap, the function wraps and says so.
"""

import math

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

INT32_MIN = -(1 << 31)
INT32_MAX = (1 << 31) - 1


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return (multiplier, shift) with real ~= multiplier / 2**31 * 2**shift and 2**30 <= multiplier < 2**31.

    Source: TensorFlow Lite, kernels/internal/quantization_util.cc, QuantizeMultiplier.

    >>> quantize_multiplier(0.5)
    (1073741824, 0)
    >>> quantize_multiplier(1e-12)
    (0, 0)
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    return multiplier, shift


def wrap_int32(x: npt.ArrayLike) -> Int64Array:
    """Return `x` modulo 2**32, as a two's complement int32 would hold it.

    >>> wrap_int32([1 << 31, -1, 5]).tolist()
    [-2147483648, -1, 5]
    """
    return ((np.asarray(x, np.int64) + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def saturating_rounding_doubling_high_multiply(a: npt.ArrayLike, b: npt.ArrayLike) -> Int64Array:
    """Return the upper half of 2 * a * b, rounded to nearest with halves upwards; (-2**31)**2 saturates.

    The source adds 2**30, or 1 - 2**30 to a negative product, and divides with truncation; for both signs that is
    (a * b + 2**30) >> 31, ROUNDING: a half goes up, -0.5 becomes 0. Arm's VQRDMULH gives the same bits.

    Args:
        a: int32, any shape.
        b: int32, a shape that broadcasts with that of `a`.

    Source: gemmlowp, fixedpoint/fixedpoint.h, SaturatingRoundingDoublingHighMul.

    >>> saturating_rounding_doubling_high_multiply([1 << 30, -(1 << 30), 3 << 30 >> 1], 1).tolist()
    [1, 0, 1]
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    result: Int64Array = np.minimum((product + (1 << 30)) >> 31, INT32_MAX)
    return result


def rounding_divide_by_power_of_two(x: npt.ArrayLike, exponent: npt.ArrayLike) -> Int64Array:
    """Divide by 2**exponent; round to nearest, halves away from zero.

    Args:
        x: int32, any shape.
        exponent: 0 to 31; a number, or an array that broadcasts with `x`.

    Raises:
        ValueError: an exponent is not in 0..31.

    Source: gemmlowp, fixedpoint/fixedpoint.h, RoundingDivideByPOT.

    >>> rounding_divide_by_power_of_two([-6, -5, 5, 6], 2).tolist()
    [-2, -1, 1, 2]
    """
    value, shift = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    if shift.size and (shift.min() < 0 or shift.max() > 31):
        raise ValueError(f"exponents are 0 to 31, not {shift.min()} to {shift.max()}")
    # floor((x + half) / 2**e) sends halves up; one less for negative x sends them down, which is away from zero
    half = (np.int64(1) << shift) >> 1
    result: Int64Array = (value + half - ((value < 0) & (shift > 0))) >> shift
    return result


def multiply_rounding_twice(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int64Array:
    """Return x * multiplier / 2**31 * 2**shift, rounded after the multiplication and again after a right shift.

    Args:
        x: int32, any shape. x << shift wraps like int32 where `shift` is positive.
        multiplier: 0 to 2**31 - 1; broadcasts with `x`.
        shift: -31 to 30, positive = left; broadcasts with `x`.

    Source: TensorFlow Lite, kernels/internal/common.cc, MultiplyByQuantizedMultiplier with TFLITE_SINGLE_ROUNDING=0.

    >>> multiply_rounding_twice([5, -5], 1 << 30, 0).tolist()
    [3, -2]
    >>> multiply_rounding_twice([5, -5], 1 << 30, -1).tolist()
    [2, -1]
    """
    shift = np.asarray(shift, np.int64)
    shifted = wrap_int32(np.asarray(x, np.int64) << np.maximum(shift, 0)) if shift.max(initial=0) > 0 else x
    return rounding_divide_by_power_of_two(
        saturating_rounding_doubling_high_multiply(shifted, multiplier), np.maximum(-shift, 0)
    )


def multiply_rounding_once(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int64Array:
    """Return x * multiplier / 2**31 * 2**shift, rounded once, halves upwards.

    Args:
        x: int32, any shape.
        multiplier: 0 to 2**31 - 1; broadcasts with `x`.
        shift: -31 to 30, positive = left; broadcasts with `x`.

    Source: TensorFlow Lite, kernels/internal/common.cc, MultiplyByQuantizedMultiplier with TFLITE_SINGLE_ROUNDING=1.

    >>> multiply_rounding_once([5, -5], 1 << 30, -1).tolist()
    [1, -1]
    """
    right = 31 - np.asarray(shift, np.int64)
    product = np.asarray(x, np.int64) * np.asarray(multiplier, np.int64)
    result: Int64Array = (product + (np.int64(1) << (right - 1))) >> right
    return result


def multiply_in_float64(x: npt.ArrayLike, scale: npt.ArrayLike) -> Int64Array:
    """Return the product in double precision, rounded to nearest with halves away from zero (C's `round`).

    Args:
        x: int32, any shape.
        scale: float64; broadcasts with `x`.

    Source: LiteRT, kernels/internal/reference/integer_ops/fully_connected.h, the functions that take scales as float.

    >>> multiply_in_float64([5, -5, 3], 0.5).tolist()
    [3, -3, 2]
    """
    product = np.asarray(x, np.int64) * np.asarray(scale, np.float64)
    whole = np.trunc(product)  # |product - whole| is exact, product + 0.5 would not be
    result: Int64Array = (whole + np.where(np.abs(product - whole) >= 0.5, np.sign(product), 0.0)).astype(np.int64)
    return result


def saturating_shift_left(x: npt.ArrayLike, exponent: int) -> Int64Array:
    """Return x * 2**exponent, clamped to int32.

    Source: gemmlowp, fixedpoint/fixedpoint.h, SaturatingRoundingMultiplyByPOT with a positive exponent.

    >>> saturating_shift_left([3, 1 << 30, -(1 << 30)], 2).tolist()
    [12, 2147483647, -2147483648]
    """
    result: Int64Array = np.clip(np.asarray(x, np.int64) << exponent, INT32_MIN, INT32_MAX)
    return result


def _exp_on_last_quarter(a: Int64Array) -> Int64Array:
    """Return exp(a) for a in [-1/4, 0), both with 31 fractional bits: a Taylor polynomial of degree 4 around -1/8.

    Source: gemmlowp, fixedpoint/fixedpoint.h, exp_on_interval_between_negative_one_quarter_and_0_excl.
    """
    multiply = saturating_rounding_doubling_high_multiply
    exp_of_minus_eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = multiply(x, x)
    x3 = multiply(x2, x)
    x4 = multiply(x2, x2)
    x4_over_4 = rounding_divide_by_power_of_two(x4, 2)
    tail = rounding_divide_by_power_of_two(multiply(x4_over_4 + x3, third) + x2, 1)
    return exp_of_minus_eighth + multiply(exp_of_minus_eighth, x + tail)


_EXP_OF_MINUS_POWERS = (  # (n, exp(-2**n) with 31 fractional bits)
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)


def exp_on_negative_values(a: npt.ArrayLike, integer_bits: int = 5) -> Int64Array:
    """Return exp(a) with 31 fractional bits for a <= 0 with `integer_bits` integer bits, 4 or 5, of 31.

    Source: gemmlowp, fixedpoint/fixedpoint.h, exp_on_negative_values.

    >>> (exp_on_negative_values([0, -(1 << 26), -(31 << 26)]) / 2.0**31).round(9).tolist()
    [1.0, 0.367879545, 0.0]
    """
    a = np.asarray(a, np.int64)
    one = 31 - integer_bits  # its bit
    quarter = 1 << (one - 2)
    modulo_quarter = (a & (quarter - 1)) - quarter
    result = _exp_on_last_quarter(modulo_quarter << integer_bits)
    remainder = modulo_quarter - a
    for power, factor in _EXP_OF_MINUS_POWERS[: integer_bits + 2]:
        scaled = saturating_rounding_doubling_high_multiply(result, factor)
        result = np.where((remainder >> (one + power)) & 1, scaled, result)
    return np.where(a == 0, INT32_MAX, result)


def _twice_over_one_plus(a: npt.ArrayLike) -> Int64Array:
    """Return 2 / (1 + a) with 29 fractional bits for a in [0, 1) with 31: three Newton-Raphson steps."""
    multiply = saturating_rounding_doubling_high_multiply
    half_denominator = (np.asarray(a, np.int64) + INT32_MAX + 1) // 2  # RoundingHalfSum of positive numbers
    forty_eight_17ths, minus_thirty_two_17ths = 1515870810, -1010580540  # 2 integer and 29 fractional bits
    x = forty_eight_17ths + multiply(half_denominator, minus_thirty_two_17ths)
    for _ in range(3):
        error = (1 << 29) - multiply(half_denominator, x)
        x = x + saturating_shift_left(multiply(x, error), 2)
    return x


def one_over_one_plus(a: npt.ArrayLike) -> Int64Array:
    """Return 1 / (1 + a) for a in [0, 1), both with 31 fractional bits.

    Source: gemmlowp, fixedpoint/fixedpoint.h, one_over_one_plus_x_for_x_in_0_1.

    >>> (one_over_one_plus([0, 1 << 30]) / 2.0**31).round(6).tolist()
    [1.0, 0.666667]
    """
    return saturating_shift_left(_twice_over_one_plus(a), 1)


def logistic(a: npt.ArrayLike) -> Int64Array:
    """Return 1 / (1 + exp(-a)) with 31 fractional bits, for a with 4 integer and 27 fractional bits.

    Source: gemmlowp, fixedpoint/fixedpoint.h, logistic<int32, 4>.

    >>> (logistic([0, 1 << 27, -(1 << 27)]) / 2.0**31).round(6).tolist()
    [0.5, 0.731059, 0.268941]
    """
    a = np.asarray(a, np.int64)
    of_positive = one_over_one_plus(exp_on_negative_values(-np.abs(a), 4))
    return np.where(a == 0, 1 << 30, np.where(a > 0, of_positive, INT32_MAX - of_positive))


def tanh(a: npt.ArrayLike) -> Int64Array:
    """Return tanh(a) with 31 fractional bits, for a with 4 integer and 27 fractional bits.

    Source: gemmlowp, fixedpoint/fixedpoint.h, tanh<int32, 4>: (1 - exp(-2a)) / (1 + exp(-2a)). The same 31 bits with
    one integer bit more are 2a.

    >>> (tanh([0, 1 << 27, -(1 << 27)]) / 2.0**31).round(6).tolist()
    [0.0, 0.761594, -0.761594]
    """
    a = np.asarray(a, np.int64)
    of_positive = saturating_shift_left(_twice_over_one_plus(exp_on_negative_values(-np.abs(a), 5)) - (1 << 29), 2)
    result: Int64Array = np.sign(a) * of_positive
    return result


def inverse_square_root(x: npt.ArrayLike) -> tuple[Int64Array, Int64Array]:
    """Return (r, n) with 1 / sqrt(x) ~= r / 2**31 / 2**n: five Newton-Raphson steps; of 0 that of 1.

    Args:
        x: int32, not negative, any shape.

    Source: TensorFlow Lite, kernels/internal/common.h, GetInvSqrtQuantizedMultiplierExp.

    >>> scale, bits = inverse_square_root([0, 1, 4, 100_000])
    >>> (scale / 2.0**31 / 2.0**bits).round(7).tolist()
    [1.0, 1.0, 0.5, 0.0031623]
    """
    multiply = saturating_rounding_doubling_high_multiply
    value = np.maximum(np.asarray(x, np.int64), 2)
    quarters = np.where(value >= 1 << 29, 1, 0) + np.where(value >= 1 << 31, 1, 0)
    value = value >> 2 * quarters
    pairs = (30 - (np.frexp(value.astype(np.float64))[1].astype(np.int64) - 1)) // 2 - 1
    value, shift = value << 2 * pairs, 11 + quarters - pairs  # 2**27 <= value < 2**29
    half = rounding_divide_by_power_of_two(value >> 1, 1)
    root = np.full_like(value, 1 << 28)  # 3 integer bits
    for _ in range(5):
        cube = saturating_shift_left(multiply(multiply(root, root), root), 6)
        root = saturating_shift_left(multiply(3 << 27, root) - multiply(half, cube), 3)
    root = multiply(root, 1518500250)  # sqrt(1/2)
    is_small = np.asarray(x, np.int64) <= 1
    root, shift = root << np.maximum(-shift, 0), np.maximum(shift, 0)
    return np.where(is_small, INT32_MAX, root), np.where(is_small, 0, shift)


def reciprocal(x: npt.ArrayLike, integer_bits: int) -> tuple[Int64Array, Int64Array]:
    """Return (r, n) with 1 / x ~= r / 2**31 / 2**n for a positive x with `integer_bits` integer bits.

    Source: TensorFlow Lite, kernels/internal/common.h, GetReciprocal.

    >>> scale, bits = reciprocal([3 << 19], 12)
    >>> (scale / 2.0**31 / 2.0**bits).round(6).tolist()
    [0.333333]
    """
    x = np.asarray(x, np.int64)
    headroom = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)  # leading zeros of the 32 bit word
    return one_over_one_plus((x << headroom) - (1 << 31)), integer_bits - headroom
