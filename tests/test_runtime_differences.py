"""Where runtimes differ, operator by operator: each line of mnet/docs/runtimes.md has its test here.

A runtime's rule is spelled out in NumPy, and must give every bit of what the runtime gives; where it is said to differ
from LiteRT's reference kernels, it must do so on the very same values.
"""

import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mnet
from mnet import golden
from mnet.fixed_point import multiply_rounding_twice, quantize_multiplier, saturating_rounding_doubling_high_multiply
from mnet.graph import (
    Binary,
    BinaryFunction,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Int8Array,
    Op,
    Reduce,
    Unary,
    UnaryFunction,
    inputs_of,
)
from mnet.litert_runtime import Kernels, run_litert
from mnet.oracle import LITERT, TFLM, Requantization, requantization, requantize
from mnet.pairs import quantizations
from mnet.runtimes import RUNTIMES
from mnet.tflite import parse_model
from tests.models import Builder
from tests.strategies import random_input
from tests.writer import serialise

# Fast kernels are written for each family of processors anew; what is said of them here was seen on x86-64.
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels for x86-64")

Build = Callable[[Builder, int], str]  # a network and a zero_point -> its output
ZERO_POINTS = (-128, 0, 3, 127, -40)


def networks(
    build: Build, shape: tuple[int, int, int], count: int = 12
) -> Iterator[tuple[Graph, bytes, dict[str, Int8Array]]]:
    """Yield networks that end in one operator, as a graph, as a file, and inputs for it."""
    for seed in range(count):
        builder = Builder(seed, shape, scale=(1 / 128, 1 / 255, 0.1)[seed % 3], zero_point=(-128, 0, 5)[seed // 3 % 3])
        data = serialise(builder.graph(build(builder, ZERO_POINTS[seed % 5])))
        graph = parse_model(data, "one.tflite")
        yield graph, data, random_input(graph, seed, 40)


def differing(build: Build, shape: tuple[int, int, int], kernels: Kernels, rule: "Rule | None" = None) -> int:
    """Return how many values differ from the reference kernels', having checked that `rule` explains them all."""
    count = 0
    for graph, data, inputs in networks(build, shape):
        op = graph.ops[-1]
        made = run_litert(data, graph, inputs, kernels)
        sources = tuple(made[name] for name in inputs_of(op))
        if rule is not None:
            np.testing.assert_array_equal(rule(op, graph, *sources), made[op.output])
        count += int((golden.compute(op, graph, LITERT, sources) != made[op.output]).sum())
    return count


Rule = Callable[..., Int8Array]  # an op, its graph, its inputs -> its output


def finish(scaled: npt.NDArray[np.floating] | npt.NDArray[np.integer], op: Op, graph: Graph) -> Int8Array:
    activation = (-128, 127) if isinstance(op, Reduce) else op.activation  # type: ignore[union-attr]
    return np.clip(scaled + graph.tensors[op.output].zero_point, *activation).astype(np.int8)


def halves_upwards(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Round twice as the reference does, but in the second step, the shift, halves upwards."""
    assert isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected)
    oracle = TFLM if isinstance(op, FullyConnected) else LITERT  # both multiply scales as float32
    how: Requantization = requantization(op, graph, oracle)
    right = np.maximum(-how.shift.astype(np.int64), 0)
    shifted = golden.accumulate(op, graph, x).astype(np.int64) << np.maximum(how.shift.astype(np.int64), 0)
    high = saturating_rounding_doubling_high_multiply(shifted, how.multiplier)
    return finish((high + ((1 << right) >> 1)) >> right, op, graph)


def groups_of_eight(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Round the output channels of whole groups of eight with halves upwards, the rest like the reference."""
    assert isinstance(op, DepthwiseConv2D)
    made = requantize(golden.accumulate(op, graph, x), requantization(op, graph, LITERT))
    grouped = made.shape[-1] // 8 * 8
    made[..., :grouped] = halves_upwards(op, graph, x)[..., :grouped]
    return made


def single_precision(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Multiply by the scale in single precision; halves to even."""
    assert isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected)
    source, target = (np.float32(graph.tensors[name].scale) for name in (op.input, op.output))
    scale = source * op.weight_scales.astype(np.float32) / target
    return finish(np.rint(golden.accumulate(op, graph, x).astype(np.float32) * scale), op, graph)


def add_in_21_bits(op: Op, graph: Graph, a: Int8Array, b: Int8Array) -> Int8Array:
    """Multiply each input by 21 bits of its scale; one shift of the sum or difference, halves upwards."""
    assert isinstance(op, Binary)
    first, second = (graph.tensors[name] for name in op.inputs)
    ratios = [float(np.float32(t.scale) / np.float32(graph.tensors[op.output].scale)) for t in (first, second)]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    multipliers = [int(np.rint(ratio * 2.0**shift)) for ratio in ratios]
    sign = -1 if op.function is BinaryFunction.SUB else 1
    total = (a.astype(np.int64) - first.zero_point) * multipliers[0]
    total += sign * (b.astype(np.int64) - second.zero_point) * multipliers[1]
    return finish((total + (1 << (shift - 1))) >> shift, op, graph)


def mean_in_single_precision(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Scale the sum and add the zero_point in single precision, then round, halves to even."""
    assert isinstance(op, Reduce)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    count = x.shape[1] * x.shape[2]
    sums = x.sum(axis=(1, 2), keepdims=True, dtype=np.int64) - count * source.zero_point
    scale = np.float32(source.scale) / np.float32(target.scale) / np.float32(count)
    return np.clip(np.rint(sums.astype(np.float32) * scale + np.float32(target.zero_point)), -128, 127).astype(np.int8)


def mean_with_an_offset(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Scale the sum of quantized values; the zero_points become one offset, rounded before it is added."""
    assert isinstance(op, Reduce)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    count = x.shape[1] * x.shape[2]
    first, second = np.float32(source.scale), np.float32(target.scale)
    how = quantize_multiplier(float(first / (np.float32(count) * second)))
    real = np.float32(source.zero_point) * first / second
    offset = int(real + np.copysign(np.float32(0.5), real))
    scaled = multiply_rounding_twice(x.sum(axis=(1, 2), keepdims=True, dtype=np.int64), *how)
    return finish(scaled - offset, op, graph)


def test_the_document_names_tests_that_exist() -> None:
    """Each long name in backticks of the table is a test of this file, and each test of this file is named there."""
    text = (Path(mnet.__file__).parent / "docs" / "runtimes.md").read_text()
    table = "\n".join(line for line in text.partition("operator by operator")[2].splitlines() if line.startswith("|"))
    named = {f"test_{name}" for name in re.findall(r"`(\w+(?:_\w+){4,})`", table)}
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_document_names_tests_that_exist"}
    assert named == here


# --- networks ---------------------------------------------------------------------------------------------------------


def conv(builder: Builder, zero_point: int) -> str:
    return builder.conv("input", 5, (3, 3), activation="none", zero_point=zero_point)


def pointwise(builder: Builder, zero_point: int) -> str:
    return builder.conv("input", 8, activation="none", zero_point=zero_point)


def product_in_single_precision(op: Op, graph: Graph, *sources: Int8Array) -> Int8Array:
    """Multiply the product by a scale in single precision; halves to even."""
    assert isinstance(op, Binary)
    constant = np.empty(0, np.int8) if op.constant is None else op.constant.values
    of_first, of_second = quantizations(op, graph)
    first, second = (
        values.astype(np.int32) - how.zero_point
        for values, how in zip(op.operands(sources, constant), (of_first, of_second), strict=True)
    )
    scale = np.float32(of_first.scale) * np.float32(of_second.scale) / np.float32(graph.tensors[op.output].scale)
    return finish(np.rint((first * second).astype(np.float32) * scale), op, graph)


def rescaled_in_8_bits(op: Op, graph: Graph, x: Int8Array) -> Int8Array:
    """Multiply by a scale with 8 fractional bits, another one below 0; one shift, halves upwards."""
    assert isinstance(op, Unary)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    ratio = 256 * np.float32(source.scale) / np.float32(target.scale)
    slope = np.float32(op.alpha if op.function is UnaryFunction.LEAKY_RELU else 1.0)
    value = x.astype(np.int64) - source.zero_point
    total = value * np.where(value >= 0, int(np.rint(ratio)), int(np.rint(ratio * slope)))
    return np.clip(((total + 128) >> 8) + target.zero_point, -128, 127).astype(np.int8)


def depthwise(builder: Builder, zero_point: int) -> str:
    return builder.depthwise("input", activation="none", zero_point=zero_point)


def doubling(builder: Builder, zero_point: int) -> str:
    return builder.depthwise("input", multiplier=2, activation="none", zero_point=zero_point)


def dense(builder: Builder, zero_point: int) -> str:
    return builder.fully_connected("input", 33, activation="none", zero_point=zero_point)


def dense_per_channel(builder: Builder, zero_point: int) -> str:
    return builder.fully_connected("input", 33, per_channel=True, activation="none", zero_point=zero_point)


def add(builder: Builder, zero_point: int) -> str:
    other = builder.conv("input", builder.shape("input")[2], activation="none", zero_point=3)
    return builder.add("input", other, activation="none", zero_point=zero_point)


def two_values(function: BinaryFunction, constant: bool = False) -> Build:
    """Return what builds a function of two values."""

    def build(builder: Builder, zero_point: int) -> str:
        channels = builder.shape("input")[2]
        other = builder.constant((1, 1, channels)) if constant else builder.conv("input", channels, zero_point=5)
        return builder.binary(function, "input", other, zero_point=zero_point)

    return build


def one_value(function: UnaryFunction) -> Build:
    """Return what builds a function of one value."""

    def build(builder: Builder, zero_point: int) -> str:
        ratio = 1e6 if function is UnaryFunction.EXP else 1.3  # exp(12) would not fit
        return builder.unary("input", function, zero_point=zero_point, ratio=ratio)

    return build


def mean(builder: Builder, zero_point: int) -> str:
    return builder.mean("input", zero_point=zero_point, ratio=(1.0, 0.7, 1.3)[zero_point % 3])


def average_pool(builder: Builder, zero_point: int) -> str:
    return builder.average_pool("input", (2, 3), (1, 1), same=zero_point % 2 == 0)


def pad(builder: Builder, zero_point: int) -> str:
    return builder.pad("input", (1, 0, 2, 1))


MAP, VECTOR = (6, 7, 12), (1, 1, 40)


# --- LiteRT's optimised kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", (conv, pointwise))
def test_optimised_convolutions_round_halves_upwards_in_the_second_step(build: Build) -> None:
    assert differing(build, MAP, Kernels.OPTIMISED, halves_upwards) > 0


@pytest.mark.parametrize("channels", (3, 8, 12, 17))
@pytest.mark.parametrize("build", (depthwise, doubling))
def test_optimised_depthwise_rounds_by_the_number_of_the_channel(build: Build, channels: int) -> None:
    found = differing(build, (6, 7, channels), Kernels.OPTIMISED, groups_of_eight)
    made = channels * (2 if build is doubling else 1)
    assert (found > 0) == (made >= 8)


@pytest.mark.parametrize("build", (dense, dense_per_channel))
def test_optimised_dense_layers_round_halves_upwards_in_the_second_step(build: Build) -> None:
    assert differing(build, VECTOR, Kernels.OPTIMISED, halves_upwards) > 0


def test_optimised_mean_rounds_its_offset_apart() -> None:
    assert differing(mean, MAP, Kernels.OPTIMISED, mean_with_an_offset) > 0


@pytest.mark.parametrize("build", (add, average_pool, pad))
def test_optimised_elementwise_pooling_and_padding_are_the_references(build: Build) -> None:
    assert differing(build, MAP, Kernels.OPTIMISED) == 0


@pytest.mark.parametrize("function", (*BinaryFunction, *sorted(LITERT.functions, key=lambda function: function.value)))
def test_optimised_functions_of_values_are_the_references(function: BinaryFunction | UnaryFunction) -> None:
    build = two_values(function) if isinstance(function, BinaryFunction) else one_value(function)
    assert differing(build, MAP, Kernels.OPTIMISED) == 0


# --- XNNPACK ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", (conv, pointwise, depthwise, doubling))
def test_xnnpack_convolutions_multiply_in_single_precision(build: Build) -> None:
    assert differing(build, MAP, Kernels.XNNPACK, single_precision) > 0


@pytest.mark.parametrize("build", (dense, dense_per_channel))
def test_xnnpack_dense_layers_multiply_in_single_precision(build: Build) -> None:
    """Like the reference kernels, but for a few ties: those multiply in double precision."""
    differing(build, VECTOR, Kernels.XNNPACK, single_precision)


@pytest.mark.parametrize("build", (add, two_values(BinaryFunction.SUB)))
def test_xnnpack_add_and_sub_have_multipliers_of_21_bits(build: Build) -> None:
    assert differing(build, MAP, Kernels.XNNPACK, add_in_21_bits) > 0


@pytest.mark.parametrize("constant", (False, True))
def test_xnnpack_products_are_scaled_in_single_precision(constant: bool) -> None:
    assert differing(two_values(BinaryFunction.MUL, constant), MAP, Kernels.XNNPACK, product_in_single_precision) > 0


@pytest.mark.parametrize("function", (UnaryFunction.QUANTIZE, UnaryFunction.LEAKY_RELU))
def test_xnnpack_rescales_values_in_8_bits(function: UnaryFunction) -> None:
    assert differing(one_value(function), MAP, Kernels.XNNPACK, rescaled_in_8_bits) > 0


_NOT_XNNPACK = {UnaryFunction.QUANTIZE, UnaryFunction.LEAKY_RELU}
_OTHERS = (BinaryFunction.MAXIMUM, BinaryFunction.PRELU, BinaryFunction.SQUARED_DIFFERENCE)


@pytest.mark.parametrize(
    "function", (*_OTHERS, *sorted(LITERT.functions - _NOT_XNNPACK, key=lambda function: function.value))
)
def test_other_functions_of_values_are_the_references_with_xnnpack(function: BinaryFunction | UnaryFunction) -> None:
    build = two_values(function) if isinstance(function, BinaryFunction) else one_value(function)
    assert differing(build, MAP, Kernels.XNNPACK) == 0


def test_xnnpack_mean_scales_in_single_precision() -> None:
    assert differing(mean, MAP, Kernels.XNNPACK, mean_in_single_precision) > 0


@pytest.mark.parametrize("build", (average_pool, pad))
def test_xnnpack_pooling_and_padding_are_the_references(build: Build) -> None:
    assert differing(build, MAP, Kernels.XNNPACK) == 0


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", (Kernels.OPTIMISED, Kernels.XNNPACK))
def test_softmax_by_a_table_differs_in_one_of_many_thousand_values(kernels: Kernels) -> None:
    builder = Builder(0, VECTOR, scale=0.1, zero_point=4)
    data = serialise(builder.graph(builder.softmax("input")))
    graph = parse_model(data, "softmax.tflite")
    inputs = {"input": np.random.default_rng(0).integers(-128, 128, (8000, *VECTOR)).astype(np.int8)}
    found, expected = run_litert(data, graph, inputs, kernels), golden.run(graph, LITERT, inputs)
    difference = np.abs(found[graph.outputs[0]].astype(int) - expected[graph.outputs[0]])
    assert 0 < (difference != 0).sum() < difference.size / 10_000 and difference.max() == 1


# --- TFLM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", (conv, depthwise, doubling, add, mean, average_pool, pad))
def test_tflm_rounds_like_the_references_outside_dense_layers(build: Build) -> None:
    pytest.importorskip("tflite_micro")
    graph, data, inputs = next(networks(build, MAP))
    found, expected = RUNTIMES["tflm"].run(data, graph, inputs), run_litert(data, graph, inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("build", (dense, dense_per_channel))
def test_tflm_rounds_dense_layers_twice_where_the_reference_rounds_once(build: Build) -> None:
    pytest.importorskip("tflite_micro")
    count = 0
    for graph, data, inputs in networks(build, VECTOR, 6):
        found = RUNTIMES["tflm"].run(data, graph, inputs)[graph.outputs[0]]
        np.testing.assert_array_equal(found, golden.run(graph, TFLM, inputs)[graph.outputs[0]])
        count += int((found != run_litert(data, graph, inputs)[graph.outputs[0]]).sum())
    assert count > 0
