"""Proofs by z3 of the arithmetic that the kernels stand on: for every accumulator, not for samples.

Products are unknowns of 64 bits here: multiplying two unknowns is beyond a solver, and no form depends on it.
"""

import pytest

z3 = pytest.importorskip("z3", reason="z3-solver is not installed")


def proved(claim: "z3.BoolRef", *assumptions: "z3.BoolRef") -> bool:
    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(*assumptions, z3.Not(claim))
    return bool(solver.check() == z3.unsat)


def rounding_shift(x: "z3.BitVecRef", exponent: int) -> "z3.BitVecRef":
    """Return gemmlowp's RoundingDivideByPOT."""
    mask = z3.BitVecVal((1 << exponent) - 1, 32)
    threshold = (mask >> 1) + z3.If(x < 0, z3.BitVecVal(1, 32), z3.BitVecVal(0, 32))
    return (x >> exponent) + z3.If((x & mask) > threshold, z3.BitVecVal(1, 32), z3.BitVecVal(0, 32))


def test_smmulr_of_the_doubled_accumulator_is_the_doubling_high_multiply() -> None:
    """For any product of accumulator and multiplier below 2**61, where nothing wraps."""
    product = z3.BitVec("product", 64)
    nudge = z3.If(product >= 0, z3.BitVecVal(1 << 30, 64), z3.BitVecVal(1 - (1 << 30), 64))
    total = product + nudge
    # gemmlowp divides by 2**31, which truncates towards zero
    doubling_high_multiply = z3.If(total >= 0, total >> 31, -((-total) >> 31))
    smmulr = (product + product + (1 << 31)) >> 32
    limit = 1 << 61
    assert proved(smmulr == doubling_high_multiply, product > -limit, product < limit)


@pytest.mark.parametrize("zero_point", (-128, 0, 127))
@pytest.mark.parametrize("exponent", (1, 2, 6, 9, 15, 22))
def test_one_addend_and_the_sign_make_the_rounding_shift(exponent: int, zero_point: int) -> None:
    h = z3.BitVec("h", 32)
    addend = (1 << (exponent - 1)) + ((zero_point + 128) << exponent)
    limit = 1 << 23
    form = (h + (h >> 31) + addend) >> exponent
    assert proved(form == rounding_shift(h, exponent) + (zero_point + 128), h > -limit, h < limit)


def test_the_rounding_shift_needs_its_correction_below_zero() -> None:
    """Without h >> 31, halves of negative numbers would go up: the prover can tell."""
    h = z3.BitVec("h", 32)
    assert not proved((h + 8) >> 4 == rounding_shift(h, 4), h > -(1 << 23), h < 1 << 23)


def test_both_sums_come_out_of_one_lane() -> None:
    """S = D0 + 256 * D1 modulo 2**32 gives 256 * D1 back, whatever wrapped."""
    first, second = z3.BitVecs("first second", 32)
    assert proved((first + 256 * second) - first == 256 * second)


def test_a_lane_holds_two_weights() -> None:
    """w0 + 256 * w1 fits 16 bits and its low byte, sign-extended, is w0; only (-1..-128, -128) does not fit."""
    low, high = z3.BitVecs("low high", 32)
    lane = low + 256 * high
    fits = z3.And(lane >= -32768, lane <= 32767)
    in_range = (low >= -128, low <= 127, high >= -128, high <= 127)
    assert proved(z3.SignExt(24, z3.Extract(7, 0, lane)) == low, *in_range)
    assert proved(z3.Implies(z3.Not(fits), z3.And(high == -128, low < 0)), *in_range)


@pytest.mark.parametrize("right", (37, 40, 44))
def test_the_single_rounding_is_one_addition_and_one_shift(right: int) -> None:
    """smmul(x << d, M) with its half added is the 64-bit rounding: nested floors merge."""
    product = z3.BitVec("product", 64)
    reference = (product + (1 << (right - 1))) >> right
    limit = 1 << 54
    prescaled = ((product << 8) + (1 << (right + 7))) >> 32
    assert proved(prescaled >> (right + 8 - 32) == reference, product > -limit, product < limit)
