"""Reading .tflite files: what is read comes back, what cannot be read gets one clear sentence, nothing else happens."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from hypothesis import HealthCheck, given, settings

from mnet import golden
from mnet.errors import ModelError
from mnet.graph import Constant, Conv2D, FullyConnected, Graph, Reshape, Sampling, check_graph
from mnet.oracle import LITERT
from mnet.resources import shared_folder
from mnet.tflite import parse_model, read_model
from tests.models import Builder, tiny_autoencoder, tiny_mobilenet, tiny_residual
from tests.mutate import damaged
from tests.strategies import random_input, small_graphs
from tests.writer import edited, serialise


def message(data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        parse_model(data, "net.tflite")
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "net.tflite" in text
    return text


def changed(graph: Graph, change: Callable[[Any], None]) -> str:
    return message(edited(serialise(graph), change))


# --- what comes back --------------------------------------------------------------------------------------------------


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, Constant):
        return all(same(vars(first)[field], vars(second)[field]) for field in vars(first))
    return bool(first == second)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs())
def test_a_graph_comes_back_as_it_was_written(graph: Graph) -> None:
    read = parse_model(serialise(graph), "drawn.tflite")
    written = {op.output: op for op in graph.ops}
    for op in read.ops:  # what the output does not need is left out
        twin = written[op.output]
        assert type(op) is type(twin)
        assert all(same(vars(op)[field], vars(twin)[field]) for field in vars(op) if field != "name")
    for name, tensor in read.tensors.items():
        twin = graph.tensors[name]
        assert (tensor.shape, tensor.scale, tensor.zero_point) == (twin.shape, twin.scale, twin.zero_point)
    assert (read.inputs, read.outputs) == (graph.inputs, graph.outputs)


def test_constants_are_read_only_and_names_are_identifiers() -> None:
    for make in (tiny_mobilenet, tiny_residual, tiny_autoencoder):
        graph = parse_model(serialise(make()), "96 tiny-net.tflite")
        assert graph.name == "model_96_tiny_net"
        names = [op.name for op in graph.ops]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", n) for n in names)
        for op in graph.ops:
            for value in vars(op).values():
                assert not (isinstance(value, np.ndarray) and value.flags.writeable)


def test_published_models_have_the_names_of_their_layers() -> None:
    folder = shared_folder()
    if folder is None or not (folder / "models" / "vww_96_int8.tflite").exists():
        pytest.skip("no vww_96_int8.tflite: set MNET_SHARED to the folder that has models/")
    graph = read_model(folder / "models" / "vww_96_int8.tflite")
    names = [op.name for op in graph.ops]
    assert names[:4] == ["conv2d", "depthwise_conv2d", "conv2d_1", "depthwise_conv2d_1"]
    assert names[-4:] == ["average_pooling2d", "flatten", "dense", "softmax"]
    assert graph.name == "vww_96_int8" and len(graph.model_hash) == 16
    with pytest.raises(ModelError, match=r"float32 model: quantize it to int8 first \(mnet quantize\)\.$"):
        read_model(folder / "models" / "vww_96_float.tflite")


@pytest.mark.parametrize(
    ("name", "expected"),
    (
        ("m/conv_pw_3_relu/Relu6;m/conv_pw_3_bn/FusedBatchNormV3;m/conv_pw_3/Conv2D1", "conv_pw_3"),
        ("m/conv_1/Conv2D;m/conv_2/Conv2D1", "conv_2"),
        ("conv_17_out", "conv_17_out"),
        ("StatefulPartitionedCall:0", "conv_2d"),
        ("", "tensor_"),
        ("größe/ß", "_"),
    ),
)
def test_op_names_come_from_tensor_names(name: str, expected: str) -> None:
    build = Builder(0, (4, 4, 2))
    data = serialise(build.graph(build.conv("input", 2)))

    def rename(model: Any) -> None:
        subgraph = model.subgraphs[0]
        subgraph.tensors[subgraph.operators[0].outputs[0]].name = name.encode()

    found = parse_model(edited(data, rename), "net.tflite").ops[0].name
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", found)
    if expected.isascii() and expected.strip("_") == expected:
        assert found == expected


def test_tensors_of_one_name_are_told_apart() -> None:
    def rename(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"same\x07"

    graph = parse_model(edited(serialise(tiny_residual()), rename), "net.tflite")
    assert len(graph.tensors) == len(tiny_residual().tensors)
    assert all(name.isprintable() for name in graph.tensors)


def test_a_missing_bias_is_zeros() -> None:
    for build, add in ((Builder(0, (4, 4, 2)), "conv"), (Builder(0, (1, 1, 9)), "fully_connected")):
        data = serialise(build.graph(getattr(build, add)("input", 3)))

        def drop(model: Any) -> None:
            model.subgraphs[0].operators[0].inputs = [*model.subgraphs[0].operators[0].inputs[:2], -1]

        def shorten(model: Any) -> None:
            model.subgraphs[0].operators[0].inputs = model.subgraphs[0].operators[0].inputs[:2]

        for change in (drop, shorten):
            op = parse_model(edited(data, change), "net.tflite").ops[0]
            assert isinstance(op, Conv2D | FullyConnected) and not op.bias.any() and len(op.bias) == 3


def test_shape_computing_operators_before_a_reshape_are_folded() -> None:
    build = Builder(0, (2, 3, 4))
    graph = build.graph(build.softmax(build.reshape("input", (1, 1, 24))))

    def insert(model: Any) -> None:  # SHAPE -> PACK -> RESHAPE, as Keras exports a Reshape with a dynamic batch
        from ai_edge_litert import schema_py_generated as objects

        subgraph = model.subgraphs[0]
        reshape = subgraph.operators[0]
        constant = reshape.inputs[1]
        for number, kind in enumerate((schema.BuiltinOperator.SHAPE, schema.BuiltinOperator.PACK)):
            code = objects.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = kind
            model.operatorCodes.append(code)
            tensor = objects.TensorT()
            tensor.name, tensor.type, tensor.shape = f"shape_{number}", schema.TensorType.INT32, [4 - 2 * number]
            subgraph.tensors.append(tensor)
            operator = objects.OperatorT()
            operator.opcodeIndex = len(model.operatorCodes) - 1
            operator.inputs = [reshape.inputs[0]] if number == 0 else [len(subgraph.tensors) - 2, constant]
            operator.outputs = [len(subgraph.tensors) - 1]
            subgraph.operators.insert(number, operator)
        reshape.inputs = [reshape.inputs[0], len(subgraph.tensors) - 1]

    read = parse_model(edited(serialise(graph), insert), "net.tflite")
    assert [type(op).__name__ for op in read.ops] == ["Reshape", "Softmax"]
    inputs = random_input(graph, 0, 2)
    assert np.array_equal(
        golden.run(read, LITERT, inputs)[read.outputs[0]], golden.run(graph, LITERT, inputs)[graph.outputs[0]]
    )


@pytest.mark.parametrize("kind", ("SQUEEZE", "EXPAND_DIMS"))
def test_squeeze_and_expand_dims_are_reshapes(kind: str) -> None:
    build = Builder(0, (1, 1, 5))
    graph = build.graph(build.softmax(build.reshape("input", (1, 1, 5))))

    def replace_code(model: Any) -> None:
        code = model.operatorCodes[0]
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)

    assert isinstance(parse_model(edited(serialise(graph), replace_code), "net.tflite").ops[0], Reshape)


# --- sentences --------------------------------------------------------------------------------------------------------


def test_files_that_are_no_models() -> None:
    assert "is empty" in message(b"")
    assert "TFL3" in message(b"PK\x03\x04" * 100)
    assert "damaged" in message(serialise(tiny_autoencoder())[:200])


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tflite", tmp_path):
        with pytest.raises(ModelError, match="cannot be read: "):
            read_model(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    (
        ("FLOAT32", r"is a float32 model: quantize it to int8 first \(mnet quantize\)"),
        ("UINT8", "is a uint8 model"),
        ("INT16", "is a int16 model"),
    ),
)
def test_models_of_other_types(kind: str, words: str) -> None:
    def retype(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if tensor.type == schema.TensorType.INT8:
                tensor.type = getattr(schema.TensorType, kind)

    assert re.search(words, changed(tiny_autoencoder(), retype))


def test_an_unsupported_operator_is_named_with_its_place() -> None:
    def other(model: Any) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[1].opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY

    text = changed(tiny_mobilenet(), other)
    assert text.startswith('net.tflite, operator 1 "depthwise_1_out" (DENSIFY): not supported.')


def test_an_unknown_operator_is_told_by_its_number() -> None:
    def other(model: Any) -> None:
        model.operatorCodes[0].builtinCode = 30000

    assert "(number 30000): not supported." in changed(tiny_autoencoder(), other)


def set_field(path: str, value: Any) -> Callable[[Any], None]:
    """Return a change of one field: "operators.0.builtinOptions.strideH", "tensors.out.shape" (by name) ..."""

    def change(model: Any) -> None:
        here: Any = model.subgraphs[0]
        *steps, last = path.split(".")
        for step in steps:
            if isinstance(here, list):
                names = {bytes(item.name or b"").decode(): item for item in here if hasattr(item, "name")}
                here = names[step] if step in names else here[int(step)]
            else:
                here = getattr(here, step)
        setattr(here, last, value)

    return change


@pytest.mark.parametrize(
    ("path", "value", "words"),
    (
        ("operators.0.builtinOptions.strideH", 0, "stride"),
        ("operators.0.builtinOptions.dilationWFactor", -1, "dilation"),
        ("operators.0.builtinOptions.fusedActivationFunction", 4, "fused activation"),
        ("operators.0.builtinOptions.padding", 3, "neither SAME nor VALID"),
        ("operators.0.builtinOptions", None, "has no table of options"),
        ("operators.0.outputs", [], "0 outputs"),
        ("operators.0.inputs", [0], "1 inputs, 2 are needed"),
        ("operators.0.inputs", [0, 99], "tensor 99"),
        ("operators.1.builtinOptions.depthMultiplier", 3, "do not fit"),
        ("operators.0.opcodeIndex", 77, "damaged"),
        ("tensors.input.shape", [2, 16, 16, 3], "batch must be 1"),
        ("tensors.input.shape", [1, 1 << 20, 1 << 20, 3], "no microcontroller can hold"),
        ("tensors.input.shape", [1, 16, 16, 5], "grouped convolutions"),
        ("tensors.conv_0_out.shape", [1, 9, 8, 8], "contradicts itself"),
        ("tensors.conv_0_weights.shape", [8, 3, 3, 7], "but 216 bytes"),
        ("tensors.conv_0_weights.type", 17, "int4, int8 is needed"),
        ("tensors.conv_0_weights.quantization.scale", [0.5, 0.5], "2 scales"),
        ("tensors.conv_0_weights.quantization.scale", [-1.0], "not positive"),
        ("tensors.conv_0_weights.quantization.zeroPoint", [3], "zero_point other than 0"),
        ("tensors.conv_0_weights.quantization.quantizedDimension", 3, "along dimension 0"),
        ("tensors.conv_0_bias.type", 4, "int64, int32 is needed"),
        ("tensors.conv_0_bias.buffer", 0, "not a constant"),
        ("tensors.conv_0_bias.buffer", 10000, "damaged"),
        ("tensors.conv_0_out.quantization.scale", [1e-12], "can overflow"),
        ("tensors.conv_0_out.quantization.scale", [float("nan")], "damaged"),
        ("tensors.conv_0_out.quantization.zeroPoint", [300], "damaged"),
        ("tensors.conv_0_out.quantization", None, "0 scales"),
        ("tensors.softmax_9_out.quantization.scale", [0.1], "1/256"),
        ("tensors.mean_7_axes.shape", [1], "but 8 bytes"),
        ("inputs", [], "has no input"),
        ("inputs", [0, 0], "lists its input 'input' twice"),
        ("outputs", [0], "its output 'input' is an input"),
        ("outputs", [], "has no output"),
    ),
)
def test_each_contradiction_has_its_sentence(path: str, value: Any, words: str) -> None:
    assert words in changed(tiny_mobilenet(), set_field(path, value))


def test_residual_networks_must_add_equal_shapes_of_sensible_scales() -> None:
    assert "must have equal sizes" in changed(tiny_residual(), set_field("tensors.conv_0_out.shape", [1, 8, 9, 8]))
    assert "too fine" in changed(tiny_residual(), set_field("tensors.add_3_out.quantization.scale", [1e-9]))
    assert "changes scale" in changed(tiny_residual(), set_field("tensors.reshape_9_out.quantization.scale", [9.0]))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    (
        ("operators.0.builtinOptions.filterHeight", 0, "kernel"),
        ("operators.0.builtinOptions.strideW", -1, "stride"),
        ("operators.0.builtinOptions.fusedActivationFunction", 4, "fused activation"),
        ("operators.0.builtinOptions.filterWidth", 9, "contradicts itself"),
        ("operators.0.builtinOptions", None, "has no table of options"),
        ("tensors.pool_0_out.quantization.scale", [9.0], "changes scale"),
        ("tensors.pool_0_out.shape", [1, 3, 3, 3], "contradicts itself"),
    ),
)
@pytest.mark.parametrize("kind", ("average_pool", "max_pool"))
def test_pools_that_cannot_be_are_told(kind: str, path: str, value: Any, words: str) -> None:
    build = Builder(0, (5, 5, 2))
    assert words in changed(build.graph(getattr(build, kind)("input", (3, 3))), set_field(path, value))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    (
        ("operators.0.builtinOptions", None, "has no table of options"),
        ("operators.0.inputs", [0], "1 inputs, 2 are needed"),
        ("tensors.resize_0_size.buffer", 0, "not a constant"),
        ("tensors.resize_0_size.shape", [1], "but 8 bytes"),
        ("tensors.resize_0_out.shape", [1, 6, 7, 2], "makes [6, 8] rows and columns, its output has [6, 7]"),
        ("tensors.resize_0_out.shape", [1, 6, 8, 3], "contradicts itself"),
        ("tensors.resize_0_out.quantization.scale", [9.0], "changes scale"),
    ),
)
@pytest.mark.parametrize("sampling", list(Sampling))
def test_resizes_that_cannot_be_are_told(sampling: Sampling, path: str, value: Any, words: str) -> None:
    build = Builder(0, (3, 4, 2))
    assert words in changed(build.graph(build.resize("input", (6, 8), sampling)), set_field(path, value))


def test_bilinear_resizes_that_runtimes_cannot_do_are_told() -> None:
    build = Builder(0, (3, 4, 2))
    graph = build.graph(build.resize("input", (6, 8), Sampling.BILINEAR, align_corners=True))
    assert "use one" in changed(graph, set_field("operators.0.builtinOptions.halfPixelCenters", True))
    build = Builder(0, (1, 5, 2))
    graph = build.graph(build.resize("input", (1, 199), Sampling.NEAREST))
    far = replace(graph.ops[0], sampling=Sampling.BILINEAR)  # type: ignore[type-var]
    assert "read beyond the input" in changed(replace(graph, ops=(far,)), lambda model: None)


def test_the_batch_is_not_padded_and_rows_and_columns_are_averaged() -> None:
    def set_constant(name: str, values: list[Any]) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            tensor = next(t for t in model.subgraphs[0].tensors if t.name == name.encode())
            tensor.shape = list(np.shape(values))
            model.buffers[tensor.buffer].data = np.frombuffer(np.array(values, np.int32).tobytes(), np.uint8)

        return change

    build = Builder(0, (5, 5, 2))
    graph = build.graph(build.mean(build.pad("input", (1, 1, 1, 1))))
    pads, axes = "pad_0_pads", "mean_1_axes"
    assert "makes [1, 7, 7, 3]" in changed(graph, set_constant(pads, [[0, 0], [1, 1], [1, 1], [0, 1]]))
    assert "batch must stay 1" in changed(graph, set_constant(pads, [[1, 0], [1, 1], [1, 1], [0, 0]]))
    assert "damaged" in changed(graph, set_constant(pads, [[0, 0], [-1, 3], [1, 1], [0, 0]]))
    assert "the file is damaged" in changed(graph, set_constant(axes, [1, 3]))
    assert "works along axis 4" in changed(graph, set_constant(axes, [1, 4]))
    assert "the file is damaged" in changed(graph, set_constant(axes, [1]))
    parse_model(edited(serialise(graph), set_constant(axes, [-3, -2])), "net.tflite")


def test_padding_that_nothing_holds_is_refused() -> None:
    """A dilation of 32,768 pads a map of 25 pixels to more than 4 billion; found by tests/mutate.py."""

    def spread(model: Any) -> None:
        options = model.subgraphs[0].operators[0].builtinOptions
        options.dilationHFactor = options.dilationWFactor = 1 << 15

    build = Builder(0, (5, 5, 2))
    assert "whose padding no microcontroller can hold" in changed(build.graph(build.conv("input", 2, (3, 3))), spread)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_damage_is_told_or_harmless() -> None:
    build = Builder(0, (5, 5, 2))
    x = build.conv(build.pad("input", (1, 1, 1, 1)), 2, (3, 3), same=False)
    data = serialise(build.graph(build.softmax(build.fully_connected(build.mean(x), 3))))
    chance = random.Random(1)
    told = 0
    for _ in range(1500):
        try:
            check_graph(parse_model(damaged(data, chance), "net.tflite"))
        except ModelError as error:
            told += 1
            assert str(error).endswith(".") and "\n" not in str(error)
    assert 700 < told < 1500


def test_every_truncation_is_told() -> None:
    data = serialise(tiny_autoencoder(width=4))
    for length in range(0, len(data), 7):
        message(data[:length])
