"""Convolutions for DSP cores over every layout of their output, and every width of a row."""

from pathlib import Path

import numpy as np

from mnet.graph import Conv2D
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


@needs_gcc
def test_c_bodies_write_every_layout(tmp_path: Path) -> None:
    run_on_host(cases(), tmp_path)


@needs_arm
def test_assembly_writes_every_layout(tmp_path: Path) -> None:
    some = cases()
    assert all(case.view.assembly for case in some)
    run_emulated(some, tmp_path)
