"""Compilers are found, generated folders become programs, and what goes wrong is said in a sentence."""

import re
import shutil
from pathlib import Path

import pytest

from codegen.targets import TARGETS, target
from mnet import toolchain
from mnet.errors import PlanError, ToolError
from mnet.resources import folder as resource_folder
from tests import fake_model

needs_arm_gcc = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model.write(tmp_path_factory.mktemp("generated"))


def test_target_names_go_with_and_without_prefix() -> None:
    assert target("m4") is target("cortex-m4") is TARGETS["cortex-m4"]
    with pytest.raises(PlanError, match=r"unknown target 'm5'; the targets are cortex-m, cortex-m0, "):
        target("m5")


def test_every_target_runs_on_targets_with_boards() -> None:
    for row in TARGETS.values():
        assert all(TARGETS[name].boards for name in row.runs_on)
    assert len(TARGETS["cortex-m"].runs_on) == 6


def test_makefile_compiles_with_the_flags_of_targets() -> None:
    boards = resource_folder("firmware") / "boards"
    for name in TARGETS["cortex-m"].runs_on:
        row = TARGETS[name]
        text = (boards / f"{row.board}.mk").read_text()
        assert f"CPU ?= {' '.join(row.gcc)}\n" in text
        assert f"MACHINE = {row.board}\n" in text


@pytest.mark.parametrize("tool", ["arm-none-eabi-gcc", "clang", "gcc"])
def test_missing_compiler_says_how_to_get_it(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolError, match=rf"^{tool} is missing: install it \(Debian: apt-get install "):
        toolchain.find_compiler(tool)


def test_zig_stands_in_where_there_is_no_other_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert toolchain.find_compiler("cc").name == "zig"


def test_unknown_compiler_is_refused() -> None:
    with pytest.raises(ToolError, match="unknown compiler 'tcc'; known are"):
        toolchain.find_compiler("tcc")


def test_folder_that_was_not_generated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="is not a folder that mnet codegen wrote"):
        toolchain.build_host(tmp_path, (), tmp_path / "out")


def test_compiler_message_follows_the_sentence(tmp_path: Path) -> None:
    broken = fake_model.write(
        tmp_path / "tiny", source=fake_model.SOURCE + "int tiny_broken(void) { return missing; }\n"
    )
    with pytest.raises(ToolError) as caught:
        toolchain.build_host(broken, (), tmp_path / "out")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("cannot compile tiny.c with ")
    assert any("missing" in line for line in rest)
    assert len(rest) <= 12


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc", "zig"])
def test_warnings_are_errors(folder: Path, compiler: str, language: str, tmp_path: Path) -> None:
    try:
        toolchain.find_compiler(compiler)
    except ToolError as error:
        pytest.skip(str(error))
    toolchain.check_warnings(folder, compiler, language)
    narrowing = (
        fake_model.SOURCE + "int8_t tiny_narrow(int32_t x);\nint8_t tiny_narrow(int32_t x)\n{\n    return x;\n}\n"
    )
    with pytest.raises(ToolError, match=r"tiny.c is not clean as "):
        toolchain.check_warnings(fake_model.write(tmp_path, source=narrowing), compiler, language)


@needs_arm_gcc
def test_model_too_large_for_the_microbit_goes_to_the_next_board(tmp_path: Path) -> None:
    header = fake_model.HEADER.replace("TINY_ARENA_BYTES 56", "TINY_ARENA_BYTES 20000")
    large = fake_model.write(tmp_path / "tiny", header=header)
    m0 = target("m0")
    with pytest.raises(ToolError, match=r"tiny does not fit the board microbit: [\d,]+ B too much for its RAM"):
        toolchain.build_target(large, m0, (), "gcc", tmp_path / "out", board="microbit")
    elf = toolchain.build_target(large, m0, (), "gcc", tmp_path / "out")
    names = {symbol.name: symbol.address for symbol in toolchain.symbols(elf)}
    assert names["__ram_end"] - names["__ram_start"] == 4 << 20


@needs_arm_gcc
def test_model_too_large_for_every_board_is_a_sentence(tmp_path: Path) -> None:
    header = fake_model.HEADER.replace("TINY_ARENA_BYTES 56", "TINY_ARENA_BYTES 600000")
    with pytest.raises(ToolError, match=r"does not fit the board mps3-an547: [\d,]+ B too much for its RAM"):
        toolchain.build_target(fake_model.write(tmp_path, header=header), target("m55"), (), "gcc", tmp_path / "out")


def test_host_has_no_board(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="host has no emulated board"):
        toolchain.build_target(folder, target("host"), (), "gcc", tmp_path)


@needs_arm_gcc
def test_sizes_count_the_model_alone(folder: Path, tmp_path: Path) -> None:
    elf = toolchain.build_target(folder, target("m4"), (), "gcc", tmp_path / "out")
    sizes = toolchain.sizes(elf)
    functions = [s for s in toolchain.symbols(elf) if s.is_function and s.section == ".model_code"]
    assert {symbol.name for symbol in functions} == {"tiny_widen", "tiny_sum", "tiny_run"}
    assert 0 <= sizes.code - sum(symbol.size for symbol in functions) < 8  # alignment
    assert sizes.constants == 16 + 16 + 12  # weights, entries, schedule of 9 bytes with padding
    assert (sizes.data, sizes.bss) == (0, 0)
    assert sizes.flash == sizes.code + sizes.constants

    wasteful = fake_model.SOURCE.replace(
        "int32_t sum = 0;",
        "static int32_t calls[5]; static int16_t seed[2] = {1, 2}; int32_t sum = calls[0]++ - seed[0]++;",
    )
    elf = toolchain.build_target(fake_model.write(tmp_path, source=wasteful), target("m4"), (), "gcc", tmp_path / "out")
    sizes = toolchain.sizes(elf)
    assert sizes.bss in (4, 20) and sizes.data in (2, 4)  # the compiler may keep only what is used


@needs_arm_gcc
def test_m3_build_has_no_dsp_instructions(folder: Path, tmp_path: Path) -> None:
    """Emulators would run them on an M3, so only the flags keep them out."""
    assert not any(re.search(r"m4|m7|m33|m55", flag) for flag in target("m3").gcc)
    source = '#if defined(__ARM_FEATURE_DSP)\n#error "DSP"\n#endif\n' + fake_model.SOURCE
    changed = fake_model.write(tmp_path / "tiny", source=source)
    toolchain.build_target(changed, target("m3"), (), "gcc", tmp_path / "out")
    with pytest.raises(ToolError, match="DSP"):
        toolchain.build_target(changed, target("m4"), (), "gcc", tmp_path / "out")
