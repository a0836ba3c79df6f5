"""The DSP kernels, C body on the host and assembly body in the emulator, against integer arithmetic in NumPy."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import unicorn
from elftools.elf.elffile import ELFFile
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from unicorn import arm_const

import codegen.requantize
from codegen.call import Call
from codegen.convolution import convolution_accepts, convolution_pack, convolution_view
from codegen.convolution_fpu import fits, fpu_accepts, fpu_pack, fpu_view
from codegen.depthwise import depthwise_accepts, depthwise_pack, depthwise_view
from codegen.layout import PLANAR16, WIDE16, Layout, Storage, align4
from mnet.fixed_point import multiply_in_float64, multiply_rounding_once, multiply_rounding_twice, quantize_multiplier
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, Tensor, output_size
from mnet.oracle import Requantization, Rounding, requantize
from mnet.resources import folder

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
CORES = {
    "M4": ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
    "M3": ("-mcpu=cortex-m3", "-mthumb"),
    "M0": ("-mcpu=cortex-m0", "-mthumb"),
}
ARM_GCC = "arm-none-eabi-gcc"
GUARD = 64  # bytes around every buffer
POISON = 0xA5
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_arm = pytest.mark.skipif(shutil.which(ARM_GCC) is None, reason=f"{ARM_GCC} is not installed")


def environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(folder("templates"))
    return jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@dataclass(frozen=True, eq=False)
class Case:
    """One call of one kernel: where its pointers lie in the input buffer, what is in memory, what must come out."""

    call: Call
    view: object
    template: str
    constants: tuple[int, ...]
    memory: bytes  # the input buffer
    pointers: tuple[int, ...]  # offsets in it
    output_row: int  # virtual row
    expected: np.ndarray  # int8 [rows, width, channels]

    @property
    def output_offset(self) -> int:
        return self.call.output.slot_offset(self.output_row)

    def check(self, before: bytes, after: bytes, label: str) -> None:
        """Compare the output buffer, guards included, with what it has to hold."""
        output, rows = self.call.output, self.call.rows
        want, mask = output.pack(self.expected)
        start = GUARD + self.output_offset
        allowed = np.zeros(len(before), bool)
        span = np.frombuffer(_writable(output, rows), np.uint8) != 0
        allowed[start : start + len(span)] = span
        got, old = np.frombuffer(after, np.uint8), np.frombuffer(before, np.uint8)
        stray = np.flatnonzero((got != old) & ~allowed)
        assert len(stray) == 0, f"{label}: wrote byte {stray[0] - GUARD} of {output}, call {self.view}"
        live = np.frombuffer(mask, np.uint8) != 0
        found = got[start : start + len(span)]
        wrong = np.flatnonzero((found != np.frombuffer(want, np.uint8)) & live)
        if len(wrong):
            values = output.unpack(found.tobytes(), rows)
            place = np.argwhere(values != self.expected)[0]
            pytest.fail(
                f"{label}: {len(wrong)} of {live.sum()} bytes differ; first at row, pixel, channel {place.tolist()}: "
                f"got {values[tuple(place)]}, expected {self.expected[tuple(place)]}; {self.view}"
            )


def _writable(output: Storage, rows: int) -> bytes:
    """Return 0xff for each byte of a span that a kernel may write: live pixels of all stored channels."""
    full = replace(output, tensor=replace(output.tensor, shape=(*output.tensor.shape[:2], output.stored_channels)))
    return full.pack(np.zeros((rows, *full.tensor.shape[1:]), np.int8))[1]


def write_sources(cases: Sequence[Case], where: Path) -> list[str]:
    """Write one function for each different view, with an entry that can be called; return the entry of each case."""
    jinja = environment()
    (where / "unit_instructions.h").write_text(jinja.get_template("files/instructions.h.j2").render(name="unit"))
    text = ['#include "unit_instructions.h"\n#ifdef __cplusplus\nextern "C" {\n#endif\n']
    names: dict[tuple[str, object], int] = {}
    for case in cases:
        key = case.template, case.view
        if key in names:
            continue
        number = names.setdefault(key, len(names))
        template = jinja.get_template(f"kernels/{case.template}.c.j2")
        text.append(template.render(name="unit", symbol=f"unit_kernel_{number}", v=case.view))
        signature = f"void unit_call_{number}(void *const *rows, const uint32_t *constants)"
        text.append(f"{signature};\n{signature}\n{{\n    unit_kernel_{number}(rows, constants);\n}}\n")
    text.append("#ifdef __cplusplus\n}\n#endif\n")
    (where / "kernels.c").write_text("\n".join(text))
    return [f"unit_call_{names[case.template, case.view]}" for case in cases]


def library(where: Path, flags: Sequence[str] = ("-O1",)) -> ctypes.CDLL:
    """Compile kernels.c for the host; load it."""
    command = [
        "gcc",
        "-std=c99",
        *WARNINGS,
        *flags,
        "-shared",
        "-fPIC",
        "-o",
        where / "kernels.so",
        where / "kernels.c",
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(where / "kernels.so"))


def run_on_host(cases: Sequence[Case], where: Path, flags: Sequence[str] = ("-O1",)) -> None:
    """Compile the C bodies of all cases into one library, run them, compare."""
    names = write_sources(cases, where)
    loaded = library(where, flags)
    for case, name in zip(cases, names, strict=True):
        guard = bytes([POISON]) * GUARD
        memory = ctypes.create_string_buffer(guard + case.memory + guard)
        before = bytes([POISON]) * (case.call.output.buffer_bytes + 2 * GUARD)
        output = ctypes.create_string_buffer(before, len(before))
        start = ctypes.addressof(memory) + GUARD
        assert start % 4 == 0 and ctypes.addressof(output) % 4 == 0
        addresses = [start + pointer for pointer in case.pointers]
        addresses.append(ctypes.addressof(output) + GUARD + case.output_offset)
        loaded[name](
            (ctypes.c_void_p * len(addresses))(*addresses), (ctypes.c_uint32 * len(case.constants))(*case.constants)
        )
        case.check(before, output.raw, "host")


class Machine:
    """A Cortex-M in Unicorn with the functions of kernels.c: flash at 0x10000, RAM at 0x20000000."""

    ROWS, MEMORY, CONSTANTS, STACK, BACK = 0x20018000, 0x20020000, 0x20200000, 0x20010000, 0x1000000

    def __init__(self, where: Path, core: str = "M4", flags: Sequence[str] = ("-O2",)) -> None:
        self.core = core
        elf_path = where / "kernels.elf"
        link = ("-nostdlib", "-Wl,-Ttext=0x10000,-e0,--no-warn-rwx-segments")
        command = [ARM_GCC, "-std=c99", *WARNINGS, *CORES[core], "-ffreestanding", *flags, *link]
        subprocess.run([*command, "-o", elf_path, where / "kernels.c", "-lgcc"], check=True)
        # Without MODE_MCLASS, which Unicorn takes for a Cortex-M33 whatever the CPU.
        cpu = getattr(arm_const, f"UC_CPU_ARM_CORTEX_{core}")
        self.uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB, cpu)
        self.uc.mem_map(0x10000, 0x2000000)
        self.uc.mem_map(0x20000000, 0x400000)
        with elf_path.open("rb") as file:
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_LOAD"):
                if segment["p_filesz"]:
                    self.uc.mem_write(segment["p_vaddr"], segment.data())
            self.address = {s.name: s["st_value"] for s in elf.get_section_by_name(".symtab").iter_symbols()}
        self.uc.mem_write(self.BACK, b"\xfe\xe7")  # b .
        self.saved = [getattr(arm_const, f"UC_ARM_REG_R{i}") for i in range(4, 12)]
        if core == "M4":
            self.uc.reg_write(arm_const.UC_ARM_REG_C1_C0_2, 0xF << 20)
            self.uc.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)
            self.saved += [getattr(arm_const, f"UC_ARM_REG_S{i}") for i in range(16, 32)]

    def call(self, name: str, *arguments: int) -> None:
        """Run a function; the registers that it has to save must come back."""
        kept = [0x1234567 * (i + 1) & 0xFFFFFFFF for i in range(len(self.saved))]
        for register, value in zip(self.saved, kept, strict=True):
            self.uc.reg_write(register, value)
        for i, argument in enumerate(arguments):
            self.uc.reg_write(arm_const.UC_ARM_REG_R0 + i, argument)
        self.uc.reg_write(arm_const.UC_ARM_REG_SP, self.STACK)
        self.uc.reg_write(arm_const.UC_ARM_REG_LR, self.BACK | 1)
        self.uc.emu_start(self.address[name] | 1, self.BACK)
        assert self.uc.reg_read(arm_const.UC_ARM_REG_SP) == self.STACK
        assert [self.uc.reg_read(register) for register in self.saved] == kept

    def run(self, case: Case, name: str) -> None:
        """Run a case and compare."""
        before = bytes([POISON]) * (case.call.output.buffer_bytes + 2 * GUARD)
        output = self.MEMORY + align4(len(case.memory)) + 2 * GUARD
        guard = bytes([POISON]) * GUARD
        self.uc.mem_write(self.MEMORY - GUARD, guard + case.memory + guard)
        self.uc.mem_write(output, before)
        self.uc.mem_write(self.CONSTANTS, np.array(case.constants, "<u4").tobytes())
        addresses = [self.MEMORY + pointer for pointer in case.pointers] + [output + GUARD + case.output_offset]
        self.uc.mem_write(self.ROWS, np.array(addresses, "<u4").tobytes())
        self.call(name, self.ROWS, self.CONSTANTS)
        case.check(before, bytes(self.uc.mem_read(output, len(before))), self.core)


def run_emulated(cases: Sequence[Case], where: Path, core: str = "M4", flags: Sequence[str] = ("-O2",)) -> None:
    """Compile all cases for a core, run them in Unicorn, compare."""
    names = write_sources(cases, where)
    machine = Machine(where, core, flags)
    for case, name in zip(cases, names, strict=True):
        machine.run(case, name)


# ---- cases ----


def tensor(name: str, shape: tuple[int, int, int], zero_point: int) -> Tensor:
    return Tensor(name, shape, 0.02, zero_point)


def storage(
    t: Tensor,
    layout: Layout,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    slots: int | None = None,
    stored_channels: int | None = None,
    slack_bytes: int = 0,
) -> Storage:
    top, bottom, left, right = padding
    return Storage(
        tensor=t,
        layout=layout,
        slots=slots or top + t.shape[0] + bottom,
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        stored_channels=stored_channels or align4(t.shape[2]),
        slack_bytes=slack_bytes,
    )


def filled(store: Storage, values: np.ndarray, first_row: int, rows: int, rng: np.random.Generator) -> bytes:
    """Return the buffer with `rows` virtual rows from `first_row` in it; what no kernel may read is noise."""
    height, width, channels = store.tensor.shape
    buffer = rng.integers(0, 256, store.buffer_bytes).astype(np.uint8).view("<i2")
    size = store.layout.element_bytes
    wide = store.left + width + store.right
    for virtual in range(first_row, first_row + rows):
        row = virtual - store.top
        stored = np.full((wide, channels), store.padding_value, np.int64)
        if 0 <= row < height:
            stored[store.left : store.left + width] = values[row].astype(np.int64) - store.offset
        pixel = np.arange(wide)[:, None] * store.pixel_bytes
        index = (store.slot_offset(virtual) + pixel + np.arange(channels)[None, :] * store.channel_bytes) // size
        buffer[index] = stored
    return buffer.tobytes()


def accumulators(op: Conv2D | DepthwiseConv2D | FullyConnected, values: np.ndarray, zero_point: int) -> np.ndarray:
    """Return int64 [height, width, channels_out] of the whole layer."""
    x = values.astype(np.int64) - zero_point
    if isinstance(op, FullyConnected):
        return (op.weights.astype(np.int64) @ x.ravel() + op.bias)[None, None, :]
    top, bottom, left, right = op.padding
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    kernel = op.weights.shape[1:3] if isinstance(op, Conv2D) else op.weights.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(0, 1))[:: op.stride[0], :: op.stride[1]]
    w = op.weights.astype(np.int64)
    if isinstance(op, Conv2D):
        return np.einsum("yxcij,oijc->yxo", windows, w, optimize=True) + op.bias
    return np.einsum("yxcij,ijc->yxc", windows, w, optimize=True) + op.bias


def layer(
    kind: type,
    weights: np.ndarray,
    spread: float,
    zero_points: tuple[int, int],
    rounding: Rounding,
    activation: tuple[int, int],
    rng: np.random.Generator,
    **geometry: Any,
) -> tuple[Conv2D | DepthwiseConv2D | FullyConnected, Requantization]:
    """Return (op, requantization): scales that spread the accumulators over `spread` times the output's range."""
    channels = weights.shape[-1] if kind is DepthwiseConv2D else weights.shape[0]
    axes = (0, 1) if kind is DepthwiseConv2D else tuple(range(1, weights.ndim))
    deviation = np.sqrt((weights.astype(float) ** 2).sum(axes)) * 74 + 1
    bias = np.rint(rng.normal(0, 1, channels) * deviation).astype(np.int32)
    scales = np.clip(60 * spread / deviation * np.exp2(rng.uniform(-1, 1, channels)), 2.0**-30, 6.0)
    pairs = [quantize_multiplier(float(s)) for s in scales]
    how = Requantization(
        np.array([m for m, _ in pairs], np.int32),
        np.array([s for _, s in pairs], np.int32),
        scales,
        rounding,
        zero_points[1],
        activation,
    )
    if kind is FullyConnected:
        op = FullyConnected("op", "in", "out", weights, bias, scales, True, activation)
    elif kind is Conv2D:
        op = Conv2D(
            "op", "in", "out", weights, bias, scales, geometry["stride"], (1, 1), geometry["padding"], activation
        )
    else:
        op = DepthwiseConv2D(
            "op", "in", "out", weights, bias, scales, 1, geometry["stride"], (1, 1), geometry["padding"], activation
        )
    return op, how


def convolution_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a convolution: `choice` fixes some of what is drawn otherwise; `fpu` is with weights in the FPU."""

    def draw(name: str, *options: Any) -> Any:
        return choice[name] if name in choice else options[rng.integers(len(options))]

    fpu = bool(choice.get("fpu"))
    kind = Conv2D if fpu else draw("kind", Conv2D, Conv2D, FullyConnected)
    kernel = draw("kernel", (1, 1), (1, 1), (3, 3), (2, 1), (1, 4), (10, 4), (5, 5)) if kind is Conv2D else (1, 1)
    if fpu and kernel[0] > 3:
        kernel = (2, 3)
    stride = draw("stride", (1, 1), (1, 1), (2, 2), (1, 3)) if kind is Conv2D else (1, 1)
    height, width = draw("size", (4, 5), (3, 6), (1, 1), (2, 9), (6, 2), (3, 19))
    channels = draw("channels", 1, 2, 3, 4, 7, 8, 20, 36)
    while fpu and not fits(kernel[0], kernel[1] * align4(channels)):
        channels -= 1
    outputs = draw("outputs", 1, 3, 4, 6, 8, 13)
    zero_points = draw("zero_points", (-128, -128), (-128, -128), (3, -128), (-128, -7), (127, 127), (-5, 90))
    rounding = draw("rounding", Rounding.DOUBLE, Rounding.DOUBLE, Rounding.SINGLE, Rounding.REAL)
    activation = draw("activation", (-128, 127), (-128, 127), (-128, 127), (-100, 101))
    planar = draw("planar", False, True) and kind is Conv2D
    whole = draw("whole", False, True) and kernel == (1, 1) and kind is Conv2D and not fpu
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
    stored = draw("stored_channels", channels, align4(channels))
    odd = kernel[1] * stored % 2
    extra = int(draw("more_padding", 0, 0, 1)) if kind is Conv2D else 0
    source = storage(
        source_tensor,
        WIDE16,
        (padding[0], padding[1], padding[2] + extra, padding[3] + extra),
        stored_channels=stored,
        slack_bytes=2 * odd if kind is Conv2D else 0,
    )
    if kind is FullyConnected and height > 1 and not source.contiguous:
        source = replace(source, stored_channels=align4(channels))
    border = (1, 0, 0, 0) if planar else draw("border", (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 2))
    target = storage(tensor("out", out_shape, zero_points[1]), PLANAR16 if planar else WIDE16, border)
    if not whole and out_shape[0] > 1 and draw("ring", False, True):
        target = replace(target, slots=2)
    call = Call(op, (source,), target, out_shape[0] if whole else 1, how)
    assert convolution_accepts(op, None) is None or -128 in weights
    view = fpu_view(call) if fpu else convolution_view(call)

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
        "convolution_fpu" if fpu else "convolution_dsp",
        fpu_pack(call, view, 0) if fpu else convolution_pack(call, view, 0),
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

A_BATCH = settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), database=None)
SEEDS = st.integers(0, 2**32 - 1)


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [depthwise_case(rng) if i % 3 == 0 else convolution_case(rng, fpu=i % 3 == 1) for i in range(count)]


def large_cases(seed: int = 5) -> list[Case]:
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


@pytest.fixture
def unsolved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the fast form away, so that the other forms are tested too."""
    codegen.requantize._requantizer.cache_clear()
    monkeypatch.setattr(codegen.requantize, "solve_fast", lambda *_: None)
    yield
    codegen.requantize._requantizer.cache_clear()


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


INSTRUCTIONS = {  # name: types of the operands
    "smlad": ("uint32_t", "uint32_t", "uint32_t"),
    "sxtb16": ("uint32_t",),
    "smmul": ("int32_t", "int32_t"),
    "smmulr": ("int32_t", "int32_t"),
    "usat8": ("int32_t",),
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
        return fpu_accepts(call.op, Graph("g", tensors, (call.op,), "in", "out", ""))

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
