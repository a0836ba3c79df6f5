"""The instructions and scalings that generated code names, against their C bodies and the runtimes."""

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest

from mnet.fixed_point import multiply_in_float64, multiply_rounding_once, multiply_rounding_twice
from tests.kernel_harness import (
    Machine,
    environment,
    library,
    needs_arm,
    needs_gcc,
)

INSTRUCTIONS = {  # name: types of the operands
    "smlad": ("uint32_t", "uint32_t", "uint32_t"),
    "sxtb16": ("uint32_t",),
    "smmul": ("int32_t", "int32_t"),
    "smmulr": ("int32_t", "int32_t"),
    "usat8": ("int32_t",),
    "umax8": ("uint32_t", "uint32_t"),
    "smax8": ("uint32_t", "uint32_t"),
    "umax16": ("uint32_t", "uint32_t"),
}
SCALINGS = {
    "requantize_double": ("int32_t", "int32_t", "int32_t"),
    "requantize_single": ("int32_t", "int32_t", "int32_t"),
    "requantize_real": ("int32_t", "uint32_t", "uint32_t"),
}


def write_loops(functions: dict[str, tuple[str, ...]], where: Path) -> None:
    """Write, for each function, a loop that applies it to arrays of three operands."""
    header = environment().get_template("files/instructions.h.j2").render(name="unit")
    (where / "unit_instructions.h").write_text(header)
    text = ['#include "unit_instructions.h"']
    for name, types in functions.items():
        operands = ", ".join(f"({kind})in[3 * i + {n}]" for n, kind in enumerate(types))
        signature = f"void loop_{name}(const uint32_t *in, uint32_t *out, int32_t count)"
        text.append(f"{signature};\n{signature}\n{{\n    int32_t i;\n    for (i = 0; i < count; ++i)")
        text.append(f"        out[i] = (uint32_t)unit_{name}({operands});\n}}")
    (where / "kernels.c").write_text("\n".join(text) + "\n")


def on_host(where: Path, name: str, operands: np.ndarray, *flags: str) -> np.ndarray:
    inputs, outputs = np.ascontiguousarray(operands, np.uint32), np.zeros(len(operands), np.uint32)
    (where / "-".join(("x", *flags))).mkdir(exist_ok=True)
    copy = where / "-".join(("x", *flags))
    for file in ("kernels.c", "unit_instructions.h"):
        shutil.copy(where / file, copy)
    loaded = library(copy, ("-O2", *flags))
    pointer = ctypes.POINTER(ctypes.c_uint32)
    loaded[f"loop_{name}"](inputs.ctypes.data_as(pointer), outputs.ctypes.data_as(pointer), len(operands))
    return outputs


def random_words(rng: np.random.Generator, count: int) -> np.ndarray:
    words = rng.integers(0, 1 << 32, (count, 3), dtype=np.uint32)
    corners = np.array(
        [0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x80008000, 0x7FFF7FFF, 0x00FF0080, 255, 256], np.uint32
    )
    return np.where(rng.random((count, 3)) < 0.2, rng.choice(corners, (count, 3)), words)


@needs_gcc
@needs_arm
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_equal_their_c_bodies(name: str, tmp_path: Path) -> None:
    operands = random_words(np.random.default_rng(1), 20_000)
    write_loops(INSTRUCTIONS, tmp_path)
    machine = Machine(tmp_path)
    machine.uc.mem_write(machine.MEMORY, operands.astype("<u4").tobytes())
    machine.call(f"loop_{name}", machine.MEMORY, machine.CONSTANTS, len(operands))
    emulated = np.frombuffer(machine.uc.mem_read(machine.CONSTANTS, 4 * len(operands)), "<u4")
    assert (on_host(tmp_path, name, operands) == emulated).all()
    assert (on_host(tmp_path, name, operands, "-DUNIT_NO_LONG_MULTIPLY") == emulated).all()


@needs_gcc
@needs_arm
@pytest.mark.parametrize("name", ["uxtab16", "uxtab16_odd"])
def test_bytes_are_added_to_lanes_that_do_not_overflow(name: str, tmp_path: Path) -> None:
    operands = random_words(np.random.default_rng(3), 20_000) & np.array([0x7FFF7FFF, 0xFFFFFFFF, 0], np.uint32)
    write_loops({name: ("uint32_t", "uint32_t")}, tmp_path)
    machine = Machine(tmp_path)
    machine.uc.mem_write(machine.MEMORY, operands.astype("<u4").tobytes())
    machine.call(f"loop_{name}", machine.MEMORY, machine.CONSTANTS, len(operands))
    emulated = np.frombuffer(machine.uc.mem_read(machine.CONSTANTS, 4 * len(operands)), "<u4")
    assert (on_host(tmp_path, name, operands) == emulated).all()


@needs_gcc
@pytest.mark.parametrize("flags", [(), ("-DUNIT_NO_LONG_MULTIPLY",), ("-march=native", "-ffp-contract=fast")])
def test_scalings_equal_the_runtimes(flags: tuple[str, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    count = 50_000
    write_loops(SCALINGS, tmp_path)
    x = rng.integers(-(1 << 31), 1 << 31, count) >> rng.integers(0, 31, count)
    multiplier = rng.choice([rng.integers(1 << 30, 1 << 31), 1 << 30, (1 << 31) - 1, 0], count)
    multiplier = np.where(rng.random(count) < 0.7, rng.integers(1 << 30, 1 << 31, count), multiplier)
    shift = rng.integers(-31, 31, count)

    fits = np.abs(x) << np.maximum(shift, 0) < 1 << 31  # else the runtime's own int32 wraps
    operands = np.stack([x, multiplier, shift], 1)[fits] & 0xFFFFFFFF
    expected = multiply_rounding_twice(x, multiplier, shift)[fits]
    assert (on_host(tmp_path, "requantize_double", operands, *flags).astype(np.int32) == expected).all()

    expected = multiply_rounding_once(x, multiplier, shift)
    fits = np.abs(expected) < 1 << 31
    operands = np.stack([x, multiplier, shift], 1)[fits] & 0xFFFFFFFF
    assert (on_host(tmp_path, "requantize_single", operands, *flags).astype(np.int32) == expected[fits]).all()

    scale = np.where(rng.random(count) < 0.3, 2.0 ** rng.integers(-12, 0, count), rng.random(count) * 2.0**-3)
    expected = multiply_in_float64(x, scale)
    halves = scale.view("<u4").reshape(-1, 2)
    operands = np.concatenate([x[:, None] & 0xFFFFFFFF, halves], 1)
    assert (on_host(tmp_path, "requantize_real", operands, *flags).astype(np.int32) == expected).all()
