"""Where oracles differ, and the integers that they derive from scales."""

from dataclasses import replace

import numpy as np
import pytest

from mnet import golden
from mnet.graph import Binary, Dense, FullyConnected, Graph, Softmax, Tensor
from mnet.litert_runtime import run_litert
from mnet.oracle import (
    LITERT,
    ORACLES,
    TFLM,
    Rounding,
    accumulator_bound,
    requantization,
    requantize,
)
from mnet.pairs import binary_arithmetic
from mnet.reductions import softmax_arithmetic, sum_arithmetic
from mnet.tflite import parse_model
from tests.models import Builder, tiny_residual
from tests.writer import serialise


def dense(scale: float, per_channel: bool) -> Graph:
    """Return a dense layer whose accumulators are multiples of its input and whose effective scale is `scale`."""
    weights = np.array([[1], [2], [3], [5], [-1], [-7], [100]], np.int8)
    kind = Dense.PER_CHANNEL if per_channel else Dense.PER_TENSOR
    op = FullyConnected("dense", "input", "out", weights, np.zeros(7, np.int32), np.full(7, scale), kind, (-128, 127))
    tensors = {"input": Tensor("input", (1, 1, 1), 1.0, 0), "out": Tensor("out", (1, 1, 7), 1.0, 0)}
    return Graph("dense", tensors, (op,), ("input",), ("out",), "0" * 16)


@pytest.mark.parametrize("per_channel", (False, True))
@pytest.mark.parametrize("scale", (0.5, 0.25, 0.125))
def test_litert_rounds_halves_of_dense_layers_away_from_zero(scale: float, per_channel: bool) -> None:
    data = serialise(dense(scale, per_channel))
    graph = parse_model(data, "dense.tflite")
    inputs = np.arange(-128, 128).astype(np.int8).reshape(-1, 1, 1, 1)
    given = {"input": inputs}
    found = run_litert(data, graph, given)["out"]
    assert np.array_equal(golden.run(graph, LITERT, given)["out"], found)
    for rounding in (Rounding.SINGLE, Rounding.DOUBLE):
        other = replace(LITERT, fully_connected=rounding, fully_connected_per_channel=rounding)
        assert not np.array_equal(golden.run(graph, other, given)["out"], found)


def test_tflm_multiplies_the_scales_of_a_dense_layer_in_float32() -> None:
    graph = dense(float(np.float32(0.1)), False)
    tensors = {**graph.tensors, "input": replace(graph.tensors["input"], scale=float(np.float32(0.3)))}
    graph = replace(graph, tensors=tensors)
    op = graph.ops[0]
    assert isinstance(op, FullyConnected)
    assert requantization(op, graph, TFLM).scale[0] == np.float32(np.float32(0.3) * np.float32(0.1))
    assert requantization(op, graph, LITERT).scale[0] == float(np.float32(0.3)) * float(np.float32(0.1))


def test_requantisation_saturates_at_the_activation_and_never_falls() -> None:
    graph = tiny_residual()
    op = graph.ops[0]
    for oracle in ORACLES.values():
        how = requantization(op, graph, oracle)
        bound = int(accumulator_bound(op, graph).max())
        ramp = np.linspace(-bound, bound, 5000).astype(np.int64)[:, None] + np.zeros(len(op.bias), np.int64)
        out = requantize(ramp, how).astype(np.int32)
        assert (np.diff(out, axis=0) >= 0).all()
        assert out.min() >= how.activation[0] and out.max() <= how.activation[1]


def test_bound_holds_for_the_input_that_reaches_it() -> None:
    build = Builder(3, (1, 1, 50), scale=0.1, zero_point=-128)
    graph = build.graph(build.fully_connected("input", 4))
    op = graph.ops[0]
    assert isinstance(op, FullyConnected)
    bound = accumulator_bound(op, graph)
    worst = np.where(op.weights > 0, 127, -128).astype(np.int8)[:, None, None, :]
    reached = np.abs(golden.accumulate(op, graph, worst)).reshape(4, 4).diagonal()
    assert (reached <= bound).all() and (reached > bound // 4).all()


def test_add_has_the_published_constants() -> None:
    graph = tiny_residual()
    op = next(op for op in graph.ops if isinstance(op, Binary))
    how = binary_arithmetic(op, graph, LITERT)
    assert how.left_shift == 20
    assert (1 << 30, 0) in zip(how.input_multipliers, how.input_shifts, strict=True)  # the larger scale is halved
    assert max(*how.input_shifts, how.output_shift) <= 0


def test_mean_folds_the_count_into_the_multiplier() -> None:
    build = Builder(1, (5, 7, 2), scale=0.1)
    graph = build.graph(build.mean("input", ratio=1.0))
    how = sum_arithmetic(graph.ops[0], graph, LITERT)
    assert how.count == 35 and how.multiplier == (1 << 30 << 5) // 35 and how.shift == 1 - 5


def test_softmax_caps_the_multiplier_of_a_wide_input() -> None:
    op = Softmax("softmax", "input", "out", 1.0)
    for scale, expected in ((1 / 16, (1 << 30, 23, -248)), (100.0, (1 << 30, 31, 0))):
        graph = Graph("", {"input": Tensor("input", (1, 1, 3), scale, 0)}, (op,), ("input",), ("out",), "")
        how = softmax_arithmetic(op, graph)
        assert how.left_shift == expected[1] and how.difference_min == expected[2]
