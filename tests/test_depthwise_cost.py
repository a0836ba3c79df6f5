"""What the cost functions of the depthwise kernels say is what is counted in the emulator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.call import Cost
from codegen.depthwise import DepthwiseView
from codegen.depthwise_cost import depthwise_cost, shared_cost
from codegen.depthwise_shared import SharedView
from codegen.layout import PLANAR8, PLANAR16
from mnet.oracle import Rounding
from tests import test_depthwise_shared
from tests.kernel_harness import Case, needs_arm, unsolved
from tests.test_depthwise_dsp import batch, counted, depthwise_case

__all__ = ["unsolved"]  # a fixture


def check(cases: list[Case], costs: list[Cost], where: Path, cycles: float = 0.03, code_bytes: float = 0.1) -> None:
    """Compare costs with what is counted, by default within 3 % of the cycles and 10 % of the bytes."""
    assert len(cases) > 10
    for case, cost, (taken, size) in zip(cases, costs, counted(cases, where), strict=True):
        assert abs(cost.cycles - taken) <= cycles * taken, (cost.cycles, taken, case.view)
        assert abs(cost.code_bytes - size) <= code_bytes * size, (cost.code_bytes, size, case.view)


def depthwise_costs(cases: list[Case]) -> tuple[list[Case], list[Cost]]:
    """Return those with an assembly body, and their costs."""
    found = [(case, case.view) for case in cases if isinstance(case.view, DepthwiseView) and case.view.assembly]
    costs = [depthwise_cost(view, case.call.output.tensor.shape[2]) for case, view in found]
    return [case for case, _ in found], costs


@needs_arm
def test_cost_of_random_shapes(tmp_path: Path) -> None:
    check(*depthwise_costs(batch(21, 80)), tmp_path)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    check(*depthwise_costs(batch(22, 60)), tmp_path)


@needs_arm
@pytest.mark.parametrize("mode", ["ring", "layer"])
def test_cost_of_networks_shapes(mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(23)
    cases = [
        depthwise_case(
            rng,
            size=size,
            channels=channels,
            stride=stride,
            mode=mode,
            input=layout,
            rounding=Rounding.DOUBLE,
            spread=1,
            activation=(-128, 127),
        )
        for size, channels in (((48, 48), 8), ((24, 24), 32), ((12, 12), 64), ((25, 5), 64), ((6, 6), 57))
        for stride in (1, 2)
        for layout in (PLANAR16, PLANAR8)
    ]
    check(*depthwise_costs(cases), tmp_path)


@needs_arm
def test_cost_of_shared_code(tmp_path: Path) -> None:
    check_shared([*test_depthwise_shared.batch(24, 60), *test_depthwise_shared.large_cases()], tmp_path)


@needs_arm
def test_cost_of_shared_code_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    check_shared(test_depthwise_shared.batch(26, 60), tmp_path)


def check_shared(cases: list[Case], tmp_path: Path) -> None:
    """Check what there is an assembly body for."""
    found = [(case, case.view) for case in cases if isinstance(case.view, SharedView) and case.view.assembly]
    check([case for case, _ in found], [shared_cost(view, case.call) for case, view in found], tmp_path)


def test_a_c_body_costs_more_than_assembly() -> None:
    case = depthwise_case(np.random.default_rng(3), rounding=Rounding.DOUBLE, spread=1, size=(6, 6))
    assert isinstance(case.view, DepthwiseView) and case.view.assembly
    real = replace(case.view, requantization=replace(case.view.requantization, form="real"))
    channels = case.call.output.tensor.shape[2]
    assert depthwise_cost(real, channels).cycles > 5 * depthwise_cost(case.view, channels).cycles
