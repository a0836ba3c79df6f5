"""Rewrites that move no bit: paddings folded, reshapes dropped."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings

from codegen.reduction import is_global
from codegen.simplify import simplify
from mnet import golden
from mnet.graph import AveragePool2D, Conv2D, DepthwiseConv2D, Graph, Pad, Reshape
from mnet.oracle import LITERT
from tests.models import tiny_mobilenet
from tests.strategies import random_input, small_graphs


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=small_graphs())
def test_the_output_keeps_its_bytes(graph: Graph) -> None:
    smaller = simplify(graph)
    x = random_input(graph, 9, 2)
    expected, got = golden.run(graph, LITERT, x), golden.run(smaller, LITERT, x)
    assert got[smaller.outputs[0]].tobytes() == expected[graph.outputs[0]].tobytes()
    for name, values in got.items():
        assert values.tobytes() == expected[name].tobytes(), name


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=small_graphs(kinds=("pad", "conv", "depthwise")))
def test_a_pad_before_convolutions_becomes_their_padding(graph: Graph) -> None:
    smaller = simplify(graph)
    for op in smaller.ops:
        if isinstance(op, Pad):
            readers = smaller.consumers(op.output)
            assert op.output == smaller.outputs[0] or not all(isinstance(r, Conv2D | DepthwiseConv2D) for r in readers)


def test_reshapes_that_move_nothing_go() -> None:
    graph = tiny_mobilenet()
    source = graph.tensors[graph.outputs[0]]
    flat = replace(source, name="flat")
    twice = replace(source, name="twice")
    reshaped = replace(
        graph,
        tensors={**graph.tensors, "flat": flat, "twice": twice},
        ops=(
            *graph.ops,
            Reshape("r1", graph.outputs[0], "flat", source.shape),
            Reshape("r2", "flat", "twice", source.shape),
        ),
        outputs=("twice",),
    )
    smaller = simplify(reshaped)
    assert not any(isinstance(op, Reshape) for op in smaller.ops)
    x = random_input(graph, 1, 2)
    np.testing.assert_array_equal(
        golden.run(smaller, LITERT, x)[smaller.outputs[0]], golden.run(reshaped, LITERT, x)["twice"]
    )


def test_an_average_over_windows_is_not_global() -> None:
    graph = tiny_mobilenet()
    height, width, _ = graph.tensors[graph.inputs[0]].shape
    pool = AveragePool2D("p", graph.inputs[0], "y", (height, width), (1, 1), (0, 0, 0, 0), (-128, 127))
    assert is_global(pool, graph)
    assert not is_global(replace(pool, kernel=(height - 1, width)), graph)
    assert not is_global(replace(pool, padding=(1, 0, 0, 0), kernel=(height + 1, width)), graph)
