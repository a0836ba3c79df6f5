"""From accumulators to stored bytes in two instructions, proven for every accumulator that the weights can make.

The runtimes multiply, round and shift an accumulator in five to ten instructions. `solve_fast` looks, per channel, for
a multiplier and an addend with

    stored = usat8(smmul(256 * accumulator + delta, multiplier) >> shift)        stored = quantized + 128

for all accumulators from `low` to `high`. Both sides never fall as the accumulator grows, so they are equal
everywhere when they step from k - 1 to k at the same accumulator, for each k = 1..255. Where the reference steps is
found by bisection on the reference itself, so nothing here depends on how a runtime rounds.

Channels that have no such pair keep the reference's multiplier and shift: `requantizer` chooses the form.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from codegen.call import Call
from codegen.layout import BoolArray
from mnet.fixed_point import INT32_MAX, Int64Array
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected
from mnet.oracle import Requantization, Rounding, requantize

Form = Literal["fast", "shifts", "double", "single", "real"]

_OWN_STEPS: dict[Rounding, Form] = {Rounding.DOUBLE: "double", Rounding.SINGLE: "single", Rounding.REAL: "real"}

# The shift that is tried first: one shift for all layers lets layers of one geometry share their code.
COMMON_SHIFT = 12

# With k <= 255, k << (32 + shift) stays below 2**61, and a constant channel's multiplier 2**(9 + shift) within int32.
LARGEST_SHIFT = 21

# Corrections of the addend that are tried, in 1/256 of an accumulator. A full set of 255 thresholds leaves about one
# unit of play; channels with fewer reachable thresholds leave more.
_CORRECTIONS = tuple(sign * step for step in (1, 2, 3, 4, 5, 6, 8, 12, 20, 40, 80) for sign in (1, -1))


@dataclass(frozen=True, eq=False)
class FastRequantization:
    """stored = usat8(smmul(256 * accumulator + delta, multiplier) >> shift), before any clamp to the activation."""

    multiplier: Int64Array  # [channels], 0 .. 2**31 - 1
    delta: Int64Array  # [channels]; to be taken modulo 2**32: the sum is what stays within int32
    shift: int


_NOTHING_TO_SOLVE = FastRequantization(np.zeros(0, np.int64), np.zeros(0, np.int64), COMMON_SHIFT)


def accumulator_range(call: Call) -> tuple[Int64Array, Int64Array]:
    """Return the least and the greatest accumulator [channels] of a convolution over all int8 inputs.

    Padding is the zero point of the input, hence an int8 input among others.
    """
    op = call.op
    assert isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected)
    zero_point = call.inputs[0].tensor.zero_point
    weights = op.weights.astype(np.int64)
    rows = weights.reshape(-1, len(op.bias)).T if isinstance(op, DepthwiseConv2D) else weights.reshape(len(op.bias), -1)
    positive, negative = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    least, greatest = -128 - zero_point, 127 - zero_point
    bias = op.bias.astype(np.int64)
    return bias + positive * least + negative * greatest, bias + positive * greatest + negative * least


def _thresholds(how: Requantization, low: Int64Array, high: Int64Array) -> Int64Array:
    """Return x[channel, k - 1]: the first of low..high whose stored value is >= k; high + 1 where there is none."""
    unclamped = replace(how, activation=(-128, 127))
    wanted = np.arange(1, 256)[:, None] - 128
    below = np.repeat(low[None, :], 255, 0)
    above = np.repeat(high[None, :] + 1, 255, 0)
    # Invariant: every accumulator < below is too small; above is large enough, or high + 1.
    for _ in range(int((high - low + 1).max()).bit_length()):
        middle = (below + above) >> 1
        enough = (requantize(middle, unclamped) >= wanted) | (middle >= above)
        above = np.where(enough, middle, above)
        below = np.where(enough, below, middle + 1)
    return above.T


def _multipliers(
    thresholds: Int64Array,
    steps: BoolArray,
    low: Int64Array,
    high: Int64Array,
    delta: Int64Array,
    shift: int,
) -> Int64Array:
    """Return for each channel a multiplier that steps at all the thresholds, or -1.

    value >= k  <=>  (256 * x + delta) * multiplier >= k * 2**(32 + shift), since nested floors merge. So for each k
    multiplier >= ceil(k * 2**(32 + shift) / (256 * x + delta)) at the threshold x, and less than that at x - 1.
    """
    target = np.arange(1, 256, dtype=np.int64)[None, :] << (32 + shift)
    at = 256 * thresholds + delta[:, None]
    before = at - 256
    reached = steps & (thresholds <= high[:, None])
    unreached_before = steps & (thresholds > low[:, None])
    at_least = np.where(at > 0, -(-target // np.maximum(at, 1)), INT32_MAX + 1)
    less_than = np.where(before > 0, -(-target // np.maximum(before, 1)), INT32_MAX + 1)
    least = np.where(reached, at_least, 0).max(1)
    most = np.minimum(np.where(unreached_before, less_than, INT32_MAX + 1).min(1) - 1, INT32_MAX)
    fits = (256 * low + delta >= -INT32_MAX - 1) & (256 * high + delta <= INT32_MAX)
    return np.where((least <= most) & fits, (least + most) // 2, -1)


def _first_deltas(
    how: Requantization, thresholds: Int64Array, low: Int64Array, high: Int64Array, shift: int
) -> Int64Array:
    """Return for each channel the addend that the reference's own rounding suggests."""
    # Both roundings of Rounding.DOUBLE add a half: the second to the quotient, the first to what is shifted right by e.
    first_half = np.exp2(np.minimum(how.shift.astype(np.float64), 0) - 1) if how.rounding is Rounding.DOUBLE else 0.0
    steps = how.zero_point + 128 + 0.5 + first_half
    ratio = np.divide(256 * steps, how.scale, out=np.zeros(len(low)), where=how.scale > 0)
    # A channel of one or two values (almost dead) leaves its slope free: take the one at which low..high spans a
    # quarter of a step, and put the step where it belongs, or out of reach.
    interior = (thresholds > low[:, None]) & (thresholds <= high[:, None])
    value = (thresholds <= low[:, None]).sum(1)  # at low
    spread = np.maximum(high - low + 1, 1 << max(shift - 8, 0))
    position = np.where(interior.any(1), np.where(interior, thresholds, 0).sum(1), high + spread)
    free = (value + 1) * 1024 * spread - 256 * position + 128
    ratio = np.rint(np.minimum(ratio, float(1 << 40))).astype(np.int64)  # what does not fit is refused later
    return np.asarray(np.where(interior.sum(1) < 2, free, ratio), np.int64)


def solve_fast(how: Requantization, low: Int64Array, high: Int64Array) -> FastRequantization | None:
    """Return multipliers, addends and one shift for all channels, or None where there are none.

    The result equals the reference for every accumulator of low..high [channels], up to a clamp to the activation, and
    256 * accumulator + delta stays within int32.
    """
    least, most = how.activation
    k = np.arange(1, 256)
    steps = np.broadcast_to((k > least + 128) & (k <= most + 128), (len(low), 255))
    if not _reference_fits(how, low, high).all():
        return None
    thresholds = _thresholds(how, low, high)
    # multiplier = scale * 2**(24 + shift) has to stay below 2**31.
    finest = 7 - int(how.shift[how.multiplier > 0].max(initial=-31))
    finest = min(finest, LARGEST_SHIFT)
    for shift in dict.fromkeys((min(COMMON_SHIFT, finest), *range(finest, finest - 5, -1))):
        if shift < 0:
            break
        delta = _first_deltas(how, thresholds, low, high, shift)
        multiplier = _multipliers(thresholds, steps, low, high, delta, shift)
        # One hopeless channel spoils the shift: a few of those that need a correction go first.
        unsolved = np.flatnonzero(multiplier < 0)
        for some in (unsolved[:4], unsolved[4:]):
            first = delta.copy()
            for correction in _CORRECTIONS:
                left = some[multiplier[some] < 0]
                delta[left] = first[left] + correction
                multiplier[left] = _multipliers(
                    thresholds[left], steps[left], low[left], high[left], delta[left], shift
                )
            if (multiplier[some] < 0).any():
                break
        else:
            return FastRequantization(multiplier, delta, shift)
    return None


def _reference_fits(how: Requantization, low: Int64Array, high: Int64Array) -> BoolArray:
    """Return for each channel whether the runtime's int32 never wraps; it could before a left shift."""
    reach = np.maximum(np.abs(low), np.abs(high))
    left = np.maximum(how.shift.astype(np.int64), 0) if how.rounding is Rounding.DOUBLE else np.zeros_like(low)
    return np.asarray(reach <= INT32_MAX >> left)


@dataclass(frozen=True)
class RequantizationView:
    """What the code of a kernel has to know of its requantisation; the numbers of the channels are constants.

    fast    usat8(smmul(256 * accumulator + delta, multiplier) >> shift)
    shifts  h = smmulr(2 * accumulator, multiplier); usat8((h + (h >> 31) + addend) >> e): the double
            rounding with right shifts e >= 1 as it is, zero point and half in the addend
    double, single, real    NAME_requantize_double and so on: the runtime's own steps
    """

    form: Form
    shift: int  # of the form fast, else 0
    zero: int  # zero_point + 128, which the runtime's own steps leave to be added; else 0
    clamp_low: int  # of stored values; 0 and 255 where usat8 says it all
    clamp_high: int

    @property
    def clamps(self) -> bool:
        """Return whether stored values are limited further than to 0..255."""
        return (self.clamp_low, self.clamp_high) != (0, 255)

    @property
    def words(self) -> int:
        """Return the number of constants of one channel, besides its bias."""
        return {"fast": 1, "shifts": 3}.get(self.form, 2)

    @property
    def own_steps(self) -> bool:
        """Return whether the form follows the runtime's source, step by step."""
        return self.form in ("double", "single", "real")


@dataclass(frozen=True, eq=False)
class Requantizer:
    """The requantisation of one layer: what its code needs, and the constants of its channels.

    A `constant` channel makes the same value for every input. Its weights have to be packed as zeros, its accumulator
    becomes `constant_bias`: so the accumulators of dead channels, which can be huge, bother nobody.
    """

    view: RequantizationView
    delta: Int64Array  # [channels], added modulo 2**32 to 256 * accumulator; 0 unless the form is fast
    words: Int64Array  # [channels, view.words]: multiplier (, addend, e) | multiplier, shift | halves of a float64
    constant: BoolArray  # [channels]
    constant_bias: Int64Array  # [channels]

    def bias(self, folded: Int64Array) -> Int64Array:
        """Return the biases [channels], given those with the zero point folded in."""
        return np.where(self.constant, self.constant_bias, folded)


@lru_cache(maxsize=512)
def _requantizer(
    arrays: tuple[bytes, bytes, bytes],
    rounding: Rounding,
    zero_point: int,
    activation: tuple[int, int],
    shortcuts: frozenset[str],
    limits: bytes,
) -> Requantizer:
    multiplier, shift = (np.frombuffer(array, np.int32) for array in arrays[:2])
    how = Requantization(multiplier, shift, np.frombuffer(arrays[2], np.float64), rounding, zero_point, activation)
    low, high = np.frombuffer(limits, np.int64).reshape(2, -1)
    least, greatest = (requantize(end, how).astype(np.int64) + 128 for end in (low, high))
    constant = (least == greatest) & _reference_fits(how, low, high)
    live = np.flatnonzero(~constant)
    delta, no_bias = np.zeros(len(low), np.int64), np.zeros(len(low), np.int64)
    lives = replace(how, multiplier=multiplier[live], shift=shift[live], scale=how.scale[live])
    clamp = activation[0] + 128, activation[1] + 128

    fast = None
    if "fast" in shortcuts:
        fast = solve_fast(lives, low[live], high[live]) if len(live) else _NOTHING_TO_SOLVE
    if fast is not None:
        ends = (256 * np.stack([low[live], high[live]]) + fast.delta) * fast.multiplier >> (32 + fast.shift)
        ends = np.clip(ends, 0, 255)
        if ends.min(initial=255) >= clamp[0] and ends.max(initial=0) <= clamp[1]:
            clamp = 0, 255
        # value = ((value << 23) * (1 << (9 + shift))) >> (32 + shift)
        delta[constant], delta[live] = least[constant] << 23, fast.delta
        words = np.full((len(low), 1), 1 << (9 + fast.shift), np.int64)
        words[live, 0] = fast.multiplier
        return Requantizer(RequantizationView("fast", fast.shift, 0, *clamp), delta, words, constant, no_bias)

    multipliers, exponent = multiplier.astype(np.int64), -shift.astype(np.int64)
    # |h| <= |accumulator| < 2**23 and addend < 2**(e + 8): up to e = 22 the sum stays within int32.
    reach = np.maximum(np.abs(low), np.abs(high))[live].max(initial=0)
    shifts_right = exponent[live].min(initial=1) >= 1 and exponent[live].max(initial=1) <= 22
    if "shifts" in shortcuts and rounding is Rounding.DOUBLE and reach < 1 << 23 and shifts_right:
        exponent[constant] = 1
        addend = (1 << (exponent - 1)) + (np.int64(zero_point + 128) << exponent)
        words = np.stack([multipliers, addend, exponent], 1)
        words[constant, 0], words[constant, 1] = 0, least[constant] << 1
        return Requantizer(RequantizationView("shifts", 0, 0, *clamp), delta, words, constant, no_bias)

    # The runtime's own steps; a constant channel is its value times 1.
    if rounding is Rounding.REAL:
        scale = np.where(constant, 1.0, how.scale)
        words = scale.astype("<f8").view("<u4").reshape(-1, 2).astype(np.int64)
    else:
        words = np.where(constant[:, None], np.array([[1 << 30, 1]]), np.stack([multipliers, -exponent], 1))
    view = RequantizationView(_OWN_STEPS[rounding], 0, zero_point + 128, *clamp)
    return Requantizer(view, delta, words, constant, least - (zero_point + 128))


def requantizer(how: Requantization, low: Int64Array, high: Int64Array) -> Requantizer:
    """Return the cheapest exact form for accumulators low..high [channels]; remembered, as kernels ask twice."""
    arrays = (
        how.multiplier.astype(np.int32).tobytes(),
        how.shift.astype(np.int32).tobytes(),
        how.scale.astype(np.float64).tobytes(),
    )
    limits = np.stack([low, high]).astype(np.int64).tobytes()
    return _requantizer(arrays, how.rounding, how.zero_point, how.activation, how.shortcuts, limits)
