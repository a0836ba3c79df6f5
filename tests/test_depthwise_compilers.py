"""Every compiler takes the depthwise kernels, every core gives the same bits."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import (
    test_depthwise_apart,
    test_depthwise_dsp,
    test_depthwise_narrow,
    test_depthwise_planar,
    test_depthwise_shared,
    test_depthwise_wide,
)
from tests.kernel_harness import (
    ARM_GCC,
    CORES,
    WARNINGS,
    Case,
    library,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    write_sources,
)

M4 = " ".join(CORES["M4"])
KERNELS = (
    test_depthwise_apart,
    test_depthwise_dsp,
    test_depthwise_narrow,
    test_depthwise_shared,
    test_depthwise_planar,
    test_depthwise_wide,
)
COMPILERS = (
    "gcc -std=c99",
    "g++ -x c++ -std=c++11",
    "clang -std=c99",
    "clang++ -x c++ -std=c++11",
    f"{ARM_GCC} -std=c99 -mcpu=cortex-m0 -mthumb",
    f"{ARM_GCC} -std=c99 {M4} -fno-omit-frame-pointer",
    f"arm-none-eabi-g++ -x c++ {M4}",
    "clang --target=thumbv7em-none-eabihf -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -ffreestanding -std=c99",
)


def batch(seed: int, count: int) -> list[Case]:
    """Draw cases of each kernel."""
    return [case for test in KERNELS for case in test.batch(seed, count)]


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_compiler_is_content(compiler: str, level: str, tmp_path: Path) -> None:
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    write_sources(batch(15, 10), tmp_path)
    command += [*WARNINGS, level, "-c", "-o", str(tmp_path / "kernels.o"), str(tmp_path / "kernels.c")]
    subprocess.run(command, check=True)


@needs_arm
@pytest.mark.parametrize(
    "core, flags", [("M0", ("-O2",)), ("M3", ("-O1",)), ("M4", ("-O0",)), ("M4", ("-O3", "-DUNIT_PORTABLE"))]
)
def test_every_core_gives_the_same_bits(core: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    run_emulated(batch(13, 8), tmp_path, core, flags)


@needs_gcc
@pytest.mark.slow
def test_c_bodies_have_no_undefined_behaviour(tmp_path: Path) -> None:
    cases = batch(14, 25)
    flags = ("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-static-libubsan")
    (tmp_path / "probe").mkdir()
    write_sources(cases[:1], tmp_path / "probe")
    try:
        library(tmp_path / "probe", flags)
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("this gcc has no sanitizer")
    run_on_host(cases, tmp_path, flags)
