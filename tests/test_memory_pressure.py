"""Whole models within the flash and RAM of a small board: linker, painted stack, right bits, clear sentences."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mnet import boards, golden, proof, verify
from mnet.boards import Fit
from mnet.cli import main
from mnet.emulator import find_qemu
from mnet.errors import MissingToolError, PlanError, ToolError
from mnet.pipeline import Options, Prepared, prepare, write
from mnet.resources import shared_folder
from mnet.toolchain import find_compiler
from mnet.verify import Leg
from tests.models import tiny_mobilenet
from tests.writer import serialise

CIFAR10 = Path(__file__).parent / "models" / "cifar10_a25.tflite"
SAMPLE = Path(__file__).parent / "models" / "sample_a25.tflite"


@pytest.fixture(autouse=True)
def needs_tools() -> None:
    try:
        find_compiler("arm-none-eabi-gcc")
        find_qemu()
    except MissingToolError as error:
        pytest.skip(str(error))


def vww() -> Path:
    shared = shared_folder()
    if shared is None:
        pytest.skip("no MNET_SHARED")
    return shared / "models" / "vww_96_int8.tflite"


def fitted(path: Path, board: str, folder: Path, mode: str, inputs: int = 2) -> tuple[Leg, Fit]:
    prepared = prepare(path, Options(target="cortex-m0", input_mode=mode, optimize="ram"))
    return run_on(prepared, board, folder / prepared.graph.name, inputs)


def run_on(prepared: Prepared, board: str, folder: Path, inputs: int) -> tuple[Leg, Fit]:
    images = verify.random_inputs(prepared.source, inputs, 0)
    tensors = golden.run(prepared.source, prepared.plan.oracle, images)
    write(prepared, folder)
    return boards.fit(prepared.plan, folder, boards.find_board(board), proof.find_target_compiler(), tensors)


def check(leg: Leg, found: Fit, inputs: int) -> None:
    assert (leg.status, leg.inputs, leg.differing) == ("equal", inputs, 0) and leg.values > 0
    assert found.flash_used <= found.flash
    assert found.arena + found.variables + found.stack_room <= found.ram
    assert 0 < found.stack_painted <= found.stack_worst <= found.stack_room


@pytest.mark.slow
def test_visual_wake_words_runs_in_16_kb(tmp_path: Path) -> None:
    leg, found = fitted(vww(), "microbit", tmp_path, "rows", 4)
    check(leg, found, 4)
    assert (found.ram, found.flash) == (16 << 10, 256 << 10)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("rows", "const", "arena"))
def test_cifar10_runs_in_8_kb(mode: str, tmp_path: Path) -> None:
    leg, found = fitted(CIFAR10, "microbit-8k", tmp_path, mode, 4)
    check(leg, found, 4)
    assert (found.ram, found.flash) == (8 << 10, 256 << 10)


@pytest.mark.parametrize("mode", ("rows", "const", "arena"))
def test_every_input_mode_fits_a_small_network(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    check(*fitted(path, "microbit-8k", tmp_path, mode, 3), inputs=3)


@pytest.mark.slow
def test_what_does_not_fit_is_said_in_bytes_and_region(tmp_path: Path) -> None:
    with pytest.raises(
        ToolError, match=r"vww_96_int8 does not fit the board microbit-8k: [\d,]+ B too much for its RAM$"
    ):
        fitted(vww(), "microbit-8k", tmp_path, "rows")
    with pytest.raises(
        ToolError, match=r"sample_\w+ does not fit the board microbit: [\d,]+ B too much for its FLASH$"
    ):
        fitted(SAMPLE, "microbit", tmp_path, "rows")


@pytest.mark.slow
def test_the_linker_counts_the_stack(tmp_path: Path) -> None:
    """A program that fits to the byte; one byte less of RAM and it is refused, by just that."""
    leg, found = fitted(CIFAR10, "microbit-8k", tmp_path, "const", 1)
    check(leg, found, 1)
    free = found.ram - found.arena - found.variables - found.stack_room
    prepared = prepare(CIFAR10, Options(target="cortex-m0", input_mode="const", optimize="ram"))
    folder = tmp_path / "larger" / prepared.graph.name
    write(prepared, folder)
    header = folder / f"{prepared.graph.name}.h"
    name = f"{prepared.graph.name.upper()}_STACK_BYTES "
    stack = int(header.read_text().partition(f"#define {name}")[2].partition("u")[0])
    header.write_text(header.read_text().replace(f"{name}{stack}u", f"{name}{stack + free + 8}u"))
    images = verify.random_inputs(prepared.source, 1, 0)
    tensors = golden.run(prepared.source, prepared.plan.oracle, images)
    with pytest.raises(ToolError, match=r"microbit-8k: [1-9][0-9]? B too much for its RAM"):
        boards.fit(prepared.plan, folder, boards.find_board("microbit-8k"), "gcc", tensors)


def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    prepared = prepare(path, Options(target="cortex-m0", input_mode="rows"))
    images = verify.random_inputs(prepared.source, 2, 0)
    tensors = dict(golden.run(prepared.source, prepared.plan.oracle, images))
    spoiled = np.array(tensors[prepared.source.outputs[0]])
    spoiled.reshape(2, -1)[1, -1] ^= 1
    tensors[prepared.source.outputs[0]] = spoiled
    write(prepared, tmp_path / "tiny")
    leg, _ = boards.fit(prepared.plan, tmp_path / "tiny", boards.find_board("microbit"), "gcc", tensors)
    assert (leg.status, leg.differing) == ("differs", 1) and leg.mismatches[0].input == 1


def test_boards_are_those_of_the_firmware_folder_that_are_emulated() -> None:
    names = boards.board_names()
    assert {"microbit", "microbit-8k", "mps2-an386", "mps3-an547"} <= set(names) and "nucleo-l4r5zi" not in names
    for name in names:
        found = boards.find_board(name)
        assert found.core.core == found.core.name and name.startswith(found.machine)
    with pytest.raises(PlanError, match=r"no emulated board 'toaster'; there are .*microbit"):
        boards.find_board("toaster")


@pytest.mark.slow
def test_verify_within_a_board(tmp_path: Path) -> None:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    few = ["--inputs", "1", "--allow-missing", "--target", "cortex-m0"]
    done = CliRunner().invoke(main, ["verify", str(path), *few, "--board", "microbit-8k"])
    assert done.exit_code == 0, done.output
    assert "C within microbit-8k, gcc, QEMU" in done.output and "RAM" in done.output and "of 8,192 B" in done.output
    done = CliRunner().invoke(main, ["verify", str(SAMPLE), *few, "--board", "microbit"])
    assert done.exit_code == 1 and "does not fit the board microbit" in done.output
    done = CliRunner().invoke(main, ["verify", str(path), *few, "--board", "toaster"])
    assert done.exit_code == 2 and "no emulated board 'toaster'" in done.output
