"""The integer arithmetic against exact fractions and against C-like rules, on random and on extreme numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mnet.fixed_point import (
    exp_on_negative_values,
    multiply_in_float64,
    multiply_rounding_once,
    multiply_rounding_twice,
    quantize_multiplier,
    reciprocal,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_multiply,
    wrap_int32,
)

INT32 = st.integers(-(1 << 31), (1 << 31) - 1) | st.sampled_from((-(1 << 31), -(1 << 30), -1, 0, 1, (1 << 31) - 1))
MULTIPLIER = st.integers(1 << 30, (1 << 31) - 1)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return math.floor(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)


def truncated(numerator: int, denominator: int) -> int:
    """Divide as C does."""
    return abs(numerator) // denominator * (1 if numerator >= 0 else -1)


@given(INT32, INT32)
@example(-(1 << 31), -(1 << 31))
@example(-(1 << 30), 1)
def test_high_multiply_is_what_gemmlowp_writes(a: int, b: int) -> None:
    nudge = 1 << 30 if a * b >= 0 else 1 - (1 << 30)
    saturates = a == b == -(1 << 31)
    expected = (1 << 31) - 1 if saturates else truncated(a * b + nudge, 1 << 31)
    assert int(saturating_rounding_doubling_high_multiply(a, b)) == expected


@given(INT32, st.integers(0, 31))
def test_division_by_a_power_of_two_rounds_halves_away_from_zero(x: int, exponent: int) -> None:
    assert int(rounding_divide_by_power_of_two(x, exponent)) == half_away(Fraction(x, 1 << exponent))


def test_division_refuses_exponents_outside_0_to_31() -> None:
    for exponent in (-1, 32):
        with pytest.raises(ValueError, match="0 to 31"):
            rounding_divide_by_power_of_two(1, exponent)


@given(INT32, MULTIPLIER, st.integers(-31, 0))
def test_rounding_once_is_exact_with_halves_upwards(x: int, multiplier: int, shift: int) -> None:
    assert int(multiply_rounding_once(x, multiplier, shift)) == half_up(Fraction(x * multiplier, 1 << (31 - shift)))


@given(st.integers(-(1 << 20), 1 << 20), MULTIPLIER, st.integers(-20, 8))
def test_rounding_twice_is_two_roundings(x: int, multiplier: int, shift: int) -> None:
    first = half_up(Fraction((x << max(shift, 0)) * multiplier, 1 << 31))
    expected = half_away(Fraction(first, 1 << max(-shift, 0)))
    assert int(multiply_rounding_twice(x, multiplier, shift)) == expected


def test_once_and_twice_differ_where_the_first_rounding_makes_a_half() -> None:
    x, multiplier, shift = 3, (1 << 30) + 1, -1  # 0.75...: twice gives 2 / 2 = 1 as well, but 5 * 0.25 = 1.25 does not
    assert int(multiply_rounding_once(x, multiplier, shift)) == 1
    assert int(multiply_rounding_once(5, 1 << 30, -1)) == 1
    assert int(multiply_rounding_twice(5, 1 << 30, -1)) == 2


def test_left_shift_wraps_like_int32() -> None:
    assert int(wrap_int32((1 << 30) << 2)) == 0
    assert int(multiply_rounding_twice(1 << 30, 1 << 30, 2)) == 0


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.floats(1e-9, 0.9))
def test_float64_product_rounds_like_c(x: int, scale: float) -> None:
    assert int(multiply_in_float64(x, scale)) == half_away(Fraction(x * scale))


def test_float64_product_just_below_a_half_rounds_to_zero() -> None:
    assert multiply_in_float64(1, 0.49999999999999994).item() == 0


@given(st.floats(1e-8, 1e6))
def test_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    multiplier, shift = quantize_multiplier(real)
    assert 1 << 30 <= multiplier < 1 << 31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) - Fraction(real)) <= Fraction(2) ** (shift - 32)


def test_multiplier_that_rounds_up_to_two_takes_the_next_shift() -> None:
    assert quantize_multiplier(math.nextafter(1.0, 0.0)) == (1 << 30, 1)


def test_exponential_is_close() -> None:
    a = -np.arange(0, 1 << 31, 1 << 15, dtype=np.int64)
    raw = exp_on_negative_values(a)
    assert np.abs(raw / 2.0**31 - np.exp(a / 2.0**26)).max() < 3e-7
    assert raw.min() >= 0 and raw.max() == (1 << 31) - 1


def test_reciprocal_is_close() -> None:
    x = np.unique(np.geomspace(1 << 19, (1 << 31) - 1, 5000).astype(np.int64))
    scale, bits = reciprocal(x, 12)
    assert np.abs(scale / 2.0**31 / 2.0**bits * (x / 2.0**19) - 1).max() < 1e-6
