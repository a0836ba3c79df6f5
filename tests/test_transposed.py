"""Transposed convolutions: files of any geometry against LiteRT and TFLM, generated code against the golden model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.errors import ModelError
from mnet.oracle import LITERT, TFLM
from mnet.tflite import parse_model
from tests.models import Builder
from tests.strategies import random_input
from tests.test_generate import compare_on_host, described
from tests.test_golden import assert_equal, compare
from tests.writer import edited, serialise


def transposed(
    seed: int,
    shape: tuple[int, int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    same: bool,
    size: tuple[int, int] | None = None,
    *,
    zero_point: int = 3,
    activation: str = "none",
) -> bytes:
    """Return a file with one TRANSPOSE_CONV: that of a CONV_2D, changed."""
    build = Builder(seed, shape, zero_point=zero_point)
    data = serialise(build.graph(build.conv("input", channels, kernel, activation=activation, zero_point=7)))
    extra = (0, 0) if same else tuple(max(k - s, 0) for k, s in zip(kernel, stride, strict=True))
    size = size or (shape[0] * stride[0] + extra[0], shape[1] * stride[1] + extra[1])

    def change(model: Any) -> None:
        from ai_edge_litert import schema_py_generated as objects

        subgraph, operator = model.subgraphs[0], model.subgraphs[0].operators[0]
        tensor = objects.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = "size", schema.TensorType.INT32, [4], len(model.buffers)
        model.buffers.append(objects.BufferT())
        model.buffers[-1].data = np.frombuffer(np.array([1, *size, channels], np.int32).tobytes(), np.uint8)
        subgraph.tensors.append(tensor)
        source, weights, bias = operator.inputs
        operator.inputs = [len(subgraph.tensors) - 1, weights, source, bias]
        fused = operator.builtinOptions.fusedActivationFunction
        operator.builtinOptionsType = objects.BuiltinOptions.TransposeConvOptions
        operator.builtinOptions = objects.TransposeConvOptionsT()
        operator.builtinOptions.strideH, operator.builtinOptions.strideW = stride
        operator.builtinOptions.padding = schema.Padding.SAME if same else schema.Padding.VALID
        operator.builtinOptions.fusedActivationFunction = fused
        subgraph.tensors[operator.outputs[0]].shape = [1, *size, channels]
        code = model.operatorCodes[0]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TRANSPOSE_CONV
        code.version = 4 if fused else 3

    return edited(data, change)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw a file: kernels of 1 to 6, strides of 1 to 4, also beyond the kernel; any size that goes back."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5)))
    kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    same = draw(st.booleans())
    rest = [0 if same else k - 1 for k in kernel]  # how many values go back to as many rows, and columns
    size = [(n - 1) * s + 1 + r + draw(st.integers(0, s - 1)) for n, s, r in zip(shape, stride, rest, strict=False)]
    zero_point, seed = draw(st.sampled_from((-128, 3, 127))), draw(st.integers(0, 1 << 30))
    channels = draw(st.integers(1, 5))
    return transposed(seed, shape, channels, kernel, stride, same, (size[0], size[1]), zero_point=zero_point)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(files(), st.integers(0, 1000))
def test_transposed_convolutions_equal_litert(data: bytes, seed: int) -> None:
    graph = parse_model(data, "transposed.tflite")
    compare(data, graph, random_input(graph, seed, 3))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(files(), st.integers(0, 1000))
def test_transposed_convolutions_equal_tflm(data: bytes, seed: int) -> None:
    pytest.importorskip("tflite_micro")
    from tests.test_runtimes import run_here

    graph = parse_model(data, "transposed.tflite")
    inputs = random_input(graph, seed, 2)
    of_the_file = {name: tensor for name, tensor in graph.tensors.items() if tensor.index >= 0}
    assert_equal(golden.run(graph, TFLM, inputs), run_here(data, replace(graph, tensors=of_the_file), inputs))


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(files(), st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")))
def test_transposed_convolutions_are_generated(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    graph = parse_model(data, "transposed.tflite")
    made = plan(drop_dead_channels(simplify(graph), LITERT), target(name), LITERT)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("transposed") / graph.name)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


def test_an_upsampling_layer_streams_its_rows(tmp_path: Path) -> None:
    graph = parse_model(transposed(0, (12, 12, 8), 4, (3, 3), (2, 2), True, activation="relu"), "up.tflite")
    assert [type(op).__name__ for op in graph.ops] == ["Conv2D", "Rearrange"]
    made = plan(simplify(graph), target("cortex-m4"), LITERT)
    assert made.live_bytes < 12 * 12 * 16 + 4 * 24 * 24  # neither blocks nor output of 16 bits whole
    leg = compare_on_host(graph, made, tmp_path / "up")
    assert leg.status == "equal", described(graph, leg)


@pytest.mark.parametrize(
    ("size", "words"), [((8, 9), "makes (8, 9) of (3, 4); its kernel and stride make that of (4, 5)"), ((5, 7), "")]
)
def test_outputs_that_do_not_go_back_to_the_input_are_told(size: tuple[int, int], words: str) -> None:
    data = transposed(0, (3, 4, 2), 3, (3, 3), (2, 2), True, size)
    if words:
        with pytest.raises(ModelError) as error:
            parse_model(data, "up.tflite")
        assert words in str(error.value)
    else:
        parse_model(data, "up.tflite")


def test_kernels_of_other_channels_are_told() -> None:
    def narrow(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].operators[0].outputs[0]].shape = [1, 6, 8, 2]

    data = edited(transposed(0, (3, 4, 2), 3, (3, 3), (2, 2), True), narrow)
    with pytest.raises(ModelError, match="its input has 2 channels and its output 2; the file is damaged"):
        parse_model(data, "up.tflite")
