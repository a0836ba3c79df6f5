"""The golden model against LiteRT's reference kernels, every tensor, and against plain loops."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnet import golden
from mnet.graph import Conv2D, DepthwiseConv2D, Graph, Int8Array
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT
from mnet.resources import shared_folder
from mnet.tflite import parse_model, read_model
from tests.models import Builder, tiny_autoencoder, tiny_mobilenet, tiny_residual
from tests.strategies import random_input, small_graphs
from tests.writer import edited, serialise

SHARED_MODELS = ("vww_96_int8", "kws_ref_model", "pretrainedResnet_quant", "ad01_int8")


def assert_equal(golden_values: dict[str, Int8Array], oracle_values: dict[str, Int8Array]) -> None:
    for name, expected in oracle_values.items():
        found = golden_values[name]
        if not np.array_equal(found, expected):
            first = tuple(np.argwhere(found != expected)[0])
            pytest.fail(f"{name}: at {first} golden has {found[first]}, LiteRT {expected[first]}")


def compare(data: bytes | Path, graph: Graph, inputs: Mapping[str, Int8Array]) -> None:
    assert_equal(golden.run(graph, LITERT, inputs), run_litert(data, graph, inputs))


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_every_tensor_of_a_published_model_equals_litert(name: str) -> None:
    folder = shared_folder()
    path = folder / "models" / f"{name}.tflite" if folder else None
    if path is None or not path.exists():
        pytest.skip(f"no {name}.tflite: set MNET_SHARED to the folder that has models/")
    graph = read_model(path)
    assert all(tensor.index >= 0 for tensor in graph.tensors.values())
    compare(path, graph, random_input(graph, seed=0, count=6))


@pytest.mark.parametrize("make", (tiny_mobilenet, tiny_residual, tiny_autoencoder))
def test_every_tensor_of_a_tiny_model_equals_litert(make: type[Graph]) -> None:
    data = serialise(make())
    graph = parse_model(data, "tiny.tflite")
    compare(data, graph, random_input(graph, seed=1, count=12))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(0, 1000))
def test_random_graphs_equal_litert(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    compare(data, parse_model(data, "drawn.tflite"), random_input(graph, seed, 3))


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(most_ops=8), st.integers(0, 1000))
def test_many_random_graphs_equal_litert(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    compare(data, parse_model(data, "drawn.tflite"), random_input(graph, seed, 4))


@settings(max_examples=40, deadline=None)
@given(small_graphs(kinds=("conv", "depthwise"), most_ops=1))
def test_windows_are_where_plain_loops_find_them(graph: Graph) -> None:
    op = graph.ops[0]
    assert isinstance(op, Conv2D | DepthwiseConv2D)
    x = random_input(graph, 0)[op.input]
    offset = x[0].astype(int) - graph.tensors[op.input].zero_point
    height, width, channels = graph.tensors[op.output].shape
    weights = op.weights.astype(int)
    expected = np.tile(op.bias.astype(int), (height, width, 1))
    taps = weights.shape[1:3] if isinstance(op, Conv2D) else weights.shape[:2]
    for y, x_out, row, column in np.ndindex(height, width, *taps):
        y_in = y * op.stride[0] - op.padding[0] + row * op.dilation[0]
        x_in = x_out * op.stride[1] - op.padding[2] + column * op.dilation[1]
        if 0 <= y_in < offset.shape[0] and 0 <= x_in < offset.shape[1]:
            if isinstance(op, Conv2D):
                expected[y, x_out] += weights[:, row, column] @ offset[y_in, x_in]
            else:
                sources = np.arange(channels) // op.depth_multiplier
                expected[y, x_out] += weights[row, column] * offset[y_in, x_in][sources]
    assert np.array_equal(golden.accumulate(op, graph, x)[0], expected)


@pytest.mark.parametrize("kind", ("conv", "depthwise"))
def test_convolutions_with_one_scale_for_all_channels_equal_litert(kind: str) -> None:
    build = Builder(2, (6, 5, 3))
    data = serialise(build.graph(build.conv("input", 3) if kind == "conv" else build.depthwise("input")))

    def merge_scales(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if tensor.name.endswith(b"_weights"):
                quantization = tensor.quantization
                quantization.scale, quantization.zeroPoint = quantization.scale[:1], quantization.zeroPoint[:1]

    data = edited(data, merge_scales)
    graph = parse_model(data, "per_tensor.tflite")
    op = graph.ops[0]
    assert isinstance(op, Conv2D | DepthwiseConv2D) and len(set(op.weight_scales.tolist())) == 1
    compare(data, graph, random_input(graph, 0, 8))


def test_average_pool_rounds_halves_away_from_zero() -> None:
    build = Builder(0, (1, 2, 2), scale=0.1, zero_point=0)
    graph = build.graph(build.average_pool("input", (1, 2)))
    x = {"input": np.array([[[[1, -1], [2, -2]]]], np.int8)}
    assert golden.run(graph, LITERT, x)[graph.outputs[0]].ravel().tolist() == [2, -2]


def test_max_pool_leaves_padding_out() -> None:
    build = Builder(0, (1, 1, 2), scale=0.1, zero_point=127)
    graph = build.graph(build.max_pool("input", (3, 3), same=True))
    x = {"input": np.array([[[[-128, -5]]]], np.int8)}
    assert golden.run(graph, LITERT, x)[graph.outputs[0]].ravel().tolist() == [-128, -5]


def test_softmax_of_600_equal_classes_is_the_smallest_value() -> None:
    build = Builder(0, (1, 1, 600), scale=0.1, zero_point=0)
    graph = build.graph(build.softmax("input"))
    assert (golden.run(graph, LITERT, {"input": np.zeros((1, 1, 1, 600), np.int8)})[graph.outputs[0]] == -128).all()


def test_batches_give_what_single_inputs_give() -> None:
    graph = tiny_residual()
    inputs = random_input(graph, seed=5, count=20)
    together = golden.run(graph, LITERT, inputs)
    alone = golden.run(graph, LITERT, {"input": inputs["input"][17:18]})
    for name, values in alone.items():
        assert np.array_equal(together[name][17:18], values)


def test_no_inputs_give_no_outputs() -> None:
    graph = tiny_autoencoder()
    nothing = {"input": np.empty((0, 1, 1, 24), np.int8)}
    assert golden.run(graph, LITERT, nothing)[graph.outputs[0]].shape == (0, 1, 1, 24)


def test_wrong_inputs_are_refused() -> None:
    graph = tiny_autoencoder()
    for inputs in (np.zeros((1, 1, 1, 23), np.int8), np.zeros((1, 1, 1, 24), np.uint8), np.zeros((1, 1, 24), np.int8)):
        with pytest.raises(ValueError, match=r"int8 \[n, 1, 1, 24\]"):
            golden.run(graph, LITERT, {"input": inputs})
    with pytest.raises(ValueError, match="'input' is missing"):
        golden.run(graph, LITERT, {"image": np.zeros((1, 1, 1, 24), np.int8)})
