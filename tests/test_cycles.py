"""Each class of instruction costs what the manuals say, a loop what a pencil says; parts add up to the whole."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from codegen.targets import TARGETS
from mnet import cycles, toolchain
from tests import fake_model

pytestmark = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")

# Straight code -> cycles on an M4; a branch at its end is taken.
M4_BLOCKS = {
    "add r0, r1, r2": 1,
    "movw r0, #4660; movt r0, #4660": 2,
    "mul r0, r1, r2; mla r0, r1, r2, r3; umull r0, r1, r2, r3; smlal r0, r1, r2, r3": 4,
    "smlad r0, r1, r2, r3; smuad r0, r1, r2; smmul r0, r1, r2; smlabb r0, r1, r2, r3; smlald r0, r1, r2, r3": 5,
    "sxtb16 r0, r1, ror #8; pkhbt r0, r1, r2; usat r0, #8, r1, asr #3; ssat r0, #8, r1; nop": 5,
    "sdiv r0, r1, r2": 7,
    "udiv r0, r1, r2": 7,
    "ldr r0, [r1]": 2,
    "ldr r0, [r1]; ldr r2, [r1, #4]; ldrsb r3, [r1, r2]": 2 + 1 + 2,  # the last waits for its index
    "ldr r0, [r1]; ldr r2, [r0]": 4,
    "ldrh r0, [r1], #2; ldrsh r2, [r1]": 3,
    "str r0, [r1]; ldr r2, [r1]": 2,
    "ldr r0, [r1]; strb r0, [r2]; strh r0, [r2]; str r0, [r2, r3]": 5,
    "ldr r0, [r1]; add r0, r0, r0; ldr r2, [r1]": 5,
    "ldrd r0, r1, [r2]; strd r0, r1, [r2]": 6,
    "ldrd r0, r1, [r2]; ldr r0, [r2]": 5,  # a double load is no single one
    "push {r4-r7, lr}": 6,
    "pop {r4-r7}": 5,
    "pop {r4, pc}": 5,
    "ldm r0!, {r1-r6}; stm r0, {r1, r2}": 7 + 3,
    "b .": 3,
    "bl .": 3,
    "bx lr": 3,
    "blx r3": 3,
    "cbz r0, .+8": 3,
    "ldr pc, [r0]": 4,
    "mov pc, r0": 3,
    "tbb [pc, r0]": 4,
    "mrs r0, apsr; dsb": 2,
    "it eq; addeq r0, r0, r1": 2,
    "it ne; ldrne r0, [r1]; ldr r2, [r1]": 1 + 2 + 1,
    "vmov s0, r0; vmov r1, s1; vadd.f32 s0, s1, s2; vmul.f32 s0, s1, s2; vcvt.f32.s32 s0, s0": 5,
    "vmov s0, s1, r0, r1": 2,
    "vmla.f32 s0, s1, s2; vfma.f32 s0, s1, s2": 6,
    "vdiv.f32 s0, s1, s2; vsqrt.f32 s0, s1": 28,
    "vldr s0, [r0]; vstr s0, [r0]; vldr d0, [r0]; vstr d0, [r0]": 2 + 1 + 3 + 2,
    "vpush {s16-s31}; vldm r0!, {s0-s3}; vpop {d8-d15}": 17 + 5 + 17,
}
M3_BLOCKS = {
    "mul r0, r1, r2; mla r0, r1, r2, r3; umull r0, r1, r2, r3; smlal r0, r1, r2, r3": 1 + 2 + 4 + 5,
    "ldr r0, [r1]; ldr r2, [r1, #4]": 3,
}
M0_BLOCKS = {
    "adds r0, r1, r2; muls r0, r1, r0": 2,
    "ldr r0, [r1]; ldr r2, [r1, #4]; str r0, [r1]": 6,
    "push {r4-r7, lr}": 6,
    "pop {r4, pc}": 6,
    "ldm r0!, {r1-r3}": 4,
    "bl .": 4,
    "b .": 3,
    "bx lr": 3,
}
M0PLUS_BLOCKS = {"bl .": 3, "b .": 2, "bx lr": 2, "pop {r4, pc}": 5, "ldr r0, [r1]; str r0, [r1]": 4}


def assembled(snippets: Mapping[str, int], flags: tuple[str, ...], out: Path) -> dict[str, bytes]:
    """The machine code of each snippet."""
    source = out / "snippets.s"
    lines = [".syntax unified", ".thumb", ".text"]
    for index, snippet in enumerate(snippets):
        lines += [".p2align 2", f".global s{index}", f"s{index}:", snippet, f".global e{index}", f"e{index}:"]
    source.write_text("\n".join(lines) + "\n")
    program = out / "snippets.o"
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", str(source), "-o", str(program)], check=True)
    with ELFFile.load_from_path(str(program)) as file:
        text = file.get_section_by_name(".text").data()
        at = {symbol.name: symbol["st_value"] for symbol in file.get_section_by_name(".symtab").iter_symbols()}
        return {snippet: bytes(text[at[f"s{i}"] : at[f"e{i}"]]) for i, snippet in enumerate(snippets)}


@pytest.mark.parametrize(
    ("core", "blocks"),
    [
        ("cortex-m4", M4_BLOCKS),
        ("cortex-m3", M3_BLOCKS),
        ("cortex-m0", M0_BLOCKS),
        ("cortex-m0plus", M0PLUS_BLOCKS),
    ],
)
def test_classes_cost_what_the_manual_says(core: str, blocks: Mapping[str, int], tmp_path: Path) -> None:
    row = TARGETS[core]
    wrong = {}
    for snippet, code in assembled(blocks, row.gcc, tmp_path).items():
        block = cycles.BlockCosts(lambda at, size, code=code: code[at : at + size], row.timing)(0, len(code))
        if block.cycles != blocks[snippet]:
            wrong[snippet] = (block.cycles, blocks[snippet])
    assert wrong == {}


# A naked function and, for each core, instructions and cycles of one call with pencil and paper.
LOOP = """
__attribute__((naked, noinline)) static void tiny_loop(void)
{
    __asm__ volatile(
        ".syntax unified\\n"
        "push {r4, lr}\\n"          /* 1 + 2                                  M0 the same */
        "movs r0, #10\\n"           /* 1 */
        "mov r1, sp\\n"             /* 1 */
        "1:\\n"
        "ldr r2, [r1]\\n"           /* 2 */
        "ldr r3, [r1, #4]\\n"       /* 1 behind a load                        M0 2 */
        "adds r2, r2, r3\\n"        /* 1 */
        "cmp r0, #5\\n"             /* 1 */
        "beq 2f\\n"                 /* taken once 3, not taken nine times 1 */
        "nop\\n"                    /* 1, nine times */
        "2:\\n"
        "subs r0, r0, #1\\n"        /* 1 */
        "bne 1b\\n"                 /* taken nine times 3 (M0+ 2), not taken once 1 */
        "pop {r4, pc}\\n");         /* 1 + 2 + 2                              M0 + 3 */
}
"""
LOOP_INSTRUCTIONS = 3 + 10 * 5 + 9 + 10 * 2 + 1
LOOP_CYCLES = {
    "cortex-m4": 5 + 10 * (2 + 1 + 1 + 1) + (3 + 9) + 9 + 10 + (9 * 3 + 1) + 5,
    "cortex-m3": 5 + 10 * (2 + 1 + 1 + 1) + (3 + 9) + 9 + 10 + (9 * 3 + 1) + 5,
    "cortex-m0": 5 + 10 * (2 + 2 + 1 + 1) + (3 + 9) + 9 + 10 + (9 * 3 + 1) + 6,
    "cortex-m0plus": 5 + 10 * (2 + 2 + 1 + 1) + (2 + 9) + 9 + 10 + (9 * 2 + 1) + 5,
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "core", ["cortex-m4", "cortex-m0plus", *(pytest.param(core, marks=SLOW) for core in ("cortex-m0", "cortex-m3"))]
)
def test_a_loop_costs_what_a_pencil_says(core: str, tmp_path: Path) -> None:
    source = fake_model.SOURCE.replace("static void tiny_sum", LOOP + "\nstatic void tiny_sum")
    source = source.replace("int32_t sum = 0;", "int32_t sum = 0;\n    tiny_loop();")
    folder = fake_model.write(tmp_path / "tiny", source=source)
    emulators = ["unicorn"] + (["qemu"] if shutil.which("qemu-system-arm") else [])
    elf = toolchain.build_target(folder, TARGETS[core], ("SUBJECT_COUNT",), "gcc", tmp_path / "out")
    for emulator in emulators:
        profile = cycles.profile(elf, TARGETS[core], fake_model.inputs(1).tobytes(), emulator=emulator)
        calls = fake_model.ROWS
        assert profile.functions["tiny_loop"] == cycles.Cost(calls * LOOP_INSTRUCTIONS, calls * LOOP_CYCLES[core])


LONG = """
__attribute__((naked, noinline)) static void tiny_long(void)
{
    __asm__ volatile(".balign 4\\n mov r1, sp\\n .rept 700\\n ldr.w r2, [r1]\\n .endr\\n bx lr\\n");
}
"""


def test_straight_code_costs_the_same_wherever_an_emulator_cuts_it(tmp_path: Path) -> None:
    """Emulators end a block where a page of 1 KiB ends; here an instruction straddles each of these ends."""
    source = fake_model.SOURCE.replace("static void tiny_sum", LONG + "\nstatic void tiny_sum")
    source = source.replace("int32_t sum = 0;", "int32_t sum = 0;\n    tiny_long();")
    folder = fake_model.write(tmp_path / "tiny", source=source)
    elf = toolchain.build_target(folder, TARGETS["cortex-m4"], ("SUBJECT_COUNT",), "gcc", tmp_path / "out")
    for emulator in ["unicorn"] + (["qemu"] if shutil.which("qemu-system-arm") else []):
        profile = cycles.profile(elf, TARGETS["cortex-m4"], fake_model.inputs(1).tobytes(), emulator=emulator)
        calls = fake_model.ROWS
        assert profile.functions["tiny_long"] == cycles.Cost(calls * 702, calls * (1 + 2 + 699 + 3))


@pytest.mark.parametrize("core", [pytest.param("cortex-m0", marks=SLOW), "cortex-m4", "cortex-m55"])
def test_entries_and_runner_add_up(core: str, tmp_path: Path) -> None:
    if core == "cortex-m55" and shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu-system-arm")
    folder = fake_model.write(tmp_path / "tiny")
    image = fake_model.inputs(1).tobytes()
    profile = cycles.profile_folder(folder, TARGETS[core], image, tmp_path / "out")
    assert profile.emulator == ("qemu" if core == "cortex-m55" else "unicorn")
    assert set(profile.entries) == {0, 1}
    assert profile.entries[0] == profile.functions["tiny_widen"]
    assert sum(profile.functions.values(), cycles.Cost()) == profile.total
    assert sum(profile.entries.values(), profile.runner) == profile.total
    assert profile.total.instructions <= profile.total.cycles
    assert profile.stack_bytes and profile.stack_bytes < 100
    assert not set(profile.functions) & {"measured_run", "subject_begin", "subject_end", "subject_trace"}

    # The marks cost nothing: the totals are those of the code as shipped.
    shipped = next((tmp_path / "out" / "counted").glob("*.elf"))
    alone = cycles.profile(shipped, TARGETS[core], image)
    assert (alone.total, dict(alone.entries)) == (profile.total, {})
