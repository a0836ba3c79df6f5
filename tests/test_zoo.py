"""The models that come with mnet: their files agree with each other, their figures with what is measured here."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from mnet.cli import main
from mnet.errors import ModelError, ToolError
from mnet.pipeline import Options, prepare
from mnet.profile import profile_model
from mnet.proof import find_target_compiler, prove
from mnet.resources import folder
from mnet.runs import read_history, read_run
from mnet.zoo import Entry, entry, entry_of, keras_path, names, tflite_path
from mnet.zoo.table import index, markdown, zoo_rows

_ENTRIES = [entry(name) for name in names()]
_EACH = pytest.mark.parametrize("found", _ENTRIES, ids=names())
# What each size promises: multiply-adds; cycles and arena with rows pushed on a Cortex-M4; flash (1 KB = 1,024 B).
_PROMISES = {
    "cifar10-tiny": (1_200_000, 1_500_000, 4_608, 64 << 10),
    "cifar10-small": (5_000_000, 5_800_000, 10 << 10, 128 << 10),
    "cifar10-large": (12_500_000, 13_500_000, 16 << 10, 320 << 10),
}


def test_the_zoo_has_models_of_both_data_sets() -> None:
    assert {*_PROMISES, "cifar10-seed", "fashion-tiny"} <= set(names())
    assert {found.data for found in _ENTRIES} == {"CIFAR-10 (JPEG)", "Fashion-MNIST"}


@_EACH
def test_files_of_a_model_agree(found: Entry) -> None:
    run = read_run(found.folder)
    assert hashlib.sha256(found.tflite.read_bytes()).hexdigest() == found.sha256
    assert (run["command"], run["multiply_adds"]) == (found.trained_by, found.multiply_adds)
    assert run["test_accuracy"] == pytest.approx(found.test.float_accuracy, abs=5e-4)  # on the training's threads
    assert tuple(run["data"]["class_names"]) == found.classes
    assert len(read_history(found.folder / "history.csv")) == run["epochs"]
    card = (found.folder / "README.md").read_text()
    for words in (f"{found.test.int8_accuracy:.2%}", found.trained_by, found.sha256, f"{found.pushed.cycles:,}"):
        assert words in card
    assert entry_of(json.loads(json.dumps(asdict(found)))) == found


@_EACH
def test_int8_is_as_good_as_float(found: Entry) -> None:
    assert found.test.float_accuracy - found.test.int8_accuracy <= 0.0015


@pytest.mark.parametrize("name", [name for name in _PROMISES if name in names()])
def test_sizes_keep_what_they_promise(name: str) -> None:
    found, board = entry(name), entry(name).pushed
    taken = (found.multiply_adds, board.cycles, board.arena_bytes, board.flash_bytes)
    assert all(value <= limit for value, limit in zip(taken, _PROMISES[name], strict=True)), taken


def test_tables_in_documents_are_the_commands() -> None:
    assert (folder("zoo") / "README.md").read_text() == index(_ENTRIES)
    front = (Path(__file__).parent.parent / "README.md").read_text()
    for line in markdown(*zoo_rows(_ENTRIES)):
        assert line in front


@pytest.mark.slow
@_EACH
def test_figures_are_what_profile_measures(found: Entry) -> None:
    try:
        find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    board = found.pushed
    options = Options(board.target, input_mode=board.input_mode, ram=board.ram, optimize=board.optimize)
    profile = profile_model(prepare(found.tflite, options))
    if profile.compiler != board.compiler:
        pytest.skip(f"measured with {board.compiler}, here is {profile.compiler}")
    measured = (profile.instructions, profile.cycles, profile.flash_bytes, profile.arena_bytes)
    # Where this fails because the code generator became better: python -m mnet.zoo.make measure
    assert measured == (board.instructions, board.cycles, board.flash_bytes, board.arena_bytes)


@pytest.mark.slow
@_EACH
def test_models_are_equal_in_every_bit(found: Entry) -> None:
    proof = prove(prepare(found.tflite, Options("cortex-m4", input_mode="rows")), count=6, emulated_count=1)
    assert {leg.status for leg in proof.legs} <= {"equal", "not run"} and proof.legs[0].status == "equal"


# The command


def test_zoo_lists_shows_and_copies(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(main, ["zoo"])
    assert listed.exit_code == 0 and all(name in listed.stdout for name in names())
    values = json.loads(runner.invoke(main, ["zoo", "--json", "-"]).stdout)
    assert [entry_of(each) for each in values] == _ENTRIES
    card = runner.invoke(main, ["zoo", "zoo:cifar10-tiny"])
    assert card.stdout == (entry("cifar10-tiny").folder / "README.md").read_text()
    copied = runner.invoke(main, ["zoo", "cifar10-tiny", "-o", str(tmp_path / "copy")])
    assert copied.exit_code == 0 and (tmp_path / "copy" / "cifar10-tiny.tflite").is_file()
    assert runner.invoke(main, ["zoo", "cifar10-tiny", "-o", str(tmp_path / "copy")]).exit_code == 2


def test_a_name_stands_for_the_model(tmp_path: Path) -> None:
    assert tflite_path("zoo:cifar10-tiny") == entry("cifar10-tiny").tflite
    assert keras_path("zoo:cifar10-tiny") == entry("cifar10-tiny").keras
    assert tflite_path("some/model.tflite") == keras_path("some/model.tflite") == Path("some/model.tflite")
    made = CliRunner().invoke(main, ["codegen", "zoo:cifar10-tiny", "-o", str(tmp_path / "net")])
    assert made.exit_code == 0, made.output
    assert "CIFAR10_TINY_ARENA_BYTES" in (tmp_path / "net" / "cifar10_tiny.h").read_text()


def test_an_unknown_name_is_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"no model cifar10-tinny; did you mean zoo:cifar10-tiny\? `mnet zoo` lists"):
        entry("zoo:cifar10-tinny")
    for words in (["zoo", "dog"], ["zoo", "-o", "x"], ["codegen", "zoo:dog", "-o", "x"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and "Traceback" not in result.output
