"""ARG_MAX: an output of indices, from the file to C."""

import copy
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.emit import emit, write_folder
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, verify
from mnet.errors import ModelError
from mnet.graph import ArgMax, Graph, check_graph
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, ORACLES, TFLM
from mnet.tflite import parse_model
from mnet.tflm_runtime import run_tflm
from tests.kernel_harness import needs_arm, needs_gcc
from tests.models import Builder
from tests.strategies import graphs_with_many_ends, random_input, small_graphs
from tests.test_generate import ORIGIN, compare_on_host, described
from tests.test_tflite import message
from tests.writer import edited, serialise

KINDS = ("arg_max", "pointwise", "residual", "dense", "reduce")


def classifier(outputs: int = 1) -> Graph:
    """Return a network that gives the class of each pixel, and with two outputs also its three scores, before it."""
    build = Builder(2, (5, 7, 3))
    scores = build.conv("input", 3, activation="none", zero_point=3)
    classes = build.arg_max(scores)
    graph = build.graph(classes)
    return check_graph(replace(graph, outputs=(scores, classes)[-outputs:]))


def wide(graph: Graph) -> Graph:
    """Return the graph whose indices the file has as int64."""
    tensors = {n: replace(t, outside="int64") if t.type == "int32" else t for n, t in graph.tensors.items()}
    return replace(graph, tensors=tensors)


@pytest.mark.parametrize("change", [lambda graph: graph, wide])
def test_indices_equal_litert(change: object) -> None:
    data = serialise(change(classifier()))  # type: ignore[operator]
    graph = parse_model(data, "net.tflite")
    assert graph.tensors[graph.outputs[0]].type == "int32"
    inputs = random_input(graph, 1, 8)
    ours, theirs = golden.run(graph, LITERT, inputs), run_litert(data, graph, inputs)
    assert ours[graph.outputs[0]].dtype == np.int32 and len(np.unique(ours[graph.outputs[0]])) == 3
    for name in ours:
        assert np.array_equal(ours[name], theirs[name])


def test_indices_equal_tflm() -> None:
    pytest.importorskip("tflite_micro")
    data = serialise(classifier())
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 1, 8)
    ours, theirs = golden.run(graph, TFLM, inputs), run_tflm(data, graph, inputs)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name])


def test_of_equals_the_first_is_the_largest() -> None:
    build = Builder(0, (1, 2, 4))
    graph = build.graph(build.arg_max("input"))
    x = np.array([[[[3, 9, 9, -5], [-128, -128, -128, -128]]]], np.int8)
    assert golden.run(graph, LITERT, {"input": x})[graph.outputs[0]].ravel().tolist() == [1, 0]
    data = serialise(graph)
    assert run_litert(data, parse_model(data, "x.tflite"), {"input": x})[graph.outputs[0]].ravel().tolist() == [1, 0]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=st.one_of(small_graphs(kinds=KINDS, most_ops=4), graphs_with_many_ends(kinds=KINDS, most_ops=5)),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_networks_that_end_in_indices_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, mode: str, sanitizers: bool
) -> None:
    made = plan(simplify(graph), target(name), LITERT, mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("generated") / graph.name, sanitizers)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


@needs_gcc
@pytest.mark.parametrize("mode", INPUT_MODES)
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_interface_has_the_type_of_each_output(outputs: int, mode: str, tmp_path: Path) -> None:
    """105 scores end at an odd byte: what a harness has behind them is aligned as int32."""
    graph = classifier(outputs)
    made = plan(graph, target("cortex-m"), ORACLES["litert"], mode)
    tensors = golden.run(graph, made.oracle, random_input(graph, 1, 2))
    files: dict[str, str | bytes] = {**emit(made, ORIGIN), "test/vectors.bin": verify.vectors(made, tensors)}
    write_folder(tmp_path / "net", files)
    header = (tmp_path / "net" / "tiny.h").read_text()
    port = "output" if outputs == 1 else "output_1"
    assert f"int32_t *{port})" in header and f"TINY_{port.upper()}_BYTES 140u" in header
    assert f"TINY_{port.upper()}_SCALE" not in header and ("TINY_OUTPUT_0_SCALE" in header) == (outputs == 2)
    done = subprocess.run(["make", "-C", tmp_path / "net", "test"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " 0 differ" in done.stdout, done.stdout + done.stderr
    assert compare_on_host(graph, made, tmp_path / "other", sanitizers=True).status == "equal"


def test_indices_end_a_network() -> None:
    graph = classifier()
    (scores, classes) = (op.output for op in graph.ops)
    more = ArgMax("again", classes, "again_out")
    tensors = {**graph.tensors, "again_out": replace(graph.tensors[classes], name="again_out")}
    with pytest.raises(ModelError, match="reads 'argmax_1_out', which is int32"):
        check_graph(replace(graph, tensors=tensors, ops=(*graph.ops, more)))
    assert [op.output for op in parse_model(serialise(replace(graph, outputs=(scores,))), "x.tflite").ops] == [scores]

    def read_again(model: Any) -> None:
        (subgraph,) = model.subgraphs
        again = copy.deepcopy(subgraph.operators[-1])
        again.inputs = [subgraph.outputs[0], *again.inputs[1:]]
        subgraph.tensors.append(copy.deepcopy(subgraph.tensors[subgraph.outputs[0]]))
        again.outputs = [len(subgraph.tensors) - 1]
        subgraph.operators.append(again)

    assert "ARG_MAX reads its result: only the end of a model can be indices" in message(
        edited(serialise(graph), read_again)
    )


@needs_arm
@pytest.mark.slow
def test_indices_on_an_emulated_core(tmp_path: Path) -> None:
    from mnet.emulator import run_unicorn
    from mnet.toolchain import build_target

    graph = classifier(2)
    for name in ("cortex-m4", "cortex-m0"):
        made = plan(graph, target(name), LITERT)
        folder = tmp_path / name
        write_folder(folder, emit(made, ORIGIN))
        program = build_target(folder, target(name), ("SUBJECT_TRACE",), "gcc", folder / "build")
        tensors = golden.run(graph, LITERT, random_input(graph, 1, 3))
        leg = verify.run_leg(name, made, tensors, lambda data, p=program, n=name: run_unicorn(p, target(n), data).trace)
        assert leg.status == "equal", described(graph, leg)
