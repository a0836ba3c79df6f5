"""Batch normalization folded away, channels equalized, ranges chosen, biases corrected, and what int8 can hold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet.architecture import Architecture, Block, Head, Kind, build, import_keras
from mnet.calibration import (
    METHODS,
    Calibration,
    Grid,
    calibrate,
    correct_bias,
    equalize,
    grid,
    image_grid,
    moved_to,
    outputs,
    rounded_weights,
    weight_scales,
    weighted,
)
from mnet.fake_quantization import fake_quantized, fake_quantized_parameters, logits_of
from mnet.folding import Weights, fold, folded_model, stages
from mnet.recipes import Normalization

LINEAR = Architecture(
    "linear", 9, 12, 3, 5, 2, 8, (Block(1, 6), Block(2, 8)), linear_depthwise=True, head=Head.ARGMAX, dropout=0.0
)
RELU6 = Architecture("relu6", 12, 12, 1, 4, 1, 4, (Block(2, 6), Block(1, 8)), head=Head.ARGMAX, dropout=0.0)


def with_random_statistics(architecture: Architecture) -> Any:
    """Return a Keras model whose batch normalization does something in every channel."""
    import_keras().utils.set_random_seed(0)
    model = build(architecture)
    random = np.random.default_rng(1)
    for variable in model.variables:
        name = variable.path.rsplit("/", 1)[1]
        if name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.3, 3.0, variable.shape))
        elif name in ("beta", "moving_mean", "bias"):
            variable.assign(random.normal(size=variable.shape))
    return model


def folded(architecture: Architecture) -> tuple[Any, Weights]:
    model = with_random_statistics(architecture)
    return model, fold(architecture, {variable.path: variable.numpy() for variable in model.variables})


def images(architecture: Architecture, count: int = 16) -> Any:
    shape = (count, architecture.height, architecture.width, architecture.channels)
    return (np.random.default_rng(2).integers(0, 256, shape) / 128 - 1).astype(np.float32)


@pytest.mark.parametrize("architecture", [LINEAR, RELU6], ids=lambda a: a.name)
def test_folding_changes_nothing_but_roundings(architecture: Architecture) -> None:
    model, weights = folded(architecture)
    x = images(architecture)
    expected = np.asarray(model(x, training=False))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits_of(architecture, weights, None, x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(folded_model(architecture, weights)(x), expected, rtol=1e-4, atol=1e-4)


def test_stages_are_the_operators_of_the_file() -> None:
    assert [stage.name for stage in stages(LINEAR)] == [
        "conv1", "conv_dw_1", "conv_pw_1", "conv_dw_2", "conv_pw_2", "global_average_pooling2d", "conv_preds",
    ]  # fmt: skip
    assert [stage.relu6 for stage in stages(LINEAR)] == [True, False, True, False, True, False, False]
    assert [stage.relu6 for stage in stages(RELU6)] == [True, True, True, True, True, False, False]


def test_equalization_changes_nothing_but_roundings() -> None:
    _, weights = folded(LINEAR)
    x = images(LINEAR)
    equal = equalize(LINEAR, weights, x[:8])  # the other images see ranges that were not looked at
    expected = logits_of(LINEAR, weights, None, x)
    np.testing.assert_allclose(logits_of(LINEAR, equal, None, x), expected, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(equal["conv_dw_1/kernel"], weights["conv_dw_1/kernel"])


def test_equalized_channels_use_their_range_as_much_as_their_weights() -> None:
    _, weights = folded(LINEAR)
    x = images(LINEAR)
    equal = equalize(LINEAR, weights, x)
    made = dict((stage.name, values) for stage, values in outputs(LINEAR, equal, x))["conv_dw_1"]
    low, high = made.min(axis=(0, 1, 2)), made.max(axis=(0, 1, 2))
    np.testing.assert_allclose(low, 0, atol=1e-4)  # as after a ReLU
    kernel = weights["conv_pw_1/kernel"]
    old = np.abs(kernel / weight_scales(kernel, Kind.CONVOLUTION)).max(axis=(0, 1, 3))
    gain = equal["conv_dw_1/kernel"][0, 0, :, 0] / weights["conv_dw_1/kernel"][0, 0, :, 0]
    products = high / (old / gain)  # of a channel's reach and the weights that meet it: equal for all channels
    alive = high > 0
    assert alive.sum() > 4
    np.testing.assert_allclose(products[alive], products[alive][0], rtol=1e-3)


def test_moved_to_another_zero_point_it_is_the_same_network() -> None:
    _, weights = folded(LINEAR)
    x = images(LINEAR)
    grids = calibrate(LINEAR, weights, x, Normalization.SYMMETRIC, _MSE)
    moved, at_zero = moved_to(-128, LINEAR, weights, grids)
    linear = [stage.name for stage in stages(LINEAR) if stage.kind is Kind.DEPTHWISE]
    assert linear and all(at_zero[name].zero_point == -128 and at_zero[name].low == 0 for name in linear)
    assert any(grids[name].zero_point != -128 for name in linear)
    before, after = (logits_of(LINEAR, *each, x) for each in ((weights, grids), (moved, at_zero)))
    near = np.abs(before - after) < grids["conv_preds"].scale * 0.5  # biases are rounded anew: a value may flip
    assert near.mean() > 0.98


def test_where_a_relu6_follows_nothing_is_equalized() -> None:
    _, weights = folded(RELU6)
    equal = equalize(RELU6, weights, images(RELU6))
    assert all(equal[path] is weights[path] for path in weights)


def test_a_dead_channel_stays_dead() -> None:
    _, weights = folded(LINEAR)
    weights["conv_dw_1/kernel"][:, :, 2] = 0
    x = images(LINEAR)
    equal = equalize(LINEAR, weights, x)
    assert all(np.isfinite(array).all() for array in equal.values())
    np.testing.assert_allclose(
        logits_of(LINEAR, equal, None, x), logits_of(LINEAR, weights, None, x), rtol=1e-4, atol=1e-4
    )
    assert np.isfinite(logits_of(LINEAR, equal, calibrate(LINEAR, equal, x, Normalization.SYMMETRIC, _MSE), x)).all()


_MSE = Calibration.MSE


@pytest.mark.parametrize("architecture", [LINEAR, RELU6], ids=lambda a: a.name)
def test_corrected_biases_bring_the_mean_logits_back(architecture: Architecture) -> None:
    _, weights = folded(architecture)
    x = images(architecture, 64)
    grids = calibrate(architecture, weights, x, Normalization.SYMMETRIC, _MSE)
    exact = logits_of(architecture, weights, None, x).mean(axis=0)
    before = np.abs(logits_of(architecture, weights, grids, x).mean(axis=0) - exact).max()
    corrected = correct_bias(architecture, weights, grids, x)
    after = np.abs(logits_of(architecture, corrected, grids, x).mean(axis=0) - exact).max()
    assert after < before
    assert after < grids["conv_preds"].scale / 2
    assert all(corrected[f"{s.name}/kernel"] is weights[f"{s.name}/kernel"] for s in weighted(architecture))


# The arithmetic of fake quantization

_real = st.floats(-100, 100, allow_nan=False, width=32)


@given(_real, _real)
def test_a_grid_holds_zero_and_about_its_range(a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    made = grid(low, high)
    assert -128 <= made.zero_point <= 127 and made.scale > 0
    assert made.rounded(np.zeros(1))[0] == 0.0
    if high - low > 1e-3:
        assert abs(made.low - low) <= made.scale / 2 + 1e-9 and abs(made.high - high) <= made.scale / 2 + 1e-9


@given(_real, _real, st.lists(_real, min_size=1, max_size=20))
@settings(deadline=None)
def test_rounding_to_a_grid_is_the_nearest_value_and_tensorflow_s(a: float, b: float, values: list[float]) -> None:
    made = grid(min(a, b, -0.01), max(a, b, 0.01))
    x = np.array(values, np.float32)
    rounded = made.rounded(x)
    np.testing.assert_array_equal(made.rounded(rounded), rounded)
    within = (x >= made.low) & (x <= made.high)
    assert (np.abs(rounded - x)[within] <= made.scale / 2 * 1.0001).all()
    assert ((rounded >= made.low) & (rounded <= made.high)).all()
    # TensorFlow rounds in float32: on the edge between two values it may take the other one.
    theirs = np.asarray(fake_quantized(x, made))
    on_edge = np.abs(np.abs(x / made.scale) % 1 - 0.5) < 1e-3
    np.testing.assert_allclose(theirs[~on_edge], rounded[~on_edge], rtol=1e-4, atol=made.scale * 1e-3)


@given(st.lists(_real, min_size=9 * 2 * 3, max_size=9 * 2 * 3), st.sampled_from([Kind.CONVOLUTION, Kind.DEPTHWISE]))
@settings(deadline=None)
def test_rounded_kernels_lie_on_a_symmetric_grid_of_127_steps(values: list[float], kind: Kind) -> None:
    form = (3, 3, 6, 1) if kind is Kind.DEPTHWISE else (3, 3, 2, 3)
    kernel = np.array(values, np.float32).reshape(form)
    scales = weight_scales(kernel, kind)
    assert scales.size == (6 if kind is Kind.DEPTHWISE else 3)
    bias = np.linspace(-1, 1, scales.size, dtype=np.float32)
    made, moved = (np.asarray(each) for each in fake_quantized_parameters(kernel, bias, kind, 1 / 128))
    steps = made / scales
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(np.round(steps)).max() <= 127
    assert (np.abs(made - kernel) <= scales * 0.5001).all()
    assert np.isfinite(moved).all()
    alive = scales.reshape(-1) > 1e-6
    assert (np.abs(moved - bias)[alive] <= scales.reshape(-1)[alive] / 128 * 0.5001 + 1e-6).all()
    again, _ = fake_quantized_parameters(made, moved, kind, 1 / 128)
    np.testing.assert_allclose(again, made, rtol=1e-6)


def test_gradients_pass_the_rounding_and_stop_where_values_are_cut_off() -> None:
    import tensorflow as tf

    kernel, x = tf.Variable([[[[0.3], [1.0]]]]), tf.Variable([0.3, 9.0, -9.0])
    with tf.GradientTape() as tape:
        made, _ = fake_quantized_parameters(kernel, tf.zeros(2), Kind.DEPTHWISE, 0.01)
        total = tf.reduce_sum(made) * 2 + tf.reduce_sum(fake_quantized(x, grid(-1, 1)))
    for_kernel, for_x = tape.gradient(total, [kernel, x])
    np.testing.assert_array_equal(np.ravel(for_kernel), [2, 2])
    np.testing.assert_array_equal(for_x, [1, 0, 0])


def test_rounded_weights_are_what_the_fake_quantized_network_uses() -> None:
    _, weights = folded(LINEAR)
    for stage in weighted(LINEAR):
        kernel, bias = weights[f"{stage.name}/kernel"], weights[f"{stage.name}/bias"]
        fake, _ = fake_quantized_parameters(kernel, bias, stage.kind, 0.1)
        np.testing.assert_allclose(fake, rounded_weights(LINEAR, weights)[f"{stage.name}/kernel"], atol=1e-6)


# Ranges


def test_the_image_is_byte_less_128() -> None:
    assert image_grid(Normalization.SYMMETRIC) == Grid(1 / 128, 0)
    assert image_grid(Normalization.UNIT) == Grid(1 / 255, -128)
    assert (image_grid(Normalization.SYMMETRIC).low, image_grid(Normalization.SYMMETRIC).high) == (-1, 127 / 128)


def test_an_outlier_widens_minmax_but_neither_percentile_nor_least_squares() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    values[0] = 16.0
    spans = {method: choose(values).high for method, choose in METHODS.items()}
    assert spans[Calibration.MINMAX] > 15.9
    assert 6 < spans[Calibration.PERCENTILE] < 12
    assert spans[Calibration.MSE] < 14

    def error(made: Grid) -> float:
        return float(np.mean((made.rounded(values) - values) ** 2))

    assert error(METHODS[Calibration.MSE](values)) < error(METHODS[Calibration.MINMAX](values))
