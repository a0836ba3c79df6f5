"""One program gives the same bytes on the host, in QEMU and in Unicorn; both count the same; faults are sentences."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen.targets import TARGETS
from mnet import counting, emulator, toolchain
from mnet.errors import ToolError
from mnet.trace import TraceRecord, read_trace
from tests import fake_model

pytestmark = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="needs qemu-system-arm")

IMAGES = fake_model.inputs(3)
SIX = TARGETS["cortex-m"].runs_on
SUM = "int32_t sum = 0;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def host_trace(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = toolchain.build_host(folder, ("SUBJECT_TRACE",), tmp_path_factory.mktemp("host"))
    return emulator.run_host(program, IMAGES.tobytes()).trace


@pytest.fixture(scope="module")
def build(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build with gcc, each combination once."""

    @functools.cache
    def elf(name: str, *defines: str) -> Path:
        return toolchain.build_target(folder, TARGETS[name], defines, "gcc", tmp_path_factory.mktemp(name))

    return elf


def agree(folder: Path, name: str, compiler: str, host_trace: bytes, out: Path) -> None:
    target = TARGETS[name]
    elf = toolchain.build_target(folder, target, ("SUBJECT_TRACE", "SUBJECT_POISON"), compiler, out)
    runs = [emulator.run_qemu(elf, None, IMAGES.tobytes())]
    if target.unicorn is not None:
        runs.append(emulator.run_unicorn(elf, target, IMAGES.tobytes()))
    for run in runs:
        assert run.outputs == fake_model.outputs(IMAGES).tobytes()
        assert run.trace == host_trace


@needs_qemu
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("cortex-m3", "cortex-m7") else name for name in SIX]
)
def test_six_cores_equal_the_host_call_by_call(folder: Path, name: str, host_trace: bytes, tmp_path: Path) -> None:
    agree(folder, name, "gcc", host_trace, tmp_path)


@pytest.mark.slow  # zig builds a run-time library at the first link for a core
@needs_qemu
@pytest.mark.parametrize("name", SIX)
def test_a_second_compiler_gives_the_same_bytes(folder: Path, name: str, host_trace: bytes, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    agree(folder, name, "zig", host_trace, tmp_path)


def test_m55_is_not_in_unicorn(build: Callable[..., Path]) -> None:
    elf = build("cortex-m55")
    assert emulator.board_of(elf) == "mps3-an547"
    with pytest.raises(ToolError, match="Unicorn has no cortex-m55: run it in qemu-system-arm"):
        emulator.run_unicorn(elf, TARGETS["cortex-m55"], b"")


def test_missing_qemu_is_a_sentence(build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    elf = build("cortex-m4")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolError, match=r"qemu-system-arm is missing: install it \(Debian"):
        emulator.run_qemu(elf, None, IMAGES.tobytes())


@pytest.mark.parametrize(
    ("runner", "instruction"),
    [
        ("cortex-m0", "smlad r0, r0, r0, r0"),  # DSP
        pytest.param("cortex-m0", "movw r0, #4660", marks=pytest.mark.slow),  # Thumb-2
        pytest.param("cortex-m0", "udiv r0, r0, r0", marks=pytest.mark.slow),
        ("cortex-m3", "vadd.f32 s0, s0, s0"),  # FPU
    ],
)
def test_unicorn_refuses_what_the_core_lacks(runner: str, instruction: str, tmp_path: Path) -> None:
    """Built as M0 or M3 code with one foreign instruction in it, given by its encoding."""
    code = {
        "smlad r0, r0, r0, r0": (0xFB20, 0x0000),
        "movw r0, #4660": (0xF241, 0x2034),
        "udiv r0, r0, r0": (0xFBB0, 0xF0F0),
        "vadd.f32 s0, s0, s0": (0xEE30, 0x0A00),
    }[instruction]
    words = f'__asm__ volatile(".inst.n {code[0]:#x}\\n .inst.n {code[1]:#x}" : : : "r0");'
    changed = fake_model.write(tmp_path / "tiny", source=fake_model.SOURCE.replace(SUM, f"{SUM} {words}"))
    elf = toolchain.build_target(changed, TARGETS[runner], (), "gcc", tmp_path / "out")
    with pytest.raises(ToolError, match=rf"Unicorn's Cortex-{TARGETS[runner].unicorn}: .* in tiny_sum"):
        emulator.run_unicorn(elf, TARGETS[runner], IMAGES.tobytes())


@pytest.mark.parametrize(
    ("fault", "qemu_notices"),
    [
        ("*(volatile int32_t *)(void *)(uintptr_t)((uintptr_t)to | 1u) = 5;", True),  # unaligned
        ("*(volatile int32_t *)(uintptr_t)0x60000000u = 5;", True),  # no memory there
        ("*(volatile int16_t *)(uintptr_t)constants = 5;", False),  # flash
    ],
)
def test_faults_name_the_function(fault: str, qemu_notices: bool, tmp_path: Path) -> None:
    changed = fake_model.write(tmp_path / "tiny", source=fake_model.SOURCE.replace(SUM, f"{SUM} {fault}"))
    elf = toolchain.build_target(changed, TARGETS["cortex-m0"], (), "gcc", tmp_path / "out")
    with pytest.raises(ToolError, match=r"tiny-cortex-m0-.*\.elf on Unicorn's Cortex-M0: .* in tiny_sum$"):
        emulator.run_unicorn(elf, TARGETS["cortex-m0"], IMAGES.tobytes())
    if qemu_notices and shutil.which("qemu-system-arm"):
        with pytest.raises(ToolError, match=r"on microbit: .* fault at pc 0x\w+ in tiny_sum"):
            emulator.run_qemu(elf, None, IMAGES.tobytes())


def test_endless_programs_end(tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace(SUM, f'{SUM} for (;;) {{ __asm__ volatile("nop"); }}')
    changed = fake_model.write(tmp_path / "tiny", source=source)
    elf = toolchain.build_target(changed, TARGETS["cortex-m4"], (), "gcc", tmp_path / "out")
    with pytest.raises(ToolError, match=r"did not end within 0\.3 s"):
        emulator.run_unicorn(elf, TARGETS["cortex-m4"], IMAGES.tobytes(), timeout_s=0.3)
    if shutil.which("qemu-system-arm"):
        with pytest.raises(ToolError, match=r"did not end within 0\.5 s"):
            emulator.run_qemu(elf, None, IMAGES.tobytes(), timeout_s=0.5)


@needs_qemu
@pytest.mark.parametrize(
    "name", ["cortex-m4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cortex-m0", "cortex-m33"))]
)
def test_three_counters_agree_on_every_edge(build: Callable[..., Path], name: str) -> None:
    target, elf = TARGETS[name], build(name, "SUBJECT_MARK")
    fast = counting.count_unicorn(elf, target, IMAGES.tobytes())
    assert fast.run.outputs == fake_model.outputs(IMAGES).tobytes()
    assert fast.edges == counting.count_unicorn(elf, target, IMAGES.tobytes(), portable=True).edges
    assert fast.edges == counting.count_qemu(elf, None, IMAGES.tobytes()).edges
    assert {edge.entry for edge in fast.edges} == {0, 1, counting.REST}


def test_marks_are_counted_once_per_call(build: Callable[..., Path]) -> None:
    elf = build("cortex-m4", "SUBJECT_MARK")
    counts = counting.count_unicorn(elf, TARGETS["cortex-m4"], IMAGES.tobytes())
    at = {symbol.name: symbol.address for symbol in toolchain.symbols(elf)}
    for entry, kernel in ((0, "tiny_widen"), (1, "tiny_sum")):
        for function in (kernel, "subject_trace"):
            calls = [edge.count for edge in counts.edges if edge.block == at[function] and edge.entry == entry]
            assert sum(calls) == len(IMAGES) * fake_model.ROWS


def test_unmarked_programs_are_refused_by_the_counter(build: Callable[..., Path]) -> None:
    elf = build("cortex-m4")
    with pytest.raises(ToolError, match="build it with SUBJECT_COUNT or SUBJECT_MARK"):
        counting.count_unicorn(elf, TARGETS["cortex-m4"], IMAGES.tobytes())


def test_broken_traces_are_refused() -> None:
    whole = b"\x01\x00\x02\x00\x03\x00\x00\x00abc"
    assert list(read_trace(whole)) == [TraceRecord(1, 2, b"abc")]
    with pytest.raises(ToolError, match="entry 1, call 2"):
        list(read_trace(whole[:-1]))
    with pytest.raises(ToolError, match="record's head"):
        list(read_trace(whole[:5]))
