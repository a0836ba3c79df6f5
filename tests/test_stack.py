"""Worst-case stack: machine code against painted stack, against gcc's own figures, against the header's bound."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen.emit import Origin, emit, write_folder
from codegen.plan import Plan
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.stack_bound import stack_bound
from codegen.targets import target
from mnet import stack, toolchain, verify
from mnet.emulator import run_qemu, run_unicorn
from mnet.errors import MissingToolError, ToolError
from mnet.graph import Graph, Reduction
from mnet.oracle import LITERT
from mnet.pipeline import Options, prepare, write
from mnet.toolchain import build_target, find_compiler
from tests.models import Builder, tiny_mobilenet, tiny_residual

MODELS = sorted((Path(__file__).parent / "models").glob("*.tflite"))
CORES = ("cortex-m0plus", "cortex-m4", "cortex-m55")
ORIGIN = Origin("mnet codegen net.tflite", "0")


@pytest.fixture(scope="module", autouse=True)
def needs_gcc() -> None:
    try:
        find_compiler("arm-none-eabi-gcc")
    except MissingToolError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Built:
    """A generated folder and what came out of it."""

    folder: Path
    elf: Path
    plan: Plan

    def header(self, core: str) -> int:
        """Return NAME_STACK_BYTES as the compiler sees it for a core."""
        name = self.plan.graph.name
        command = ["arm-none-eabi-gcc", *target(core).gcc, "-E", "-dM", "-x", "c", str(self.folder / f"{name}.h")]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(rf"{name.upper()}_STACK_BYTES (\d+)u", text)
        assert found is not None
        return int(found[1])


def built(made: Plan, folder: Path, core: str, compiler: str = "gcc") -> Built:
    write_folder(folder, emit(made, ORIGIN))
    keep = stack.public_functions(made)
    return Built(folder, build_target(folder, target(core), (), compiler, folder / compiler, keep=keep), made)


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_no_run_takes_more_than_the_machine_code_says_nor_that_more_than_the_header(
    model: Path, core: str, tmp_path: Path
) -> None:
    prepared = prepare(model, Options(target=core))
    folder = tmp_path / prepared.graph.name
    write(prepared, folder)
    found = built(prepared.plan, folder, core)
    worst = stack.worst_case(found.elf, prepared.plan).bytes
    image = verify.input_bytes(prepared.source, verify.random_inputs(prepared.source, 2, 0))
    try:
        run = run_qemu(found.elf, None, image)
    except MissingToolError:
        if target(core).unicorn is None:
            pytest.skip("no emulator")
        run = run_unicorn(found.elf, target(core), image)
    assert run.stack_bytes is not None
    assert 0 < run.stack_bytes <= worst <= found.header(core) <= worst + 112


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "optimize"), (("const", "ram"), ("arena", "size"), ("rows", "cycles")))
def test_the_header_holds_for_every_core_and_level_of_optimisation(
    mode: str, optimize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = simplify({"const": tiny_mobilenet(), "arena": tiny_residual(), "rows": tiny_mobilenet(1, 24)}[mode])
    for name in ("cortex-m", "cortex-m0", "cortex-m3", "cortex-m55"):
        made = plan(graph, target(name), LITERT, mode, optimize)
        for core in target(name).runs_on:
            most = 0
            for level in ("-O1", "-O2", "-Os"):
                monkeypatch.setattr(toolchain, "OPTIMIZE", (level, "-fomit-frame-pointer"))
                found = built(made, tmp_path / f"{name}-{core}{level}", core)
                most = max(most, stack.worst_case(found.elf, made).bytes)
            assert most <= found.header(core), f"{name} on {core}"


def small_networks() -> Iterator[tuple[str, Graph]]:
    """Yield a network for each small kernel, in the forms that take most."""
    reductions = ((Reduction.MEAN, (0,)), (Reduction.MIN, (0, 1)), (Reduction.SUM, (2,)), (Reduction.MAX, (1, 2)))
    for function, axes in reductions:
        build = Builder(1, (5, 6, 7))
        yield f"{function.value} {axes}", build.graph(build.reduce("input", function, axes, ratio=0.7))
    for name in ("softmax", "l2_normalization", "arg_max"):
        build = Builder(1, (5, 6, 7))
        yield name, build.graph(getattr(build, name)("input"))
    build = Builder(1, (40, 9, 7))
    moved = build.pad(build.concat(("input", "input"), 2), (1, 1, 2, 1), (1, 2), 5)
    yield "moves", build.graph(build.depth_to_space(build.pad(moved, (0, 0, 0, 0), (0, 1)), 3))
    yield "moves of the whole", build.graph(build.transpose("input", (1, 0, 2)))
    yield "moves by division", build.graph(build.reshape("input", (7, 8, 45)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("cortex-m0", "cortex-m4", "cortex-m55"))
def test_the_bound_holds_for_small_kernels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = target(name).runs_on[0]
    for label, graph in small_networks():
        made = plan(graph, target(name), LITERT)
        for level in ("-O1", "-O2"):
            monkeypatch.setattr(toolchain, "OPTIMIZE", (level, "-fomit-frame-pointer"))
            found = built(made, tmp_path / f"{label}{level}", core)
            assert stack.worst_case(found.elf, made).bytes <= found.header(core), label


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_the_bound_holds_for_clang(core: str, tmp_path: Path) -> None:
    try:
        find_compiler("zig")
    except MissingToolError as error:
        pytest.skip(str(error))
    for graph, mode in ((tiny_mobilenet(), "arena"), (tiny_residual(), "const")):
        made = plan(simplify(graph), target(core), LITERT, mode)
        found = built(made, tmp_path / f"{graph.name}-{core}", core, "zig")
        bound = stack_bound(made)
        assert stack.worst_case(found.elf, made).bytes <= max(bound.assembly, bound.compiled)


def _usage(folder: Path, core: str) -> Iterator[tuple[str, int]]:
    """Yield name and bytes of each C function, as gcc's -fstack-usage says."""
    for source in folder.glob("*.c"):
        flags = [*target(core).gcc, *toolchain.OPTIMIZE, "-ffunction-sections", "-fstack-usage"]
        command = ["arm-none-eabi-gcc", *flags, f"-I{folder}", "-c", str(source), "-o", str(folder / "x.o")]
        subprocess.run(command, check=True, capture_output=True)
        for line in (folder / "x.su").read_text().splitlines():
            place, size, kind = line.split("\t")
            assert kind == "static", line  # no alloca, no variable length: a bound exists
            yield place.rpartition(":")[2], int(size)


@pytest.mark.parametrize("core", ("cortex-m0plus", "cortex-m4"))
def test_gcc_says_the_same_of_each_function_in_c(core: str, tmp_path: Path) -> None:
    made = plan(simplify(tiny_residual()), target(core), LITERT, "rows")
    found = built(made, tmp_path / "net", core)
    frames = stack.worst_case(found.elf, made).frames
    compared = 0
    for name, size in _usage(found.folder, core):
        if name in frames and (size or frames[name] == 0):  # gcc gives naked functions 0
            assert size - frames[name] in (0, 8), name  # ARMv6-M: gcc may count a word that it does not push
            compared += 1
    assert compared >= 4


def test_assembly_takes_what_its_kernel_says(tmp_path: Path) -> None:
    made = plan(simplify(tiny_mobilenet()), target("cortex-m4"), LITERT, optimize="size")
    found = built(made, tmp_path / "net", "cortex-m4")
    frames = stack.worst_case(found.elf, made).frames
    exact = {"convolution_bytes", "convolution_dsp", "convolution_fpu", "convolution_shared"}
    seen = [op for op in made.ops if op.kernel.family in exact and getattr(op.view, "assembly", False)]
    assert seen
    for symbol in {op.symbol for op in seen}:
        of = [op.kernel.stack(op.call, op.view) for op in seen if op.symbol == symbol]
        assert frames[symbol] == max(of)


# --- what the walk has to understand: machine code written by hand ----------------------------------------------------


def by_hand(body: str, tmp_path: Path, dynamic: dict[str, int] | None = None) -> int:
    """Return the stack of `subject`, a naked function with this body, which may call `leaf`, 24 bytes, or a pointer."""
    lines = " ".join(f'"{line.strip()}\\n"' for line in body.splitlines() if line.strip())
    text = (
        "void leaf(void); void pointed(void); void subject(void);\n"
        'N void leaf(void) { __asm__("push {r0-r4, lr}\\n pop {r0-r4, pc}"); }\n'
        'N void pointed(void) { __asm__("sub sp, #40\\n add sp, #40\\n bx lr"); }\n'
        f'N void subject(void) {{ __asm__(".syntax unified\\n" {lines}); }}\n'
    ).replace("N ", "__attribute__((naked, noinline, used)) ")
    source, elf = tmp_path / "x.c", tmp_path / "x.elf"
    source.write_text(text)
    flags = ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-nostdlib", "-Wl,-e,subject")
    subprocess.run(["arm-none-eabi-gcc", *flags, str(source), "-o", str(elf)], check=True, capture_output=True)
    return stack.stack_of(elf, ("subject",), {"pointed"}, dynamic or {}).public["subject"]


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ("bx lr", 0),
        ("push {r4-r11, lr}\n vpush {s16-s31}\n sub sp, #20\n add sp, #20\n vpop {s16-s31}\n pop {r4-r11, pc}", 120),
        ("push {r4, lr}\n bl leaf\n pop {r4, pc}", 8 + 24),
        ("push {r4, lr}\n pop {r4, lr}\n b leaf", 24),
        ("push {r4, lr}\n blx r0\n pop {r4, pc}", 8 + 40),
        ("bx r3", 40),
        ("push {r0, lr}\n pop {r0}\n pop {r3}\n bx r3", 8),
        ("cmp r0, #0\n it ne\n bxne lr\n push {r4-r7, lr}\n pop {r4-r7, pc}", 20),  # the return is no end of it
        ("movw r3, #4096\n movt r3, #1\n sub sp, sp, r3\n add sp, sp, r3\n bx lr", 65536 + 4096),
        ("ldr r3, 1f\n add sp, r3\n ldr r2, 2f\n add sp, r2\n bx lr\n .align 2\n 1: .word -2000\n 2: .word 2000", 2000),
        ("movs r2, #0\n subs r2, #2\n movs r3, #4\n lsls r3, r2\n push {r4, lr}\n pop {r4, pc}", 8),  # by 254: all goes
        ("str r4, [sp, #-8]!\n ldr r4, [sp], #8\n bx lr", 8),
        ("push {r7, lr}\n mov r7, sp\n sub sp, #100\n mov sp, r7\n pop {r7, pc}", 108),
        ("push {r7, lr}\n sub sp, #64\n add r7, sp, #16\n adds r7, #48\n mov sp, r7\n pop {r7, pc}", 72),
        # the body behind a jump to a computed place counts, though nothing is seen to reach it
        ("push {r4, lr}\n adr r2, 1f\n orr r2, #1\n bx r2\n 1: nop\n push {r0-r3}\n pop {r0-r3}\n pop {r4, pc}", 24),
    ],
)
def test_machine_code_is_understood(body: str, most: int, tmp_path: Path) -> None:
    assert by_hand(body, tmp_path) == most


def test_what_has_no_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="a loop that pushes more each time"):
        by_hand("1: push {r0}\n subs r1, #1\n bne 1b\n bx lr", tmp_path)
    with pytest.raises(ToolError, match="subject has no bound that can be seen: sub"):
        by_hand("sub sp, sp, r2\n add sp, sp, r2\n bx lr", tmp_path)
    with pytest.raises(ToolError, match="subject can call itself"):
        by_hand("push {lr}\n bl subject\n pop {pc}", tmp_path)
    assert by_hand("sub sp, sp, r2\n add sp, sp, r2\n bx lr", tmp_path, {"subject": 512}) == 512
