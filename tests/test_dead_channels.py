"""Simplification changes no bit, and every constant that it claims is one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels, intervals
from codegen.simplify import simplify
from mnet import golden
from mnet.graph import Graph, macs_of
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
