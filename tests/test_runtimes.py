"""Other people's runtimes: golden(tflm) against TFLM, every tensor; refusals and deaths are one sentence."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnet import golden, tflm_runtime, tflm_worker
from mnet.errors import MissingToolError, ToolError
from mnet.graph import Graph, Int8Array
from mnet.oracle import ORACLES, TFLM
from mnet.resources import shared_folder
from mnet.runtimes import RUNTIMES, runtime_of
from mnet.tflite import parse_model, read_model
from mnet.tflm_runtime import arena_bytes, run_tflm
from tests.models import Builder, tiny_autoencoder, tiny_mobilenet, tiny_residual
from tests.strategies import random_input, small_graphs
from tests.writer import edited, serialise

pytest.importorskip("tflite_micro")

SHARED_MODELS = ("vww_96_int8", "kws_ref_model", "pretrainedResnet_quant", "ad01_int8")


def shared_model(name: str) -> Path:
    folder = shared_folder()
    path = folder / "models" / f"{name}.tflite" if folder else None
    if path is None or not path.exists():
        pytest.skip(f"no {name}.tflite: set MNET_SHARED to the folder that has models/")
    return path


def run_here(data: bytes, graph: Graph, inputs: Mapping[str, Int8Array]) -> dict[str, Int8Array]:
    """Return what TFLM makes, in this process: for models that it is known to survive."""
    numbers = [tensor.index for tensor in graph.tensors.values()]
    given = [inputs[name] for name in graph.inputs]
    found = tflm_worker.run(data, given, numbers, arena_bytes(graph))
    return {name: found[str(t.index)].reshape(len(given[0]), *t.shape) for name, t in graph.tensors.items()}


def assert_golden_is_tflm(graph: Graph, inputs: Mapping[str, Int8Array], runtime: dict[str, Int8Array]) -> None:
    assert set(runtime) == set(graph.tensors)
    for name, expected in golden.run(graph, TFLM, inputs).items():
        found = runtime[name]
        if not np.array_equal(found, expected):
            first = tuple(int(index) for index in np.argwhere(found != expected)[0])
            pytest.fail(f"{name}: at {first} golden has {expected[first]}, TFLM {found[first]}")


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_every_tensor_of_a_published_model_equals_tflm(name: str) -> None:
    path = shared_model(name)
    graph = read_model(path)
    inputs = random_input(graph, seed=0, count=6)
    assert_golden_is_tflm(graph, inputs, run_tflm(path, graph, inputs))


@pytest.mark.parametrize("make", (tiny_mobilenet, tiny_residual, tiny_autoencoder))
def test_every_tensor_of_a_tiny_model_equals_tflm(make: type[Graph]) -> None:
    data = serialise(make())
    graph = parse_model(data, "tiny.tflite")
    inputs = random_input(graph, seed=1, count=12)
    assert_golden_is_tflm(graph, inputs, run_tflm(data, graph, inputs))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(0, 1000))
def test_random_graphs_equal_tflm(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    graph = parse_model(data, "drawn.tflite")
    inputs = random_input(graph, seed, 3)
    assert_golden_is_tflm(graph, inputs, run_here(data, graph, inputs))


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(most_ops=8), st.integers(0, 1000))
def test_many_random_graphs_equal_tflm(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    graph = parse_model(data, "drawn.tflite")
    inputs = random_input(graph, seed, 4)
    assert_golden_is_tflm(graph, inputs, run_here(data, graph, inputs))


def test_every_oracle_has_its_runtime() -> None:
    assert {runtime_of(oracle).name for oracle in ORACLES.values()} == set(ORACLES) <= set(RUNTIMES)


def test_no_inputs_give_no_outputs() -> None:
    data = serialise(tiny_autoencoder())
    graph = parse_model(data, "tiny.tflite")
    found = run_tflm(data, graph, {"input": np.empty((0, 1, 1, 24), np.int8)})
    assert {name: values.shape for name, values in found.items()} == {
        name: (0, *tensor.shape) for name, tensor in graph.tensors.items()
    }


def test_what_tflm_refuses_is_said_in_its_words() -> None:
    build = Builder(0, (5, 5, 4))
    data = serialise(build.graph(build.conv("input", 3)))
    graph = parse_model(data, "tiny.tflite")

    def unknown(model: object) -> None:
        model.operatorCodes[0].builtinCode = 150  # type: ignore[attr-defined]  # GELU
        model.operatorCodes[0].deprecatedBuiltinCode = 127  # type: ignore[attr-defined]

    with pytest.raises(ToolError, match=r"^TFLM refuses tiny: .*op code GELU; TFLM failed to allocate tensors$"):
        run_tflm(edited(data, unknown), graph, {"input": np.zeros((1, 5, 5, 4), np.int8)})


def test_a_death_of_tflm_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    data = serialise(tiny_autoencoder())
    graph = parse_model(data, "tiny.tflite")
    monkeypatch.setattr(tflm_runtime, "arena_bytes", lambda graph: 300)  # the package reads where nothing is
    with pytest.raises(ToolError, match=r"^TFLM dies \(signal 11\) of tiny: Failed to allocate tail memory"):
        run_tflm(data, graph, {"input": np.zeros((1, 1, 1, 24), np.int8)})


def test_a_missing_package_is_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm_runtime.importlib.util, "find_spec", lambda name: None)
    graph = tiny_autoencoder()
    with pytest.raises(MissingToolError, match=r"^TFLM is missing: pip install 'mnet-mcu\[tflm\]'"):
        run_tflm(serialise(graph), graph, {"input": np.zeros((1, 1, 1, 24), np.int8)})
