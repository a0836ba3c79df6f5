"""Simplification changes no bit, and every constant that it claims is one."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels, intervals
from codegen.simplify import simplify
from mnet import golden
from mnet.graph import Conv2D, Graph, Tensor, check_graph, macs_of
from mnet.oracle import LITERT, ORACLES
from mnet.resources import shared_folder
from mnet.tflite import read_model
from mnet.verify import compare_constants, random_inputs
from tests.strategies import random_input, small_graphs


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=small_graphs(), oracle=st.sampled_from(sorted(ORACLES)))
def test_live_channels_keep_their_values(graph: Graph, oracle: str) -> None:
    smaller = drop_dead_channels(simplify(graph), ORACLES[oracle])
    x = random_input(graph, 5, 4)
    expected = golden.run(graph, ORACLES[oracle], x)
    got = golden.run(smaller, ORACLES[oracle], x)
    for name, values in got.items():
        live = smaller.tensors[name].live
        np.testing.assert_array_equal(values, expected[name][..., list(live)] if live else expected[name])
    assert compare_constants("constants", smaller, expected).status == "equal"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=small_graphs())
def test_values_stay_within_their_intervals(graph: Graph) -> None:
    known = intervals(graph, LITERT)
    for name, values in golden.run(graph, LITERT, random_input(graph, 3, 6)).items():
        assert (values >= known[name].low).all() and (values <= known[name].high).all(), name


def test_half_of_vww_is_dead() -> None:
    shared = shared_folder()
    if shared is None:
        pytest.skip("no shared models")
    graph = read_model(shared / "models" / "vww_96_int8.tflite")
    smaller = drop_dead_channels(simplify(graph), LITERT)
    before, after = (sum(macs_of(g, op) for op in g.ops) for g in (graph, smaller))
    assert before == 7_489_664
    assert after < 0.5 * before
    expected = golden.run(graph, LITERT, random_inputs(graph, 4, 0))
    leg = compare_constants("constants", smaller, expected)
    assert leg.status == "equal" and leg.values > 10_000


def test_a_channel_that_stands_for_none_has_its_right_value() -> None:
    """Where every channel of a layer is dead one is kept, and traced: what it is made of must be kept as well."""
    rng = np.random.default_rng(3)
    tensors = [Tensor(name, (3, 3, 4), 0.05, -128) for name in ("input", "a", "b", "c")]
    ops = []
    for number, (source, target) in enumerate(itertools.pairwise(tensors)):
        # The last convolution multiplies by zero, so that nothing of the second one is needed.
        weights = rng.integers(-90, 91, (4, 3, 3, 4)).astype(np.int8) * (number < 2)
        ops.append(
            Conv2D(
                name=f"conv_{number}",
                input=source.name,
                output=target.name,
                weights=weights.astype(np.int8),
                bias=rng.integers(0, 900, 4).astype(np.int32),
                weight_scales=np.full(4, 0.004),
                stride=(1, 1),
                padding=(1, 1, 1, 1),
                dilation=(1, 1),
                activation=(-128, 127),
            )
        )
    graph = check_graph(Graph("net", {t.name: t for t in tensors}, tuple(ops), ("input",), ("c",), "0" * 16))
    narrow = drop_dead_channels(graph, LITERT)
    assert narrow.tensors["b"].live == (0,)
    images = random_input(graph, 1, 3)
    whole, kept = golden.run(graph, LITERT, images), golden.run(narrow, LITERT, images)
    for name, tensor in narrow.tensors.items():
        expected = whole[name][..., list(tensor.live)] if tensor.live else whole[name]
        np.testing.assert_array_equal(kept[name], expected)
