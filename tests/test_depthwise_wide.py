"""The depthwise kernel of any window on rows of interleaved channels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given

from codegen.call import Call
from codegen.depthwise_wide import WideView, wide_accepts, wide_cost, wide_pack, wide_view
from codegen.layout import WIDE8, WIDE16, align4
from mnet.graph import DepthwiseConv2D, output_size
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


def spread_out(op: DepthwiseConv2D) -> DepthwiseConv2D:
    """Return an op without dilation that computes the same, with zeros between the weights."""
    height, width, channels = op.weights.shape
    down, right = op.dilation
    weights = np.zeros(((height - 1) * down + 1, (width - 1) * right + 1, channels), np.int8)
    weights[::down, ::right] = op.weights
    return replace(op, weights=weights, dilation=(1, 1))


def wide_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution of any window: `choice` fixes some of what is drawn otherwise."""
    draw = drawing(rng, choice)
    kernel = draw("kernel", (5, 5), (7, 7), (3, 3), (1, 3), (4, 2), (5, 1), (2, 6))
    op, how, shape, zero_points = drawn_layer(rng, draw, kernel, packed=False)
    dilation = draw("dilation", (1, 1), (1, 1), (2, 1), (1, 2), (2, 2))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    sides = [max(shape[i], reach[i] - sum(op.padding[2 * i : 2 * i + 2])) for i in range(2)]
    shape = (sides[0], sides[1], shape[2])
    op = replace(op, dilation=dilation, stride=draw("strides", op.stride, (1, 3)))
    plain = spread_out(op)

    extra = draw("more_padding", 0, 0, 1)
    top, bottom, left, right = op.padding
    source = storage(
        tensor("in", shape, zero_points[0]),
        draw("input", WIDE16, WIDE8),
        (top, bottom, left + extra, right + extra),
        stored_channels=draw("stored_channels", shape[2], align4(shape[2])),
    )
    target = drawn_output(draw, plain, shape, zero_points[1])
    assert target.width == output_size(shape[1], reach[1], op.stride[1], 1, left, right)
    call = Call(op, (source,), target, 1, how)
    assert wide_accepts(op, NO_GRAPH) is None
    view = wide_view(call)

    values = drawn_values(rng, shape)
    expected = requantize(accumulators(plain, values, zero_points[0]), how)
    row = int(rng.integers(target.height))
    memory = filled(source, values, 0, source.virtual_rows, rng)
    pointers = tuple(source.slot_offset(row * op.stride[0] + i) for i in range(reach[0]))
    constants = wide_pack(call, view, 0)
    return Case(call, view, "depthwise_wide", constants, memory, pointers, target.top + row, expected[row : row + 1])


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [wide_case(rng) for _ in range(count)]


SOLVABLE: dict[str, Any] = {"rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127), "channels": 8}


def large_cases(seed: int = 5) -> list[Case]:
    """Return large windows, many channels, odd and even rows."""
    rng = np.random.default_rng(seed)
    return [
        wide_case(
            rng,
            **{
                **SOLVABLE,
                "dilation": (1, 1),
                "kernel": kernel,
                "size": (9, width),
                "channels": channels,
                "input": layout,
            },
        )
        for kernel in ((3, 3), (5, 5), (7, 7), (9, 9))
        for width in (9, 12, 24)
        for channels in (8, 96)
        for layout in (WIDE16, WIDE8)
    ]


def with_assembly(cases: list[Case]) -> list[tuple[Case, WideView]]:
    """Return those with an assembly body."""
    return [(case, case.view) for case in cases if isinstance(case.view, WideView) and case.view.assembly]


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_body_equals_integer_arithmetic(tmp_path_factory: Any, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: Any, seed: int) -> None:
    cases = batch(seed, 60)
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
    cases = large_cases()
    assert len(with_assembly(cases)) == len(cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_cost(tmp_path: Path) -> None:
    found = with_assembly([*batch(25, 60), *large_cases()])
    check([case for case, _ in found], [wide_cost(view) for _, view in found], tmp_path)


@needs_arm
def test_a_window_of_5_takes_two_cycles_a_product(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    same: dict[str, Any] = {
        **SOLVABLE,
        "kernel": (5, 5),
        "dilation": (1, 1),
        "size": (9, 24),
        "same": True,
        "stride": 1,
    }
    case = wide_case(rng, **same, strides=(1, 1), zero_points=(-128, -128), input=WIDE16)
    (cycles, _) = counted([case], tmp_path)[0]
    assert cycles <= 2.2 * 25 * 24 * 8


def test_what_is_not_accepted() -> None:
    op = wide_case(np.random.default_rng(3)).call.op
    assert isinstance(op, DepthwiseConv2D)
    assert "multiplier" in str(wide_accepts(replace(op, depth_multiplier=2), NO_GRAPH))
    assert "10 rows" in str(wide_accepts(replace(op, weights=np.zeros((10, 4, 4), np.int8)), NO_GRAPH))
    assert "99 taps" in str(wide_accepts(replace(op, weights=np.zeros((9, 11, 4), np.int8)), NO_GRAPH))
