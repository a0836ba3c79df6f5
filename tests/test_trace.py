"""`mnet trace`: two sides layer by layer; what C does not make is said; sound pictures; one sentence for wrong use."""

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mnet import divergence, runtimes
from mnet.cli import main
from mnet.divergence import Layer, explain, first_of, layers_of
from mnet.drawing import as_png, as_svg
from mnet.errors import ToolError
from mnet.graph import Graph
from mnet.heat_map import heat, picture_of
from mnet.model_input import read_input
from mnet.oracle import ORACLES
from mnet.pipeline import Options
from mnet.proof import find_target_compiler
from mnet.roundings import rounding_of
from mnet.sides import SIDES, Seen, Side, make_side, unfolded
from mnet.tflite import read_model
from tests.models import Builder, tiny_autoencoder, tiny_mobilenet
from tests.strategies import random_input
from tests.tools import needs_host_compiler
from tests.writer import serialise

SAMPLE = Path(__file__).parent / "models" / "sample_a25.tflite"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that a golden-litert and a golden-tflm answer differently: dense layers, one after the other."""
    build = Builder(3, (1, 1, 40), scale=0.1)
    x = "input"
    for _ in range(4):
        x = build.fully_connected(x, 48, activation="none", zero_point=5)
    path = tmp_path_factory.mktemp("model") / "dense.tflite"
    path.write_bytes(serialise(build.graph(x, "dense")))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trace", *(str(argument) for argument in arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def found_seed(model: Path) -> int:
    """Return the first seed of an input on which the two oracles differ."""
    return next(
        seed for seed in range(50) if run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed).exit_code
    )


# --- what is printed --------------------------------------------------------------------------------------------------


def test_equal_sides_exit_with_0() -> None:
    result = run(SAMPLE, "--between", "golden-litert", "litert", "--seed", 2)
    assert result.exit_code == 0, result.output
    assert "Equal in all " in result.stdout and "differ" not in result.stdout.partition("Equal")[2]


def test_oracles_part_in_the_first_dense_layer_whose_rounding_shows(model: Path) -> None:
    seed = found_seed(model)
    result = run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed, "--json", "-")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    first = next(layer for layer in found["layers"] if layer["differing"])
    place = first["first"]
    words = found["explanation"]
    assert words.startswith(
        f"The first difference arises in {first['layer']} (FullyConnected) at row 0, column 0, channel "
        f"{place['channel']} from equal inputs: golden-litert has {place['a']}, golden-tflm has {place['b']}, of "
    )
    assert "litert takes one product with the scale in double precision" in words and words.endswith("as float32.")
    assert first["share"] == first["differing"] / first["compared"] and first["largest"] >= 1
    assert found["layers"][0]["layer"] == "input" and found["exit_code"] == 1
    table = run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed)
    assert table.exit_code == 1 and words in table.stdout and first["layer"] in table.stdout


def test_the_accumulator_of_the_sentence_lies_between_the_two_answers(model: Path) -> None:
    words = run(model, "--between", "golden-litert", "golden-tflm", "--seed", found_seed(model)).stdout
    real = float(words.rpartition(" = ")[2].partition(";")[0])
    a, b = (int(words.partition(f"{side} has ")[2].split(",")[0]) for side in ("golden-litert", "golden-tflm"))
    assert min(a, b) < real < max(a, b) and abs(a - b) == 1


def test_a_layer_alone_is_shown_with_its_places(model: Path) -> None:
    seed = found_seed(model)
    layers = json.loads(run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed, "--json", "-").stdout)
    first = next(layer for layer in layers["layers"] if layer["differing"])
    result = run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed, "--layer", first["layer"])
    assert result.exit_code == 1
    assert f"{first['layer']}, the first {min(first['differing'], 20)} of {first['differing']} places:" in result.stdout
    before = layers["layers"][layers["layers"].index(first) - 1]["layer"]
    equal = run(model, "--between", "golden-litert", "golden-tflm", "--seed", seed, "--layer", before)
    assert equal.exit_code == 0 and "Equal in all" in equal.stdout and "The first difference arises" in equal.stdout


def test_every_side_makes_every_tensor(model: Path) -> None:
    needs_host_compiler()
    pytest.importorskip("tflite_micro")
    graph = read_model(model)
    one = random_input(graph, 1)
    for name in SIDES:
        if name != "emulated":
            side = make_side(name, model, Options(target="host"), one)
            assert side.name == name and set(side.tensors) == set(graph.tensors)
            assert np.array_equal(side.tensors["input"].values, one["input"][0])


def test_a_wrong_byte_of_a_runtime_is_our_fault_or_its(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runtimes.RUNTIMES["litert"]

    def wrong(path: object, graph: Graph, inputs: np.ndarray) -> dict[str, np.ndarray]:
        tensors = real.run(path, graph, inputs)  # type: ignore[arg-type]
        tensors[graph.ops[1].output][0, 0, 0, 7] ^= 4
        return tensors

    monkeypatch.setitem(runtimes.RUNTIMES, "litert", replace(real, run=wrong))
    result = run(model, "--between", "golden-litert", "litert")
    assert result.exit_code == 1
    assert "at row 0, column 0, channel 7 from equal inputs" in result.stdout
    assert result.stdout.endswith("both are to give the same bits, so one of them is wrong: please report it.\n")


# --- generated C ------------------------------------------------------------------------------------------------------


def test_c_on_this_computer_equals_golden_and_what_it_does_not_make_is_said() -> None:
    needs_host_compiler()
    result = run(SAMPLE, "--between", "host", "golden-litert", "--seed", 4)
    assert result.exit_code == 0, result.output
    assert " folded" in result.stdout and "folded away, hence not compared: " in result.stdout
    assert "are absent: C does not make what nobody reads." in result.stdout


def test_without_simplification_c_makes_every_value() -> None:
    needs_host_compiler()
    result = run(SAMPLE, "--between", "host", "golden-litert", "--no-simplify", "--json", "-")
    assert result.exit_code == 0, result.output
    assert all(
        layer["status"] == "equal" and not layer["absent_channels"] for layer in json.loads(result.stdout)["layers"]
    )


def test_c_on_an_emulated_core_follows_its_oracle(model: Path) -> None:
    try:
        find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    seed = found_seed(model)
    sides = ("--between", "emulated", "golden-tflm", "--target", "cortex-m0", "--seed", seed)
    assert run(model, *sides, "--oracle", "tflm").exit_code == 0
    other = run(model, *sides)
    assert other.exit_code == 1 and "emulated has" in other.stdout and "cortex-m0" in other.stdout


def test_constants_are_given_back_and_dropped_channels_are_not_known() -> None:
    graph = tiny_mobilenet()
    tensor = next(iter(graph.ops)).output
    height, width, channels = graph.tensors[tensor].shape
    left = replace(graph.tensors[tensor], shape=(height, width, channels - 2), live=tuple(range(1, channels - 1)))
    left = replace(left, constants=((0, -97),))
    simplified = replace(graph, tensors={**graph.tensors, tensor: left})
    made = {tensor: np.arange(height * width * (channels - 2), dtype=np.int32).reshape(height, width, -1)}
    answers = {name: np.zeros(graph.tensors[name].shape, np.int32) for name in graph.outputs}
    seen = unfolded(graph, simplified, made, answers)
    assert set(seen) == {tensor, *graph.outputs}
    assert (seen[tensor].values[..., 0] == -97).all()
    assert np.array_equal(seen[tensor].values[..., 1 : channels - 1], made[tensor])
    assert seen[tensor].known.tolist() == [True] * (channels - 1) + [False]


# --- the comparison itself --------------------------------------------------------------------------------------------


def sides(graph: Graph, change: dict[tuple[str, int, int, int], int]) -> tuple[Side, Side]:
    """Return two sides that are equal but for the values that `change` names."""
    first = {name: np.zeros(tensor.shape, np.int32) for name, tensor in graph.tensors.items()}
    second = {name: values.copy() for name, values in first.items()}
    for (name, row, column, channel), value in change.items():
        second[name][row, column, channel] = value
    return tuple(  # type: ignore[return-value]
        Side(label, label, oracle, {name: Seen(v, np.ones(v.shape[2], np.bool_)) for name, v in values.items()})
        for label, oracle, values in (("one", "litert", first), ("other", "tflm", second))
    )


def test_counts_places_and_sizes_are_those_of_the_differences() -> None:
    graph = tiny_mobilenet()
    tensor = graph.ops[0].output
    a, b = sides(graph, {(tensor, 1, 2, 3): 5, (tensor, 1, 3, 0): -9})
    layers = layers_of(graph, a, b)
    layer = next(layer for layer in layers if layer.tensor == tensor)
    assert first_of(layers) is layer and layer.status == "differs"
    assert (layer.differing, layer.largest, layer.compared) == (2, 9, int(np.prod(layer.shape)))
    assert layer.mean == 14 / layer.compared and layer.first == divergence.Place(1, 2, 3, 0, 5)
    assert all(other.status == "equal" for other in layers if other is not layer)


def test_values_that_one_side_lacks_are_neither_compared_nor_different() -> None:
    graph = tiny_mobilenet()
    tensor = graph.ops[0].output
    a, b = sides(graph, {(tensor, 0, 0, 1): 7})
    known = np.ones(graph.tensors[tensor].shape[2], np.bool_)
    known[1] = False
    b = replace(b, tensors={**b.tensors, tensor: replace(b.tensors[tensor], known=known)})
    layer = next(layer for layer in layers_of(graph, a, b) if layer.tensor == tensor)
    assert layer.status == "equal" and layer.absent_channels == 1
    without = replace(b, tensors={name: seen for name, seen in b.tensors.items() if name != tensor})
    layer = next(layer for layer in layers_of(graph, a, without) if layer.tensor == tensor)
    assert layer.status == "folded" and layer.folded == ("other",) and layer.compared == 0


def test_a_different_input_is_no_roundings_fault() -> None:
    graph = tiny_mobilenet()
    a, b = sides(graph, {("input", 0, 0, 0): 1})
    assert explain(graph, a, b, layers_of(graph, a, b)).endswith("both were to get the same input.")


def test_every_operator_with_its_own_rounding_has_words_for_each_oracle() -> None:
    graph = tiny_autoencoder()
    for op in graph.ops:
        words = [rounding_of(op, name) for name in ORACLES]
        assert all(words) and len(set(words)) == len(words)
    assert rounding_of(graph.ops[0], "nobody") == ""


# --- pictures ---------------------------------------------------------------------------------------------------------


def drawn(change: dict[tuple[str, int, int, int], int]) -> tuple[tuple[Layer, ...], str, bytes]:
    graph = tiny_mobilenet()
    layers = layers_of(graph, *sides(graph, change))
    picture = picture_of("one & other", layers)
    return layers, as_svg(picture), as_png(picture)


def test_the_picture_has_a_bar_for_each_layer_and_a_map_for_each_that_differs() -> None:
    tensors = [op.output for op in tiny_mobilenet().ops]
    layers, svg, png = drawn({(tensors[0], 0, 0, 1): 1, (tensors[-1], 0, 0, 1): 200})
    root = ElementTree.fromstring(svg)
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("image") == 2
    titles = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert all(any(title.startswith(f"{layer.name}: ") for title in titles) for layer in layers)
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "") and "script" not in svg
    with Image.open(io.BytesIO(png)) as image:
        assert image.width == 1000 and image.height > 200


def test_a_picture_without_differences_says_so() -> None:
    _, svg, _ = drawn({})
    assert "All layers are equal." in svg and "<image" not in svg


def test_heat_shows_the_largest_difference_of_a_pixels_channels() -> None:
    tensor = tiny_mobilenet().ops[0].output
    layers, _, _ = drawn({(tensor, 1, 2, 0): 1, (tensor, 1, 2, 3): -40, (tensor, 0, 0, 0): 1})
    pixels = heat(next(layer for layer in layers if layer.tensor == tensor))
    colours = {tuple(int(part) for part in pixels[place]) for place in ((1, 2), (0, 0), (0, 1))}
    assert len(colours) == 3 and (np.sum(pixels != pixels[0, 1], axis=2) > 0).sum() == 2


# --- the command's files and its refusals -----------------------------------------------------------------------------


def test_pictures_and_json_go_to_files(model: Path, tmp_path: Path) -> None:
    for name in ("where.svg", "where.png"):
        result = run(model, "--between", "golden-litert", "golden-tflm", "--picture", tmp_path / name)
        assert result.exit_code in (0, 1)
    ElementTree.fromstring((tmp_path / "where.svg").read_text())
    with Image.open(tmp_path / "where.png") as image:
        image.verify()
    run(model, "--between", "golden-litert", "golden-tflm", "--json", tmp_path / "where.json")
    assert json.loads((tmp_path / "where.json").read_text())["a"]["name"] == "golden-litert"


def test_inputs_come_from_arrays_bytes_and_pictures(tmp_path: Path) -> None:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    graph = read_model(path)
    height, width, channels = graph.tensors["input"].shape
    one = random_input(graph, 5)["input"]
    np.save(tmp_path / "one.npy", one)
    (tmp_path / "one.bin").write_bytes(one.tobytes())
    assert np.array_equal(read_input(tmp_path / "one.npy", graph)["input"], one)
    assert np.array_equal(read_input(tmp_path / "one.bin", graph)["input"], one)
    assert channels == 3
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    assert np.array_equal(read_input(tmp_path / "one.png", graph)["input"][0].astype(int), pixels.astype(int) - 128)
    Image.fromarray(np.tile(pixels, (3, 2, 1))).save(tmp_path / "large.png")
    assert read_input(tmp_path / "large.png", graph)["input"].shape == one.shape
    for name in ("one.npy", "one.bin", "large.png"):
        assert run(path, "--between", "golden-litert", "litert", "--input", tmp_path / name).exit_code == 0


def test_wrong_use_is_one_sentence(model: Path, tmp_path: Path) -> None:
    two = ("--between", "golden-litert", "golden-tflm")
    assert refused(model, "--between", "host", "nobody").startswith(
        "--between nobody: there is no such side; the sides"
    )
    assert "--input and --seed exclude each other" in refused(model, *two, "--input", "x.bin", "--seed", 1)
    assert "must end in .svg or .png" in refused(model, *two, "--picture", model)
    assert "has no layer 'nothing'" in refused(model, *two, "--layer", "nothing")
    assert "runs on no core" in refused(model, "--between", "emulated", "litert", "--target", "host")
    assert "cannot be read" in refused(tmp_path / "absent.tflite", *two)
    assert "Missing option '--between'" in refused(model)
    assert model.read_bytes()[4:8] == b"TFL3"


def test_inputs_that_do_not_fit_are_one_sentence(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((1, 1, 40), np.float32))
    (tmp_path / "short.bin").write_bytes(bytes(39))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "words.txt").write_text("nothing")
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    expected = {
        "float.npy": "holds float32; dense takes int8 [1, 1, 40], 40 values",
        "short.bin": "holds 39 values [39]; dense takes int8 [1, 1, 40], 40 values",
        "broken.npy": "cannot be read as .npy",
        "words.txt": "an input is an .npy or .bin file of int8 values, or a picture",
        "one.png": "is a picture; dense takes int8 [1, 1, 40], 40 values, which is none",
        "absent.bin": "cannot be read: No such file",
    }
    for name, words in expected.items():
        assert words in refused(model, "--between", "golden-litert", "litert", "--input", tmp_path / name)
