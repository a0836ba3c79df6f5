"""The DSP kernels, C body on the host and assembly body in the emulator, against integer arithmetic in NumPy."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from codegen.call import Call
from codegen.convolution import (
    COMPACT,
    FAST,
    SMALL,
    convolution_accepts,
    convolution_pack,
    convolution_view,
    widens_in_registers,
)
from codegen.convolution_bytes import bytes_pack, bytes_view
from codegen.convolution_fpu import (
    COMPACT_WORDS,
    SMALL_WORDS,
    UNROLLED_WORDS,
    fits,
    fpu_accepts,
    fpu_pack,
    fpu_view,
)
from codegen.depthwise import depthwise_accepts, depthwise_pack, depthwise_view
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16, align4
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, output_size
from mnet.oracle import Rounding, requantize
from tests.kernel_harness import (
    A_BATCH,
    ARM_GCC,
    SEEDS,
    WARNINGS,
    Case,
    accumulators,
    filled,
    layer,
    library,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
    tensor,
    unsolved,
    write_sources,
)

__all__ = ["unsolved"]  # a fixture
SIZES = (FAST, COMPACT, SMALL)
FPU_SIZES = (UNROLLED_WORDS, COMPACT_WORDS, SMALL_WORDS)


def convolution_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a convolution: `choice` fixes some of what is drawn otherwise.

    `fpu` is with weights in the FPU, `unaligned` that of few taps on pixels of bytes.
    """

    def draw(name: str, *options: Any) -> Any:
        return choice[name] if name in choice else options[rng.integers(len(options))]

    fpu, unaligned = bool(choice.get("fpu")), bool(choice.get("unaligned"))
    kind = Conv2D if fpu or unaligned else draw("kind", Conv2D, Conv2D, FullyConnected)
    kernel = draw("kernel", (1, 1), (1, 1), (3, 3), (2, 1), (1, 4), (10, 4), (5, 5)) if kind is Conv2D else (1, 1)
    if fpu and kernel[0] > 3:
        kernel = (2, 3)
    stride = draw("stride", (1, 1), (1, 1), (2, 2), (1, 3)) if kind is Conv2D else (1, 1)
    height, width = draw("size", (4, 5), (3, 6), (1, 1), (2, 9), (6, 2), (3, 19))
    channels = draw("channels", 1, 2, 3, 4, 7, 8, 20, 36)
    while fpu and not fits(kernel[0], kernel[1] * align4(channels)):
        channels -= 1
    if unaligned and kernel[0] * kernel[1] * channels > 160:
        channels = min(channels, 3)
    outputs = draw("outputs", 1, 3, 4, 6, 8, 13)
    zero_points = draw("zero_points", (-128, -128), (-128, -128), (3, -128), (-128, -7), (127, 127), (-5, 90))
    rounding = draw("rounding", Rounding.DOUBLE, Rounding.DOUBLE, Rounding.SINGLE, Rounding.REAL)
    activation = draw("activation", (-128, 127), (-128, 127), (-128, 127), (-100, 101))
    planar = draw("planar", False, True) and kind is Conv2D
    output_bytes = draw("output_bytes", 1, 2)
    if planar and output_bytes == 1:
        zero_points = zero_points[0], -128
    whole = draw("whole", False, True) and kernel == (1, 1) and kind is Conv2D and not fpu and not unaligned
    padding = (
        draw("padding", (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 2, 1)) if max(kernel) > 1 else (0, 0, 0, 0)
    )
    padding = tuple(min(p, kernel[i // 2] - 1) for i, p in enumerate(padding))
    height, width = max(height, kernel[0]), max(width, kernel[1])

    shape = (outputs, height * width * channels) if kind is FullyConnected else (outputs, *kernel, channels)
    weights = np.clip(np.rint(rng.normal(0, draw("deviation", 20, 50, 3), shape)), -127, 127).astype(np.int8)
    if rng.integers(4) == 0:
        weights[rng.integers(outputs)] = 0
    op, how = layer(
        kind,
        weights,
        draw("spread", 1, 1, 8, 0.1),
        zero_points,
        rounding,
        activation,
        rng,
        stride=stride,
        padding=padding,
    )
    source_tensor = tensor("in", (height, width, channels), zero_points[0])
    if kind is FullyConnected:
        out_shape = (1, 1, outputs)
    else:
        out_shape = (
            output_size(height, kernel[0], stride[0], 1, padding[0], padding[1]),
            output_size(width, kernel[1], stride[1], 1, padding[2], padding[3]),
            outputs,
        )
    input_bytes = 2 if fpu else 1 if unaligned else draw("input_bytes", 1, 2)
    stored = (
        align4(channels) if input_bytes == 1 and not unaligned else draw("stored_channels", channels, align4(channels))
    )
    odd = kernel[1] * stored % 2
    extra = int(draw("more_padding", 0, 0, 1)) if kind is Conv2D else 0
    source = storage(
        source_tensor,
        WIDE8 if input_bytes == 1 else WIDE16,
        (padding[0], padding[1], padding[2] + extra, padding[3] + extra),
        stored_channels=stored,
        slack_bytes=2 * odd if kind is Conv2D and not unaligned else 0,
    )
    if kind is FullyConnected and height > 1 and not source.contiguous:
        source = replace(source, stored_channels=align4(channels))
    border = (1, 0, 0, 0) if planar else draw("border", (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 2))
    layout = {(True, 1): PLANAR8, (True, 2): PLANAR16, (False, 1): WIDE8, (False, 2): WIDE16}[planar, output_bytes]
    target = storage(tensor("out", out_shape, zero_points[1]), layout, border)
    if planar and not whole and draw("apart", False, True):
        target = replace(target, apart=True)
    elif not whole and out_shape[0] > 1 and draw("ring", False, True):
        target = replace(target, slots=2)
    call = Call(op, (source,), target, out_shape[0] if whole else 1, how)
    assert convolution_accepts(op, None) is None or -128 in weights
    view: Any
    size = int(draw("code", 0, 0, 1, 2))
    if unaligned:
        family, view = "convolution_bytes", bytes_view(call)
        constants = bytes_pack(call, view, 0)
    elif fpu:
        family, view = "convolution_fpu", fpu_view(call, FPU_SIZES[size])
        constants = fpu_pack(call, view, 0)
    else:
        in_registers = widens_in_registers(call) and draw("in_registers", False, True)
        family, view = "convolution_dsp", convolution_view(call, SIZES[size], in_registers)
        constants = convolution_pack(call, view, 0)

    values = rng.integers(-128, 128, source_tensor.shape).astype(np.int8)
    if rng.integers(3) == 0:
        values = rng.choice(np.array([-128, 127], np.int8), source_tensor.shape)
    expected = requantize(accumulators(op, values, zero_points[0]), how)
    row = 0 if whole else int(rng.integers(out_shape[0]))
    memory = filled(source, values, 0, source.virtual_rows, rng)
    if kind is FullyConnected or whole:
        pointers = (source.slot_offset(source.top),)
    else:
        top = row * stride[0] + source.top - padding[0]
        pointers = tuple(source.slot_offset(top + i) for i in range(kernel[0]))
    return Case(
        call,
        view,
        family,
        constants,
        memory,
        pointers,
        target.top + row,
        expected if whole else expected[row : row + 1],
    )


def depthwise_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution."""

    def draw(name: str, *options: Any) -> Any:
        return choice[name] if name in choice else options[rng.integers(len(options))]

    height, width = draw("size", (4, 5), (3, 6), (1, 1), (2, 9), (6, 2), (5, 24), (6, 6), (3, 3), (7, 13))
    stride = draw("stride", 1, 2)
    same = draw("same", True, True, True, False)
    if same:
        total = [max((-(-n // stride) - 1) * stride + 3 - n, 0) for n in (height, width)]
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        padding = tuple(int(p) for p in rng.integers(0, 2, 4))
        height, width = max(height, 3), max(width, 3)
    channels = draw("channels", 1, 2, 3, 4, 7, 8)
    zero_points = draw("zero_points", (-128, -128), (-128, -128), (3, -128), (-128, -7), (127, 127), (-5, 90))
    rounding = draw("rounding", Rounding.DOUBLE, Rounding.DOUBLE, Rounding.SINGLE)
    activation = draw("activation", (-128, 127), (-128, 127), (-128, 127), (-100, 101))
    weights = rng.integers(-128, 128, (3, 3, channels)).astype(np.int8)
    if rng.integers(4) == 0:
        weights[:, :, rng.integers(channels)] = 0
    op, how = layer(
        DepthwiseConv2D,
        weights,
        draw("spread", 1, 1, 8, 0.1),
        zero_points,
        rounding,
        activation,
        rng,
        stride=(stride, stride),
        padding=padding,
    )
    out_shape = tuple(output_size(n, 3, stride, 1, *padding[2 * i : 2 * i + 2]) for i, n in enumerate((height, width)))
    out_shape = (*out_shape, channels)
    mode = draw("mode", "ring", "whole", "layer")
    if out_shape[0] == 1 and mode == "layer":
        mode = "whole"
    stored = draw("stored_channels", channels, align4(channels))
    source = storage(
        tensor("in", (height, width, channels), zero_points[0]),
        PLANAR16,
        (0, 0, 0, 0) if mode == "layer" else (*padding[:2], 0, 0),
        stored_channels=stored,
    )
    if mode == "ring":
        source = replace(source, slots=3)
    border = draw("border", (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 2))
    target = storage(tensor("out", out_shape, zero_points[1]), WIDE16, border)
    call = Call(op, (source,), target, out_shape[0] if mode == "layer" else 1, how)
    assert depthwise_accepts(op, None) is None
    view = depthwise_view(call)

    values = rng.integers(-128, 128, source.tensor.shape).astype(np.int8)
    if rng.integers(3) == 0:
        values = rng.choice(np.array([-128, 127], np.int8), source.tensor.shape)
    expected = requantize(accumulators(op, values, zero_points[0]), how)
    row = 0 if mode == "layer" else int(rng.integers(out_shape[0]))
    top = row * stride
    phase = top % 3 if mode == "ring" else 0
    if mode == "layer":
        memory, pointer = filled(source, values, 0, height, rng), 0
    else:
        memory, pointer = filled(source, values, top, 3, rng), 0 if mode == "ring" else source.slot_offset(top)
    return Case(
        call,
        view,
        "depthwise_dsp",
        depthwise_pack(call, view, phase),
        memory,
        (pointer,),
        target.top + row,
        expected if mode == "layer" else expected[row : row + 1],
    )


# ---- tests ----


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    kinds: tuple[dict[str, bool], ...] = ({}, {"fpu": True}, {"unaligned": True})
    return [depthwise_case(rng) if i % 4 == 3 else convolution_case(rng, **kinds[i % 4]) for i in range(count)]


def large_cases(seed: int = 6) -> list[Case]:
    """Return what random small shapes do not reach: loops in the taps, far offsets, every width of a row."""
    rng = np.random.default_rng(seed)
    cases = []
    solvable = {"rounding": Rounding.DOUBLE, "spread": 1}
    for planar in (False, True):
        base = {"kind": Conv2D, "planar": planar, "outputs": 8, "stride": (1, 1), **solvable}
        for choice in (
            {"kernel": (3, 3), "channels": 16, "size": (5, 7)},
            {"kernel": (3, 3), "channels": 32, "size": (5, 7), "stride": (2, 2), "padding": (1, 1, 1, 1)},
            {"kernel": (3, 3), "channels": 64, "size": (5, 6)},
            {"kernel": (3, 3), "channels": 65, "size": (5, 6), "stored_channels": 65},
            {"kernel": (3, 3), "channels": 64, "size": (5, 7), "stride": (1, 2), "padding": (0, 0, 1, 1)},
            {"kernel": (3, 3), "channels": 172, "size": (3, 7), "deviation": 8},
            {"kernel": (3, 3), "channels": 512, "size": (3, 5), "deviation": 8},
            {"kernel": (1, 1), "channels": 64, "size": (3, 5), "whole": False},
            {"kernel": (1, 1), "channels": 64, "size": (3, 3), "whole": True},
            {"kernel": (10, 4), "channels": 1, "size": (20, 10), "stored_channels": 1, "stride": (2, 2)},
            {"kernel": (10, 4), "channels": 3, "size": (20, 11), "stored_channels": 3},
            {"kernel": (10, 8), "channels": 8, "size": (12, 11)},
            {"kernel": (1, 1), "channels": 2048, "size": (3, 5), "whole": False, "deviation": 8},
            {"kernel": (1, 1), "channels": 2048, "size": (3, 5), "whole": True, "deviation": 8},
            {"kernel": (1, 1), "channels": 1024, "size": (3, 5), "deviation": 8, "stride": (2, 2)},
            {"kernel": (1, 1), "channels": 64, "size": (3, 5), "outputs": 2052},
            {"kernel": (1, 1), "channels": 8, "size": (46, 52), "whole": planar},
            {"kernel": (1, 1), "channels": 128, "size": (6, 6), "whole": True},
            {"kernel": (1, 1), "channels": 129, "size": (6, 7), "whole": True, "stored_channels": 129},
        ):
            cases.append(convolution_case(rng, **{**base, **choice}))
        few = {**base, "fpu": True, "deviation": 30, "kernel": (1, 1)}
        for channels in (8, 12, 16, 24, 28, 32, 44):
            for width in (1, 2, 3, 4, 7, 12, 24, 48):
                cases.append(convolution_case(rng, **few, channels=channels, size=(3, width)))
        for stride in (1, 2):
            window = {**few, "kernel": (3, 3), "stride": (stride, stride), "padding": (0, 1, 0, 1)}
            for width in (3, 8, 11, 33, 96):
                cases.append(convolution_case(rng, **window, channels=3, stored_channels=3, size=(5, width)))
            cases.append(convolution_case(rng, **window, channels=4, size=(5, 16)))
        cases.append(convolution_case(rng, **{**few, "kernel": (2, 2)}, channels=8, size=(5, 50)))
        cases.append(convolution_case(rng, **{**few, "outputs": 514}, channels=20, size=(2, 52)))
    for channels in (1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 100, 2048):
        cases.append(
            convolution_case(rng, kind=FullyConnected, size=(1, 1), channels=channels, deviation=10, **solvable)
        )
    cases.append(convolution_case(rng, kind=FullyConnected, size=(4, 5), channels=32, deviation=10, **solvable))
    for stride in (1, 2):
        for width in (*range(1, 20), 48, 95, 96):
            cases.append(depthwise_case(rng, size=(5, width), stride=stride, mode="ring", channels=8))
        for size, channels in (((8, 8), 128), ((7, 7), 1024), ((7, 7), 257)):
            cases.append(depthwise_case(rng, size=size, stride=stride, mode="layer", channels=channels))
    return cases


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_bodies_equal_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 80), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    cases = batch(seed, 80)
    assert any(case.view.assembly for case in cases)
    run_emulated(cases, tmp_path_factory.mktemp("arm"))


@needs_gcc
def test_c_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    cases = batch(11, 120)
    assert {case.view.requantization.form for case in cases} >= {"shifts", "double", "single", "real"}
    run_on_host(cases, tmp_path)


@needs_arm
def test_assembly_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    run_emulated(batch(12, 60), tmp_path)


@needs_gcc
def test_c_bodies_of_large_shapes(tmp_path: Path) -> None:
    run_on_host(large_cases(), tmp_path)


@needs_arm
def test_assembly_of_large_shapes(tmp_path: Path) -> None:
    cases = large_cases()
    assert all(case.view.assembly for case in cases)
    run_emulated(cases, tmp_path)


@needs_arm
@pytest.mark.parametrize(
    "core, flags", [("M0", ("-O2",)), ("M3", ("-O1",)), ("M4", ("-O0",)), ("M4", ("-O3", "-DUNIT_PORTABLE"))]
)
def test_every_core_gives_the_same_bits(core: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    run_emulated(batch(13, 24), tmp_path, core, flags)


@needs_gcc
@pytest.mark.slow
def test_c_bodies_have_no_undefined_behaviour(tmp_path: Path) -> None:
    cases = [*batch(14, 40), *large_cases()]
    flags = ("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-static-libubsan")
    (tmp_path / "probe").mkdir()
    write_sources(cases[:1], tmp_path / "probe")
    try:
        library(tmp_path / "probe", flags)
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("this gcc has no sanitizer")
    run_on_host(cases, tmp_path, flags)


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize(
    "compiler",
    [
        "gcc -std=c99",
        "g++ -x c++ -std=c++11",
        "clang -std=c99",
        "clang++ -x c++ -std=c++11",
        f"{ARM_GCC} -std=c99 -mcpu=cortex-m0 -mthumb",
        f"{ARM_GCC} -std=c99 -mcpu=cortex-m4 -mthumb",
        f"{ARM_GCC} -std=c99 -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard -fno-omit-frame-pointer",
        f"{ARM_GCC} -std=c99 -mcpu=cortex-m55 -mthumb -mfloat-abi=hard",
        "arm-none-eabi-g++ -x c++ -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard",
        "clang --target=thumbv7em-none-eabihf -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -ffreestanding -std=c99",
    ],
)
def test_every_compiler_is_content(compiler: str, level: str, tmp_path: Path) -> None:
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    write_sources(batch(15, 24), tmp_path)
    command += [*WARNINGS, level, "-c", "-o", str(tmp_path / "kernels.o"), str(tmp_path / "kernels.c")]
    subprocess.run(command, check=True)


def test_kernels_say_what_they_do_not_accept() -> None:
    rng = np.random.default_rng(3)
    convolution = convolution_case(rng, kind=Conv2D, kernel=(3, 3), channels=3, outputs=4).call.op
    weights = convolution.weights.copy()
    weights[1], weights[0] = -128, 1
    assert convolution_accepts(replace(convolution, weights=weights), None) is None
    weights[0] = -1
    assert "-128" in convolution_accepts(replace(convolution, weights=weights), None)
    assert "dilation" in convolution_accepts(replace(convolution, dilation=(2, 1)), None)
    tall = np.zeros((4, 11, 1, 3), np.int8)
    assert "11 rows" in convolution_accepts(replace(convolution, weights=tall), None)
    depthwise = depthwise_case(rng).call.op
    assert "stride" in depthwise_accepts(replace(depthwise, stride=(2, 1)), None)
    assert "multiplier" in depthwise_accepts(replace(depthwise, depth_multiplier=2), None)
    assert "padding" in depthwise_accepts(replace(depthwise, padding=(0, 2, 1, 1)), None)
    assert "5x5" in depthwise_accepts(replace(depthwise, weights=np.zeros((5, 5, 4), np.int8)), None)
    assert convolution_accepts(depthwise, None) and depthwise_accepts(convolution, None)


def test_weights_stay_in_the_fpu_where_it_pays() -> None:
    def refusal(**choice: Any) -> str | None:
        call = convolution_case(np.random.default_rng(4), kind=Conv2D, whole=False, **choice).call
        tensors = {"in": call.inputs[0].tensor, "out": call.output.tensor}
        return fpu_accepts(call.op, Graph("g", tensors, (call.op,), ("in",), ("out",), ""))

    assert refusal(kernel=(1, 1), channels=8, size=(4, 48)) is None
    assert refusal(kernel=(3, 3), channels=3, size=(5, 96)) is None
    assert "do not fit" in str(refusal(kernel=(1, 1), channels=64, size=(4, 48)))
    assert "5 rows" in str(refusal(kernel=(5, 5), channels=1, size=(6, 48)))
    assert "too short" in str(refusal(kernel=(1, 1), channels=8, size=(4, 2), stride=(1, 1)))


def test_views_hold_no_weights() -> None:
    same = {"size": (5, 24), "stride": 1, "mode": "ring", "channels": 8, "zero_points": (-128, -128), "spread": 1}
    same |= {"same": True, "rounding": Rounding.DOUBLE, "activation": (-128, 127), "border": (0, 0, 0, 0)}
    first, second = (depthwise_case(np.random.default_rng(seed), stored_channels=8, **same) for seed in (1, 2))
    assert first.view == second.view and hash(first.view) == hash(second.view)
    assert first.constants != second.constants
