"""The two-instruction requantisation against the runtimes' own arithmetic, over every accumulator of small ranges."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.layout import WIDE16, Storage
from codegen.requantize import FastRequantization, Requantizer, accumulator_range, requantizer, solve_fast
from mnet.fixed_point import Int64Array, quantize_multiplier
from mnet.graph import Conv2D, Dense, DepthwiseConv2D, FullyConnected, Tensor
from mnet.oracle import Requantization, Rounding, requantize

INT32_MAX = (1 << 31) - 1


def reference(
    scales: list[float], rounding: Rounding, zero_point: int, activation: tuple[int, int] = (-128, 127)
) -> Requantization:
    pairs = [quantize_multiplier(scale) for scale in scales]
    multiplier, shift = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    return Requantization(multiplier, shift, np.array(scales), rounding, zero_point, activation)


def stored(accumulators: Int64Array, how: Requantization) -> Int64Array:
    return requantize(accumulators, how).astype(np.int64) + 128


def fast(accumulators: Int64Array, solution: FastRequantization) -> Int64Array:
    """Return what SMMUL and USAT make of accumulators [n, channels], after checking that int32 is enough."""
    scaled = 256 * accumulators + solution.delta
    assert np.abs(scaled).max() <= INT32_MAX
    assert solution.multiplier.min() >= 0 and solution.multiplier.max() <= INT32_MAX
    return np.clip(scaled * solution.multiplier >> 32 >> solution.shift, 0, 255)


def by_form(accumulators: Int64Array, how: Requantizer) -> Int64Array:
    """Return what the kernels make of accumulators [n, channels], in whichever form was chosen."""
    view, words = how.view, how.words
    x = np.where(how.constant, how.constant_bias, accumulators)
    if view.form == "fast":
        scaled = (256 * x + how.delta + (1 << 31) & 0xFFFFFFFF) - (1 << 31)  # modulo 2**32
        values = np.clip(scaled * words[:, 0] >> 32 >> view.shift, 0, 255)
    elif view.form == "shifts":
        h = (2 * x * words[:, 0] + (1 << 31)) >> 32
        assert (np.abs(h) + np.abs(words[:, 1])).max() <= INT32_MAX
        values = np.clip((h + (h >> 31) + words[:, 1]) >> words[:, 2], 0, 255)
    else:
        rounding = {"double": Rounding.DOUBLE, "single": Rounding.SINGLE, "real": Rounding.REAL}[view.form]
        scale = words.astype(np.uint32).view("<f8").ravel() if view.form == "real" else np.ones(len(words))
        multiplier, shift = (words[:, i].astype(np.int64) for i in range(2)) if view.form != "real" else (scale, scale)
        values = stored(x, Requantization(multiplier, shift, scale, rounding, view.zero - 128, (-128, 127)))
    return np.clip(values, view.clamp_low, view.clamp_high)


def everything(low: Int64Array, high: Int64Array) -> Int64Array:
    """Return all accumulators of the ranges, [n, channels]; short ranges repeat their end."""
    return np.minimum(low + np.arange(int((high - low).max()) + 1)[:, None], high)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Requantization, Int64Array, Int64Array]:
    """Draw a reference and ranges of at most 6,000 accumulators a channel, of any position and slope."""
    channels = draw(st.integers(1, 4))
    rounding = draw(st.sampled_from(Rounding))
    zero_point = draw(st.sampled_from([-128, -128, -128, 0, 127, -1]) | st.integers(-128, 127))
    ends = st.integers(-128, 127)
    activation = draw(
        st.sampled_from([(-128, 127), (-128, 127)]) | st.tuples(ends, ends).map(lambda p: (min(p), max(p)))
    )
    scales, low, high = [], [], []
    for _ in range(channels):
        exponent = draw(st.integers(-30, 4) | st.integers(-12, -3))
        mantissa = draw(st.sampled_from([1 << 30, (1 << 30) + 1, (1 << 31) - 1]) | st.integers(1 << 30, INT32_MAX))
        scale = mantissa / 2.0**31 * 2.0**exponent
        width = draw(st.integers(0, 6000))
        # somewhere around the accumulators that give zero_point .. zero_point + 255
        middle = round(draw(st.floats(-300, 300)) / scale) if draw(st.booleans()) else 0
        middle = max(min(middle, 1 << 22), -(1 << 22))
        scales.append(scale)
        low.append(middle - width // 2)
        high.append(middle - width // 2 + width)
    return reference(scales, rounding, zero_point, activation), np.array(low, np.int64), np.array(high, np.int64)


@settings(max_examples=150, deadline=None)
@given(layers())
def test_what_is_solved_is_exact(layer: tuple[Requantization, Int64Array, Int64Array]) -> None:
    how, low, high = layer
    solution = solve_fast(how, low, high)
    if solution is None:
        return
    x = everything(low, high)
    least, most = how.activation
    assert (np.clip(fast(x, solution), least + 128, most + 128) == stored(x, how)).all()


@settings(max_examples=150, deadline=None)
@given(layers())
def test_every_form_is_exact(layer: tuple[Requantization, Int64Array, Int64Array]) -> None:
    how, low, high = layer
    x = everything(low, high)
    assert (by_form(x, requantizer(how, low, high)) == stored(x, how)).all()


@settings(max_examples=60, deadline=None)
@given(layers(), st.data())
def test_every_form_is_exact_where_the_fast_one_is_missing(
    layer: tuple[Requantization, Int64Array, Int64Array], data: st.DataObject
) -> None:
    how, low, high = layer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codegen.requantize.solve_fast", lambda *_: None)
        module = __import__("codegen.requantize", fromlist=["_requantizer"])
        module._requantizer.cache_clear()
        found = requantizer(how, low, high)
        module._requantizer.cache_clear()
    x = everything(low, high)
    assert (by_form(x, found) == stored(x, how)).all()


def trained(rng: np.random.Generator, channels: int, zero_point: int, rounding: Rounding) -> tuple:
    """Return a reference and ranges as real layers have them: accumulators reach far beyond the output's range."""
    scales = np.exp2(rng.uniform(-11, -6, channels))
    high = np.rint(rng.uniform(300, 2000, channels) / scales).astype(np.int64)
    low = -np.rint(rng.uniform(300, 2000, channels) / scales).astype(np.int64)
    return reference(list(scales), rounding, zero_point), low, high


@pytest.mark.parametrize("rounding", Rounding)
def test_layers_with_relu_share_the_common_shift(rounding: Rounding) -> None:
    how, low, high = trained(np.random.default_rng(1), 200, -128, rounding)
    found = requantizer(how, low, high).view
    assert (found.form, found.shift, found.clamps) == ("fast", 12, False)


@pytest.mark.parametrize("rounding", [Rounding.SINGLE, Rounding.REAL])
def test_one_rounding_is_solved_for_any_zero_point(rounding: Rounding) -> None:
    how, low, high = trained(np.random.default_rng(2), 64, 5, rounding)
    solution = solve_fast(how, low, high)
    assert solution is not None
    for channel in range(0, 64, 7):
        one = replace(
            how,
            multiplier=how.multiplier[channel : channel + 1],
            shift=how.shift[channel : channel + 1],
            scale=how.scale[channel : channel + 1],
        )
        part = FastRequantization(
            solution.multiplier[channel : channel + 1], solution.delta[channel : channel + 1], solution.shift
        )
        x = np.arange(low[channel], high[channel] + 1)[:, None]
        assert (fast(x, part) == stored(x, one)).all()


def test_linear_layers_rounded_twice_take_the_shifts() -> None:
    how, low, high = trained(np.random.default_rng(3), 16, 4, Rounding.DOUBLE)
    found = requantizer(how, low, high)
    assert found.view.form == "shifts"  # halves away from zero make a kink at zero that no line follows
    x = np.random.default_rng(4).integers(low, high + 1, (20_000, 16))
    assert (by_form(x, found) == stored(x, how)).all()
    near = np.broadcast_to(np.arange(-20_000, 20_000)[:, None], (40_000, 16))
    assert (by_form(near, found) == stored(near, how)).all()


def test_a_clamp_that_nothing_reaches_is_not_made() -> None:
    scale = 2.0**-8
    reached = reference([scale], Rounding.DOUBLE, -128, (-128, 100))
    low, high = np.array([-1000]), np.array([round(300 / scale)])
    assert requantizer(reached, low, high).view.clamps
    assert not requantizer(reached, low, np.array([round(200 / scale)])).view.clamps


def test_dead_channels_do_not_spoil_a_layer() -> None:
    scales = [0.01, 2.0**-30, 0.0, 0.02]
    how = reference(scales, Rounding.DOUBLE, -128)
    low = np.array([-50_000, 1 << 30, -INT32_MAX, -50_000])
    high = np.array([50_000, (1 << 30) + 100, INT32_MAX, 50_000])
    found = requantizer(how, low, high)
    assert found.view.form == "fast" and found.constant.tolist() == [False, True, True, False]
    x = np.stack([low, (low + high) // 2, high])
    assert (by_form(x, found) == stored(x, how)).all()


def test_two_thousand_channels_take_less_than_three_seconds() -> None:
    rng = np.random.default_rng(5)
    parts = [trained(rng, 230, -128, Rounding.DOUBLE) for _ in range(10)]
    start = time.process_time()
    assert all(solve_fast(*part) is not None for part in parts)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("kind", [Conv2D, DepthwiseConv2D, FullyConnected])
@pytest.mark.parametrize("zero_point", [-128, 7, 127])
def test_accumulator_range_is_what_the_extreme_inputs_give(kind: type, zero_point: int) -> None:
    rng = np.random.default_rng(6)
    shape = {Conv2D: (5, 3, 2, 4), DepthwiseConv2D: (3, 3, 5), FullyConnected: (5, 24)}[kind]
    weights = rng.integers(-128, 128, shape).astype(np.int8)
    bias, scales = rng.integers(-1000, 1000, 5).astype(np.int32), np.ones(5)
    window = ((1, 1), (1, 1), (0, 0, 0, 0), (-128, 127))
    if kind is Conv2D:
        op = Conv2D("op", "in", "out", weights, bias, scales, *window)
        taps = weights.reshape(5, -1).astype(np.int64)
    elif kind is DepthwiseConv2D:
        op = DepthwiseConv2D("op", "in", "out", weights, bias, scales, 1, *window)
        taps = weights.reshape(9, 5).T.astype(np.int64)
    else:
        op = FullyConnected("op", "in", "out", weights, bias, scales, Dense.PER_TENSOR, (-128, 127))
        taps = weights.astype(np.int64)
    channels = 4 if kind is Conv2D else 5 if kind is DepthwiseConv2D else 24
    storage = Storage(Tensor("in", (3, 3, channels), 1.0, zero_point), WIDE16, 3, 0, 0, 0, 0, channels)
    low, high = accumulator_range(Call(op, (storage,), storage, 1, None))
    for found, extreme in ((high, np.where(taps > 0, 127, -128)), (low, np.where(taps > 0, -128, 127))):
        assert (found == (taps * (extreme - zero_point)).sum(1) + bias).all()
