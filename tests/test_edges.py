"""Inputs and outputs that are float32 or uint8 in the file: cut off, converted, and proved behind the edge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mnet import golden
from mnet.advice import ADVICE
from mnet.cli import main
from mnet.edges import from_quantized
from mnet.graph import Tensor
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, TFLM
from mnet.readers import READERS
from mnet.tflite import list_operators, parse_model
from mnet.tflm_runtime import run_tflm
from tests.models import Builder, tiny_autoencoder, tiny_mobilenet
from tests.strategies import random_input
from tests.test_tflite import message
from tests.writer import edited, serialise, with_edges

KINDS = ("int8", "float32", "uint8")


@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize("inputs", KINDS)
def test_every_tensor_behind_the_edges_equals_both_runtimes(inputs: str, outputs: str) -> None:
    data = with_edges(serialise(tiny_mobilenet()), inputs, outputs)
    graph = parse_model(data, "net.tflite")
    plain = parse_model(serialise(tiny_mobilenet()), "net.tflite")
    assert [vars(op).keys() for op in graph.ops] == [vars(op).keys() for op in plain.ops]
    assert graph.tensors[graph.inputs[0]].outside == inputs and graph.tensors[graph.outputs[0]].outside == outputs
    given = random_input(graph, 1, 6)
    ours, theirs = golden.run(graph, LITERT, given), run_litert(data, graph, given)
    assert set(ours) == set(theirs)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    pytest.importorskip("tflite_micro")
    ours, theirs = golden.run(graph, TFLM, given), run_tflm(data, graph, given)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_makes_is_what_the_caller_converts_to(kind: str) -> None:
    """The words of `mnet codegen` for an output, and the way back from float32 to the same byte."""
    from ai_edge_litert.interpreter import Interpreter

    data = with_edges(serialise(tiny_autoencoder()), "float32", kind)
    graph = parse_model(data, "net.tflite")
    source, target = (graph.tensors[name] for name in (*graph.inputs, *graph.outputs))
    given = random_input(graph, 1, 8)
    made = golden.run(graph, LITERT, given)[target.name]
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    for number, values in enumerate(given[source.name]):
        detail = interpreter.get_input_details()[0]
        interpreter.set_tensor(detail["index"], from_quantized(source, values).reshape(detail["shape"]))
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(target.shape)
        if kind == "uint8":
            assert np.array_equal(found.astype(int) - 128, made[number])
        elif kind == "float32":
            again = np.clip(np.rint(found / np.float32(target.scale)) + target.zero_point, -128, 127)
            assert np.array_equal(again, made[number])
        else:
            assert np.array_equal(found, made[number])


@given(st.floats(2.0**-100, 2.0**100, width=32), st.integers(-128, 127))
def test_dequantized_values_quantize_back_to_the_same_byte(scale: float, zero_point: int) -> None:
    values = np.arange(-128, 128).astype(np.int8)
    real = from_quantized(Tensor("x", (1, 1, 256), scale, zero_point, outside="float32"), values)
    quotient = real / np.float32(scale)
    assert np.abs(quotient - np.rint(quotient)).max() < 2.0**-14
    assert np.array_equal(np.rint(quotient) + zero_point, values)


def test_a_uint8_edge_that_rescales_is_refused() -> None:
    def finer(model: Any) -> None:
        (subgraph,) = model.subgraphs
        subgraph.tensors[subgraph.inputs[0]].quantization.scale = np.array([0.011], np.float32)

    text = message(edited(with_edges(serialise(tiny_autoencoder()), "uint8"), finer))
    assert "its input is uint8: convert the model with inference_input_type = tf.int8" in text


def island() -> bytes:
    """Return a model in whose middle one operator computes in float32."""
    build = Builder(1, (4, 4, 3))
    data = serialise(build.graph(build.conv(build.softmax(build.conv("input", 4)), 2)))

    def change(model: Any) -> None:
        from ai_edge_litert import schema_py_generated as objects

        (subgraph,) = model.subgraphs
        softmax = subgraph.operators[1]
        floats = []
        for index in (softmax.inputs[0], softmax.outputs[0]):
            tensor = objects.TensorT()
            tensor.name, tensor.type = subgraph.tensors[index].name + b"_float", schema.TensorType.FLOAT32
            tensor.shape = subgraph.tensors[index].shape
            subgraph.tensors.append(tensor)
            floats.append(len(subgraph.tensors) - 1)
        for place, kind, ends in (
            (1, "DEQUANTIZE", ([softmax.inputs[0]], [floats[0]])),
            (3, "QUANTIZE", ([floats[1]], [softmax.outputs[0]])),
        ):
            code, operator = objects.OperatorCodeT(), objects.OperatorT()
            code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
            model.operatorCodes.append(code)
            operator.opcodeIndex, (operator.inputs, operator.outputs) = len(model.operatorCodes) - 1, ends
            subgraph.operators.insert(place, operator)
        softmax.inputs, softmax.outputs = [floats[0]], [floats[1]]

    return edited(data, change)


def test_a_stretch_of_float32_names_what_computes_there() -> None:
    text = message(island())
    assert '(DEQUANTIZE): behind it "softmax_1_out_float" (SOFTMAX) computes in float32: replace that' in text
    assert "more obstacles" not in text


def test_ops_lists_all_obstacles_and_what_to_do(tmp_path: Path) -> None:
    build = Builder(1, (4, 4, 3))
    graph = build.graph(build.softmax(build.conv(build.depthwise(build.conv("input", 4)), 2)))

    def change(model: Any) -> None:
        for number, kind in ((1, "UNIDIRECTIONAL_SEQUENCE_LSTM"), (2, "TOPK_V2")):
            code = model.operatorCodes[model.subgraphs[0].operators[number].opcodeIndex]
            if number == 2:
                model.operatorCodes.append(type(code)())
                code = model.operatorCodes[-1]
                code.version, model.subgraphs[0].operators[2].opcodeIndex = 1, len(model.operatorCodes) - 1
            code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)

    path = tmp_path / "net.tflite"
    path.write_bytes(with_edges(edited(serialise(graph), change), "uint8", "float32"))
    rows, obstacles = list_operators(path)
    assert [(row.is_edge, row.is_read) for row in rows] == [
        (True, True), (False, True), (False, False), (False, False), (False, True), (True, True)
    ]  # fmt: skip
    assert [obstacle.operator for obstacle in obstacles] == [2, 3]
    assert "use a Conv1D over a window of time" in obstacles[0].sentence
    assert "do the rest in your application" in obstacles[1].sentence
    shown = CliRunner().invoke(main, ["ops", str(path)])
    assert shown.exit_code == 0 and shown.output.count("not supported.") == 2 and "cut off" in shown.output
    found = json.loads(CliRunner().invoke(main, ["ops", str(path), "--json", "-"]).output)
    assert found["obstacle"] == found["obstacles"][0] and len(found["obstacles"]) == 2
    assert message(path.read_bytes()).endswith("1 more obstacles: `mnet ops` lists them.")


def test_codegen_says_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(with_edges(serialise(tiny_autoencoder()), "uint8", "float32"))
    done = CliRunner().invoke(main, ["codegen", str(path), "-o", str(tmp_path / "net")])
    assert done.exit_code == 0, done.output
    assert "input: uint8 in the file, cut off; quantized = byte - 128" in done.output
    assert "output: float32 in the file, cut off; real = scale * (quantized - zero_point)" in done.output
    header = (tmp_path / "net" / "net.h").read_text()
    assert "The model's own input is uint8: quantized = byte - 128." in header


def test_a_quantized_model_of_tensorflow_1_is_told_so() -> None:
    def retype(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if tensor.type == schema.TensorType.INT8:
                tensor.type = schema.TensorType.UINT8

    text = message(edited(serialise(tiny_autoencoder()), retype))
    assert "as TensorFlow 1 made them: quantize the float model again, to int8" in text


def test_an_output_that_a_reshape_hides_keeps_its_type() -> None:
    from codegen.simplify import simplify

    build = Builder(0, (1, 1, 24))
    data = with_edges(
        serialise(build.graph(build.reshape(build.fully_connected("input", 6), (1, 2, 3)))), "int8", "uint8"
    )
    graph = simplify(parse_model(data, "net.tflite"))
    assert graph.tensors[graph.outputs[0]].outside == "uint8"


def test_advice_is_for_operators_that_exist_and_are_not_read() -> None:
    known = set(vars(schema.BuiltinOperator))
    assert set(ADVICE) <= known - set(READERS)
    assert all(sentence[0].isupper() and not sentence.endswith(".") for sentence in ADVICE.values())
