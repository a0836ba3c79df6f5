"""A proof that finds faults: one wrong weight, one lost row, one wrong byte, and it says where."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codegen.emit import Origin, emit, write_folder
from codegen.plan import Plan
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, verify
from mnet.emulator import run_host
from mnet.errors import ToolError
from mnet.graph import Int8Array
from mnet.oracle import LITERT
from mnet.toolchain import build_host
from tests.models import tiny_mobilenet
from tests.strategies import random_input

GRAPH = tiny_mobilenet()


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(simplify(GRAPH), target("cortex-m4"), LITERT)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Int8Array]:
    return golden.run(GRAPH, LITERT, random_input(GRAPH, 4, 3))


def traced(made: Plan, folder: Path, change: Callable[[str], str] = str) -> verify.Run:
    """Return a run of the generated program whose weights were changed."""
    files = emit(made, Origin("mnet codegen", "0"))
    weights = f"{GRAPH.name}_weights.c"
    files[weights] = change(files[weights])
    write_folder(folder / GRAPH.name, files)
    program = build_host(folder / GRAPH.name, ("SUBJECT_TRACE", "SUBJECT_POISON"), folder / "build")
    return lambda data: run_host(program, data).trace


def test_an_honest_program_is_equal(made: Plan, tensors: dict[str, Int8Array], tmp_path: Path) -> None:
    leg = verify.run_leg("host", made, tensors, traced(made, tmp_path))
    assert leg.status == "equal" and leg.inputs == 3
    per_input = sum(int(np.prod(s.tensor.shape)) for n, s in made.storage.items() if n in tensors)
    assert leg.values == 3 * (per_input + tensors[GRAPH.outputs[0]][0].size)


def test_one_wrong_bias_is_found_in_its_own_layer_first(
    made: Plan, tensors: dict[str, Int8Array], tmp_path: Path
) -> None:
    op = made.ops[2]
    symbol = next(e.constants for e in made.entries if e.op == op.name)

    def spoiled(text: str) -> str:
        at = text.index("{", text.index(f"const uint32_t {symbol}["))
        word = re.compile(r"0x([0-9a-f]{8}),").search(text, at)
        assert word is not None
        value = (int(word[1], 16) + (3 << 12)) & 0xFFFFFFFF
        return f"{text[: word.start()]}0x{value:08x},{text[word.end() :]}"

    leg = verify.run_leg("host", made, tensors, traced(made, tmp_path, spoiled))
    assert leg.status == "differs"
    first = leg.mismatches[0]
    assert first.tensor == op.output and first.got != first.expected
    assert tensors[first.tensor][first.input, first.row, first.column, first.channel] == first.expected


def test_a_lost_row_is_no_success(made: Plan, tensors: dict[str, Int8Array], tmp_path: Path) -> None:
    run = traced(made, tmp_path)
    few = {name: values[:1] for name, values in tensors.items()}

    def without_first_record(data: bytes) -> bytes:
        trace = run(data)
        return trace[8 + int.from_bytes(trace[4:8], "little") :]

    with pytest.raises(ToolError, match="rows of"):
        verify.run_leg("host", made, few, without_first_record)
    with pytest.raises(ToolError, match="0 of 1 runs"):
        verify.run_leg("host", made, few, lambda data: b"")


def test_random_inputs_are_the_same_for_one_seed_and_reach_both_ends() -> None:
    first, again, other = (verify.random_inputs(GRAPH, 8, seed)["input"] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.min() == -128 and first.max() == 127
    assert verify.random_inputs(GRAPH, 3, 1)["input"].tobytes() == first[:3].tobytes()
