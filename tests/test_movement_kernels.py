"""Rows that move: every op in every layout, C on the host and emulated, and the price."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout
from codegen.movement import cost, moves, rows_of
from mnet.graph import Concat, Gather, Move, Pad, Reshape, Shape, inputs_of
from mnet.movement import move, rearrange
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


def drawn_op(rng: np.random.Generator, shape: Shape) -> tuple[Move, tuple[Shape, ...]]:
    """Draw an op whose first input has this shape; return it and the shapes of its inputs."""
    height, width, channels = shape

    def some(size: int) -> tuple[int, ...]:
        if rng.integers(2):
            return tuple(range(size)[:: int(rng.choice((1, 1, 2, -1)))])
        return tuple(int(number) for number in rng.integers(0, size, int(rng.integers(1, size + 1))))

    match rng.integers(5):
        case 0:
            top, bottom, left, right, before, after = (int(amount) for amount in rng.integers(0, 3, 6))
            value = int(rng.integers(-128, 128))
            return Pad("op", "a", "out", (top, bottom, left, right), (before, after), value), (shape,)
        case 1:
            axis = int(rng.integers(3))
            sizes = rng.integers(1, 5, int(rng.integers(0, 3)))
            shapes = [tuple(int(size) if a == axis else n for a, n in enumerate(shape)) for size in sizes]
            names = tuple("abc"[: 1 + len(shapes)])
            return Concat("op", names, "out", axis), (shape, *((h, w, c) for h, w, c in shapes))
        case 2:
            return Gather("op", "a", "out", some(height), some(width), some(channels)), (shape,)
        case 3:
            order = tuple(int(axis) for axis in rng.permutation(3))
            turned = tuple(shape[axis] for axis in order)
            return rearrange("op", "a", "out", shape, order, (turned[0], turned[1], turned[2])), (shape,)
        case _:
            return Reshape("op", "a", "out", (width, height, channels)), (shape,)


def move_case(
    rng: np.random.Generator, op: Move, shapes: Sequence[Shape], layouts: Sequence[Layout], target: Layout
) -> Case:
    """Return one row of an op's output, made from whole inputs that lie one behind the other."""
    zero_point = int(rng.integers(-128, 128))
    sources = tuple(
        storage(tensor(name, shape, zero_point), layout)
        for name, shape, layout in zip(inputs_of(op), shapes, layouts, strict=True)
    )
    values = [rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes]
    made = move(op, tuple(value[None] for value in values))[0]
    height, width, channels = made.shape
    border = (0, 0, 0, 0) if target.planar else (0, 0, int(rng.integers(2)), 1)
    call = Call(op, sources, storage(tensor("out", (height, width, channels), zero_point), target, border), 1, None)
    row = int(rng.integers(height))
    buffers = [filled(s, v, 0, s.height, rng) for s, v in zip(sources, values, strict=True)]
    begins = np.cumsum([0, *map(len, buffers)])
    pointers = tuple(
        int(begins[which]) + sources[which].slot_offset(number)
        for which, numbers in enumerate(rows_of(op, tuple(shapes))[row])
        for number in numbers
    )
    found = moves(call)
    constants = found.constants[found.phases[row]]
    return Case(call, found.view, "move", constants, b"".join(buffers), pointers, row, made[row : row + 1])


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        shape = (int(rng.integers(1, 5)), int(rng.integers(1, 9)), int(rng.integers(1, 14)))
        op, shapes = drawn_op(rng, shape)
        layouts = [LAYOUTS[number] for number in rng.integers(0, 4, len(shapes))]
        cases.append(move_case(rng, op, shapes, layouts, LAYOUTS[rng.integers(4)]))
    return cases


@needs_gcc
@needs_arm
def test_every_row_that_moves(tmp_path: Path) -> None:
    cases = batch(1, 60)
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)
    run_emulated(cases, tmp_path, "M0")


@needs_gcc
@pytest.mark.slow
@A_BATCH
@given(SEEDS)
def test_random_rows_that_move(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 150), tmp_path_factory.mktemp("rows"))


@needs_arm
def test_the_cost_of_a_move_is_near_what_is_counted(tmp_path: Path) -> None:
    """Rough formulas: within 40 %, or 40 cycles; the compiler joins bytes, and unrolls loops."""
    rng = np.random.default_rng(2)
    shapes: list[Any] = [(2, 16, 8), (2, 12, 16), (4, 20, 3), (2, 9, 32)]
    cases = []
    for number, (height, width, channels) in enumerate(shapes):
        shape = (height, width, channels)
        ops: list[tuple[Move, Sequence[Shape]]] = [
            (Concat("op", ("a", "b"), "out", 2), (shape, (height, width, channels + number))),
            (Concat("op", ("a", "b"), "out", 1), (shape, (height, 3 + number, channels))),
            (Pad("op", "a", "out", (0, 0, 1, 2), (0, 0), 5), (shape,)),
            (Gather("op", "a", "out", (0,), tuple(range(0, width, 2)), tuple(range(channels))), (shape,)),
            (rearrange("op", "a", "out", shape, (0, 2, 1), (height, channels, width)), (shape,)),
        ]
        for op, sources in ops:
            for layout, target in ((WIDE8, WIDE8), (WIDE8, WIDE16), (WIDE16, WIDE8)):
                cases.append(move_case(rng, op, sources, [layout] * len(sources), target))
    for case, counted in zip(cases, measured(cases, tmp_path), strict=True):
        assert cost(case.view).cycles == pytest.approx(counted.cycles, rel=0.4, abs=40), case.view  # type: ignore[arg-type]
