"""The harness runs a model right, and notices each thing that a model must not do; the Makefile builds every board."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codegen.targets import TARGETS
from mnet import emulator, toolchain
from mnet.errors import ToolError
from mnet.resources import folder as resource_folder
from mnet.trace import OUTPUT_RECORD, TraceRecord, read_trace
from tests import fake_model

needs_arm_gcc = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

IMAGES = fake_model.inputs(3)
SUM = "int32_t sum = 0;"


def host(tmp_path: Path, *defines: str, sanitizers: bool = False, **changes: str) -> emulator.Run:
    folder = fake_model.write(tmp_path / "tiny", **changes)
    program = toolchain.build_host(folder, defines, tmp_path / "out", sanitizers)
    return emulator.run_host(program, IMAGES.tobytes())


def test_trace_holds_every_call_and_output_even_under_poison_and_sanitizers(tmp_path: Path) -> None:
    run = host(tmp_path, "SUBJECT_TRACE", "SUBJECT_POISON", sanitizers=True)
    assert run.outputs == fake_model.outputs(IMAGES).tobytes()
    expected = []
    rows, answers = fake_model.widened(IMAGES), fake_model.outputs(IMAGES)
    for image in range(len(IMAGES)):
        for entry, call in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)):
            made = rows[image, call] if entry == 0 else answers[image, call]
            expected.append(TraceRecord(entry, call, made.tobytes()))
        expected.append(TraceRecord(OUTPUT_RECORD, image, answers[image].tobytes()))
    assert list(read_trace(run.trace)) == expected


def test_untraced_program_writes_no_trace(tmp_path: Path) -> None:
    run = host(tmp_path)
    assert (run.trace, run.text) == (b"", "runs 3\n")


def test_poison_shows_a_row_that_dies_too_early(tmp_path: Path) -> None:
    model = fake_model.MODEL.replace("{0, 16, 0, 2}", "{0, 16, 0, 1}")  # sum 0 reads it in step 2
    assert host(tmp_path, "SUBJECT_POISON", model=model).outputs != fake_model.outputs(IMAGES).tobytes()


def test_poison_spares_live_bytes_alone(tmp_path: Path) -> None:
    """Without the state's box the run cannot go on: the poison reaches every byte that no box covers."""
    model = fake_model.MODEL.replace("{40, 16, 0, 8}", "{40, 16, 0, 0}")
    with pytest.raises(ToolError):
        host(tmp_path, "SUBJECT_POISON", model=model)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("((uint8_t *)to)[40] = 1;", "the model wrote outside its arena on input 0"),
        ("((uint8_t *)to)[-33] = 1;", "the model wrote outside its arena on input 0"),
    ],
)
def test_writes_outside_the_arena_are_noticed(fault: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=f"ended with status 4, having said: {said}"):
        host(tmp_path, source=fake_model.SOURCE.replace(SUM, f"{SUM} {fault}"))


def test_writes_outside_the_output_are_noticed(tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace("i < 4; i++", "i < 5; i++")
    with pytest.raises(ToolError, match="the model wrote outside its output on input 0"):
        host(tmp_path, source=source)


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace("return TINY_OK;", "((int8_t *)(uintptr_t)input)[31] ^= 1;\n    return TINY_OK;")
    with pytest.raises(ToolError, match="the model changed the caller's input 0"):
        host(tmp_path, source=source)


def test_a_status_is_passed_on(tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace("return TINY_OK;", "return TINY_BAD_ARGUMENT;")
    with pytest.raises(ToolError, match="status 3, having said: the model returned status 1; on input 0"):
        host(tmp_path, source=source)


def test_a_wrong_number_of_steps_is_noticed(tmp_path: Path) -> None:
    model = fake_model.MODEL.replace("SUBJECT_STEPS 8", "SUBJECT_STEPS 9")
    with pytest.raises(ToolError, match="the model made not SUBJECT_STEPS calls but 8"):
        host(tmp_path, "SUBJECT_TRACE", model=model)


def test_sanitizer_notices_a_read_outside_the_arena(tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace(SUM, "int32_t sum = ((volatile uint8_t *)(uintptr_t)to)[30];")
    with pytest.raises(ToolError, match="use-after-poison"):
        host(tmp_path, sanitizers=True, source=source)


def test_inputs_that_end_in_the_middle_are_refused(tmp_path: Path) -> None:
    program = toolchain.build_host(fake_model.write(tmp_path / "tiny"), (), tmp_path / "out")
    with pytest.raises(ToolError, match="the inputs end in the middle of input 1"):
        emulator.run_host(program, IMAGES.tobytes()[:40])


@needs_arm_gcc
def test_stack_is_what_the_model_pushes(tmp_path: Path) -> None:
    measured = {}
    for name, source in {
        "plain": fake_model.SOURCE,
        "deep": fake_model.SOURCE.replace(SUM, f"{SUM} volatile uint8_t deep[512]; deep[0] = 1; sum += deep[0] - 1;"),
    }.items():
        folder = fake_model.write(tmp_path / name, source=source)
        elf = toolchain.build_target(folder, TARGETS["cortex-m4"], (), "gcc", tmp_path / name / "out")
        measured[name] = emulator.run_unicorn(elf, TARGETS["cortex-m4"], IMAGES.tobytes()).stack_bytes
    assert measured["plain"] is not None and measured["deep"] is not None
    assert 16 <= measured["plain"] < 100
    assert 500 <= measured["deep"] - measured["plain"] <= 540


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "-C", str(resource_folder("firmware")), *arguments], capture_output=True, text=True
    )


@needs_make
def test_makefile_lists_boards_and_refuses_strangers(tmp_path: Path) -> None:
    boards = make("boards").stdout.split()
    emulated = {TARGETS[name].board for name in TARGETS["cortex-m"].runs_on}
    assert set(boards) == emulated | {"microbit-8k", "nucleo-l4r5zi"}
    refused = make(f"MODEL={fake_model.write(tmp_path)}", "BOARD=toaster")
    assert refused.returncode != 0 and "unknown BOARD=toaster; there are microbit" in refused.stderr
    refused = make("MODEL=/nonexistent")
    assert refused.returncode != 0 and "holds no NAME.plan.json" in refused.stderr


@needs_make
@needs_arm_gcc
@pytest.mark.parametrize(
    "board",
    [
        "mps2-an386",
        "nucleo-l4r5zi",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("microbit", "mps3-an547")),
    ],
)
def test_make_alone_builds_what_the_toolchain_builds(board: str, tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "tiny")
    done = make(f"MODEL={folder}", f"BOARD={board}", f"BUILD={tmp_path / 'build'}", "DEFINES=-DSUBJECT_TRACE")
    assert done.returncode == 0, done.stderr
    elf = tmp_path / "build" / "tiny.elf"
    assert emulator.board_of(elf) == board
    if board == "nucleo-l4r5zi":
        names = {symbol.name: symbol.address for symbol in toolchain.symbols(elf)}
        assert (names["__flash_start"], names["__ram_start"]) == (0x08000000, 0x20000000)
        # Unicorn has the core, the ELF file says where its memories lie: the program itself runs.
        run = emulator.run_unicorn(elf, TARGETS["cortex-m4"], IMAGES.tobytes())
        assert run.outputs == fake_model.outputs(IMAGES).tobytes()
        return
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu-system-arm")
    inputs = tmp_path / "images.bin"
    inputs.write_bytes(IMAGES.tobytes())
    done = make(f"MODEL={folder}", f"BOARD={board}", f"BUILD={tmp_path / 'build'}", f"INPUTS={inputs}", "run")
    assert done.returncode == 0, done.stderr
    outputs = np.frombuffer((tmp_path / "build" / "outputs.bin").read_bytes(), np.int8)
    assert np.array_equal(outputs, fake_model.outputs(IMAGES).reshape(-1))
