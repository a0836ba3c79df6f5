"""The convolution whose code layers share: C body and assembly against integer arithmetic, on shapes of all kinds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.convolution_shared import (
    shared_accepts,
    shared_cost,
    shared_makes,
    shared_pack,
    shared_stack_bytes,
    shared_view,
)
from codegen.layout import align4
from mnet.graph import Conv2D, FullyConnected
from mnet.oracle import Rounding
from tests.kernel_harness import (
    A_BATCH,
    POISON,
    SEEDS,
    Case,
    Machine,
    measured,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    unsolved,
    write_sources,
)
from tests.test_kernels_dsp import convolution_case

__all__ = ["unsolved"]  # a fixture


def shared_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a convolution that the shared kernel makes; `choice` fixes some of what is drawn otherwise."""
    while True:
        channels = choice.get("channels", int(rng.choice([2, 3, 4, 7, 8, 20, 36])))
        case = convolution_case(rng, **{"stored_channels": align4(channels), **choice, "channels": channels})
        if shared_accepts(case.call.op, None) is None and shared_makes(case.call):  # type: ignore[arg-type]
            view = shared_view(case.call)
            constants = shared_pack(case.call, view, 0)
            return replace(case, view=view, template="convolution_shared", constants=constants)


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [shared_case(rng) for _ in range(count)]


def large_cases() -> list[Case]:
    """Return what random small shapes do not reach: several rounds of the body, rows in several rounds."""
    rng = np.random.default_rng(6)
    base = {"outputs": 12, "rounding": Rounding.DOUBLE, "spread": 1}
    return [
        shared_case(rng, **base, kind=Conv2D, planar=planar, input_bytes=size, **choice)
        for planar in (False, True)
        for size in (1, 2)
        for choice in (
            {"kernel": (3, 3), "channels": 64, "size": (5, 7), "stride": (1, 1), "padding": (1, 1, 1, 1)},
            {"kernel": (3, 3), "channels": 16, "size": (5, 32), "stride": (2, 2), "padding": (0, 1, 0, 1)},
            {"kernel": (1, 1), "channels": 106, "size": (6, 6), "stride": (1, 1), "whole": True},
            {"kernel": (1, 1), "channels": 64, "size": (3, 3), "stride": (1, 1), "whole": True},
        )
    ] + [shared_case(rng, **base, kind=FullyConnected, size=(2, 4), channels=64)]


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_bodies_equal_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    cases = batch(seed, 60)
    assert any(case.view.assembly for case in cases)  # type: ignore[attr-defined]
    run_emulated(cases, tmp_path_factory.mktemp("arm"))


@needs_gcc
def test_c_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    run_on_host(batch(11, 60), tmp_path)


@needs_arm
def test_assembly_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    run_emulated(batch(12, 60), tmp_path)


@needs_gcc
@needs_arm
def test_large_shapes(tmp_path: Path) -> None:
    run_on_host(large_cases(), tmp_path)
    run_emulated(large_cases(), tmp_path)


@needs_gcc
def test_no_undefined_behaviour(tmp_path: Path) -> None:
    run_on_host(batch(14, 30), tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))


def test_layers_of_all_sizes_share_one_text() -> None:
    rng = np.random.default_rng(3)
    same = {"rounding": Rounding.DOUBLE, "spread": 1, "zero_points": (-128, -128), "activation": (-128, 127)}
    same |= {"planar": False, "input_bytes": 2, "output_bytes": 2, "deviation": 20}
    views = [
        shared_case(rng, **same, kind=Conv2D, kernel=(1, 1), channels=20, size=(3, 6)).view,
        shared_case(rng, **same, kind=Conv2D, kernel=(3, 3), channels=8, size=(4, 5), outputs=13).view,
    ]
    assert views[0] == views[1]


def check_costs(cases: list[Case], where: Path) -> None:
    """Hold each case's cost against the count: 3 % of the cycles, 10 % of the bytes."""
    cases = [case for case in cases if case.view.assembly]  # type: ignore[attr-defined]
    assert cases
    for case, counted in zip(cases, measured(cases, where), strict=True):
        said = shared_cost(case.call, case.view)  # type: ignore[arg-type]
        assert said.cycles == pytest.approx(counted.cycles, rel=0.03), case.view
        assert said.code_bytes == pytest.approx(counted.code_bytes, rel=0.10), case.view


@needs_arm
def test_cost_is_what_is_counted(tmp_path: Path) -> None:
    check_costs([*batch(15, 60), *large_cases()], tmp_path)


@needs_arm
def test_cost_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    rng = np.random.default_rng(16)
    check_costs([shared_case(rng, rounding=Rounding.DOUBLE) for _ in range(30)], tmp_path)


@needs_arm
def test_stack_is_known(tmp_path: Path) -> None:
    cases = [case for case in batch(17, 30) if case.view.assembly]  # type: ignore[attr-defined]
    names = write_sources(cases, tmp_path)
    machine = Machine(tmp_path)
    poison = bytes([POISON]) * 8192
    for case, name in zip(cases, names, strict=True):
        machine.uc.mem_write(Machine.STACK - len(poison), poison)
        machine.run(case, name)
        touched = len(bytes(machine.uc.mem_read(Machine.STACK - len(poison), len(poison))).lstrip(poison[:1]))
        assert touched == shared_stack_bytes(case.call)
