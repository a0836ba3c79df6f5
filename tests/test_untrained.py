"""Graphs of networks that nobody has trained: as the converter would make them, and none of their channels dead."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels
from codegen.simplify import simplify
from mnet.architecture import Head, build, import_keras, mobilenet, shape_of
from mnet.cost import cost
from mnet.graph import Conv2D, DepthwiseConv2D, Graph, macs_of, weights_of
from mnet.oracle import LITERT
from mnet.quantization import convert
from mnet.recipes import Normalization, recipe
from mnet.tflite import parse_model
from mnet.untrained import untrained_graph


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]), st.booleans(), st.sampled_from(list(Head)))
def test_it_costs_what_its_architecture_costs(height: int, width: int, channels: int, linear: bool, head: Head) -> None:
    shape = shape_of("8s2,16,24s2,16", linear_depthwise=linear)
    net = mobilenet(1.0, (height, width), channels, 7, shape=shape, head=head)
    graph, total = untrained_graph(net), cost(net)
    assert sum(macs_of(graph, op) for op in graph.ops) == total.multiply_adds
    assert sum(weights_of(op) for op in graph.ops) == total.weights


@pytest.mark.parametrize("name", ["tiny", "small", "large"])
def test_no_channel_is_dead(name: str) -> None:
    graph = simplify(untrained_graph(mobilenet(1.0, (32, 32), 3, 10, shape=recipe(name).shape)))
    live = drop_dead_channels(graph, LITERT)
    assert [live.tensors[op.output].shape for op in live.ops] == [graph.tensors[op.output].shape for op in graph.ops]


def _skeleton(graph: Graph) -> list[object]:
    """Return all of the operators but weights, and scales that training chooses."""
    rows: list[object] = []
    for op in simplify(graph).ops:
        row: list[object] = [type(op), graph.tensors[op.output].shape]
        if isinstance(op, Conv2D | DepthwiseConv2D):
            row += [op.weights.shape, op.stride, op.padding, op.activation]
        rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("linear", "head"), [(True, Head.SOFTMAX), (False, Head.ARGMAX)])
def test_it_is_what_the_converter_makes_of_the_keras_model(linear: bool, head: Head) -> None:
    shape = shape_of("8s2,16,24s2,16s2", linear_depthwise=linear)
    net = mobilenet(1.0, (28, 20), 1, 5, shape=shape, head=head)
    import_keras()
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 20, 1), np.uint8)
    content = convert(build(net), images, Normalization.SYMMETRIC, "net")
    made, ours = parse_model(content, Path("net.tflite")), untrained_graph(net)
    assert _skeleton(made) == _skeleton(ours)
    for one, other in zip(simplify(made).ops, simplify(ours).ops, strict=True):
        if one.name.startswith(("conv1", "conv_pw")):  # a linear depthwise's is at -128 only after `mnet quantize`
            assert made.tensors[one.output].zero_point == ours.tensors[other.output].zero_point == -128, one.name
    assert replace(made.tensors[made.inputs[0]], name="", index=-1) == replace(ours.tensors[ours.inputs[0]], name="")
