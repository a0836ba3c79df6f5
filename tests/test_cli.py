"""What a user types, and what comes back: every command on a tiny network."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mnet import proof, resources, runtimes, tflm_runtime, toolchain
from mnet.cli import main
from mnet.errors import MissingToolError, ToolError
from tests.models import tiny_mobilenet
from tests.tools import hide_compilers
from tests.writer import serialise

CORE = "cortex-m0"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def needs_core_compiler() -> None:
    try:
        proof.find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))


def needs_host_compiler() -> None:
    try:
        toolchain.find_compiler("cc")
    except ToolError as error:
        pytest.skip(str(error))


# --- the group --------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_the_road() -> None:
    names = [
        "demo",
        "doctor",
        "zoo",
        "search",
        "train",
        "quantize",
        "eval",
        "plan",
        "codegen",
        "verify",
        "trace",
        "profile",
        "report",
        "show",
    ]
    names += ["cost", "ops"]
    text = good("--help")
    assert [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()] == names
    for name in names:
        assert "Usage: " in good(name, "-h")


def test_what_is_not_built_yet_is_not_offered() -> None:
    assert run("plan").exit_code == run("report").exit_code == 2
    assert run("codegen", "m.tflite", "--optimize", "ram", "-o", "x").exit_code == 2


def test_a_bug_of_ours_keeps_its_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("mnet.pipeline.prepare", broken)
    assert isinstance(run("show", model).exception, KeyError)


def test_python_m_works() -> None:
    done = subprocess.run([sys.executable, "-m", "mnet.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mnet, version ")


# --- codegen ----------------------------------------------------------------------------------------------------------


def test_codegen_writes_a_folder_with_labels_and_name(model: Path, tmp_path: Path) -> None:
    text = good(
        "codegen", model, "--target", "m4", "--name", "cat", "--labels", "no, yes,perhaps", "-o", tmp_path / "c"
    )
    assert "-mcpu=cortex-m4" in text and f"make -C {tmp_path / 'c'} test" in text
    header = (tmp_path / "c" / "cat.h").read_text()
    assert '#define CAT_LABELS { "no", "yes", "perhaps" }' in header
    assert "mnet codegen tiny.tflite --target cortex-m4 --name cat --labels no,yes,perhaps -o cat" in header
    assert str(tmp_path) not in header


def test_codegen_repeats_itself_to_the_byte(model: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        good("codegen", model, "-o", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_codegen_says_its_figures_as_json(model: Path, tmp_path: Path) -> None:
    figures = json.loads(good("codegen", model, "--input", "rows", "--ram", "64k", "-o", tmp_path / "c", "--json"))
    assert figures["input_mode"] == "rows" and 0 < figures["arena_bytes"] < 65536
    assert "tiny.c" in figures["files"] and "test/vectors.bin" in figures["files"]


def test_a_generated_folder_is_replaced(model: Path, tmp_path: Path) -> None:
    good("codegen", model, "-o", tmp_path / "c")
    (tmp_path / "c" / "stale.c").write_text("")
    good("codegen", model, "-o", tmp_path / "c")
    assert not (tmp_path / "c" / "stale.c").exists()


def test_json_never_overwrites_a_model(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    assert run("ops", "--json", model).exit_code == 2
    assert run("eval", "--json", model, model).exit_code == 2
    assert model.read_bytes() == before


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_compares_every_leg(model: Path) -> None:
    needs_host_compiler()
    needs_core_compiler()
    text = good("verify", model, "--target", CORE, "--inputs", 5, "--emulated", 1)
    legs = [line for line in text.splitlines() if line.endswith(" equal")]
    assert next(leg.split("  ")[0] for leg in legs) == "LiteRT reference kernels"
    assert any(leg.startswith("C on this computer") for leg in legs) and any("cortex-m0" in leg for leg in legs)
    assert text.endswith("Equal in every bit.\n")


def test_verify_for_the_host_needs_no_core(model: Path) -> None:
    needs_host_compiler()
    found = json.loads(good("verify", model, "--target", "host", "--inputs", 2, "--json"))
    assert found["exit_code"] == 0 and {leg["status"] for leg in found["legs"]} == {"equal"}
    host = found["legs"][-1]
    assert host["values"] == sum(entry["values"] for entry in host["compared"]) > 0


def test_verify_layer_narrows_to_one_tensor(model: Path) -> None:
    needs_host_compiler()
    names = [line.split()[0] for line in good("show", model).splitlines()[2:]]
    found = json.loads(good("verify", model, "--target", "host", "--inputs", 1, "--layer", names[1], "--json"))
    assert {leg["tensors"] for leg in found["legs"] if leg["name"].startswith(("LiteRT", "C on"))} == {1}
    unknown = run("verify", model, "--target", "host", "--layer", names[1] + "x")
    assert unknown.exit_code == 2 and f"has no layer '{names[1]}x'" in unknown.stderr and names[1] in unknown.stderr


def test_verify_says_when_no_c_makes_a_layer() -> None:
    needs_host_compiler()
    path = Path(__file__).parent / "models" / "sample_a25.tflite"
    names = [line.split()[0] for line in good("show", path).splitlines()[2:]]
    dropped = [name for name in names if name not in good("show", path, "--stage", "simplified")]
    assert dropped
    text = good("verify", path, "--target", "host", "--inputs", 1, "--layer", dropped[0])
    assert f"No C makes {dropped[0]}: simplification dropped it" in text


def test_a_difference_names_its_place_and_the_command_that_shows_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_host_compiler()
    real = runtimes.RUNTIMES["litert"]

    def wrong(path: Path, graph: Any, inputs: Any) -> Any:
        tensors = real.run(path, graph, inputs)
        if len(inputs) > 1:
            tensors[graph.ops[0].output][1, 2, 3, 4] ^= 1
        return tensors

    monkeypatch.setitem(runtimes.RUNTIMES, "litert", replace(real, run=wrong))
    result = run("verify", model, "--target", "host", "--inputs", 6, "--seed", 41)
    assert result.exit_code == 1
    text = result.stdout
    place = (
        r"  first in input 1 at row 2, column 3, channel 4: got -?\d+, expected -?\d+; accumulator -?\d+, multiplier"
    )
    assert re.search(r": 1 of [\d,]+ values differ \(LiteRT reference kernels, against golden litert\)", text)
    assert re.search(place, text)
    again = re.search(r"^  again: mnet (.*)$", text, re.MULTILINE)
    assert again is not None and "--seed 41 --inputs 2" in again[1]
    repeated = run(*shlex.split(again[1]))
    assert repeated.exit_code == 1
    first = re.search(place, text)
    assert first is not None and first[0] in repeated.stdout


def test_a_missing_tool_is_not_run_and_exits_with_3(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingToolError("no compiler here: install one")

    monkeypatch.setattr(proof, "find_compiler", missing)
    result = run("verify", model, "--target", "host", "--inputs", 1)
    assert result.exit_code == 3
    assert "C on this computer, not run: no compiler here: install one" in result.stdout
    assert run("verify", model, "--target", "host", "--inputs", 1, "--allow-missing").exit_code == 0


def test_a_program_that_fails_is_failed_and_exits_with_1(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ToolError("the guard behind the arena was written")

    monkeypatch.setattr(proof, "build_host", failing)
    for more in ((), ("--allow-missing",)):
        result = run("verify", model, "--target", "host", "--inputs", 1, *more)
        assert result.exit_code == 1
        assert "C on this computer, failed: the guard behind the arena was written" in result.stdout


def test_tflm_is_run_without_litert(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tflite_micro")
    needs_host_compiler()
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    text = good("verify", model, "--target", "host", "--oracle", "tflm", "--inputs", 2)
    assert re.search(r"^TFLM  .* equal$", text, re.MULTILINE) and text.endswith("Equal in every bit.\n")


def test_without_tflm_its_leg_is_not_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_host_compiler()
    monkeypatch.setattr(tflm_runtime.importlib.util, "find_spec", lambda name: None)
    result = run("verify", model, "--target", "host", "--oracle", "tflm", "--inputs", 2)
    assert result.exit_code == 3
    assert "TFLM, not run: TFLM is missing: pip install 'mnet-mcu[tflm]' (Linux on x86-64)" in result.stdout


MODELS = sorted((Path(__file__).parent / "models").glob("*.tflite"))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_trained_here_are_equal_on_every_core(path: Path) -> None:
    needs_host_compiler()
    needs_core_compiler()
    result = run("verify", path, "--target", "cortex-m", "--inputs", 8, "--emulated", 1, "--allow-missing")
    assert result.exit_code == 0, result.output
    assert "differs" not in result.stdout and "failed" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ("vww_96_int8", "kws_ref_model", "pretrainedResnet_quant", "ad01_int8"))
def test_published_models_are_equal_on_a_cortex_m4(name: str) -> None:
    shared = resources.shared_folder()
    if shared is None:
        pytest.skip("no $MNET_SHARED")
    needs_host_compiler()
    needs_core_compiler()
    good("verify", shared / "models" / f"{name}.tflite", "--target", "m4", "--inputs", 8, "--emulated", 2)


@pytest.mark.slow
def test_python_packages_alone_prove_a_core(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("PATH", "")
    text = good("verify", model, "--target", CORE, "--inputs", 2, "--emulated", 1)
    assert "C on this computer, zig" in text and "C on cortex-m0, zig, Unicorn" in text


# --- profile, show ----------------------------------------------------------------------------------------------------


def test_profile_adds_up(model: Path, tmp_path: Path) -> None:
    needs_core_compiler()
    text = good("profile", model, "--target", CORE, "--json", tmp_path / "p.json")
    found = json.loads((tmp_path / "p.json").read_text())
    for what in ("instructions", "cycles", "macs"):
        assert sum(layer[what] for layer in found["layers"]) == found[what] > 0
    assert found["flash_bytes"] == found["code_bytes"] + found["constant_bytes"]
    assert found["arena_bytes"] > 0 and found["stack_bytes"] > 0
    assert f"{found['cycles']:,}" in text and "-mcpu=cortex" in text.replace("_", "-") and "modelled" in text
    assert found["compiler"] in text


@pytest.mark.parametrize("stage", ("graph", "simplified", "plan", "memory", "c"))
def test_show_prints_a_stage_and_narrows_it(model: Path, stage: str) -> None:
    whole = good("show", model, "--stage", stage, "--target", CORE)
    name = good("show", model).splitlines()[2].split()[0]
    part = good("show", model, "--stage", stage, "--target", CORE, "--layer", name)
    assert part and part != whole
    unknown = run("show", model, "--stage", stage, "--target", CORE, "--layer", "nobody")
    assert unknown.exit_code == 2 and "has no layer 'nobody'" in unknown.stderr and name in unknown.stderr


def test_show_memory_tells_the_arena(model: Path, tmp_path: Path) -> None:
    figures = json.loads(good("codegen", model, "--target", CORE, "-o", tmp_path / "c", "--json"))
    assert f"{figures['arena_bytes']:,} B of arena" in good("show", model, "--stage", "memory", "--target", CORE)


def test_show_c_is_what_codegen_writes(model: Path, tmp_path: Path) -> None:
    good("codegen", model, "--target", CORE, "-o", tmp_path / "c")
    assert good("show", model, "--target", CORE, "--stage", "c") == (tmp_path / "c" / "tiny.c").read_text()


def test_show_asm_disassembles_a_layer(model: Path) -> None:
    needs_core_compiler()
    name = good("show", model).splitlines()[2].split()[0]
    text = good("show", model, "--target", CORE, "--stage", "asm", "--layer", name)
    assert re.search(r"^tiny_\w+:    @ \d+ B$", text, re.MULTILINE)
    assert re.search(r"^ +[0-9a-f]+  [0-9a-f]{4,8} +(push|mov|ldr)", text, re.MULTILINE)
    assert text.count("\n") < good("show", model, "--target", CORE, "--stage", "asm").count("\n")


# --- cost, ops, eval, doctor ------------------------------------------------------------------------------------------


def test_cost_prints_the_classic_tables_computed() -> None:
    text = good("cost")
    for figure in ("568,740,352", "418,121,728", "41,030,272", "4,253,864", "70.6 %", "50.6 %"):
        assert figure in text
    assert json.loads(good("cost", "--json"))["resolution"][3]["cost"]["multiply_adds"] == 186400768


def test_cost_prints_the_articles_layer_table() -> None:
    text = good("cost", "--alpha", 0.5, "--size", 32, "--classes", 10, "--layers")
    assert "834,666, of which trained 823,722" in text and re.search(r"conv_dw_13 +DepthwiseConv2D +1x1x512", text)
    assert "568,740,352" in good("cost", "--alpha", 1)


def test_cost_takes_height_by_width() -> None:
    assert "multiply-adds" in good("cost", "--size", "48x64")
    assert run("cost", "--size", "48x64x3").exit_code == run("cost", "--size", "0").exit_code == 2


def test_ops_lists_what_is_read_and_what_a_model_has(model: Path) -> None:
    assert "DEPTHWISE_CONV_2D" in good("ops")
    assert "mnet reads tiny.tflite" in good("ops", model)
    assert all(row["is_read"] for row in json.loads(good("ops", model, "--json"))["operators"])


def test_eval_counts_by_an_npz_of_images(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    figures = []
    for label in range(3):
        np.savez(tmp_path / "data.npz", x=x, y=np.full(30, label, np.uint8))
        figures.append(json.loads(good("eval", model, "--data", tmp_path / "data.npz", "--on", "litert", "--json")))
    assert sum(figure["correct"] for figure in figures) == 30
    assert figures[0]["images"] == 30 and figures[0]["runtime"].startswith("LiteRT")


def test_doctor_finds_what_is_there_and_says_how_to_get_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert {"python", "tensorflow", "unicorn", "sample"} <= {f["name"] for f in found["findings"] if f["version"]}
    hide_compilers(monkeypatch)
    bare = run("doctor")
    assert bare.exit_code == 3
    assert re.search(r"compile for Cortex-M +NO +needs arm-none-eabi-gcc or zig", bare.stdout)
    assert "apt-get install gcc-arm-none-eabi" in bare.stdout


# --- train, quantize, eval: the float half ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("trained") / "run"
    words = "train --data sample --recipe sample --epochs 1 --train-images 640 --validation-images 100 --alpha 0.1"
    text = good(*words.split(), "--out", out)
    assert f"next: mnet quantize {out} -o run.tflite" in text
    yield out


@pytest.mark.slow
def test_train_quantize_eval_and_prove(trained: Path, tmp_path: Path) -> None:
    assert (trained / "model.keras").is_file() and (trained / "history.csv").is_file()
    model = tmp_path / "net.tflite"
    values = json.loads(good("quantize", trained, "-o", model, "--images", 50, "--json"))
    assert values["input_zero_point"] == 0 and values["file_bytes"] == model.stat().st_size
    by_float = json.loads(good("eval", trained, "--json"))
    by_int8 = json.loads(good("eval", model, "--data", "sample", "--on", "litert", "--json"))
    assert by_float["images"] == by_int8["images"] == 1000
    assert abs(by_float["accuracy"] - by_int8["accuracy"]) < 0.1
    needs_host_compiler()
    good("verify", model, "--target", "host", "--inputs", 4)


@pytest.mark.slow
def test_the_command_in_the_model_card_trains_again(trained: Path, tmp_path: Path) -> None:
    command = re.search(r"Made with `mnet (.*)`", (trained / "README.md").read_text())
    assert command is not None
    words = shlex.split(command[1])
    words[words.index("--out") + 1] = str(tmp_path / "again")
    good(*words)
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (trained, tmp_path / "again"))
    assert first["test_accuracy"] == second["test_accuracy"]


@pytest.mark.parametrize("name", ("model", "harness", "test", "main"))
def test_a_models_name_may_be_any_word(model: Path, tmp_path: Path, name: str) -> None:
    """`model.tflite` is what most people call it: nothing of the harness or of the folder's own test may collide."""
    needs_host_compiler()
    path = tmp_path / f"{name}.tflite"
    path.write_bytes(model.read_bytes())
    good("verify", path, "--target", "host", "--inputs", "2")
    good("codegen", path, "-o", tmp_path / "out")
    subprocess.run(["make", "-C", str(tmp_path / "out"), "test"], check=True, capture_output=True)
