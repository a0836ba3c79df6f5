"""Networks with several inputs and outputs: golden against runtimes, C against golden, the contract of each call."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.arrangement import image_offsets
from codegen.certificate import certificate
from codegen.dead_channels import drop_dead_channels
from codegen.emit import Origin, emit, write_folder
from codegen.plan import Plan
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.stack_bound import stack_bound
from codegen.targets import target
from mnet import golden, stack, verify
from mnet.boards import find_board, fit
from mnet.cli import main
from mnet.emulator import find_qemu, run_host, run_qemu
from mnet.errors import MissingToolError, PlanError, ToolError
from mnet.graph import Graph
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, ORACLES
from mnet.picture import memory_svg
from mnet.pipeline import Options, prepare, write
from mnet.profile import profile_model
from mnet.report import c_snippet
from mnet.tflite import parse_model
from mnet.toolchain import STRICT, build_host, build_target, check_warnings, find_compiler
from tests.models import Builder, tiny_fusion
from tests.strategies import graphs_with_many_ends, random_input
from tests.test_generate import compare_on_host, described
from tests.writer import serialise

ORIGIN = Origin("mnet codegen net.tflite", "0")
FUSION = tiny_fusion()
CORES = st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55"))


def planned(graph: Graph, core: str = "cortex-m4", mode: str = "const") -> Plan:
    return plan(drop_dead_channels(simplify(graph), LITERT), target(core), LITERT, mode)


# --- golden -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs_with_many_ends(), st.integers(0, 1000))
def test_random_networks_of_many_ends_equal_litert(graph: Graph, seed: int) -> None:
    data = serialise(graph)
    read = parse_model(data, "drawn.tflite")
    assert (read.inputs, read.outputs) == (graph.inputs, graph.outputs)
    inputs = random_input(read, seed, 3)
    found = golden.run(read, LITERT, inputs)
    for name, expected in run_litert(data, read, inputs).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.fixture(scope="module")
def tflm() -> ModuleType:
    """Return the tests of TFLM, which skip where it is not installed."""
    module: ModuleType = pytest.importorskip("tests.test_runtimes")
    return module


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs_with_many_ends(), seed=st.integers(0, 1000))
def test_random_networks_of_many_ends_equal_tflm(tflm: ModuleType, graph: Graph, seed: int) -> None:
    data = serialise(graph)
    read = parse_model(data, "drawn.tflite")
    inputs = random_input(read, seed, 2)
    tflm.assert_golden_is_tflm(read, inputs, tflm.run_here(data, read, inputs))


def test_inputs_that_do_not_belong_together_are_refused() -> None:
    inputs = random_input(FUSION, 0, 3)
    with pytest.raises(ValueError, match="'input_2' is missing"):
        golden.run(FUSION, LITERT, {"input": inputs["input"]})
    with pytest.raises(ValueError, match=r"different numbers of images: \[2, 3\]"):
        golden.run(FUSION, LITERT, inputs | {"input": inputs["input"][:2]})


# --- generated C ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=graphs_with_many_ends(),
    core=CORES,
    oracle=st.sampled_from(sorted(ORACLES)),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_networks_of_many_ends_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, core: str, oracle: str, mode: str, sanitizers: bool
) -> None:
    made = plan(drop_dead_channels(simplify(graph), ORACLES[oracle]), target(core), ORACLES[oracle], mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("generated") / graph.name, sanitizers)
    assert leg.status == "equal", described(graph, leg)
    assert {entry.tensor for entry in leg.compared} >= {*verify.output_labels(graph), *graph.inputs}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs_with_many_ends(), core=CORES, mode=st.sampled_from(INPUT_MODES))
def test_plans_of_many_ends_are_sound_and_bounded(graph: Graph, core: str, mode: str) -> None:
    made = planned(graph, core, mode)  # check_plan follows every row, and finds all outputs at the end
    found = certificate(made)
    assert found.bound_bytes <= found.live_bytes <= found.arena_bytes


@pytest.mark.parametrize("mode", INPUT_MODES)
def test_two_inputs_and_three_outputs_under_poison(tmp_path: Path, mode: str) -> None:
    leg = compare_on_host(FUSION, planned(FUSION, mode=mode), tmp_path / "net", sanitizers=True)
    assert leg.status == "equal", described(FUSION, leg)
    whole = {*FUSION.inputs, "output_0", "output_1", "output_2"}
    assert whole <= {entry.tensor for entry in leg.compared}


def test_the_same_on_an_emulated_m4_by_rows(tmp_path: Path) -> None:
    try:
        find_qemu()
        find_compiler("arm-none-eabi-gcc")
    except MissingToolError as missing:
        pytest.skip(str(missing))
    made = planned(FUSION, mode="rows")
    write_folder(tmp_path / "net", emit(made, ORIGIN))
    program = build_target(tmp_path / "net", made.target, ("SUBJECT_TRACE", "SUBJECT_POISON"), "gcc", tmp_path / "m4")
    tensors = golden.run(FUSION, LITERT, random_input(FUSION, 1, 3))
    leg = verify.run_leg("M4", made, tensors, lambda data: run_qemu(program, None, data).trace)
    assert leg.status == "equal", described(FUSION, leg)


@pytest.mark.parametrize("mode", INPUT_MODES)
def test_an_input_that_nobody_reads_is_taken_all_the_same(tmp_path: Path, mode: str) -> None:
    build = Builder(0, (4, 5, 3))
    build.input((3, 2, 2))
    graph = build.graph(build.conv("input", 4, (3, 3)))
    leg = compare_on_host(graph, planned(graph, mode=mode), tmp_path / "net")
    assert leg.status == "equal", described(graph, leg)


def test_a_generated_folder_proves_all_its_outputs(tmp_path: Path) -> None:
    made = planned(FUSION)
    tensors = golden.run(FUSION, LITERT, random_input(FUSION, 1, 2))
    files: dict[str, str | bytes] = {**emit(made, ORIGIN), "test/vectors.bin": verify.vectors(made, tensors)}
    write_folder(tmp_path / "net", files)
    make = ["make", "-C", str(tmp_path / "net"), "test"]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " 0 differ" in done.stdout, done.stdout + done.stderr
    for at in (1, tensors[FUSION.outputs[2]][0].size + 1):  # in the last output, and in the one before
        damaged = bytearray(files["test/vectors.bin"])  # type: ignore[arg-type]
        damaged[-at] ^= 1
        (tmp_path / "net" / "test" / "vectors.bin").write_bytes(damaged)
        done = subprocess.run(make, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "the output differs" in done.stdout


def test_a_lost_output_is_no_success_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    made = planned(FUSION)
    write_folder(tmp_path / "net", emit(made, ORIGIN))
    program = build_host(tmp_path / "net", ("SUBJECT_TRACE",), tmp_path / "host")
    tensors = golden.run(FUSION, LITERT, random_input(FUSION, 1, 1))
    trace = run_host(program, verify.input_bytes(FUSION, tensors)).trace
    last = 8 + tensors[FUSION.outputs[2]].size
    with pytest.raises(ToolError, match="0 of 1 runs"):
        verify.run_leg("host", made, tensors, lambda data: trace[:-last])
    wrong = bytearray(trace)
    wrong[-last - 1] ^= 1
    leg = verify.run_leg("host", made, tensors, lambda data: bytes(wrong))
    assert [mismatch.tensor for mismatch in leg.mismatches] == ["output_1"]


def test_a_byte_behind_any_output_is_found(tmp_path: Path) -> None:
    """The harness keeps outputs apart: what is written behind one does not hide in the next."""
    made = planned(FUSION)
    files = emit(made, ORIGIN)
    sizes = [made.graph.tensors[name].shape for name in made.graph.outputs]
    for which, shape in enumerate(sizes):
        head = f"static void tiny_fusion_copy_output_{which}("
        before, _, after = files["tiny_fusion.c"].partition(head)
        longer = after.replace(f"row < {shape[0]};", f"row < {shape[0] + 1};", 1)
        assert longer != after
        folder = tmp_path / str(which) / "tiny_fusion"
        write_folder(folder, files | {"tiny_fusion.c": before + head + longer})
        program = build_host(folder, (), tmp_path / str(which) / "host")
        with pytest.raises(ToolError, match="wrote outside its output"):
            run_host(program, verify.input_bytes(FUSION, random_input(FUSION, 1, 1)))


# --- the interface ----------------------------------------------------------------------------------------------------

OK, BAD_ARGUMENT, BAD_ORDER, TOO_MANY_ROWS = range(4)

# Each three bytes of the script are one call: which, input, rows. Prints its status; after finish and run the outputs.
SEQUENCES = """
#include <stdio.h>
#include <string.h>
#include "tiny_fusion.h"

#define A TINY_FUSION_INPUT_0_BYTES
#define X TINY_FUSION_OUTPUT_0_BYTES
#define Y TINY_FUSION_OUTPUT_1_BYTES
#define Z TINY_FUSION_OUTPUT_2_BYTES

int main(void)
{
    TINY_FUSION_ARENA(arena);
    static int8_t in[A + TINY_FUSION_INPUT_1_BYTES], out[X + Y + Z];
    const int8_t *next[2];
    uint8_t call[3];
    if (fread(in, 1, sizeof in, stdin) != sizeof in)
        return 1;
    next[0] = in;
    next[1] = in + A;
    while (fread(call, 1, sizeof call, stdin) == sizeof call) {
        int status, answers = 0;
        const uint32_t count = call[2];
        memset(out, 77, sizeof out);
        switch (call[0]) {
        case 'b': status = tiny_fusion_begin(arena); next[0] = in; next[1] = in + A; break;
        case 'p':
            if (call[1] == 0) {
                status = tiny_fusion_push_rows_0(arena, next[0], count);
                next[0] += status == 0 ? count * TINY_FUSION_INPUT_0_ROW_BYTES : 0;
            } else {
                status = tiny_fusion_push_rows_1(arena, next[1], count);
                next[1] += status == 0 ? count * TINY_FUSION_INPUT_1_ROW_BYTES : 0;
            }
            break;
        case 'n': status = (int)tiny_fusion_next_input(arena) + 10; break;
        case 'f': status = tiny_fusion_finish(arena, out, out + X, out + X + Y); answers = 1; break;
        case 'r': status = tiny_fusion_run(arena, in, in + A, out, out + X, out + X + Y); answers = 1; break;
        case '0': status = tiny_fusion_push_rows_1(arena, NULL, count); break;
        case '1': status = tiny_fusion_push_rows_0((char *)arena + 2, in, count); break;
        case '2': status = tiny_fusion_finish(arena, out, NULL, out); answers = 1; break;
        case '3': status = tiny_fusion_finish(arena, out, out, NULL); answers = 1; break;
        case '4': status = tiny_fusion_run(arena, in, NULL, out, out, out); answers = 1; break;
        case '5': status = tiny_fusion_run(arena, in, in + A, out, NULL, out); answers = 1; break;
        default: status = tiny_fusion_run(arena, in, in + A, NULL, out, out); answers = 1; break;
        }
        putchar(status);
        if (answers)
            fwrite(out, 1, sizeof out, stdout);
    }
    return 0;
}
"""

Call = tuple[str, int, int]


@dataclass(frozen=True)
class Program:
    """A compiled sequence driver, the order in which its plan takes rows, and what it must answer."""

    path: Path
    turns: tuple[int, ...]
    heights: tuple[int, ...]
    inputs: bytes
    outputs: bytes

    def run(self, calls: list[Call]) -> bytes:
        script = b"".join(bytes([ord(kind), which, count]) for kind, which, count in calls)
        done = subprocess.run([str(self.path)], input=self.inputs + script, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def expected(self, calls: list[Call]) -> bytes:
        """Return what the contract says of these calls."""
        said = bytearray()
        taken: list[int] | None = None  # of each input, since begin
        for kind, which, count in calls:
            status = OK
            match kind:
                case "b":
                    taken = [0, 0]
                case "p" if taken is None:
                    status = BAD_ORDER
                case "p" if taken is not None:
                    at = sum(taken)
                    if taken[which] + count > self.heights[which]:
                        status = TOO_MANY_ROWS
                    elif self.turns[at : at + count] != (which,) * count:
                        status = BAD_ORDER
                    else:
                        taken[which] += count
                case "n":
                    over = taken is None or sum(taken) == len(self.turns)
                    status = 9 if over or taken is None else 10 + self.turns[sum(taken)]
                case "f":
                    status = OK if taken is not None and sum(taken) == len(self.turns) else BAD_ORDER
                case "r":
                    taken = list(self.heights)
                case _:
                    status = BAD_ARGUMENT
            said.append(status)
            if kind in "fr23456":
                said += self.outputs if status == OK else bytes([77]) * len(self.outputs)
        return bytes(said)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("sequences")
    made = planned(FUSION, mode="rows")
    write_folder(folder / "net", emit(made, ORIGIN))
    (folder / "main.c").write_text(SEQUENCES)
    sources = [str(path) for path in (folder / "main.c", *sorted((folder / "net").glob("*.c")))]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["cc", *STRICT, "-O1", "-g", *sanitizers, f"-I{folder / 'net'}", *sources, "-o", str(folder / "main")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tensors = golden.run(FUSION, LITERT, random_input(FUSION, 5, 1))
    return Program(
        folder / "main",
        tuple(~step for step in made.schedule if step < 0),
        tuple(FUSION.tensors[name].shape[0] for name in FUSION.inputs),
        verify.input_bytes(FUSION, tensors),
        b"".join(tensors[name].tobytes() for name in FUSION.outputs),
    )


def test_rows_that_it_is_not_the_turn_of_are_refused_and_the_turns_lead_to_the_end(program: Program) -> None:
    calls: list[Call] = [("n", 0, 0), ("p", 1, 1), ("f", 0, 0), ("b", 0, 0), ("f", 0, 0)]
    for turn in program.turns:
        calls += [("n", 0, 0), ("p", 1 - turn, 1), ("p", turn, program.heights[turn] + 1), ("p", turn, 1)]
    calls += [("n", 0, 0), ("p", 0, 1), ("f", 0, 0), *((kind, 0, 1) for kind in "0123456"), ("f", 0, 0), ("r", 0, 0)]
    said = program.run(calls)
    assert said == program.expected(calls)
    assert said.count(program.outputs) == 3 and bytes([BAD_ORDER]) in said


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    calls=st.lists(
        st.tuples(st.sampled_from("bnpppppppppppf0123456"), st.integers(0, 1), st.sampled_from((0, 1, 1, 1, 2, 3, 9))),
        max_size=60,
    )
)
def test_any_sequence_of_calls_keeps_the_contract(program: Program, calls: list[Call]) -> None:
    calls = [("b", 0, 0), *calls]
    assert program.run(calls) == program.expected(calls)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ("gcc", "clang", "arm-none-eabi-gcc"))
@pytest.mark.parametrize("mode", INPUT_MODES)
def test_no_compiler_has_anything_to_say(tmp_path: Path, compiler: str, mode: str) -> None:
    write_folder(tmp_path / "net", emit(planned(FUSION, "cortex-m", mode), ORIGIN))
    for language in ("c", "c++"):
        try:
            check_warnings(tmp_path / "net", compiler, language)
        except MissingToolError:
            pytest.skip(f"no {compiler}")


@pytest.mark.parametrize("core", ("cortex-m0plus", "cortex-m4", "cortex-m55"))
@pytest.mark.parametrize("mode", INPUT_MODES)
def test_the_header_bounds_the_stack(tmp_path: Path, core: str, mode: str) -> None:
    try:
        find_compiler("arm-none-eabi-gcc")
    except MissingToolError as missing:
        pytest.skip(str(missing))
    made = planned(FUSION, core, mode)
    write_folder(tmp_path / "net", emit(made, ORIGIN))
    keep = stack.public_functions(made)
    elf = build_target(tmp_path / "net", made.target, (), "gcc", tmp_path / "elf", keep=keep)
    found = stack.worst_case(elf, made)
    assert set(found.public) == set(keep)
    assert found.bytes <= max(stack_bound(made).assembly, stack_bound(made).compiled)


def test_images_in_the_arena_lie_one_behind_the_other() -> None:
    made = planned(FUSION, mode="arena")
    assert image_offsets(made.graph) == {"input": 0, "input_2": 192}
    rows = [buffer for buffer in made.buffers if buffer.tensor == "image"]
    assert {buffer.offset for buffer in rows} >= {0, 192} and sum(buffer.size for buffer in rows) == 192 + 80


def padded_and_dense() -> Graph:
    """Return a map that a padded convolution and a dense layer read: for one of them its rows have gaps."""
    build = Builder(0, (5, 6, 4))
    x = build.conv("input", 8, (1, 1))
    return build.graph([build.conv(x, 3, (3, 3)), build.fully_connected(x, 5)], "gaps")


def two_windows() -> Graph:
    """Return a map whose second row of padding above is wanted before the first."""
    build = Builder(0, (5, 4, 4))
    x = build.conv("input", 4, (1, 1))
    return build.graph([build.conv(x, 4, (3, 3)), build.conv(x, 4, (3, 3), dilation=(2, 2))], "windows")


def skipping_windows() -> Graph:
    """Return a map whose second row of padding above nobody reads, but the first and the third."""
    build = Builder(0, (6, 4, 4))
    x = build.conv("input", 4, (1, 1))
    padded = build.pad(x, (3, 3, 0, 0))
    return build.graph(build.conv(padded, 4, (1, 1), (2, 2), same=False), "skips")


@pytest.mark.parametrize("core", ("cortex-m4", "cortex-m0", "cortex-m55"))
@pytest.mark.parametrize("build", (padded_and_dense, two_windows, skipping_windows))
def test_readers_that_want_different_padding(build: Callable[[], Graph], core: str, tmp_path: Path) -> None:
    graph = build()
    leg = compare_on_host(graph, planned(graph, core), tmp_path / "net")
    assert leg.status == "equal", described(graph, leg)


# --- planner ----------------------------------------------------------------------------------------------------------


def two_heads(rows: int = 32) -> Graph:
    """Return a trunk of many rows that two means read: one after the other they would have to keep all of it."""
    build = Builder(0, (rows, 8, 4))
    trunk = build.conv("input", 16, (3, 3))
    heads = [build.fully_connected(build.mean(build.conv(trunk, 8, (3, 3))), 3) for _ in range(2)]
    return build.graph(heads, "heads")


def test_branches_run_beside_each_other_where_that_keeps_fewer_rows() -> None:
    made = plan(simplify(two_heads()), target("cortex-m4"), LITERT, optimize="ram")
    trunk = made.storage[made.graph.ops[0].output]
    assert made.arena_bytes < trunk.virtual_rows * trunk.buffer_bytes // trunk.slots


def test_an_output_that_dies_early_is_a_fault_of_the_plan() -> None:
    made = planned(FUSION)
    output = made.graph.outputs[1]
    last = max((buffer for buffer in made.buffers if buffer.tensor == output), key=lambda buffer: buffer.death)
    with pytest.raises(PlanError, match="of the output add"):
        from codegen.plan import check_plan

        early = replace(last, death=len(made.schedule) - 1)
        check_plan(replace(made, buffers=tuple(early if b is last else b for b in made.buffers)))


# --- what users see ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "fusion.tflite"
    path.write_bytes(serialise(FUSION))
    return path


@pytest.mark.parametrize("mode", INPUT_MODES)
def test_inputs_and_outputs_fit_a_micro_bit(model: Path, tmp_path: Path, mode: str) -> None:
    try:
        find_qemu()
        find_compiler("arm-none-eabi-gcc")
    except MissingToolError as missing:
        pytest.skip(str(missing))
    prepared = prepare(model, Options(target="cortex-m0", input_mode=mode))
    write(prepared, tmp_path / "fusion")
    tensors = golden.run(prepared.source, LITERT, verify.random_inputs(prepared.source, 3, 0))
    leg, found = fit(prepared.plan, tmp_path / "fusion", find_board("microbit-8k"), "gcc", tensors)
    assert (leg.status, leg.inputs, len(leg.compared)) == ("equal", 3, 3)
    assert found.stack_painted <= found.stack_worst <= found.stack_room
    wrong = tensors | {FUSION.outputs[1]: tensors[FUSION.outputs[1]] ^ 1}
    leg, _ = fit(prepared.plan, tmp_path / "fusion", find_board("microbit-8k"), "gcc", wrong)
    assert [mismatch.tensor for mismatch in leg.mismatches] == ["output_1"]


def test_the_profile_counts_several_inputs(model: Path) -> None:
    try:
        found = profile_model(prepare(model, Options(target="cortex-m4")))
    except MissingToolError as missing:
        pytest.skip(str(missing))
    assert found.cycles > 0 and sum(layer.instructions for layer in found.layers) == found.instructions


def test_eval_needs_one_of_each(model: Path) -> None:
    done = CliRunner().invoke(main, ["eval", str(model), "--data", "sample"])
    assert done.exit_code == 2 and "2 inputs and 3 outputs: `mnet eval` needs one of each." in done.output


def test_a_layer_names_its_output_and_its_copy(model: Path) -> None:
    done = CliRunner().invoke(
        main, ["verify", str(model), "--target", "host", "--inputs", "2", "--layer", FUSION.outputs[1], "--json", "-"]
    )
    assert done.exit_code in (0, 3), done.output
    assert '"output_1"' in done.stdout and '"output_0"' not in done.stdout


def test_traces_and_pictures_show_each_input(model: Path) -> None:
    done = CliRunner().invoke(main, ["trace", str(model), "--between", "golden-litert", "host", "--target", "host"])
    assert done.exit_code == 0, done.output
    assert "input_0" in done.stdout and "input_1" in done.stdout and "Equal in all" in done.stdout
    svg = memory_svg(planned(FUSION, mode="arena"))
    assert all(word in svg for word in ("input_0", "input_1", "image"))


@pytest.mark.parametrize("mode", INPUT_MODES)
def test_the_snippet_of_the_report_compiles(model: Path, tmp_path: Path, mode: str) -> None:
    prepared = prepare(model, Options(input_mode=mode))
    write_folder(tmp_path / "net", emit(prepared.plan, ORIGIN))
    (tmp_path / "snippet.c").write_text(c_snippet(prepared.plan))
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-c", f"-I{tmp_path / 'net'}", "snippet.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_of_the_file_cannot_end_a_comment() -> None:
    tensors = {**FUSION.tensors, "input_2": replace(FUSION.tensors["input_2"], name="*/ evil \u00e9")}
    header = emit(planned(replace(FUSION, tensors=tensors)), ORIGIN)["tiny_fusion.h"]
    assert "/* input_1: * / evil ?, 4x4x5 */" in header
    assert not re.search(r"evil.*\*/.*\*/", header)
