"""`mnet eval`: figures by their definitions, legs that agree and legs that do not, the picture, what bad input gets."""

import io
import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnet import agreement
from mnet.agreement import GOLDEN, LEGS, legs_of
from mnet.cli import main
from mnet.commands.evaluate import matrix_text
from mnet.confusion_picture import confusion_picture
from mnet.datasets import LabelledImages
from mnet.drawing import as_png, as_svg
from mnet.emulator import Run
from mnet.errors import MnetError, ToolError
from mnet.evaluation import Evaluation, classes_of, confusion, evaluate_int8, predictions, run_int8, wilson
from mnet.labels import with_labels
from mnet.pipeline import Options
from mnet.proof import Program, find_target_compiler
from mnet.tflite import read_model
from tests.models import Builder, tiny_mobilenet
from tests.tools import hide_compilers, needs_host_compiler
from tests.writer import serialise

IMAGES = np.random.default_rng(0).integers(0, 256, (31, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(31) % 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(path, x=IMAGES, y=LABELS, class_names=np.array(["ant", "bee", "cat"]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *(str(argument) for argument in arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


# --- figures ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_shares_whose_score_test_does_not_reject_the_count(counts: tuple[int, int]) -> None:
    correct, images = counts
    low, high = wilson(correct, images)
    assert 0 <= low <= correct / images <= high <= 1
    for end in (low, high):  # each end is a root of (share - p)^2 = q^2 p (1 - p) / n
        squared = 1.959964**2 * end * (1 - end) / images
        assert math.isclose((correct / images - end) ** 2, squared, rel_tol=1e-6, abs_tol=1e-12)
    mirrored = wilson(images - correct, images)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


def test_the_interval_is_that_of_published_examples() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for counts, ends in published.items():
        assert tuple(round(end, 4) for end in wilson(*counts)) == ends


labels_of_some = st.integers(2, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1))
)


@given(labels_of_some)
def test_figures_of_classes_are_counts_of_the_pairs(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = drawn
    made = Evaluation("r", confusion(*np.array(pairs, np.int64).T, classes))
    assert made.confusion.shape == (classes, classes) and made.images == len(pairs)
    assert made.correct == sum(label == taken for label, taken in pairs)
    for number, figures in enumerate(made.classes([str(n) for n in range(classes)])):
        own = [taken for label, taken in pairs if label == number]
        assert (figures.images, figures.correct) == (len(own), own.count(number))
        assert figures.predicted == sum(taken == number for _, taken in pairs)
        mistakes = [taken for taken in own if taken != number]
        assert figures.confused == max(map(mistakes.count, mistakes), default=0)
        assert (figures.confused_with == "") == (not mistakes)
        assert not mistakes or mistakes.count(int(figures.confused_with)) == figures.confused
        assert (figures.recall is None) == (not own)
        if figures.recall and figures.precision:
            mean = 2 / (1 / figures.recall + 1 / figures.precision)
            assert figures.f1 == pytest.approx(mean)


def test_some_images_are_spread_over_the_classes() -> None:
    labels = np.repeat(np.arange(4), (50, 3, 20, 27)).astype(np.int64)
    images = LabelledImages(np.zeros((100, 1, 1, 1), np.uint8), labels, (), "", np.arange(100) + 7)
    few = images.some(20)
    assert sorted(np.bincount(few.y).tolist()) == [3, 5, 6, 6]
    assert (np.diff(few.numbers) > 0).all() and (labels[few.numbers - 7] == few.y).all()
    assert len(images.some(1000).y) == 100


def test_labels_are_matched_by_the_names_in_the_file(model: Path, data: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.tflite"
    named.write_bytes(with_labels(model.read_bytes(), ("ant", "bee", "cat")))
    expected = json.loads(run(model, "--data", data, "--on", "golden", "--json").stdout)
    chosen = LABELS != 1
    for names, labels in ((("cat", "ant", "bee"), (LABELS + 1) % 3), (("cat", "ant"), 1 - LABELS[chosen] // 2)):
        kept = chosen if len(names) == 2 else np.ones(31, bool)
        other = npz(tmp_path, x=IMAGES[kept], y=labels, class_names=np.array(names))
        values = json.loads(run(named, "--data", other, "--on", "golden", "--json").stdout)
        assert values["class_names"] == ["ant", "bee", "cat"]
        rows = (
            expected["confusion"] if len(names) == 3 else [expected["confusion"][0], [0] * 3, expected["confusion"][2]]
        )
        assert values["confusion"] == rows
    nameless = npz(tmp_path)
    assert json.loads(run(named, "--data", nameless, "--on", "golden", "--json").stdout)["class_names"][2] == "cat"
    assert "y reaches from 0 to 2; expected 0 to 1" in refused(
        named, "--data", npz(tmp_path, class_names=np.array(["a", "b"]))
    )


def test_an_arg_max_is_the_class_itself(tmp_path: Path) -> None:
    found = []
    for is_class in (False, True):
        build = Builder(5, (6, 6, 1))
        x = build.fully_connected(build.mean(build.conv("input", 8)), 4, activation="none")
        path = tmp_path / f"{is_class}.tflite"
        path.write_bytes(serialise(build.graph(build.arg_max(x) if is_class else x)))
        assert classes_of(read_model(path)) == 4
        images = np.random.default_rng(1).integers(0, 256, (20, 6, 6, 1), dtype=np.uint8)
        found.append(evaluate_int8(path, images, np.arange(20) % 4).confusion.tolist())
    assert found[0] == found[1]


# --- legs -------------------------------------------------------------------------------------------------------------


def test_legs_begin_with_the_oracle_and_end_with_the_emulated_core() -> None:
    assert legs_of(None, Options("cortex-m4"), 200) == ("litert", "golden", "host", "emulated")
    assert legs_of(None, Options("cortex-m4", "tflm"), 0) == ("tflm", "golden", "host")
    assert legs_of(None, Options("host"), None) == ("litert", "golden", "host")
    assert legs_of("emulated, host,litert,host", Options("cortex-m4"), 5) == ("litert", "host", "emulated")
    assert set(legs_of(",".join(LEGS), Options("cortex-m4"), 5)) == set(LEGS)
    for words, options, emulated in (
        ("board", Options(), 1),
        ("emulated", Options("host"), 1),
        ("emulated", Options(), 0),
        (None, Options(oracle="numpy"), 1),
        (None, Options(target="z80"), 1),
    ):
        with pytest.raises(MnetError):
            legs_of(words, options, emulated)


def test_the_golden_model_has_the_bytes_of_litert(model: Path, data: Path, tmp_path: Path) -> None:
    done = run(model, "--data", data, "--on", "golden,litert", "--json", tmp_path / "e.json")
    assert done.exit_code == 0, done.output
    assert "Equal in every byte of every output." in done.stdout
    assert "LiteRT reference kernels" in done.stdout and "ant" in done.stdout
    values = json.loads((tmp_path / "e.json").read_text())
    assert [(leg["name"], leg["status"]) for leg in values["legs"]] == [("litert", "run"), ("golden", "equal")]
    correct = int((predictions(read_model(model), run_int8(model, IMAGES)) == LABELS).sum())
    assert 0 < correct < 31
    assert (values["images"], values["correct"], values["exit_code"]) == (31, correct, 0)
    assert values["interval"] == [*wilson(correct, 31)] and values["accuracy"] == correct / 31
    assert np.array(values["confusion"]).sum() == 31 and np.trace(values["confusion"]) == correct
    assert values["class_names"] == [row["name"] for row in values["per_class"]] == ["ant", "bee", "cat"]
    assert values["legs"][1]["confusion"] == values["confusion"]


def test_images_takes_some_of_each_class(model: Path, data: Path) -> None:
    done = run(model, "--data", data, "--on", "golden", "--images", 6, "--json")
    assert [sum(row) for row in json.loads(done.stdout)["confusion"]] == [2, 2, 2]


def spoiled(program: Program, images: set[int], value: int, bit: int) -> Program:
    """Return a program that gets one value of some of the first images wrong."""

    def changed(inputs: bytes) -> Run:
        outputs = np.frombuffer(program(inputs).outputs, np.int8).reshape(-1, 3).copy()
        for image in images:
            outputs[image, value] ^= bit
        return Run(outputs.tobytes(), b"", None, "")

    return changed


def test_a_single_differing_byte_is_told_by_image_and_side(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(inputs: bytes) -> Run:
        images = np.frombuffer(inputs, np.uint8).reshape(-1, 16, 16, 3) ^ 0x80
        return Run(run_int8(model, images).tobytes(), b"", None, "")

    def program_of(*_: object) -> tuple[str, Program]:
        return "C on this computer", spoiled(program, {3, 17}, 2, 1)

    monkeypatch.setattr(agreement, "host_program", program_of)
    done = run(model, "--data", data, "--on", "litert,host", "--target", "host")
    expected = run_int8(model, IMAGES)
    names = ("ant", "bee", "cat")
    assert done.exit_code == 1
    assert "C on this computer: other bytes than LiteRT reference kernels for 2 of 31 images" in done.stdout
    for image in (3, 17):
        got = int(expected[image, 2]) ^ 1
        words = f"image {image} ({names[LABELS[image]]}): value 2 is {got}, there {expected[image, 2]}; taken for "
        assert words in done.stdout
    assert "Equal" not in done.stdout
    values = json.loads(run(model, "--data", data, "--on", "litert,host", "--target", "host", "--json").stdout)
    (leg,) = (leg for leg in values["legs"] if leg["name"] == "host")
    assert (leg["status"], leg["differing"], values["exit_code"]) == ("differs", 2, 1)
    assert [one["image"] for one in leg["differences"]] == [3, 17]


def test_a_program_that_stops_early_fails(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program_of(*_: object) -> tuple[str, Program]:
        return "C on this computer", lambda inputs: Run(b"\0" * 5, b"", None, "")

    monkeypatch.setattr(agreement, "host_program", program_of)
    done = run(model, "--data", data, "--on", "golden,host", "--target", "host")
    assert done.exit_code == 1 and "wrote 5 B for 31 images" in done.stdout
    assert "failed" in done.stdout


def test_a_leg_without_its_tools_is_listed(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compilers(monkeypatch)
    done = run(model, "--data", data)
    assert done.exit_code == 3 and done.stdout.count("not run") >= 4
    assert "A leg was not run" in done.stdout and "apt-get install" in done.stdout
    done = run(model, "--data", data, "--allow-missing")
    assert done.exit_code == 0 and "Equal in every byte of every output, as far as it was run." in done.stdout
    done = run(model, "--data", data, "--on", "host", "--json")
    assert done.exit_code == 3 and "accuracy" not in json.loads(done.stdout)


def test_without_litert_the_golden_model_is_the_reference(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    done = run(model, "--data", data, "--on", "litert,golden", "--json")
    values = json.loads(done.stdout)
    assert [leg["status"] for leg in values["legs"]] == ["not run", "run"] and done.exit_code == 3
    assert values["runtime"].startswith("golden model") and "pip install ai-edge-litert" in values["legs"][0]["reason"]


@pytest.mark.slow
def test_the_whole_chain_with_an_emulated_core(model: Path, data: Path) -> None:
    needs_host_compiler()
    try:
        find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    values = json.loads(run(model, "--data", data, "--emulated", 7, "--json").stdout)
    legs = {leg["name"]: leg for leg in values["legs"]}
    assert list(legs) == ["litert", GOLDEN, "host", "emulated"] and values["exit_code"] == 0
    assert [legs[name]["images"] for name in legs] == [31, 31, 31, 7]
    assert legs["host"]["confusion"] == legs["litert"]["confusion"]
    assert sorted(sum(row) for row in legs["emulated"]["confusion"]) == [2, 2, 3]
    assert "cortex-m4" in legs["emulated"]["runtime"]
    values = json.loads(run(model, "--data", data, "--on", "litert,emulated", "--emulated", "all", "--json").stdout)
    assert values["legs"][1]["confusion"] == values["confusion"]


# --- the picture ------------------------------------------------------------------------------------------------------


def random_evaluation(classes: int, images: int) -> Evaluation:
    chance = np.random.default_rng(classes)
    labels = chance.integers(0, classes, images)
    taken = np.where(chance.random(images) < 0.7, labels, chance.integers(0, classes, images))
    return Evaluation("r", confusion(labels, taken, classes))


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("classes", (2, 10, 20, 21, 100))
def test_a_picture_of_any_number_of_classes(classes: int) -> None:
    made = random_evaluation(classes, 50 * classes)
    names = [f"<class> & number {n}, with a name that has no end" if n % 2 else f"c{n}" for n in range(classes)]
    picture = confusion_picture("title", made, names)
    words = texts(as_svg(picture))
    numbers = [str(count) for row in made.confusion.tolist() for count in row if count]
    if classes <= 20:
        assert sorted(word for word in words if word.isdecimal()) == sorted(numbers)
    else:
        assert not any(word.isdecimal() for word in words)
    assert sum(word == "c0" for word in words) == 2  # of a row and of a column
    image = Image.open(io.BytesIO(as_png(picture)))
    assert image.size == (math.ceil(picture.width), math.ceil(picture.height))
    titles = [
        element.text or ""
        for element in ElementTree.fromstring(as_svg(picture)).iter("{http://www.w3.org/2000/svg}title")
    ]
    assert sum(" taken for " in title for title in titles) == len(numbers)


def test_every_cell_lies_within_the_picture() -> None:
    for classes in (2, 33, 100):
        picture = confusion_picture("t", random_evaluation(classes, 500), ["x" * 60] * classes)
        for part in picture.parts:
            assert 0 <= part.x < picture.width and 0 <= part.y <= picture.height


def test_a_class_without_images_has_no_share() -> None:
    made = Evaluation("r", confusion(np.array([0, 1]), np.array([0, 0]), 3))
    assert "-" in texts(as_svg(confusion_picture("t", made, "abc")))
    assert matrix_text(made, "abc").splitlines()[1:] == ["     0  1  2", "0 a  1  .  .", "1 b  1  .  .", "2 c  .  .  ."]


def test_eval_draws_svg_and_png(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("m.svg", "m.png"):
        assert run(model, "--data", data, "--on", "golden", "--picture", tmp_path / name).exit_code == 0
    assert "bee" in texts((tmp_path / "m.svg").read_text())
    assert Image.open(tmp_path / "m.png").size[0] >= 1000


# --- what bad input gets ----------------------------------------------------------------------------------------------


def npz(path: Path, **changes: npt.NDArray[Any]) -> Path:
    np.savez(path / "data.npz", **({"x": IMAGES, "y": LABELS} | changes))
    return path / "data.npz"


def test_wrong_use_gets_one_sentence(model: Path, data: Path, tmp_path: Path) -> None:
    assert "must end in .svg or .png" in refused(model, "--data", data, "--picture", model)
    assert "no such leg; the legs are golden, host" in refused(model, "--data", data, "--on", "board")
    assert "runs on no core" in refused(model, "--data", data, "--on", "emulated", "--target", "host")
    assert "unknown oracle" in refused(model, "--data", data, "--oracle", "numpy")
    assert "write 200, or all" in refused(model, "--data", data, "--emulated", "many")
    assert "leaves nobody" in refused(model, "--data", data, "--emulated", 0, "--on", "emulated")
    assert "is a float model" in refused(tmp_path, "--data", "sample", "--on", "golden")
    assert "cannot be read" in refused(tmp_path / "none.tflite", "--data", data)


def test_other_classes_get_one_sentence(model: Path, tmp_path: Path) -> None:
    four = npz(tmp_path, class_names=np.array(["a", "b", "c", "d"]))
    assert refused(model, "--data", four).startswith("tiny.tflite tells 3 classes apart, the data set has 4: ")
    assert "the labels reach from 0 to 3" in refused(model, "--data", npz(tmp_path, y=np.arange(31) % 4))
    assert "the labels reach from -1 to 1" in refused(model, "--data", npz(tmp_path, y=np.arange(31) % 3 - 1))
    assert "tells 3 classes apart, the data set has 10" in refused(model, "--data", "sample")
