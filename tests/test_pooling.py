"""Rows of pools: means by a factor for every sum, C on the host and emulated in every layout, the price."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout, align4
from codegen.pooling import phase, pool_cost, pool_pack, pool_view, rows_read, solve_mean
from mnet.graph import AveragePool2D, MaxPool2D, Pool2D
from mnet.windows import average_pool_2d, max_pool_2d, rounded_mean
from tests.kernel_harness import (
    Case,
    filled,
    measured,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
    tensor,
)
from tests.models import geometry

LAYOUTS = (WIDE16, WIDE8, BYTES8, PLANAR16)


def pool_cases(
    rng: np.random.Generator,
    op_type: type[Pool2D],
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    same: bool,
    layouts: tuple[Layout, Layout] = (WIDE16, WIDE16),
    *,
    activation: tuple[int, int] = (-128, 127),
    dsp: bool = True,
    whole_words: bool = True,
) -> list[Case]:
    """Return a case for each row of a pool."""
    padding, size = geometry(shape[:2], kernel, stride, (1, 1), same)
    op = op_type("pool", "in", "out", kernel, stride, padding, activation)
    stored = align4(shape[2]) if whole_words else shape[2]
    border = [(0, 0, 0 if layout.planar else 1, 0) for layout in layouts]
    source = storage(tensor("in", shape, 7), layouts[0], border[0], stored_channels=stored)
    target = storage(tensor("out", (*size, shape[2]), 7), layouts[1], border[1], stored_channels=stored)
    values = rng.integers(-128, 128, shape).astype(np.int8)
    memory = filled(source, values, 0, shape[0], rng)
    expected = (average_pool_2d if isinstance(op, AveragePool2D) else max_pool_2d)(op, values[None])[0]  # type: ignore[operator]
    call = Call(op, (source,), target, 1, None)
    view = pool_view(call, dsp)
    return [
        Case(
            call,
            view,
            "pool",
            pool_pack(call, view, phase(call, row)),
            memory,
            tuple(source.slot_offset(read) for read in rows_read(call, 0, row)),
            row,
            expected[row : row + 1],
        )
        for row in range(size[0])
    ]


def cases_of_every_kind(dsp: bool) -> list[Case]:
    rng = np.random.default_rng(1)
    geometries: list[tuple[Any, ...]] = [
        ((4, 6, 8), (2, 2), (2, 2), False),
        ((5, 5, 4), (3, 3), (1, 1), True),
        ((6, 5, 3), (3, 3), (2, 2), True),
        ((7, 4, 5), (3, 1), (1, 3), True),
        ((3, 9, 2), (1, 5), (2, 4), False),
        ((5, 5, 8), (5, 5), (1, 1), True),
        ((2, 3, 6), (7, 8), (1, 1), True),
        ((3, 5, 4), (1, 4), (1, 3), True),  # every window has three columns of its four
    ]
    return [
        case
        for number, what in enumerate(geometries)
        for kind in (AveragePool2D, MaxPool2D)
        for turn, source in enumerate(LAYOUTS)
        for case in pool_cases(
            rng,
            kind,
            *what,
            (source, LAYOUTS[(turn + number) % 4]),
            activation=(-128, 127) if number % 3 else (-60, 71),
            dsp=dsp,
            whole_words=bool(number % 4),
        )
    ]


@needs_gcc
@pytest.mark.parametrize("dsp", [True, False])
def test_rows_of_pools_on_the_host(dsp: bool, tmp_path: Path) -> None:
    run_on_host(cases_of_every_kind(dsp), tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))


@needs_arm
@pytest.mark.parametrize(("core", "dsp"), [("M4", True), ("M3", False), ("M0", False)])
def test_rows_of_pools_emulated(core: str, dsp: bool, tmp_path: Path) -> None:
    run_emulated(cases_of_every_kind(dsp), tmp_path, core)


@needs_gcc
@needs_arm
def test_windows_of_more_values_than_a_factor_does_for_are_divided(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    cases = [
        case
        for layouts in ((WIDE16, WIDE8), (BYTES8, PLANAR16), (PLANAR16, BYTES8))
        for case in pool_cases(rng, AveragePool2D, (17, 18, 3), (16, 16), (1, 2), False, layouts)
    ]
    assert solve_mean(256) is None and not any(case.view.exact for case in cases)  # type: ignore[attr-defined]
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


def test_a_factor_gives_the_mean_of_every_sum() -> None:
    for count in range(1, 256):
        solved = solve_mean(count)
        assert solved is not None
        sums = np.arange(255 * count + 1, dtype=np.int64)
        scaled = sums * solved[0] + solved[1]
        assert scaled.max() < 1 << 32
        assert ((scaled >> 24) == rounded_mean(sums - 128 * count, count) + 128).all()


def test_what_a_factor_cannot_do_is_not_done() -> None:
    unsolved = [count for count in range(256, 700) if solve_mean(count) is None]
    assert 256 in unsolved and 699 in unsolved


def test_a_maximum_reads_the_row_at_the_edge_again() -> None:
    (case, *_) = pool_cases(np.random.default_rng(0), MaxPool2D, (5, 5, 4), (3, 3), (1, 1), True)
    assert [rows_read(case.call, 0, row) for row in (0, 1, 4)] == [(0, 1, 1), (0, 1, 2), (3, 4, 4)]
    assert {phase(case.call, row) for row in range(5)} == {0}
    mean = replace(case.call, op=AveragePool2D(**vars(case.call.op)))
    assert [phase(mean, row) for row in range(5)] == [1, 0, 0, 0, 1]


COSTS = [
    ((8, 16, channels), kernel, stride, same)
    for channels in (3, 8, 32)
    for kernel, stride, same in (
        ((2, 2), (2, 2), False),
        ((3, 3), (1, 1), True),
        ((3, 3), (2, 2), False),
        ((5, 5), (1, 1), True),
    )
]


@needs_arm
@pytest.mark.parametrize("kind", [AveragePool2D, MaxPool2D])
@pytest.mark.parametrize("layouts", [(WIDE16, WIDE16), (WIDE8, WIDE8), (WIDE8, PLANAR16), (PLANAR16, WIDE16)])
def test_costs_of_rows(kind: type[Pool2D], layouts: tuple[Layout, Layout], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    cases = [pool_cases(rng, kind, *what, layouts)[2] for what in COSTS]
    for case, counted in zip(cases, measured(cases, tmp_path), strict=True):
        said = pool_cost(case.view)  # type: ignore[arg-type]
        assert said.cycles == pytest.approx(counted.cycles, rel=0.25, abs=75), case.view
        assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.3, abs=50), case.view
