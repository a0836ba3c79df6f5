"""Convolutions with any window, from LiteRT to emulated cores: kernels of 1 to 11, strides, dilations, multipliers."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.emit import emit, write_folder
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, verify
from mnet.emulator import run_unicorn
from mnet.graph import Graph
from mnet.oracle import LITERT
from mnet.tflite import parse_model
from mnet.toolchain import build_target
from tests.kernel_harness import needs_arm
from tests.models import Builder
from tests.strategies import random_input
from tests.test_generate import ORIGIN, compare_on_host, described
from tests.test_golden import compare
from tests.writer import serialise

_KERNEL = st.one_of(st.integers(1, 11), st.sampled_from((3, 5, 7)))
_STRIDE = st.sampled_from((1, 1, 2, 3, 4))
_DILATION = st.sampled_from((1, 1, 1, 2, 3))
TARGETS = ("cortex-m4", "cortex-m0", "cortex-m55")


@st.composite
def window_graphs(draw: st.DrawFn) -> Graph:
    """Draw one convolution or depthwise convolution of any geometry."""
    shape = (draw(st.integers(1, 13)), draw(st.integers(1, 13)), draw(st.integers(1, 9)))
    build = Builder(draw(st.integers(0, 1 << 30)), shape, zero_point=draw(st.sampled_from((-128, 3, 127))))
    kernel, stride, dilation = (draw(st.tuples(kind, kind)) for kind in (_KERNEL, _STRIDE, _DILATION))
    fits = all((k - 1) * d < size for k, d, size in zip(kernel, dilation, shape, strict=False))
    same = draw(st.booleans()) or not fits
    if draw(st.booleans()):
        return build.graph(build.conv("input", draw(st.integers(1, 6)), kernel, stride, dilation, same=same))
    multiplier = draw(st.sampled_from((1, 1, 2, 3)))
    return build.graph(build.depthwise("input", kernel, stride, dilation, multiplier=multiplier, same=same))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(window_graphs(), st.integers(0, 1000))
def test_windows_of_any_geometry_equal_litert(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    compare(data, parse_model(data, "drawn.tflite"), random_input(graph, seed, 3))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(window_graphs(), st.sampled_from(TARGETS))
def test_windows_of_any_geometry_are_generated(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str
) -> None:
    made = plan(simplify(graph), target(name), LITERT)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("window") / graph.name)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


def test_padding_on_the_right_may_begin_inside_a_word(tmp_path: Path) -> None:
    build = Builder(0, (8, 5, 3))
    x = build.conv("input", 6, (3, 3))  # on an M0 a row of 2 + 5 + 2 pixels of six bytes
    x = build.depthwise(x, (5, 5), zero_point=4, activation="none")
    graph = build.graph(build.depthwise(x, (7, 7)))
    made = plan(simplify(graph), target("cortex-m0"), LITERT, optimize="ram")
    leg = compare_on_host(graph, made, tmp_path / "net")
    assert leg.status == "equal", described(graph, leg)


def _many_windows() -> Graph:
    """Return a network whose layers are windows of all kinds."""
    build = Builder(3, (23, 21, 4), zero_point=-5, weight_scale=0.003)
    x = build.conv("input", 6, (11, 9), (2, 1))
    x = build.depthwise(x, (5, 5))
    x = build.depthwise(x, (7, 7), (1, 2), zero_point=4, activation="none")
    x = build.depthwise(x, (11, 11), (1, 1), (2, 1))
    x = build.conv(x, 5, (5, 7), (3, 3), (1, 2), zero_point=9, activation="none")
    x = build.depthwise(x, (3, 2), multiplier=3, same=False)
    return build.graph(x)


@needs_arm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m0"])
def test_windows_of_all_kinds_on_emulated_cores(name: str, tmp_path: Path) -> None:
    graph = _many_windows()
    made = plan(simplify(graph), target(name), LITERT)
    write_folder(tmp_path / "net", emit(made, ORIGIN))
    elf = build_target(tmp_path / "net", target(name), ("SUBJECT_TRACE", "SUBJECT_POISON"), "gcc", tmp_path / "build")
    tensors = golden.run(graph, LITERT, random_input(graph, 1, 2))
    leg = verify.run_leg(name, made, tensors, lambda data: run_unicorn(elf, target(name), data).trace)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)
