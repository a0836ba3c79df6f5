"""FULLY_CONNECTED of one row of values or more, in every form that a file may have: both runtimes, and C."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.graph import Conv2D, FullyConnected, Graph, Reshape, Shape
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, ORACLES
from mnet.tflite import parse_model
from tests.models import Builder
from tests.strategies import random_input, small_graphs
from tests.test_generate import compare_on_host, described
from tests.test_tflite import message
from tests.writer import edited, serialise


def layer(shape: Shape, outputs: int, per_channel: bool = False) -> bytes:
    """Return the file of a layer over the channels of each pixel, or over the values of a vector."""
    build = Builder(1, shape, scale=0.05, zero_point=-3)
    dense = build.dense_of_pixels if shape[0] * shape[1] > 1 else build.fully_connected
    return serialise(build.graph(dense("input", outputs, per_channel=per_channel, zero_point=5)))


def shaped(data: bytes, source: list[int], output: list[int], keep: bool) -> bytes:
    """Return the file with other shapes of input and output."""

    def change(model: Any) -> None:
        (subgraph,) = model.subgraphs
        subgraph.tensors[subgraph.inputs[0]].shape, subgraph.tensors[subgraph.outputs[0]].shape = source, output
        subgraph.operators[0].builtinOptions.keepNumDims = keep

    return edited(data, change)


# shape of the pixels as they are written; shapes in the file; keep_num_dims; ops that it becomes
FORMS = [
    ((1, 6, 5), [6, 5], [6, 4], False, (Conv2D,)),
    ((1, 6, 5), [6, 5], [6, 4], True, (Conv2D,)),
    ((1, 6, 5), [1, 6, 5], [1, 6, 4], True, (Conv2D,)),
    ((1, 6, 5), [1, 6, 5], [6, 4], False, (Conv2D,)),
    ((2, 3, 5), [2, 3, 5], [2, 3, 4], True, (Conv2D,)),
    ((2, 3, 5), [1, 2, 3, 5], [1, 2, 3, 4], True, (Conv2D,)),
    ((2, 3, 5), [1, 2, 3, 5], [6, 4], False, (Conv2D, Reshape)),
    ((1, 2, 15), [1, 2, 3, 5], [2, 4], False, (Reshape, Conv2D)),
    ((1, 1, 30), [1, 2, 3, 5], [1, 4], False, (FullyConnected,)),
    ((1, 1, 30), [30], [1, 4], False, (FullyConnected,)),
    ((1, 1, 30), [1, 1, 1, 30], [1, 1, 1, 4], True, (FullyConnected,)),
]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("pixels", "source", "output", "keep", "kinds"), FORMS)
def test_every_form_equals_both_runtimes(
    pixels: Shape, source: list[int], output: list[int], keep: bool, kinds: tuple[type, ...], per_channel: bool
) -> None:
    data = shaped(layer(pixels, 4, per_channel), source, output, keep)
    graph = parse_model(data, "net.tflite")
    assert tuple(type(op) for op in graph.ops) == kinds
    inputs = random_input(graph, 2, 8)
    ours, theirs = golden.run(graph, LITERT, inputs), run_litert(data, graph, inputs)
    assert np.array_equal(ours[graph.outputs[0]], theirs[graph.outputs[0]])
    worker = pytest.importorskip("tests.test_runtimes")
    tflm = worker.tflm_worker.run(data, [inputs[graph.inputs[0]]], [graph.tensors[graph.outputs[0]].index], 1 << 20)
    found = next(iter(tflm.values())).reshape(theirs[graph.outputs[0]].shape)
    assert np.array_equal(golden.run(graph, ORACLES["tflm"], inputs)[graph.outputs[0]], found)


def without_bias(absent: Callable[[Any], None]) -> None:
    data = edited(layer((1, 6, 5), 4), absent)
    graph = parse_model(data, "net.tflite")
    (op,) = graph.ops
    assert isinstance(op, Conv2D) and not op.bias.any()
    inputs = random_input(graph, 2, 4)
    theirs = run_litert(data, graph, inputs)
    assert np.array_equal(golden.run(graph, LITERT, inputs)[graph.outputs[0]], theirs[graph.outputs[0]])


def test_a_bias_may_be_missing() -> None:
    def cut(model: Any) -> None:
        model.subgraphs[0].operators[0].inputs = model.subgraphs[0].operators[0].inputs[:2]

    def none(model: Any) -> None:
        operator = model.subgraphs[0].operators[0]
        operator.inputs = [*operator.inputs[:2], -1]

    without_bias(cut)
    without_bias(none)


def test_values_that_make_no_whole_rows_are_refused() -> None:
    data = shaped(layer((1, 6, 5), 4), [1, 6, 6], [1, 6, 4], True)
    assert "its weights take 5 values, its input has 36" in message(data)
    assert "the file is damaged" in message(shaped(layer((1, 6, 5), 4), [1, 6, 5], [1, 5, 4], True))


KINDS = ("dense of pixels", "dense of pixels", "pointwise", "residual", "reduce", "dense")


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=small_graphs(kinds=KINDS, most_ops=4),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    oracle=st.sampled_from(sorted(ORACLES)),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_dense_layers_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, oracle: str, mode: str, sanitizers: bool
) -> None:
    made = plan(drop_dead_channels(simplify(graph), ORACLES[oracle]), target(name), ORACLES[oracle], mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("generated") / graph.name, sanitizers)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)
