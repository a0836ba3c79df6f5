"""Convolutions for DSP cores over every layout of their tensors, and every width of a row."""

from pathlib import Path

import numpy as np

from mnet.graph import Conv2D, FullyConnected
from mnet.oracle import Rounding
from tests.kernel_harness import Case, needs_arm, needs_gcc, run_emulated, run_on_host
from tests.test_kernels_dsp import convolution_case

SOLVABLE = {"kind": Conv2D, "rounding": Rounding.DOUBLE, "spread": 1, "activation": (-128, 127), "deviation": 20}


def cases() -> list[Case]:
    """Return rows of 1 to 13 pixels, in each layout, of both kernels; some of several rows a call."""
    rng = np.random.default_rng(2)
    made = []
    for planar in (False, True):
        for output_bytes in (1, 2):
            for width in range(1, 14):
                choice = {"planar": planar, "output_bytes": output_bytes, "channels": 4, "stride": (1, 1), **SOLVABLE}
                for fpu, whole in ((False, False), (False, True), (True, False)):
                    choice |= {"kernel": (1, 1), "size": (3, width)}
                    made.append(convolution_case(rng, **choice, fpu=fpu, whole=whole))
                    choice |= {"kernel": (3, 3), "size": (5, width), "padding": (1, 1, 1, 1)}
                    made.append(convolution_case(rng, **choice, fpu=fpu))
    return made


def rows_apart() -> list[Case]:
    """Return planar rows of 1 to 13 pixels that lie apart: all channels of a row, then those of the next."""
    rng = np.random.default_rng(6)
    base = {"planar": True, "apart": True, "stride": (1, 1), **SOLVABLE}
    made = [
        convolution_case(rng, **base, **window, output_bytes=output_bytes, fpu=fpu, channels=4)
        for output_bytes in (1, 2)
        for fpu in (False, True)
        for width in (*range(1, 14), 24)
        for window in (
            {"kernel": (1, 1), "size": (3, width), "whole": False},
            {"kernel": (3, 3), "size": (5, width), "padding": (1, 1, 1, 1)},
        )
    ]
    assert all(case.call.output.apart and not case.call.output.whole for case in made)
    return made


def bytes_in() -> list[Case]:
    """Return inputs in bytes: windows that overlap, touch or lie apart, loops in the words that are widened."""
    rng = np.random.default_rng(3)
    base = {"input_bytes": 1, "stride": (1, 1), "padding": (0, 0, 0, 0), **SOLVABLE, "deviation": 8}
    made = [
        convolution_case(rng, **{**base, "kernel": kernel, "channels": channels, "stride": (1, step), "size": size})
        for kernel in ((1, 1), (3, 3), (2, 1), (1, 2), (10, 4))
        for channels in (4, 12, 64)
        for step in (1, 2, 3)
        for size in ((10, 7), (11, 8))
    ]
    for choice in (
        {"kernel": (1, 1), "channels": 1024, "size": (2, 5)},
        {"kernel": (3, 3), "channels": 172, "size": (3, 7)},
        {"kernel": (3, 3), "channels": 512, "size": (3, 5)},
        {"kind": FullyConnected, "channels": 2048, "size": (1, 1)},
        {"kind": FullyConnected, "channels": 32, "size": (4, 5)},
        {"kind": FullyConnected, "channels": 4, "size": (1, 1)},
    ):
        made.append(convolution_case(rng, **{**base, **choice}))
    return made


def straddling() -> list[Case]:
    """Return several odd rows a call: pairs of pixels over the ends of rows, near planes and far ones."""
    rng = np.random.default_rng(4)
    base = {"kernel": (1, 1), "stride": (1, 1), "whole": True, "more_padding": 0, **SOLVABLE}
    made = [
        convolution_case(rng, **base, size=size, channels=channels, planar=planar, output_bytes=output_bytes)
        for planar in (False, True)
        for output_bytes in (1, 2)
        for channels, sizes in (
            (4, ((2, 1), (5, 1), (2, 3), (3, 3), (25, 5), (4, 7), (5, 9), (3, 11), (120, 19))),
            (64, ((5, 5), (6, 7))),
        )
        for size in sizes
    ]
    assert all(case.view.straddles or case.call.output.contiguous for case in made)
    return made


@needs_gcc
@needs_arm
def test_both_bodies_write_rows_that_lie_apart(tmp_path: Path) -> None:
    some = rows_apart()
    run_on_host(some, tmp_path)
    run_emulated(some, tmp_path)


@needs_gcc
def test_c_bodies_make_several_odd_rows(tmp_path: Path) -> None:
    run_on_host(straddling(), tmp_path)


@needs_arm
def test_assembly_makes_several_odd_rows(tmp_path: Path) -> None:
    some = straddling()
    assert all(case.view.assembly for case in some)
    run_emulated(some, tmp_path)


@needs_gcc
def test_c_bodies_read_bytes(tmp_path: Path) -> None:
    run_on_host(bytes_in(), tmp_path)


@needs_arm
def test_assembly_reads_bytes(tmp_path: Path) -> None:
    some = bytes_in()
    assert all(case.view.assembly for case in some)
    run_emulated(some, tmp_path)


@needs_gcc
def test_c_bodies_write_every_layout(tmp_path: Path) -> None:
    run_on_host(cases(), tmp_path)


@needs_arm
def test_assembly_writes_every_layout(tmp_path: Path) -> None:
    some = cases()
    assert all(case.view.assembly for case in some)
    run_emulated(some, tmp_path)
