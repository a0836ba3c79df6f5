"""Rows of resized pictures: C on the host and emulated in every layout, the rounding for every sum, the price."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout, align4
from codegen.passes import Passes
from codegen.plain import Access
from codegen.resizing import (
    BilinearView,
    bilinear_cost,
    bilinear_pack,
    bilinear_view,
    nearest_cost,
    nearest_pack,
    nearest_view,
    phase,
    rows_read,
)
from mnet.graph import Resize, Sampling
from mnet.windows import Grid, resize, rounded_mean
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

LAYOUTS = (WIDE16, WIDE8, BYTES8, PLANAR16)
PLAIN, HALF, ALIGNED = (False, False), (False, True), (True, False)  # align_corners, half_pixel_centers


def resize_cases(
    rng: np.random.Generator,
    sampling: Sampling,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    centers: tuple[bool, bool] = HALF,
    layouts: tuple[Layout, Layout] = (WIDE16, WIDE16),
    *,
    whole_words: bool = True,
    values: np.ndarray | None = None,
) -> list[Case]:
    """Return a case for each row of a resize."""
    op = Resize("resize", "in", "out", sampling, size, *centers)
    stored = align4(shape[2]) if whole_words else shape[2]
    border = [(0, 0, 0 if layout.planar else 1, 0) for layout in layouts]
    source = storage(tensor("in", shape, 7), layouts[0], border[0], stored_channels=stored)
    target = storage(tensor("out", (*size, shape[2]), 7), layouts[1], border[1], stored_channels=stored)
    if values is None:
        values = rng.integers(-128, 128, shape).astype(np.int8)
    memory = filled(source, values, 0, shape[0], rng)
    expected = resize(op, values[None])[0]
    call = Call(op, (source,), target, 1, None)
    near = sampling is Sampling.NEAREST
    view: Any = nearest_view(call) if near else bilinear_view(call)
    pack: Any = nearest_pack if near else bilinear_pack
    return [
        Case(
            call,
            view,
            "resize_nearest" if near else "resize_bilinear",
            pack(call, view, phase(call, row)),
            memory,
            tuple(source.slot_offset(read) for read in rows_read(call, 0, row)),
            row,
            expected[row : row + 1],
        )
        for row in range(size[0])
    ]


def cases_of_every_kind() -> list[Case]:
    rng = np.random.default_rng(1)
    geometries: list[tuple[Any, ...]] = [
        ((3, 4, 8), (6, 8), HALF),
        ((3, 4, 5), (6, 8), PLAIN),
        ((4, 5, 3), (7, 9), ALIGNED),
        ((2, 3, 4), (8, 12), HALF),
        ((2, 3, 4), (16, 24), HALF),
        ((5, 7, 2), (3, 4), HALF),
        ((6, 6, 6), (3, 2), PLAIN),
        ((1, 1, 7), (3, 2), ALIGNED),
        ((5, 4, 4), (1, 1), HALF),
        ((4, 3, 8), (4, 3), PLAIN),
    ]
    return [
        case
        for number, what in enumerate(geometries)
        for sampling in Sampling
        for turn, source in enumerate(LAYOUTS)
        for case in resize_cases(
            rng, sampling, *what, (source, LAYOUTS[(turn + number) % 4]), whole_words=bool(number % 4 != 1)
        )
    ]


@needs_gcc
def test_resized_rows_on_the_host(tmp_path: Path) -> None:
    cases = cases_of_every_kind()
    words = {case.view.over.words for case in cases if isinstance(case.view, BilinearView)}
    assert words == {True, False}
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))


@needs_arm
@pytest.mark.parametrize("core", ["M4", "M0"])
def test_resized_rows_emulated(core: str, tmp_path: Path) -> None:
    run_emulated(cases_of_every_kind(), tmp_path, core)


@needs_gcc
@pytest.mark.parametrize("layout", [WIDE16, WIDE8, BYTES8])
def test_lanes_hold_the_largest_and_the_smallest_sums(layout: Layout, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    cases = [
        case
        for extreme in ([-128, 127], [127], [-128], [-1, 0], [0, 1])
        for factor in (2, 4, 8)
        for case in resize_cases(
            rng,
            Sampling.BILINEAR,
            (3, 3, 8),
            (3 * factor, 3 * factor),
            layouts=(layout, layout),
            values=rng.choice(np.array(extreme, np.int8), (3, 3, 8)),
        )
    ]
    assert all(case.view.over.words for case in cases)  # type: ignore[attr-defined]
    run_on_host(cases, tmp_path)


@pytest.mark.parametrize("bits", range(1, 11))
def test_every_sum_is_rounded_as_the_runtimes_do(bits: int) -> None:
    access = Access("uint8_t", 0, 1, 1, 1, -128, 1, 1, 1)
    view = BilinearView(Passes(access, access, False), Grid(0, 0), bits)
    top, step = 255 << view.shift, max(1, (255 << view.shift) // 50_000)
    sums = np.unique(
        np.concatenate([np.arange(0, top + 1, step), (np.arange(511)[:, None] << view.shift >> 1).ravel()])
    )
    sums = np.unique(np.clip(np.concatenate([sums - 1, sums, sums + 1]), 0, top)).astype(np.uint64)
    # what `rounded` writes, of a sum that began with `start`
    x = sums + np.uint64(view.start)
    found = ((x + (x >> np.uint64(view.shift + 7) & np.uint64(1))) >> np.uint64(view.shift)) & np.uint64(255)
    assert (found == rounded_mean(sums.astype(np.int64) - (128 << view.shift), 1 << view.shift) + 128).all()
    assert f">> {view.shift + 7} & 0x1u)) >> {view.shift} & 0xffu" in view.rounded("x")


def test_a_row_without_weight_is_not_read() -> None:
    (first, *_) = resize_cases(np.random.default_rng(0), Sampling.BILINEAR, (3, 3, 4), (6, 6), PLAIN)
    assert [rows_read(first.call, 0, row) for row in range(6)] == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 2)]
    assert [phase(first.call, row) for row in range(6)] == [0, 512, 0, 512, 0, 0]
    (first, *_) = resize_cases(np.random.default_rng(0), Sampling.NEAREST, (3, 3, 4), (6, 6))
    assert [rows_read(first.call, 0, row) for row in range(6)] == [(0,), (0,), (1,), (1,), (2,), (2,)]


@needs_arm
@pytest.mark.parametrize("sampling", list(Sampling))
@pytest.mark.parametrize("layouts", [(WIDE16, WIDE16), (WIDE8, WIDE8), (WIDE8, PLANAR16), (PLANAR16, WIDE16)])
def test_costs_of_rows(sampling: Sampling, layouts: tuple[Layout, Layout], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    cases = [
        resize_cases(rng, sampling, (4, 7, channels), size, layouts=layouts)[1]
        for channels in (4, 12, 32)
        for size in ((8, 14), (5, 9))
    ]
    for case, counted in zip(cases, measured(cases, tmp_path), strict=True):
        said = nearest_cost(case.view) if sampling is Sampling.NEAREST else bilinear_cost(case.view)  # type: ignore[arg-type]
        assert said.cycles == pytest.approx(counted.cycles, rel=0.2, abs=80), case.view
        assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.3, abs=40), case.view
