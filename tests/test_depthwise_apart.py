"""Depthwise kernels for DSP cores whose input rows lie apart: bits, and what they cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.depthwise import DepthwiseView, depthwise_pack, depthwise_shares, depthwise_view
from codegen.dual_issue import reordered
from codegen.kernels import KERNELS
from codegen.layout import PLANAR8, PLANAR16, Layout
from mnet.graph import DepthwiseConv2D
from mnet.oracle import Rounding, requantize
from tests import kernel_harness
from tests.kernel_harness import (
    A_BATCH,
    SEEDS,
    Case,
    accumulators,
    filled,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    unsolved,
)
from tests.test_depthwise_cost import check, depthwise_costs
from tests.test_depthwise_dsp import counted, depthwise_call, depthwise_case, drawing, drawn_values, form_of

__all__ = ["unsolved"]  # a fixture

SOLVABLE: dict[str, Any] = {"rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127), "channels": 8}


def apart_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution 3x3 of rows in any order in memory: `choice` fixes some of what is drawn."""
    draw = drawing(rng, {**choice, "mode": "whole"})
    call, _ = depthwise_call(rng, draw)
    source = replace(call.inputs[0], apart=True)
    call = replace(call, inputs=(source,))
    op = call.op
    assert isinstance(op, DepthwiseConv2D) and call.requantization is not None and not source.whole
    compact = draw("compact", False, True)
    view = depthwise_view(call, compact, depthwise_shares(call, compact) and draw("shared", False, False, True))
    values = drawn_values(rng, source.tensor.shape)
    expected = requantize(accumulators(op, values, source.tensor.zero_point), call.requantization)
    row = int(rng.integers(call.output.height))
    top = row * op.stride[0]
    stored = filled(source, values, top, 3, rng)
    rows = [stored[start : start + source.slot_bytes] for start in range(0, len(stored), source.slot_bytes)]
    order = rng.permutation(len(rows))
    places = np.argsort(order)[top : top + 3] * source.slot_bytes
    memory = b"".join(rows[number] for number in order)
    where = tuple(int(place) for place in places)
    constants = depthwise_pack(call, view, 0)
    return Case(call, view, "depthwise_dsp", constants, memory, where, call.output.top + row, expected[row : row + 1])


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [apart_case(rng) for _ in range(count)]


def every_width(seed: int = 5) -> list[Case]:
    """Return rows of every width that a plan of words can treat differently, and large ones."""
    rng = np.random.default_rng(seed)
    return [
        apart_case(rng, **SOLVABLE, stride=stride, input=layout, size=(5, width))
        for stride in (1, 2)
        for layout in (PLANAR16, PLANAR8)
        for width in (*range(1, 20), 48, 95, 96)
    ]


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_bodies_equal_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_emulated(batch(seed, 60), tmp_path_factory.mktemp("arm"))


@needs_gcc
@needs_arm
def test_both_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    cases = batch(11, 80)
    assert {form_of(case) for case in cases} >= {"shifts", "single"}
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_every_width(tmp_path: Path) -> None:
    cases = every_width()
    assert all(getattr(case.view, "assembly", False) for case in cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_the_order_for_dual_issue_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jinja = kernel_harness.environment()
    jinja.globals["reorder"] = reordered
    monkeypatch.setattr(kernel_harness, "environment", lambda: jinja)
    rng = np.random.default_rng(8)
    run_emulated(
        [apart_case(rng, **SOLVABLE, compact=compact) for compact in (False, True) for _ in range(8)], tmp_path
    )


@needs_arm
def test_cost(tmp_path: Path) -> None:
    check(*depthwise_costs([*batch(21, 80), *every_width()]), tmp_path, cycles=0.01, code_bytes=0.04)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    check(*depthwise_costs(batch(22, 60)), tmp_path, cycles=0.01, code_bytes=0.04)


@needs_arm
@pytest.mark.parametrize("layout", (PLANAR16, PLANAR8), ids=lambda layout: layout.name)
def test_pointers_cost_little(layout: Layout, tmp_path: Path) -> None:
    same: dict[str, Any] = {**SOLVABLE, "channels": 32, "stride": 1, "same": True, "zero_points": (-128, -128)}
    same |= {"input": layout, "compact": False, "shared": False}
    for width, more in ((12, 1.1), (24, 1.1), (48, 1.1)):
        rng = np.random.default_rng(3)
        ring = depthwise_case(rng, **same, size=(width, width), mode="ring", straight=0)
        apart = apart_case(rng, **same, size=(width, width))
        (before, _), (after, _) = counted([ring, apart], tmp_path)
        assert after <= more * before, (width, after / before)


def test_a_kernel_reads_rows_that_lie_apart_or_those_that_do_not() -> None:
    rng = np.random.default_rng(4)
    apart, layer = (
        apart_case(rng, **SOLVABLE, size=(6, 6)).call,
        depthwise_case(rng, **SOLVABLE, size=(6, 6), mode="layer").call,
    )
    several = replace(layer, inputs=(replace(layer.inputs[0], apart=True),))
    rows = [kernel for kernel in KERNELS if kernel.family in ("depthwise_dsp", "depthwise_shared")]
    assert {kernel.ring_of_window for kernel in rows if kernel.makes(apart)} == {False}
    assert {kernel.ring_of_window for kernel in rows if kernel.makes(layer)} == {True}
    assert {kernel.pointers(apart) for kernel in rows if kernel.makes(apart)} == {3}
    assert not any(kernel.makes(several) for kernel in rows)


def test_constants_do_not_depend_on_where_a_row_lies() -> None:
    case = apart_case(np.random.default_rng(2), **SOLVABLE, size=(1, 9), same=True)  # three rows, as a ring has
    assert isinstance(case.view, DepthwiseView) and case.call.inputs[0].slots == 3
    with pytest.raises(AssertionError):
        depthwise_pack(case.call, case.view, 1)
