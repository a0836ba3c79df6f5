"""Convolutions on rows in bytes of any number of channels: bits, what is read, and what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unicorn
from hypothesis import given

from codegen.convolution_bytes import BytesView, bytes_accepts, bytes_cost, bytes_makes
from codegen.dual_issue import reordered
from mnet.graph import Conv2D, Graph
from mnet.oracle import Rounding
from tests import kernel_harness
from tests.kernel_harness import (
    A_BATCH,
    GUARD,
    POISON,
    SEEDS,
    Case,
    Machine,
    measured,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    unsolved,
    write_sources,
)
from tests.test_kernels_dsp import convolution_case

__all__ = ["unsolved"]  # a fixture
SOLVABLE = {"kind": Conv2D, "rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127), "deviation": 8}
STEM = {"kernel": (3, 3), "channels": 3, "stored_channels": 3, "stride": (2, 2), "outputs": 8, "size": (5, 97)}
SPEECH = {"kernel": (10, 4), "channels": 1, "stored_channels": 1, "stride": (2, 2), "outputs": 64, "size": (12, 12)}
EXACT = {**SOLVABLE, "padding": (0, 0, 0, 0), "more_padding": 0, "border": (0, 0, 0, 0), "ring": False}


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [convolution_case(rng, unaligned=True) for _ in range(count)]


def every_width(seed: int = 5) -> list[Case]:
    """Return rows of 1 to 9 pixels, windows of an even and an odd number of rows and bytes, in each layout."""
    rng = np.random.default_rng(seed)
    return [
        convolution_case(
            rng, **SOLVABLE, unaligned=True, kernel=kernel, channels=channels, stride=(1, stride), **layout
        )
        for layout in ({"planar": planar, "output_bytes": size} for planar in (False, True) for size in (1, 2))
        for kernel in ((1, 1), (3, 3), (2, 1), (1, 2), (10, 4))
        for channels in (1, 3, 6)
        for stride, width in ((1, int(rng.integers(1, 10))), (2, int(rng.integers(5, 12))), (3, 16))
        for layout in ({**layout, "size": (10, width)},)
    ]


def large(seed: int = 6) -> list[Case]:
    """Return windows of many words, far planes, many blocks, a first window within a word."""
    rng = np.random.default_rng(seed)
    return [
        convolution_case(rng, **{**SOLVABLE, **choice}, unaligned=True)
        for choice in (
            {"kernel": (7, 7), "channels": 3, "stored_channels": 3, "stride": (2, 2), "size": (8, 33), "outputs": 8},
            {"kernel": (5, 5), "channels": 3, "stored_channels": 3, "stride": (1, 1), "size": (6, 19), "outputs": 5},
            {"kernel": (3, 3), "channels": 3, "stored_channels": 3, "stride": (2, 2), "size": (5, 97), "outputs": 64},
            {"kernel": (3, 3), "channels": 3, "stored_channels": 3, "padding": (1, 1, 1, 1), "more_padding": 1},
            {"kernel": (3, 3), "channels": 16, "stride": (1, 1), "size": (5, 7)},
            {"kernel": (1, 3), "channels": 64, "stride": (1, 1), "size": (1, 9), "outputs": 4},
            {"kernel": (1, 1), "channels": 1, "stored_channels": 1, "size": (1, 1500), "outputs": 3, "planar": True},
            SPEECH,
        )
    ]


def with_assembly(cases: list[Case]) -> list[tuple[Case, BytesView]]:
    """Return those with an assembly body, most of them."""
    found = [(case, case.view) for case in cases if isinstance(case.view, BytesView) and case.view.assembly]
    assert len(found) >= 0.8 * len(cases)
    return found


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_body_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_emulated(batch(seed, 60), tmp_path_factory.mktemp("arm"))


@needs_gcc
@needs_arm
def test_both_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    cases = batch(11, 60)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_every_width(tmp_path: Path) -> None:
    cases = every_width()
    assert with_assembly(cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_large_windows(tmp_path: Path) -> None:
    cases = large()
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_the_order_for_dual_issue_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jinja = kernel_harness.environment()
    jinja.globals["reorder"] = reordered
    monkeypatch.setattr(kernel_harness, "environment", lambda: jinja)
    run_emulated([*every_width()[::7], *large()], tmp_path)


@needs_arm
def test_nothing_outside_of_the_rows_is_read_and_the_stack_is_known(tmp_path: Path) -> None:
    found = with_assembly([*every_width(), *large()])
    names = write_sources([case for case, _ in found], tmp_path)
    machine = Machine(tmp_path)
    poison = bytes([POISON]) * 8192
    for (case, view), name in zip(found, names, strict=True):
        source = case.call.inputs[0]
        inside = [range(at, at + source.slot_bytes) for at in case.pointers]
        reads: set[tuple[int, int]] = set()

        def on_read(uc: unicorn.Uc, kind: int, at: int, size: int, value: int, _: object, reads: Any = reads) -> None:
            if Machine.MEMORY - GUARD <= at < Machine.CONSTANTS:
                reads.add((at - Machine.MEMORY, size))

        machine.uc.mem_write(Machine.STACK - len(poison), poison)
        hook = machine.uc.hook_add(unicorn.UC_HOOK_MEM_READ, on_read)
        machine.run(case, name)
        machine.uc.hook_del(hook)
        assert reads
        for at, size in reads:
            assert at % 4 == 0 and any(at in slot and at + size - 1 in slot for slot in inside), (at, view)
        stack = bytes(machine.uc.mem_read(Machine.STACK - len(poison), len(poison)))
        touched = len(stack.lstrip(poison[:1]))
        assert touched <= view.stack_bytes <= touched + 12, view


@needs_arm
def test_cost(tmp_path: Path) -> None:
    rng = np.random.default_rng(25)
    some = [convolution_case(rng, **EXACT, **layer, unaligned=True) for layer in (STEM, SPEECH)]
    check([*some, *large(), *every_width()], tmp_path)


@needs_arm
def test_bytes_cost_a_first_layer_little_more_than_words_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    same = {**EXACT, "zero_points": (-1, -128), "planar": True, "apart": False, "output_bytes": 2, "code": 0}
    stem = [convolution_case(rng, **same, **STEM, **how) for how in ({"fpu": True}, {"unaligned": True})]
    speech = [convolution_case(rng, **same, **SPEECH, **how) for how in ({"input_bytes": 2}, {"unaligned": True})]
    cycles = [counted.cycles for counted in measured([*stem, *speech], tmp_path)]
    assert cycles[1] <= 1.12 * cycles[0] and cycles[3] <= 1.05 * cycles[2]


@pytest.mark.parametrize(
    ("kernel", "channels", "stride", "refused"),
    [
        ((3, 3), 3, (2, 2), ""),
        ((10, 4), 1, (2, 2), ""),
        ((7, 7), 3, (2, 2), ""),
        ((10, 10), 3, (1, 1), "10 x 30 taps are too many"),
        ((10, 4), 4, (8, 8), "more than 1024 bytes of stack"),
    ],
)
def test_windows_that_are_too_large_are_refused(
    kernel: tuple[int, int], channels: int, stride: tuple[int, int], refused: str
) -> None:
    rng = np.random.default_rng(3)
    case = convolution_case(
        rng, **SOLVABLE, kernel=kernel, channels=channels, stored_channels=channels, stride=stride, whole=False
    )
    call, tensors = case.call, {"in": case.call.inputs[0].tensor, "out": case.call.output.tensor}
    assert isinstance(call.op, Conv2D)
    assert refused in (bytes_accepts(call.op, Graph("g", tensors, (call.op,), ("in",), ("out",), "")) or "")
    assert bytes_makes(call) == (not refused)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    rng = np.random.default_rng(26)
    check([convolution_case(rng, unaligned=True, rounding=Rounding.DOUBLE) for _ in range(40)], tmp_path)


def check(cases: list[Case], where: Path) -> None:
    """Hold each case's cost against the count: 1 % of the cycles, 4 % of the bytes."""
    found = with_assembly(cases)
    for (_, view), counted in zip(found, measured([case for case, _ in found], where), strict=True):
        said = bytes_cost(view)
        assert said.cycles == pytest.approx(counted.cycles, rel=0.01), view
        assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.04), view
