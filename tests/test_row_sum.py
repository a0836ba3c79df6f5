"""Rows added to the sums of their channels: C body on the host, assembly emulated, and the price of both."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, SUMS32, WIDE8, WIDE16, Layout, align4
from codegen.plain import no_constants
from codegen.row_sum import MOST_PIXELS, row_sum_cost, row_sum_view
from codegen.targets import target
from mnet.graph import AveragePool2D
from tests.kernel_harness import (
    A_BATCH,
    SEEDS,
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

LAYOUTS = (WIDE16, WIDE8, BYTES8, PLANAR16)


def row_sum_case(
    rng: np.random.Generator,
    layout: Layout,
    width: int,
    channels: int,
    *,
    dsp: bool = True,
    left: int = 0,
    stored_channels: int | None = None,
    values: np.ndarray | None = None,
) -> Case:
    """Draw a row to sum. The sums before are what poison makes of them, so only the difference is known."""
    padding = (0, 0, 0 if layout.planar else left, 0)
    source = storage(tensor("in", (1, width, channels), 7), layout, padding, stored_channels=stored_channels)
    if values is None:
        values = rng.integers(-128, 128, (1, width, channels)).astype(np.int8)
    target = storage(tensor("out", (1, 1, channels), 7), SUMS32)
    call = Call(
        AveragePool2D("pool", "in", "out", (1, width), (1, 1), (0, 0, 0, 0), (-128, 127)), (source,), target, 1, None
    )
    view = row_sum_view(call, dsp)
    before = int(np.array([0xA5A5A5A5], np.uint32).view(np.int32)[0])
    # unpack adds the offset of sums32
    expected = before + (values.astype(np.int64) + 128).sum(1, keepdims=True) + target.offset
    return Case(
        call, view, "row_sum", no_constants(call, view, 0), filled(source, values, 0, 1, rng), (0,), 0, expected
    )


def rows_of_every_size(rng: np.random.Generator) -> list[Case]:
    return [
        row_sum_case(rng, layout, width, channels)
        for layout in LAYOUTS
        for width in (1, 2, 3, 5, 8, 11, 16, 17, 19, 24, 40)
        for channels in (1, 4, 8, 13, 22, 64)
    ]


@needs_gcc
@needs_arm
def test_sums_of_rows(tmp_path: Path) -> None:
    cases = rows_of_every_size(np.random.default_rng(3))
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
@A_BATCH
@given(SEEDS, st.data())
def test_sums_of_random_rows(tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(12):
        channels = data.draw(st.integers(1, 300))
        stored = channels + data.draw(st.integers(0, 9))
        width, left, dsp = data.draw(st.tuples(st.integers(1, 60), st.integers(0, 2), st.booleans()))
        layout = data.draw(st.sampled_from(LAYOUTS))
        cases.append(row_sum_case(rng, layout, width, channels, dsp=dsp, left=left, stored_channels=stored))
    where = tmp_path_factory.mktemp("rows")
    run_on_host(cases, where)
    run_emulated(cases, where)


@needs_arm
@pytest.mark.parametrize("layout", [WIDE16, WIDE8])
def test_the_longest_row_fills_its_lanes(layout: Layout, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    most = [
        row_sum_case(rng, layout, width, 13, values=np.full((1, width, 13), 127, np.int8))
        for width in (MOST_PIXELS, MOST_PIXELS + 1)
    ]
    assert [case.view.assembly for case in most] == [True, False]  # type: ignore[attr-defined]
    run_emulated(most, tmp_path)


def test_lanes_need_whole_words() -> None:
    rng = np.random.default_rng(5)
    views = {
        (layout, stored): row_sum_case(rng, layout, 5, 3, stored_channels=stored).view
        for layout in LAYOUTS
        for stored in (3, align4(3))
    }
    assert {key for key, view in views.items() if view.assembly} == {(WIDE16, 4), (WIDE8, 4)}  # type: ignore[attr-defined]


@needs_arm
def test_costs_of_rows(tmp_path: Path) -> None:
    """Assembly exactly; compiled C within a fifth, but for tiny ones."""
    cases = rows_of_every_size(np.random.default_rng(6))
    for case, counted in zip(cases, measured(cases, tmp_path), strict=True):
        said = row_sum_cost(case.view, target("cortex-m4").timing)
        relative, absolute = (0, 0) if case.view.assembly else (0.2, 20)  # type: ignore[attr-defined]
        assert said.cycles == pytest.approx(counted.cycles, rel=relative, abs=absolute), case.view
        if case.view.assembly:  # type: ignore[attr-defined]
            assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.05), case.view


@needs_arm
@pytest.mark.parametrize(("layout", "most"), [(WIDE16, 1.85), (WIDE8, 1.7)])
def test_a_row_of_five_pixels_costs_less_than_two_cycles_a_value(layout: Layout, most: float, tmp_path: Path) -> None:
    (counted,) = measured([row_sum_case(np.random.default_rng(7), layout, 5, 64)], tmp_path)
    assert counted.cycles <= most * 5 * 64
