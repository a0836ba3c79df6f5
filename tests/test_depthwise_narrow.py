"""The depthwise 3x3 kernel for few pixels of interleaved channels: bits, and what it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.depthwise_narrow import NarrowView, narrow_cost, narrow_pack, narrow_view
from codegen.dual_issue import reordered
from codegen.layout import WIDE8, WIDE16, Layout
from tests import kernel_harness
from tests.kernel_harness import A_BATCH, SEEDS, Case, needs_arm, needs_gcc, run_emulated, run_on_host, unsolved
from tests.test_depthwise_cost import check
from tests.test_depthwise_dsp import counted
from tests.test_depthwise_wide import SOLVABLE, wide_case

__all__ = ["unsolved"]  # a fixture


def narrow_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution 3x3 on interleaved rows: `choice` fixes some of what is drawn otherwise."""
    stride = choice.get("stride", int(rng.integers(1, 3)))
    fixed = {"kernel": (3, 3), "dilation": (1, 1), "stride": stride, "strides": (stride, stride)}
    case = wide_case(rng, **{**choice, **fixed})
    view = narrow_view(case.call, choice.get("compact", bool(rng.integers(2))))
    return replace(case, view=view, template="depthwise_narrow", constants=narrow_pack(case.call, view, 0))


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [narrow_case(rng) for _ in range(count)]


def every_width(seed: int = 5) -> list[Case]:
    """Return rows of 1 to 24 pixels, with padding stored as 0 or not, of channel counts with any remainder."""
    rng = np.random.default_rng(seed)
    return [
        narrow_case(
            rng,
            **{**SOLVABLE, "channels": channels},
            size=(5, width),
            stride=stride,
            input=layout,
            zero_points=(zero_point, -128),
            compact=compact,
        )
        for stride in (1, 2)
        for layout in (WIDE16, WIDE8)
        for zero_point in (-128, 5)
        for width in (*range(1, 13), 24)
        for channels, compact in ((12, False), (8, True), (int(rng.integers(1, 12)), width % 2 == 0))
    ]


def with_assembly(cases: list[Case]) -> list[tuple[Case, NarrowView]]:
    """Return those with an assembly body."""
    return [(case, case.view) for case in cases if isinstance(case.view, NarrowView) and case.view.assembly]


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_body_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    cases = batch(seed, 60)
    assert with_assembly(cases)
    run_emulated(cases, tmp_path_factory.mktemp("arm"))


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
    assert len(with_assembly(cases)) == len(cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_the_order_for_dual_issue_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jinja = kernel_harness.environment()
    jinja.globals["reorder"] = reordered
    monkeypatch.setattr(kernel_harness, "environment", lambda: jinja)
    run_emulated(every_width()[::7], tmp_path)


@needs_arm
def test_cost(tmp_path: Path) -> None:
    found = with_assembly([*batch(25, 60), *every_width()])
    check([case for case, _ in found], [narrow_cost(view) for _, view in found], tmp_path, 0.01, 0.04)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    found = with_assembly(batch(26, 60))
    check([case for case, _ in found], [narrow_cost(view) for _, view in found], tmp_path, 0.01, 0.04)


@needs_arm
@pytest.mark.parametrize("layout", (WIDE8, WIDE16), ids=lambda layout: layout.name)
def test_cycles_of_narrow_maps(layout: Layout, tmp_path: Path) -> None:
    same: dict[str, Any] = {**SOLVABLE, "same": True, "stride": 1, "zero_points": (-128, -128), "border": (0, 0, 0, 0)}
    same |= {"compact": False}
    for width, channels, most in ((5, 64, 1.7), (4, 64, 1.75), (2, 128, 2.0)):
        rng = np.random.default_rng(3)
        case = narrow_case(rng, **{**same, "channels": channels}, size=(width, width), input=layout)
        (cycles, _) = counted([case], tmp_path)[0]
        assert cycles <= most * 9 * width * channels, (width, cycles / (9 * width * channels))
