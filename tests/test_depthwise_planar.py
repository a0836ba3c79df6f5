"""The depthwise kernel of wide windows on planar rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.call import Call
from codegen.depthwise_planar import PlanarView, planar_accepts, planar_cost, planar_pack, planar_view
from codegen.layout import PLANAR16, align4
from mnet.graph import DepthwiseConv2D
from mnet.oracle import Rounding, requantize
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
    storage,
    tensor,
    unsolved,
)
from tests.test_depthwise_cost import check
from tests.test_depthwise_dsp import NO_GRAPH, counted, drawing, drawn_layer, drawn_output, drawn_values

__all__ = ["unsolved"]  # a fixture

SOLVABLE: dict[str, Any] = {"rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127), "channels": 8}


def planar_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution of a wide window: `choice` fixes some of what is drawn otherwise."""
    draw = drawing(rng, choice)
    kernel = draw("kernel", (5, 5), (7, 7), (5, 5), (7, 7), (3, 4), (1, 9), (9, 6))
    op, how, shape, zero_points = drawn_layer(rng, draw, kernel, packed=False)
    op = replace(op, stride=draw("strides", op.stride, op.stride, (1, 3)))
    sides = [max(shape[i], kernel[i] - sum(op.padding[2 * i : 2 * i + 2])) for i in range(2)]
    shape = (sides[0], sides[1], shape[2])
    source = storage(
        tensor("in", shape, zero_points[0]),
        PLANAR16,
        (*op.padding[:2], 0, 0),
        stored_channels=draw("stored_channels", shape[2], align4(shape[2])),
    )
    if draw("apart", False, True):
        source = replace(source, apart=True)
    target = drawn_output(draw, op, shape, zero_points[1])
    call = Call(op, (source,), target, 1, how)
    assert planar_accepts(op, NO_GRAPH) is None
    view = planar_view(call)

    values = drawn_values(rng, shape)
    expected = requantize(accumulators(op, values, zero_points[0]), how)
    row = int(rng.integers(target.height))
    memory = filled(source, values, 0, source.virtual_rows, rng)
    pointers = tuple(source.slot_offset(row * op.stride[0] + i) for i in range(kernel[0]))
    constants = planar_pack(call, view, 0)
    return Case(call, view, "depthwise_planar", constants, memory, pointers, target.top + row, expected[row : row + 1])


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [planar_case(rng) for _ in range(count)]


def large_cases(seed: int = 5) -> list[Case]:
    """Return large windows, many channels, odd and even rows."""
    rng = np.random.default_rng(seed)
    return [
        planar_case(rng, **{**SOLVABLE, "kernel": kernel, "size": (9, width), "channels": channels, "stride": stride})
        for kernel in ((5, 5), (7, 7), (9, 9))
        for width in (9, 14, 28, 40)
        for channels in (8, 96)
        for stride in (1, 2)
    ]


def with_assembly(cases: list[Case]) -> list[tuple[Case, PlanarView]]:
    """Return those with an assembly body."""
    return [(case, case.view) for case in cases if isinstance(case.view, PlanarView) and case.view.assembly]


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_body_equals_integer_arithmetic(tmp_path_factory: Any, seed: int) -> None:
    run_on_host(batch(seed, 40), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: Any, seed: int) -> None:
    cases = batch(seed, 40)
    assert with_assembly(cases)
    run_emulated(cases, tmp_path_factory.mktemp("arm"))


@needs_gcc
@needs_arm
def test_both_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    cases = batch(11, 30)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_large_shapes(tmp_path: Path) -> None:
    cases = [
        *large_cases(),
        planar_case(np.random.default_rng(2), **{**SOLVABLE, "kernel": (5, 5), "size": (3, 13), "channels": 600}),
    ]
    assert len(with_assembly(cases)) == len(cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_cost(tmp_path: Path) -> None:
    found = with_assembly([*batch(25, 40), *large_cases()])
    check([case for case, _ in found], [planar_cost(view) for _, view in found], tmp_path, code_bytes=0.16)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    found = with_assembly(batch(26, 30))
    check([case for case, _ in found], [planar_cost(view) for _, view in found], tmp_path, code_bytes=0.16)


@needs_arm
@pytest.mark.parametrize(("kernel", "stride", "most"), [(5, 1, 1.45), (5, 2, 1.5), (7, 1, 1.3), (7, 2, 1.35)])
def test_a_product_takes_less_than_one_and_a_half_cycles(kernel: int, stride: int, most: float, tmp_path: Path) -> None:
    same = {**SOLVABLE, "kernel": (kernel, kernel), "size": (9, 24), "same": True, "stride": stride}
    case = planar_case(np.random.default_rng(3), **same, strides=(stride, stride), zero_points=(-128, -128))
    (cycles, _) = counted([case], tmp_path)[0]
    assert cycles <= most * kernel * kernel * case.call.output.width * 8


def test_what_is_not_accepted() -> None:
    op = planar_case(np.random.default_rng(3)).call.op
    assert isinstance(op, DepthwiseConv2D)
    assert "multiplier" in str(planar_accepts(replace(op, depth_multiplier=2), NO_GRAPH))
    assert "dilation" in str(planar_accepts(replace(op, dilation=(1, 2)), NO_GRAPH))
    assert "10x4" in str(planar_accepts(replace(op, weights=np.zeros((10, 4, 4), np.int8)), NO_GRAPH))
    assert "5x3" in str(planar_accepts(replace(op, weights=np.zeros((5, 3, 4), np.int8)), NO_GRAPH))
