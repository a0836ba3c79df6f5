"""Generated C against the golden model, on random networks: every row of every tensor, under poison."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels
from codegen.emit import Origin, emit, write_folder
from codegen.plan import Plan
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, verify
from mnet.emulator import run_host
from mnet.graph import Graph
from mnet.oracle import ORACLES
from mnet.toolchain import build_host
from tests.models import tiny_mobilenet
from tests.strategies import random_input, small_graphs

ORIGIN = Origin("mnet codegen net.tflite", "0")


def compare_on_host(graph: Graph, made: Plan, folder: Path, sanitizers: bool = False, count: int = 2) -> verify.Leg:
    """Generate, compile and run on this computer; compare everything with the golden model of the whole graph."""
    write_folder(folder, emit(made, ORIGIN))
    program = build_host(folder, ("SUBJECT_TRACE", "SUBJECT_POISON"), folder / "build", sanitizers=sanitizers)
    tensors = golden.run(graph, made.oracle, random_input(graph, 1, count))
    return verify.run_leg("host", made, tensors, lambda data: run_host(program, data).trace)


def described(graph: Graph, leg: verify.Leg) -> str:
    """Return what a failing test has to show."""
    return "\n".join(map(str, (*graph.ops, *graph.tensors.values(), *leg.mismatches)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=small_graphs(),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    oracle=st.sampled_from(sorted(ORACLES)),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_networks_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, oracle: str, mode: str, sanitizers: bool
) -> None:
    made = plan(drop_dead_channels(simplify(graph), ORACLES[oracle]), target(name), ORACLES[oracle], mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("generated") / graph.name, sanitizers)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=small_graphs(),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    mode=st.sampled_from(INPUT_MODES),
)
def test_plans_are_sound_and_deterministic(graph: Graph, name: str, mode: str) -> None:
    chosen = target(name)
    made = plan(simplify(graph), chosen, ORACLES["litert"], mode)
    assert made.live_bytes <= made.rows_bytes
    assert emit(made, ORIGIN) == emit(plan(simplify(graph), chosen, ORACLES["litert"], mode), ORIGIN)


def test_a_generated_folder_proves_itself_with_a_c_compiler_only(tmp_path: Path) -> None:
    graph = tiny_mobilenet()
    made = plan(simplify(graph), target("cortex-m"), ORACLES["litert"])
    tensors = golden.run(graph, made.oracle, random_input(graph, 1, 2))
    files: dict[str, str | bytes] = {**emit(made, ORIGIN), "test/vectors.bin": verify.vectors(made, tensors)}
    write_folder(tmp_path / "net", files)
    done = subprocess.run(["make", "-C", tmp_path / "net", "test"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 differ" in done.stdout

    test = tmp_path / "net" / "test" / "test.c"
    honest = test.read_text()
    test.write_text(honest.replace("        prepare_arena();\n", "        prepare_arena();\n        guarded[0] = 0;\n"))
    done = subprocess.run(["make", "-C", tmp_path / "net", "test"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "the model wrote outside its arena" in done.stdout
    test.write_text(honest)

    damaged = bytearray(files["test/vectors.bin"])  # type: ignore[arg-type]
    damaged[-1] ^= 1  # the last byte of the last output
    (tmp_path / "net" / "test" / "vectors.bin").write_bytes(damaged)
    done = subprocess.run(["make", "-C", tmp_path / "net", "test"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "the output differs" in done.stdout
