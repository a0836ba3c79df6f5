"""The depthwise kernel that layers of all sizes share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.depthwise_shared import SharedView, shared_accepts, shared_pack, shared_view
from codegen.layout import PLANAR8, PLANAR16, WIDE16
from mnet.graph import Graph
from mnet.oracle import Rounding
from tests.kernel_harness import A_BATCH, SEEDS, Case, needs_arm, needs_gcc, run_emulated, run_on_host, unsolved
from tests.test_depthwise_dsp import counted, depthwise_call, drawing, windowed_case

__all__ = ["unsolved"]  # a fixture


def shared_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a layer that the kernel accepts: `choice` fixes some of what is drawn otherwise."""
    while True:
        call, mode = depthwise_call(rng, drawing(rng, choice))
        tensors = {"in": call.inputs[0].tensor, "out": call.output.tensor}
        if shared_accepts(call.op, Graph("g", tensors, (call.op,), ("in",), ("out",), "")) is None:
            break
    view = shared_view(call)
    return windowed_case(rng, call, mode, view, "depthwise_shared", lambda phase: shared_pack(call, view, phase))


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [shared_case(rng) for _ in range(count)]


def large_cases(seed: int = 5) -> list[Case]:
    """Return every width of a row, and larger layers."""
    rng = np.random.default_rng(seed)
    base: dict[str, Any] = {"rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127)}
    cases = []
    for stride in (1, 2):
        for layout in (PLANAR16, PLANAR8):
            for same in (False, True):
                some = {**base, "stride": stride, "input": layout, "same": same}
                for width in (*range(3, 16), 95, 96):
                    cases.append(shared_case(rng, **some, size=(7, width), channels=3))
            for size, channels in (((25, 5), 64), ((6, 6), 106), ((48, 48), 8), ((200, 7), 3)):
                choice = {**base, "stride": stride, "input": layout, "size": size, "channels": channels}
                cases.append(shared_case(rng, **choice, mode="layer"))
    return cases


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
    cases = batch(11, 40)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_large_shapes(tmp_path: Path) -> None:
    cases = large_cases()
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_layers_of_all_sizes_share_one_small_function(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    same: dict[str, Any] = {"zero_points": (-128, -128), "activation": (-128, 127), "spread": 1, "input": PLANAR16}
    same |= {"same": True, "rounding": Rounding.DOUBLE, "output": WIDE16, "stride": 1}
    cases = [
        shared_case(rng, **same, size=size, channels=channels, mode=mode)
        for size, channels, mode in (((6, 6), 15, "layer"), ((3, 3), 22, "layer"), ((12, 12), 60, "ring"))
    ]
    assert len({case.view for case in cases}) == 1
    assert all(size <= 700 for _, size in counted(cases, tmp_path))


def test_what_is_not_accepted() -> None:
    rng = np.random.default_rng(7)
    call, _ = depthwise_call(rng, drawing(rng, {"size": (2, 9), "same": True}))
    graph = Graph("g", {"in": call.inputs[0].tensor, "out": call.output.tensor}, (call.op,), ("in",), ("out",), "")
    assert "rows" in str(shared_accepts(call.op, graph))
    call, _ = depthwise_call(rng, drawing(rng, {"size": (6, 1), "same": True}))
    graph = Graph("g", {"in": call.inputs[0].tensor, "out": call.output.tensor}, (call.op,), ("in",), ("out",), "")
    assert "one pixel" in str(shared_accepts(call.op, graph))
    assert isinstance(shared_view(call), SharedView)
