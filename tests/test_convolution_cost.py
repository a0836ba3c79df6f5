"""What the convolutions' cost functions say, against counted runs in the emulator."""

from pathlib import Path

import numpy as np
import pytest

from codegen.call import Cost
from codegen.convolution_cost import convolution_cost, fpu_cost
from codegen.convolution_fpu import FpuView
from mnet.graph import Conv2D, FullyConnected
from mnet.oracle import Rounding
from tests.kernel_harness import POISON, Case, Machine, measured, needs_arm, unsolved, write_sources
from tests.test_convolution_layouts import bytes_in_registers
from tests.test_kernels_dsp import convolution_case

__all__ = ["unsolved"]  # a fixture
SHAPES = (
    {"kernel": (1, 1), "channels": 8, "outputs": 16, "size": (1, 48), "fpu": True},
    {"kernel": (1, 1), "channels": 32, "outputs": 8, "size": (2, 25), "fpu": True},
    {"kernel": (3, 3), "channels": 3, "stored_channels": 3, "size": (3, 96), "stride": (2, 2), "fpu": True},
    {"kernel": (1, 1), "channels": 64, "outputs": 60, "size": (1, 12)},
    {"kernel": (1, 1), "channels": 106, "outputs": 57, "size": (6, 6), "whole": True},
    {"kernel": (1, 1), "channels": 64, "outputs": 64, "size": (25, 5), "whole": True},
    {"kernel": (3, 3), "channels": 16, "size": (3, 32), "padding": (0, 0, 1, 1)},
    {"kernel": (3, 3), "channels": 64, "size": (3, 9)},
    {"kernel": (10, 4), "channels": 1, "stored_channels": 1, "size": (10, 10), "stride": (2, 2)},
    {"kind": FullyConnected, "channels": 640, "outputs": 128, "size": (1, 1)},
)


def cost(case: Case) -> Cost:
    return fpu_cost(case.view) if isinstance(case.view, FpuView) else convolution_cost(case.view)


def check(cases: list[Case], where: Path) -> None:
    """Hold each case's cost against the count: 3 % of the cycles, 10 % of the bytes."""
    cases = [case for case in cases if case.view.assembly]
    assert cases
    for case, counted in zip(cases, measured(cases, where), strict=True):
        said = cost(case)
        assert said.cycles == pytest.approx(counted.cycles, rel=0.03), case.view
        assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.10), case.view


@needs_arm
def test_costs_of_layers_in_every_layout_and_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    base = {"kind": Conv2D, "rounding": Rounding.DOUBLE, "spread": 1, "deviation": 8, "stride": (1, 1)}
    variants = [{"planar": planar, "output_bytes": size} for planar in (False, True) for size in (1, 2)]
    variants += [{"code": code, "input_bytes": size} for code in (1, 2) for size in (1, 2)]
    check([convolution_case(rng, **{**base, **shape, **some}) for shape in SHAPES for some in variants], tmp_path)


@needs_arm
def test_costs_of_bytes_widened_in_registers(tmp_path: Path) -> None:
    check(bytes_in_registers(), tmp_path)


@needs_arm
def test_a_fully_connected_layer_of_bytes_costs_two_cycles_more_for_sixteen_products(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    base = {**SHAPES[-1], "rounding": Rounding.DOUBLE, "spread": 1, "deviation": 8, "code": 0, "ring": False}
    some = [convolution_case(rng, **base, input_bytes=size, in_registers=size == 1) for size in (2, 1)]
    words, octets = measured(some, tmp_path)
    assert octets.cycles - words.cycles <= 2 * (640 // 4) * (128 // 4)
    assert some[1].view.stack_bytes == some[0].view.stack_bytes


@needs_arm
def test_costs_of_random_calls(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    check([convolution_case(rng, fpu=i % 2 == 0) for i in range(80)], tmp_path)


@needs_arm
def test_views_know_their_stack(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    choice = {"rounding": Rounding.DOUBLE, "spread": 1, "kind": Conv2D}
    cases = [convolution_case(rng, fpu=i % 2 == 0, **choice) for i in range(40)]
    names = write_sources(cases, tmp_path)
    machine = Machine(tmp_path)
    poison = bytes([POISON]) * 8192
    for case, name in zip(cases, names, strict=True):
        machine.uc.mem_write(Machine.STACK - len(poison), poison)
        machine.run(case, name)
        touched = len(bytes(machine.uc.mem_read(Machine.STACK - len(poison), len(poison))).lstrip(poison[:1]))
        # The word for the end of a loop is there even where there is no loop.
        assert not case.view.assembly or touched <= case.view.stack_bytes <= touched + 4, case.view


@needs_arm
def test_costs_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    rng = np.random.default_rng(6)
    check([convolution_case(rng, fpu=i % 2 == 0, rounding=Rounding.DOUBLE) for i in range(40)], tmp_path)


@needs_arm
def test_bytes_in_registers_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    check(bytes_in_registers(), tmp_path)


@needs_arm
def test_three_pixels_of_bytes_are_worth_their_code(tmp_path: Path) -> None:
    """Widened in registers, a row of five pixels takes fewer cycles with its last three together than as 2 + 2 + 1."""
    base = {"kind": Conv2D, "kernel": (1, 1), "channels": 64, "outputs": 64, "size": (1, 5), "stride": (1, 1)}
    base |= {"rounding": Rounding.DOUBLE, "spread": 1, "deviation": 8, "ring": False, "input_bytes": 1}
    some = [convolution_case(np.random.default_rng(10), **base, code=code, in_registers=True) for code in (0, 1)]
    together, apart = measured(some, tmp_path)
    assert [case.view.triple for case in some] == [True, False]
    assert together.cycles < 0.97 * apart.cycles
    for case, counted in zip(some, (together, apart), strict=True):
        assert cost(case).cycles == pytest.approx(counted.cycles, rel=0.002)
