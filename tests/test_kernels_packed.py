"""Kernels of cores without DSP instructions: their arithmetic by brute force, and host and emulator against NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.layout import WIDE8, Storage
from codegen.packed import (
    MAX_TAPS,
    WINDOW,
    WINDOW_REACH,
    depthwise_accepts,
    depthwise_pack,
    depthwise_view,
    packed_accepts,
    packed_pack,
    packed_view,
    short_form,
    split_weights,
)
from codegen.requantize import accumulator_range, requantizer
from mnet.graph import Conv2D, DepthwiseConv2D, Graph, Tensor, output_size
from mnet.oracle import Requantization, Rounding, requantize
from tests.kernel_harness import (
    A_BATCH,
    SEEDS,
    Case,
    accumulators,
    layer,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
    tensor,
    unsolved,
)

__all__ = ["unsolved"]  # a fixture

CORES = ("M0", "M3")


# ---- arithmetic ----


def parted(lower: np.ndarray, upper: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of both lanes as the kernels part them: values [n, taps], weights [n, taps] or [taps]."""
    words = (lower + 65536 * upper) % (1 << 32)
    t = (words * weights).sum(-1) % (1 << 32)
    half = (t + 0x8000) % (1 << 32)
    high = np.where(half >= 1 << 31, half - (1 << 32), half) >> 16
    low = (t - (high << 16)) % (1 << 32)
    return np.where(low >= 1 << 31, low - (1 << 32), low), high


def test_a_window_at_its_reach_parts_exactly() -> None:
    """Both lanes at their ends, for every way to share the reach among the taps that matters: all corners."""
    corners = np.array(np.meshgrid(*[[-128, 127]] * (2 * WINDOW))).reshape(2 * WINDOW, -1).T
    lower, upper = corners[:, :WINDOW], corners[:, WINDOW:]
    rng = np.random.default_rng(0)
    for _ in range(300):
        cuts = np.sort(rng.integers(0, WINDOW_REACH + 1, WINDOW - 1))
        size = np.diff(np.concatenate([[0], cuts, [WINDOW_REACH]]))
        weights = size * rng.choice([-1, 1], WINDOW)
        low, high = parted(lower, upper, weights)
        assert (low == (lower * weights).sum(-1)).all() and (high == (upper * weights).sum(-1)).all()


def test_a_window_beyond_its_reach_would_not() -> None:
    """One more, and the lane overflows: the bound is tight."""
    lower, upper = np.full((1, 2), -128), np.zeros((1, 2), int)
    assert parted(lower, upper, np.array([128, 128]))[0] == -32768
    assert parted(lower, upper, np.array([128, 129]))[0] != -128 * 257
    assert parted(lower, upper, np.array([-128, -128]))[0] != 32768


def test_every_product_of_a_residue_parts_exactly() -> None:
    x = np.arange(-128, 128)
    for weight in range(-128, 129):
        low, high = parted(np.repeat(x, 256)[:, None], np.tile(x, 256)[:, None], np.array([weight]))
        assert (low == np.repeat(x, 256) * weight).all() and (high == np.tile(x, 256) * weight).all()


@given(st.lists(st.integers(-128, 127), min_size=WINDOW, max_size=3 * WINDOW))
def test_split_weights_add_up_and_fit(values: list[int]) -> None:
    weights = np.array(values[: len(values) // WINDOW * WINDOW], np.int8)
    fitting, rest = split_weights(weights)
    assert (fitting.astype(int) + rest == weights).all()
    assert (np.abs(fitting.astype(int)).reshape(-1, WINDOW).sum(1) <= WINDOW_REACH).all()
    small = np.abs(weights.astype(int)).reshape(-1, WINDOW).sum(1) <= WINDOW_REACH
    assert (rest.reshape(-1, WINDOW)[small] == 0).all()


def short_value(x: np.ndarray, form: Any, channel: int, shift: int, most: int) -> np.ndarray:
    """Return what NAME_short computes, in integers that would show an overflow."""
    x = x + int(form.offset[channel])
    limit, upper, lower, addend = (int(a[channel]) for a in (form.limit, form.upper, form.lower, form.addend))
    assert limit >= 0
    u = np.clip(x, 0, limit)
    inner = u * lower + addend
    outer = u * upper + (inner >> shift)
    assert inner.max() < 1 << 32 and outer.max() < 1 << 32
    return np.where(x < 0, 0, np.where(x > limit, most, outer >> 24))


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_the_short_form_equals_the_oracle_for_every_accumulator(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = convolution_case(rng, channels=int(rng.integers(1, 6)), kernel=(1, 1), rounding=Rounding.DOUBLE)
    assert case.call.requantization is not None
    low, high = accumulator_range(case.call)
    how = requantizer(case.call.requantization, low, high)
    form = short_form(how, low, high)
    if form is None:
        return
    for channel in range(len(low)):
        x = np.arange(low[channel], high[channel] + 1)
        every = np.repeat(x[:, None], len(low), 1)
        want = requantize(every, case.call.requantization)[:, channel].astype(int) + 128
        seen = np.zeros_like(x) if how.constant[channel] else x
        found = short_value(seen, form, channel, how.view.shift, how.view.clamp_high - how.view.clamp_low)
        assert (found + how.view.clamp_low == want).all()


def test_the_short_form_holds_where_one_step_passes_by_all_values() -> None:
    """Of an activation of two values and a scale above 1: no accumulator makes the first one above 0."""
    how = Requantization(
        np.array([1518500233], np.int32), np.array([2], np.int32), np.array([8**0.5]), Rounding.DOUBLE, 126, (126, 127)
    )
    low, high = np.array([-18958]), np.array([41477])
    solved = requantizer(how, low, high)
    form = short_form(solved, low, high)
    x = np.arange(low[0], high[0] + 1)
    assert solved.view.form == "fast"
    if form is not None:
        found = short_value(x, form, 0, solved.view.shift, solved.view.clamp_high - solved.view.clamp_low)
        assert (found + solved.view.clamp_low - 128 == requantize(x[:, None], how)[:, 0]).all()


# ---- cases ----


def filled(store: Storage, values: np.ndarray, rng: np.random.Generator) -> bytes:
    """Return the buffer of a whole tensor, padding included; what no kernel may read is noise."""
    buffer = rng.integers(0, 256, (store.slots, store.slot_bytes)).astype(np.uint8)
    stored = np.full((store.slots, store.stored_width, store.stored_channels), store.padding_value)
    inner = stored[store.top : store.top + store.height, store.left : store.left + store.width]
    inner[..., : values.shape[2]] = values.astype(int) - store.offset
    buffer[:, : store.stored_width * store.pixel_bytes] = stored.reshape(store.slots, -1)
    return buffer.tobytes()


def case_of(rng: np.random.Generator, depthwise: bool, **choice: Any) -> Case:
    def draw(name: str, *options: Any) -> Any:
        return choice[name] if name in choice else options[rng.integers(len(options))]

    if depthwise:
        kernel = draw("kernel", (3, 3), (3, 3), (1, 1), (2, 3), (5, 1), (8, 2))
    else:
        kernel = draw("kernel", (1, 1), (1, 1), (3, 3), (2, 1), (1, 4), (10, 4))
    stride = draw("stride", (1, 1), (1, 1), (2, 2), (1, 3))
    height, width = draw("size", (4, 5), (3, 6), (3, 3), (2, 9), (6, 4), (5, 17), (7, 13))
    channels = draw("channels", 1, 2, 3, 4, 7, 8, 20, 36)
    if "channels" not in choice:
        channels = min(channels, MAX_TAPS // (kernel[0] * kernel[1]))
    outputs = channels if depthwise else draw("outputs", 2, 3, 4, 8, 13)
    zero_points = draw("zero_points", (-128, -128), (-128, -128), (3, -128), (-128, -7), (127, 127), (-5, 90))
    rounding = draw("rounding", Rounding.DOUBLE, Rounding.DOUBLE, Rounding.SINGLE, Rounding.REAL)
    activation = draw("activation", (-128, 127), (-128, 127), (-128, 127), (-100, 101))
    padding = draw("padding", (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 2, 1))
    padding = tuple(min(p, kernel[i // 2] - 1) for i, p in enumerate(padding))
    # Two outputs in a row at least, one row at least.
    height, width = max(height, kernel[0]), max(width, kernel[1] + stride[1])
    shape = (*kernel, channels) if depthwise else (outputs, *kernel, channels)
    weights = np.clip(np.rint(rng.normal(0, draw("deviation", 20, 50, 90, 3), shape)), -128, 127).astype(np.int8)
    if rng.integers(4) == 0:
        weights[..., rng.integers(channels)] = 0
    kind = DepthwiseConv2D if depthwise else Conv2D
    op, how = layer(
        kind,
        weights,
        draw("spread", 1, 1, 8, 0.1),
        zero_points,
        rounding,
        activation,
        rng,
        stride=stride,
        padding=padding,
    )
    out_shape = (
        output_size(height, kernel[0], stride[0], 1, padding[0], padding[1]),
        output_size(width, kernel[1], stride[1], 1, padding[2], padding[3]),
        outputs,
    )
    source_tensor = tensor("in", (height, width, channels), zero_points[0])
    extra = int(draw("more_padding", 0, 0, 1))
    around = (padding[0], padding[1], padding[2] + extra, padding[3] + extra)
    stored = channels + int(draw("more_channels", 0, 0, 1))
    source = storage(source_tensor, WIDE8, around, stored_channels=stored)
    border = draw("border", (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 2))
    target = storage(tensor("out", out_shape, zero_points[1]), WIDE8, border, stored_channels=outputs)
    call = Call(op, (source,), target, 1, how)
    view = (depthwise_view if depthwise else packed_view)(call)
    pack: Any = depthwise_pack if depthwise else packed_pack

    values = rng.integers(-128, 128, source_tensor.shape).astype(np.int8)
    if rng.integers(3) == 0:
        values = rng.choice(np.array([-128, 127], np.int8), source_tensor.shape)
    expected = requantize(accumulators(op, values, zero_points[0]), how)
    row = int(rng.integers(out_shape[0]))
    top = row * stride[0] + source.top - padding[0]
    return Case(
        call,
        view,
        "depthwise_block" if depthwise else "convolution_packed",
        pack(call, view, 0),
        filled(source, values, rng),
        tuple(source.slot_offset(top + i) for i in range(kernel[0])),
        target.top + row,
        expected[row : row + 1],
    )


def convolution_case(rng: np.random.Generator, **choice: Any) -> Case:
    return case_of(rng, False, **choice)


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [case_of(rng, bool(i % 2)) for i in range(count)]


def large_cases() -> list[Case]:
    """Return what random small shapes do not reach: loops over windows, far pixels, many residues, wide weights."""
    rng = np.random.default_rng(5)
    cases = [
        convolution_case(rng, kernel=kernel, channels=channels, outputs=outputs, size=size, deviation=deviation)
        for kernel, channels, outputs, size, deviation in (
            ((1, 1), 32, 32, (2, 6), 40),
            ((1, 1), 44, 9, (2, 5), 90),
            ((1, 1), 106, 57, (2, 6), 40),
            ((1, 1), 64, 300, (2, 3), 127),
            ((1, 1), 576, 2, (2, 3), 127),
            ((3, 3), 64, 8, (4, 5), 30),
            ((3, 3), 3, 600, (4, 8), 60),
            ((10, 4), 1, 64, (12, 10), 50),
        )
    ]
    cases += [case_of(rng, True, kernel=(3, 3), size=(4, width), channels=6) for width in range(3, 20)]
    cases += [
        case_of(rng, True, kernel=(3, 3), size=(4, 7), channels=channels, stride=stride)
        for channels in (16, 127, 128, 255, 256, 600)
        for stride in ((1, 1), (2, 2))
    ]
    return cases


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_bodies_equal_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 80), tmp_path_factory.mktemp("host"))


@needs_arm
@pytest.mark.parametrize("core", CORES)
@A_BATCH
@given(seed=SEEDS)
def test_emulated_cores_equal_integer_arithmetic(
    tmp_path_factory: pytest.TempPathFactory, core: str, seed: int
) -> None:
    run_emulated(batch(seed, 60), tmp_path_factory.mktemp("arm"), core)


@needs_arm
@pytest.mark.parametrize("core", CORES)
def test_large_shapes(tmp_path: Any, core: str) -> None:
    run_emulated(large_cases(), tmp_path, core)


@needs_arm
@pytest.mark.parametrize("core", CORES)
def test_emulated_cores_without_the_fast_form(tmp_path: Any, core: str, unsolved: None) -> None:
    cases = batch(11, 60)
    assert {case.view.requantization.form for case in cases} >= {"shifts", "double", "single", "real"}
    run_emulated(cases, tmp_path, core)
    run_on_host(cases, tmp_path)


def test_what_does_not_fit_says_why() -> None:
    def reason(op: Conv2D | DepthwiseConv2D, width: int = 4) -> str | None:
        tensors = {"in": Tensor("in", (4, 4, 4), 1.0, 0), "out": Tensor("out", (4, width, 4), 1.0, 0)}
        graph = Graph("net", tensors, (op,), ("in",), ("out",), "")
        return packed_accepts(op, graph) if isinstance(op, Conv2D) else depthwise_accepts(op, graph)

    case = convolution_case(np.random.default_rng(0), kernel=(3, 3), channels=65, outputs=2)
    assert isinstance(case.call.op, Conv2D)
    assert reason(case.call.op) == f"585 taps, more than {MAX_TAPS}"
    case = convolution_case(np.random.default_rng(0), kernel=(1, 1), channels=4, outputs=2)
    assert isinstance(case.call.op, Conv2D)
    assert reason(case.call.op) is None
    assert reason(case.call.op, width=1) == "rows of one pixel"
    case = case_of(np.random.default_rng(0), True, kernel=(3, 3), channels=4)
    assert isinstance(case.call.op, DepthwiseConv2D)
    assert reason(case.call.op) is None
    assert reason(replace(case.call.op, weights=np.zeros((5, 5, 4), np.int8))) == "the kernel is 5x5, more than 8x3"
