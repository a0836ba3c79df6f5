"""Run one call of one kernel, C body on the host and assembly in the emulator, between guards, and compare."""

import ctypes
import re
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
from hypothesis import Phase, settings
from hypothesis import strategies as st
from unicorn import arm_const

import codegen.requantize
from codegen.call import Call, Cost
from codegen.layout import PLANAR8, Layout, Storage, align4
from codegen.targets import Timing, target
from mnet.counting import Edge
from mnet.cycles import BlockCosts, apply
from mnet.fixed_point import quantize_multiplier
from mnet.graph import Conv2D, Dense, DepthwiseConv2D, FullyConnected, Tensor
from mnet.oracle import Requantization, Rounding
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
    """Return 0xff for each byte of a span that a kernel may write: live pixels of all stored channels.

    Of planar bytes whole words: what stands behind the last pixel of a row is read, but meets no weight.
    """
    height, width, _ = output.tensor.shape
    if output.layout is PLANAR8:
        width = output.stored_width
    full = replace(output, tensor=replace(output.tensor, shape=(height, width, output.stored_channels)))
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
            table = list(elf.get_section_by_name(".symtab").iter_symbols())
        self.address = {symbol.name: symbol["st_value"] for symbol in table}
        self.code_bytes = {symbol.name: symbol["st_size"] for symbol in table}
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

    def measure(self, case: Case, name: str, timing: Timing) -> Cost:
        """Run a case as `run` does; return what its kernel took, without the entry around it.

        The kernel is its function, what that function calls, and the code of those that the template writes for it.
        """
        counts: dict[tuple[int, int, int], int] = {}
        before = 0

        def on_block(uc: unicorn.Uc, block: int, size: int, _: object) -> None:
            nonlocal before
            counts[before, block, size] = counts.get((before, block, size), 0) + 1
            before = block

        hook = self.uc.hook_add(unicorn.UC_HOOK_BLOCK, on_block)
        self.run(case, name)
        self.uc.hook_del(hook)
        kernel = name.replace("_call_", "_kernel_")
        entry = range(0)
        if kernel in self.address:  # else the compiler put a C body into its entry
            start = self.address[name] & ~1
            entry = range(start, start + self.code_bytes[name])
        edges = [
            Edge(0, *key, 0, count) for key, count in counts.items() if key[1] not in entry and key[1] != self.BACK
        ]
        costs = BlockCosts(lambda at, size: bytes(self.uc.mem_read(at, size)), timing)
        cycles = sum(cost.cycles for cost in apply(edges, costs, lambda _: kernel).values())
        own = re.compile(rf"{kernel}(?![0-9])" if kernel in self.address else rf"({kernel}(?![0-9])|{name}$)")
        return Cost(cycles, sum(size for symbol, size in self.code_bytes.items() if own.match(symbol)))


def run_emulated(cases: Sequence[Case], where: Path, core: str = "M4", flags: Sequence[str] = ("-O2",)) -> None:
    """Compile all cases for a core, run them in Unicorn, compare."""
    names = write_sources(cases, where)
    machine = Machine(where, core, flags)
    for case, name in zip(cases, names, strict=True):
        machine.run(case, name)


def measured(cases: Sequence[Case], where: Path, core: str = "M4", timing: Timing | None = None) -> list[Cost]:
    """Compile all cases for a core, run them in Unicorn, compare; return what each call took."""
    names = write_sources(cases, where)
    machine = Machine(where, core)
    timing = timing or target(f"cortex-{core.lower()}").timing
    return [machine.measure(case, name, timing) for case, name in zip(cases, names, strict=True)]


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
    size = store.layout.element_bytes
    buffer = rng.integers(0, 256, store.buffer_bytes).astype(np.uint8).view({1: "u1", 2: "<i2"}[size])
    order = np.array(store.layout.pixel_order)
    wide = store.left + width + store.right
    for virtual in range(first_row, first_row + rows):
        row = virtual - store.top
        stored = np.full((wide, channels), store.padding_value, np.int64)
        if 0 <= row < height:
            stored[store.left : store.left + width] = values[row].astype(np.int64) - store.offset
        pixel = np.arange(wide)
        pixel = pixel // len(order) * len(order) + order[pixel % len(order)]
        place = store.slot_offset(virtual) + pixel[:, None] * store.pixel_bytes
        index = (place + np.arange(channels)[None, :] * store.channel_bytes) // size
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
        op = FullyConnected("op", "in", "out", weights, bias, scales, Dense.PER_CHANNEL, activation)
    elif kind is Conv2D:
        op = Conv2D(
            "op", "in", "out", weights, bias, scales, geometry["stride"], (1, 1), geometry["padding"], activation
        )
    else:
        op = DepthwiseConv2D(
            "op", "in", "out", weights, bias, scales, 1, geometry["stride"], (1, 1), geometry["padding"], activation
        )
    return op, how


A_BATCH = settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), database=None)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture
def unsolved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the fast form away, so that the other forms are tested too."""
    codegen.requantize._requantizer.cache_clear()
    monkeypatch.setattr(codegen.requantize, "solve_fast", lambda *_: None)
    yield
    codegen.requantize._requantizer.cache_clear()
