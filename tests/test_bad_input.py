"""Bad input gets one sentence on stderr, exit code 2, and leaves nothing half-written."""

import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from click.testing import CliRunner
from PIL import Image

from mnet.cli import main
from tests.models import tiny_autoencoder, tiny_mobilenet
from tests.tools import hide_compilers
from tests.writer import edited, serialise

GOOD = serialise(tiny_mobilenet())


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(folder: Path, *arguments: object) -> str:
    """Run a command that has to fail; return its sentence."""
    before = listing(folder)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    assert "Traceback" not in result.stderr
    assert listing(folder) == before, "something was left behind"
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.tflite"
    path.write_bytes(GOOD)
    return path


# --- models -----------------------------------------------------------------------------------------------------------


def scrambled() -> bytes:
    data = bytearray(GOOD)
    chance = random.Random(1)
    for at in range(8, 400):
        data[at] = chance.randrange(256)
    return bytes(data)


def as_float(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == schema.TensorType.INT8:
            tensor.type = schema.TensorType.FLOAT32


def unsupported(model: Any) -> None:
    code = model.operatorCodes[model.subgraphs[0].operators[1].opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY


MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: GOOD[: len(GOOD) // 2], "damaged"),
    "cut_in_the_head": (lambda: GOOD[:6], "no .tflite file"),
    "corrupt": (scrambled, "damaged"),
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"not a model at all", "no .tflite file"),
    "float": (lambda: edited(serialise(tiny_autoencoder()), as_float), "is a float32 model: quantize it to int8 first"),
    "unsupported": (lambda: edited(GOOD, unsupported), "(DENSIFY): not supported. End the model before it"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_not_read(name: str, tmp_path: Path) -> None:
    make, words = MODELS[name]
    path = tmp_path / f"{name}.tflite"
    path.write_bytes(make())
    for arguments in (("codegen", path, "-o", tmp_path / "out"), ("verify", path), ("profile", path), ("show", path)):
        sentence = refused(tmp_path, *arguments)
        assert words in sentence and path.name in sentence


def test_models_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.tflite").mkdir()
    for name in ("absent.tflite", "folder.tflite"):
        assert "cannot be read" in refused(tmp_path, "codegen", tmp_path / name, "-o", tmp_path / "out")
        assert "cannot be read" in refused(tmp_path, "ops", tmp_path / name)
        assert "cannot be read" in refused(tmp_path, "eval", tmp_path / name, "--data", "sample")


# --- options ----------------------------------------------------------------------------------------------------------


def test_unknown_words_list_the_known_ones(good: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert "cortex-m4, " in refused(tmp_path, "codegen", good, "--target", "cortex-m99", *out)
    assert "litert, tflm" in refused(tmp_path, "codegen", good, "--oracle", "torch", *out)
    assert "const, arena, rows" in refused(tmp_path, "codegen", good, "--input", "disk", *out)
    assert "no C identifier" in refused(tmp_path, "codegen", good, "--name", "2much", *out)
    assert "seed, default" in refused(tmp_path, "train", "--recipe", "magic", "--out", tmp_path / "run")


def test_impossible_ram_says_how_much_is_needed(good: Path, tmp_path: Path) -> None:
    sentence = refused(tmp_path, "codegen", good, "--ram", "64", "-o", tmp_path / "out")
    assert "more than --ram 64: the peak is " in sentence and "B of arena on cortex-m" in sentence
    result = CliRunner().invoke(main, ["codegen", str(good), "--ram", "lots", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and "lots is no number of bytes: write 12288 or 12k" in result.stderr


def test_a_host_has_no_core_to_profile(good: Path, tmp_path: Path) -> None:
    assert "choose --target cortex-m4" in refused(tmp_path, "profile", good, "--target", "host")
    assert "choose --target cortex-m4" in refused(tmp_path, "show", good, "--target", "host", "--stage", "asm")


# --- tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compilers(monkeypatch)


@pytest.mark.usefixtures("no_compilers")
def test_missing_compiler_says_how_to_get_one(good: Path, tmp_path: Path) -> None:
    sentence = refused(tmp_path, "profile", good, "--target", "cortex-m4")
    assert "arm-none-eabi-gcc is missing: install it (Debian: apt-get install gcc-arm-none-eabi" in sentence
    assert "mnet-mcu[zig]" in sentence
    assert "is missing" in refused(tmp_path, "show", good, "--target", "cortex-m4", "--stage", "asm")


@pytest.mark.usefixtures("no_compilers")
def test_verify_without_a_compiler_lists_what_was_not_run(good: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(good), "--target", "cortex-m4", "--inputs", "1"])
    assert result.exit_code == 3
    assert "C on cortex-m4, not run: " in result.stdout and "C on this computer, not run: " in result.stdout


@pytest.mark.usefixtures("no_compilers")
def test_codegen_needs_no_compiler(good: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["codegen", str(good), "-o", str(tmp_path / "out")]).exit_code == 0


# --- places to write --------------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_written(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert str(out) in refused(tmp_path, "codegen", good, "-o", out)
        assert str(out) in refused(tmp_path, "demo", "-o", out)
    assert "cannot be written" in refused(tmp_path, "train", "--out", file / "run")
    assert "cannot be written" in refused(tmp_path, "ops", "--json", file / "o.json")
    assert file.read_text() == "mine"


def test_a_read_only_folder(good: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        try:
            (locked / "probe").touch()
        except PermissionError:
            assert "cannot be written" in refused(tmp_path, "codegen", good, "-o", locked / "out")
        else:
            (locked / "probe").unlink()
            pytest.skip("this user may write anywhere")
    finally:
        locked.chmod(0o755)


def test_what_is_there_already_stays(good: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "holds other files" in refused(tmp_path, "codegen", good, "-o", mine)
    assert "thesis.txt" in refused(tmp_path, "demo", "-o", mine)
    assert "exists" in refused(tmp_path, "train", "--out", mine)
    assert "left alone" in refused(tmp_path, "train", "--overwrite", "--out", mine)
    assert "to resume" in refused(tmp_path, "train", "--resume", "--out", tmp_path / "nothing")


# --- data sets --------------------------------------------------------------------------------------------------------


def test_data_sets_laid_out_otherwise(tmp_path: Path) -> None:
    def sentence(data: object) -> str:
        return refused(tmp_path, "train", "--data", data, "--out", tmp_path / "run")

    assert "does not exist" in sentence(tmp_path / "absent")
    tree = tmp_path / "tree"
    tree.mkdir()
    assert "expected at least two, CLASS/*.jpg" in sentence(tree)
    (tree / "train" / "cat").mkdir(parents=True)
    assert "expected at least two" in sentence(tree)
    (tree / "train" / "dog").mkdir()
    assert "cat has no picture" in sentence(tree)
    Image.new("RGB", (8, 8)).save(tree / "train" / "cat" / "1.png")
    (tree / "train" / "dog" / "1.png").write_bytes(b"no image")
    assert "no readable image" in sentence(tree)
    text = tmp_path / "data.csv"
    text.write_text("1,2,3")
    assert "is no data set" in sentence(text)


def arrays(**changes: Any) -> dict[str, Any]:
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | changes


@pytest.mark.parametrize(
    ("content", "words"),
    (
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8)}, "lacks y_train, x_test, y_test"),
        (arrays(x_train=np.zeros((4, 8, 8, 3), np.float32)), "expected uint8"),
        (arrays(y_train=np.array([0.5, 1, 0, 1])), "expected whole numbers"),
        (arrays(y_train=np.array([0, 1])), "4 training images and 2 labels"),
        (arrays(x_test=np.zeros((4, 9, 8, 3), np.uint8)), "test images"),
    ),
)
def test_wrong_npz(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **content)
    assert words in refused(tmp_path, "train", "--data", tmp_path / "data.npz", "--out", tmp_path / "run")


def test_damaged_npz(good: Path, tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 no more")
    for command in (("train", "--out", tmp_path / "run"), ("eval", good)):
        assert "cannot be read as .npz" in refused(tmp_path, *command, "--data", tmp_path / "data.npz")


def test_images_and_labels_that_eval_refuses(good: Path, tmp_path: Path) -> None:
    def sentence(x: Any, y: Any) -> str:
        np.savez(tmp_path / "data.npz", x=x, y=y)
        return refused(tmp_path, "eval", good, "--data", tmp_path / "data.npz")

    assert "takes uint8 images [16, 16, 3]" in sentence(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64))
    assert "expected 2 whole numbers" in sentence(np.zeros((2, 16, 16, 3), np.uint8), np.zeros(3, np.int64))
    assert "expected uint8" in sentence(np.zeros((2, 16, 16, 3), np.float32), np.zeros(2, np.int64))
    assert "say which images with --data" in refused(tmp_path, "eval", good)


def test_quantize_without_a_model(tmp_path: Path) -> None:
    out = ("-o", tmp_path / "q.tflite")
    assert "cannot be read" in refused(tmp_path, "quantize", tmp_path, *out)
    (tmp_path / "model.keras").write_bytes(b"PK no model")
    assert "--normalization" in refused(tmp_path, "quantize", tmp_path / "model.keras", *out)
    assert "suffix" in refused(
        tmp_path, "quantize", tmp_path / "model.keras", "--normalization", "x/255", "-o", tmp_path / "q"
    )
    assert "no readable Keras model" in refused(
        tmp_path, "quantize", tmp_path / "model.keras", "--normalization", "x/255", "--data", "sample", *out
    )
