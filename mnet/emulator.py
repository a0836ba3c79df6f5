"""Run a harness program on the host, in QEMU or in Unicorn, and count exactly what it executes.

QEMU has all six cores and faults as boards do; Unicorn comes with pip, has no Cortex-M55, and its M0 refuses what an M0
lacks. Programs are those of `mnet.toolchain`: inputs come from a file, outputs and traces go to files (semihosting).

Two things no emulator proves: an M3 of either executes some DSP instructions (the compiler's -mcpu=cortex-m3 keeps them
out, and the disassembly shows it), and neither has wait states (`mnet.cycles` models time).
"""

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import unicorn
from elftools.elf.elffile import ELFFile
from unicorn import arm_const, unicorn_const

from codegen.targets import Target
from mnet.errors import MissingToolError, ToolError
from mnet.toolchain import code_of, find_compiler, how_to_get, instruction_bytes, symbols

REST = 0xFFFFFFFF  # entry of what runs after the last marked call
OUTPUT_RECORD = 0xFFFF  # entry of the trace record that holds a run's output

_INPUTS, _OUTPUTS, _TRACE, _COUNTS = "inputs.bin", "outputs.bin", "trace.bin", "counts.txt"


@dataclass(frozen=True)
class Run:
    """What a harness program gave back."""

    outputs: bytes  # MODEL_OUTPUT_BYTES per input
    trace: bytes  # for `read_trace`; empty unless built with MODEL_TRACE
    stack_bytes: int | None  # the most that the model pushed; None where the harness does not measure it
    text: str  # all that the program printed


@dataclass(frozen=True)
class TraceRecord:
    """The bytes that one call made, or with entry OUTPUT_RECORD the output of input number `call`."""

    entry: int
    call: int
    data: bytes


@dataclass(frozen=True)
class Edge:
    """`count` times control came to `block` from the block at `before` (0: from outside) while `entry` was at work."""

    entry: int  # of the generated model's table; REST after the last call
    before: int  # address of a basic block
    block: int
    bytes: int  # of the block's code
    instructions: int  # in the block
    count: int


@dataclass(frozen=True)
class Counts:
    """All edges between model_begin and model_end, over all inputs, and what the run gave."""

    edges: tuple[Edge, ...]
    run: Run


def read_trace(trace: bytes) -> Iterator[TraceRecord]:
    """Yield the records of `Run.trace` in the order of execution.

    Raises:
        ToolError: it ends in the middle of a record.
    """
    at = 0
    while at < len(trace):
        if at + 8 > len(trace):
            raise ToolError(f"the trace of {len(trace)} B ends in the middle of a record's head")
        entry, call, length = struct.unpack_from("<HHI", trace, at)
        data = trace[at + 8 : at + 8 + length]
        if len(data) < length:
            raise ToolError(f"the trace of {len(trace)} B ends in the middle of entry {entry}, call {call}")
        yield TraceRecord(entry, call, data)
        at += 8 + length


def board_of(elf: Path) -> str:
    """Return the board that an ELF file of `build_target` or firmware/Makefile was linked for."""
    with ELFFile.load_from_path(str(elf)) as file:
        for symbol in symbols(elf):
            if symbol.name == "board_name":
                section = file.get_section_by_name(symbol.section)
                start = symbol.address - section["sh_addr"]
                data: bytes = section.data()[start : start + symbol.size]
                return data.rstrip(b"\0").decode()
    raise ToolError(f"{elf} names no board: it was not built with firmware/boards/start.c")


def _place(elf: Path, pc: int) -> str:
    for symbol in symbols(elf):
        if symbol.is_function and symbol.address <= pc < symbol.address + symbol.size:
            return f"{pc:#x} in {symbol.name}"
    return f"{pc:#x}"


def _result(what: str, code: int | None, text: str, outputs: bytes, trace: bytes) -> Run:
    if code != 0:
        said = "; ".join(line.strip() for line in text.splitlines() if line.strip()) or "nothing"
        raise ToolError(f"{what}: the program ended with status {code}, having said: {said[:500]}")
    stack = re.search(r"^stack (\d+)$", text, re.MULTILINE)
    return Run(outputs, trace, int(stack[1]) if stack else None, text)


def _run_program(
    what: str, command: list[str], inputs: bytes, folder: Path, timeout_s: float, elf: Path | None = None
) -> Run:
    """Run `command`, which knows the harness's file names, in `folder`, an empty one; `elf` names faults' functions."""
    (folder / _INPUTS).write_bytes(inputs)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{what}: the program did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise ToolError(f"{what}: {command[0]} does not start ({error.strerror})") from None

    def content(name: str) -> bytes:
        return (folder / name).read_bytes() if (folder / name).exists() else b""

    text = done.stdout + done.stderr
    if elf is not None and done.returncode != 0:
        text = re.sub(r"(?<=fault at pc )0x[0-9a-f]{8}", lambda pc: _place(elf, int(pc[0], 16)), text)
    return _result(what, done.returncode, text, content(_OUTPUTS), content(_TRACE))


def run_host(program: Path, inputs: bytes, timeout_s: float = 60) -> Run:
    """Run a program of `build_host`.

    Raises:
        ToolError: it failed a check (the message says which), crashed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        command = [str(program.resolve()), _INPUTS, _OUTPUTS, _TRACE]
        return _run_program(f"{program.name} on this computer", command, inputs, Path(name), timeout_s)


# --- QEMU ---------------------------------------------------------------------------------------------------------


def find_qemu() -> str:
    """Return the path of qemu-system-arm.

    Raises:
        ToolError: it is not installed.
    """
    path = shutil.which("qemu-system-arm")
    if path is None:
        raise MissingToolError(f"qemu-system-arm is missing: {how_to_get('qemu-system-arm')}")
    return path


def _qemu_command(elf: Path, board: str) -> list[str]:
    semihosting = f"enable=on,target=native,arg=harness,arg={_INPUTS},arg={_OUTPUTS},arg={_TRACE}"
    return [
        *(find_qemu(), "-M", board, "-display", "none", "-serial", "null", "-monitor", "none"),
        *("-semihosting-config", semihosting, "-kernel", str(elf.resolve())),
    ]


def run_qemu(elf: Path, board: str | None, inputs: bytes, timeout_s: float = 120) -> Run:
    """Run an ELF file of `build_target` in QEMU.

    Args:
        elf: the program.
        board: QEMU's machine; None for the one that the ELF file names.
        inputs: MODEL_INPUT_BYTES for each inference.
        timeout_s: seconds of real time, after which the run has failed.

    Raises:
        ToolError: no QEMU, or the program failed a check, faulted or took too long.
    """
    board = board or board_of(elf)
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        return _run_program(f"{elf.name} on {board}", _qemu_command(elf, board), inputs, Path(name), timeout_s, elf)


def count_qemu(elf: Path, board: str | None, inputs: bytes, timeout_s: float = 120) -> Counts:
    """Run an ELF file built with MODEL_COUNT or MODEL_MARK in QEMU and count its edges; all six cores.

    Raises:
        ToolError: as `run_qemu`; or no C compiler to build the counting plugin with, or QEMU takes no plugins.
    """
    board = board or board_of(elf)
    at = _markers(elf)
    version = 1
    while True:
        plugin = _counter_library("qemu", version)
        with tempfile.TemporaryDirectory(prefix="mnet-") as name:
            options = {"out": _COUNTS, "begin": at.begin, "end": at.end, "mark": at.mark, "table": at.table}
            options["entries"] = at.entries
            argument = ",".join([str(plugin), *(f"{key}={value}" for key, value in options.items())])
            command = [*_qemu_command(elf, board), "-plugin", argument]
            try:
                run = _run_program(f"{elf.name} on {board}, counted", command, inputs, Path(name), timeout_s, elf)
            except ToolError as error:
                # Newer QEMUs refuse old version numbers, though the functions that are used here stayed as they were.
                newer = re.search(r"minimum version of (\d+)", str(error))
                if newer is None or int(newer[1]) <= version:
                    raise
                version = int(newer[1])
                continue
            lines = (Path(name) / _COUNTS).read_text().splitlines()
            edges = (Edge(*map(int, line.split())) for line in lines)
            return Counts(_merged(_with_bytes(code_of(elf), edges)), run)


# --- Unicorn ------------------------------------------------------------------------------------------------------

_BKPT = 7  # QEMU's number of the exception, target/arm/cpu.h, EXCP_BKPT
_SYSTEM = 0xE000E000  # system control space: SysTick, NVIC, CPACR
_SYS_OPEN, _SYS_CLOSE, _SYS_WRITE0, _SYS_WRITE, _SYS_READ = 1, 2, 4, 5, 6
_SYS_GET_CMDLINE, _SYS_EXIT_EXTENDED = 0x15, 0x20


class _Machine:
    """One run of one ELF file in Unicorn, with semihosting calls answered from memory."""

    def __init__(self, elf: Path, target: Target, inputs: bytes) -> None:
        if target.unicorn is None:
            raise MissingToolError(f"Unicorn has no {target.core or target.name}: run it in qemu-system-arm")
        self.what = f"{elf.name} on Unicorn's Cortex-{target.unicorn}"
        self.elf = elf
        # Not UC_MODE_MCLASS, which makes every core an M33: an M0 would execute SMLAD.
        self.uc = unicorn.Uc(unicorn_const.UC_ARCH_ARM, unicorn_const.UC_MODE_THUMB)
        model = getattr(arm_const, f"UC_CPU_ARM_CORTEX_{target.unicorn}")
        self.uc.ctl_set_cpu_model(model)
        if self.uc.ctl_get_cpu_model() != model:
            raise ToolError(f"Unicorn {unicorn.__version__} does not become a Cortex-{target.unicorn}")
        self.files: dict[str, bytearray] = {_INPUTS: bytearray(inputs)}
        self.open: dict[int, tuple[str, int]] = {}  # handle -> name, position
        self.text = ""
        self.code: int | None = None
        self.failure: BaseException | None = None

        at = {symbol.name: symbol.address for symbol in symbols(elf)}
        for low, high, rights in (
            (at["__flash_start"], at["__flash_end"], unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_EXEC),
            (at["__ram_start"], at["__ram_end"], unicorn_const.UC_PROT_ALL),
            (_SYSTEM, _SYSTEM + 0x1000, unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_WRITE),
        ):
            self.uc.mem_map(low, high - low, rights)
        with ELFFile.load_from_path(str(elf)) as file:
            for segment in file.iter_segments():
                if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]:
                    self.uc.mem_write(segment["p_paddr"], segment.data())
        self.stack, self.reset = struct.unpack("<II", self.uc.mem_read(at["__flash_start"], 8))
        self.uc.hook_add(unicorn_const.UC_HOOK_INTR, self._on_exception)

    def _word(self, address: int) -> int:
        return int.from_bytes(self.uc.mem_read(address, 4), "little")

    def _text(self, address: int) -> str:
        text = bytearray()
        while (byte := self.uc.mem_read(address + len(text), 1)[0]) != 0:
            text.append(byte)
        return text.decode("latin1")

    def _on_exception(self, uc: Any, number: int, _: object) -> None:
        try:
            pc = uc.reg_read(arm_const.UC_ARM_REG_PC)
            if number != _BKPT or bytes(uc.mem_read(pc, 2)) != b"\xab\xbe":
                raise ToolError(f"{self.what}: exception {number} at {_place(self.elf, pc)}")
            result = self._semihosting(uc.reg_read(arm_const.UC_ARM_REG_R0), uc.reg_read(arm_const.UC_ARM_REG_R1))
            uc.reg_write(arm_const.UC_ARM_REG_R0, result & 0xFFFFFFFF)
            uc.reg_write(arm_const.UC_ARM_REG_PC, (pc + 2) | 1)
        except BaseException as failure:  # an exception cannot pass through Unicorn's C code
            self.failure = failure
            uc.emu_stop()

    def _semihosting(self, operation: int, at: int) -> int:
        if operation == _SYS_OPEN:
            name, mode = self._text(self._word(at)), self._word(at + 4)
            if mode >= 4:
                self.files[name] = bytearray()
            elif name not in self.files:
                return -1
            handle = 1 + max(self.open, default=0)
            self.open[handle] = (name, 0)
            return handle
        if operation == _SYS_CLOSE:
            return 0 if self.open.pop(self._word(at), None) else -1
        if operation in (_SYS_READ, _SYS_WRITE):
            handle, address, length = self._word(at), self._word(at + 4), self._word(at + 8)
            name, position = self.open[handle]
            if operation == _SYS_WRITE:
                data = bytes(self.uc.mem_read(address, length))
                self.files[name][position:] = data
            else:
                data = bytes(self.files[name][position : position + length])
                self.uc.mem_write(address, data)
            self.open[handle] = (name, position + len(data))
            return length - len(data)
        if operation == _SYS_WRITE0:
            self.text += self._text(at)
            return 0
        if operation == _SYS_GET_CMDLINE:
            line = f"harness {_INPUTS} {_OUTPUTS} {_TRACE}\0".encode()
            self.uc.mem_write(self._word(at), line)
            return 0
        if operation == _SYS_EXIT_EXTENDED:
            self.code = self._word(at + 4)
            self.uc.emu_stop()
            return 0
        raise ToolError(f"{self.what}: semihosting call {operation:#x} is not known here")

    def run(self, timeout_s: float) -> Run:
        self.uc.reg_write(arm_const.UC_ARM_REG_SP, self.stack)
        try:
            self.uc.emu_start(self.reset | 1, 0xFFFFFFFE, timeout=int(timeout_s * 1e6))
        except unicorn.UcError as error:
            if self.failure is None:
                where = _place(self.elf, self.uc.reg_read(arm_const.UC_ARM_REG_PC))
                raise ToolError(f"{self.what}: {error} at {where}") from None
        if self.failure is not None:
            raise self.failure
        if self.code is None:
            raise ToolError(f"{self.what}: the program did not end within {timeout_s:g} s")
        outputs, trace = (bytes(self.files.get(name, b"")) for name in (_OUTPUTS, _TRACE))
        return _result(self.what, self.code, self.text, outputs, trace)


def run_unicorn(elf: Path, target: Target, inputs: bytes, timeout_s: float = 120) -> Run:
    """Run an ELF file of `build_target` in Unicorn, as `target.unicorn`.

    Writes to flash, memory outside the board's and unaligned words on an M0 are errors here, as on the board.

    Raises:
        ToolError: Unicorn lacks the core, or the program failed a check, faulted or took too long.
    """
    return _Machine(elf, target, inputs).run(timeout_s)


def count_unicorn(elf: Path, target: Target, inputs: bytes, timeout_s: float = 120, portable: bool = False) -> Counts:
    """Run an ELF file built with MODEL_COUNT or MODEL_MARK in Unicorn and count its edges.

    Args:
        elf: the program.
        target: whose Unicorn model runs it.
        inputs: MODEL_INPUT_BYTES for each inference.
        timeout_s: seconds of real time.
        portable: count in Python even where a C compiler could build the fast counter (same counts, 20 times slower).

    Raises:
        ToolError: as `run_unicorn`.
    """
    machine = _Machine(elf, target, inputs)
    at = _markers(elf)
    library = None
    if not portable:
        try:
            library = ctypes.CDLL(str(_counter_library("unicorn")))
        except (ToolError, OSError):
            library = None
    if library is None:
        return _count_in_python(machine, at, timeout_s)
    native = _unicorn_library()
    reader = ctypes.cast(native.uc_reg_read, ctypes.c_void_p)
    library.counter_reset(at.begin, at.end, at.mark, reader, arm_const.UC_ARM_REG_R0)
    # Unicorn's Python hook_add takes Python functions only; a C function goes in by the C interface.
    hook, handle = ctypes.c_size_t(), machine.uc._uch
    declared, native.uc_hook_add.argtypes = native.uc_hook_add.argtypes, None
    try:
        failed = native.uc_hook_add(
            handle,
            ctypes.byref(hook),
            ctypes.c_int(unicorn_const.UC_HOOK_BLOCK),
            ctypes.cast(library.counter_block, ctypes.c_void_p),
            ctypes.c_void_p(0),
            ctypes.c_uint64(1),  # from 1 to 0: everywhere
            ctypes.c_uint64(0),
        )
    finally:
        native.uc_hook_add.argtypes = declared
    if failed:
        raise ToolError(f"Unicorn refuses the block hook (error {failed})")
    run = machine.run(timeout_s)
    library.counter_used.restype = ctypes.c_uint64
    raw = (_RawEdge * library.counter_used())()
    library.counter_edges(raw)
    edges = (Edge(e.entry, e.before, e.block, e.bytes, 0, e.count) for e in raw)
    return Counts(_merged(_with_instructions(machine.uc, edges)), run)


class _RawEdge(ctypes.Structure):
    """struct edge of edge_counter.c."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("segment", "before", "block", "bytes", "instructions", "entry")),
        ("count", ctypes.c_uint64),
    )


def _unicorn_library() -> Any:
    """The C library under the Python package: it lies in another module from 2.1 on."""
    module = getattr(unicorn, "unicorn_py3", None)
    return module.unicorn.uclib if module is not None else unicorn.unicorn._uc


def _count_in_python(machine: _Machine, at: "_Markers", timeout_s: float) -> Counts:
    """What edge_counter.c does, for machines without a C compiler."""
    segment: dict[tuple[int, int, int], int] = {}  # before, block, bytes -> count
    finished: list[tuple[int, dict[tuple[int, int, int], int]]] = []
    before, active = 0, False

    def on_block(uc: Any, block: int, size: int, _: object) -> None:
        nonlocal before, active, segment
        if block == at.begin:
            before, active = 0, True
        if not active:
            return
        key = (before, block, size)
        segment[key] = segment.get(key, 0) + 1
        before = block
        if block == at.end or (block == at.mark and at.mark):
            active = block != at.end
            finished.append((uc.reg_read(arm_const.UC_ARM_REG_R0) if active else REST, segment))
            segment = {}

    machine.uc.hook_add(unicorn_const.UC_HOOK_BLOCK, on_block)
    run = machine.run(timeout_s)
    edges = (Edge(entry, *key, 0, count) for entry, counts in finished for key, count in counts.items())
    return Counts(_merged(_with_instructions(machine.uc, edges)), run)


def _with_instructions(uc: Any, edges: Iterator[Edge]) -> Iterator[Edge]:
    """Fill in how many instructions each block has, from the length that the first half word of each tells."""
    known: dict[tuple[int, int], int] = {}
    for edge in edges:
        key = (edge.block, edge.bytes)
        if key not in known:
            code = bytes(uc.mem_read(*key))
            at = known[key] = 0
            while at < len(code):
                at += instruction_bytes(code, at)
                known[key] += 1
        yield Edge(edge.entry, edge.before, edge.block, edge.bytes, known[key], edge.count)


def _with_bytes(code: Callable[[int, int], bytes], edges: Iterator[Edge]) -> Iterator[Edge]:
    """Correct the blocks' lengths: QEMU's sum is too large where an instruction straddles a page's end."""
    known: dict[tuple[int, int], int] = {}
    for edge in edges:
        key = (edge.block, edge.instructions)
        if key not in known:
            at = edge.block
            for _ in range(edge.instructions):
                at += instruction_bytes(code(at, 2), 0)
            known[key] = at - edge.block
        yield replace(edge, bytes=known[key])


# --- both ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Markers:
    begin: int
    end: int
    mark: int  # 0 in a program that was built with MODEL_COUNT only
    table: int
    entries: int


def _markers(elf: Path) -> _Markers:
    at = {symbol.name: symbol for symbol in symbols(elf)}
    if "model_begin" not in at:
        raise ToolError(f"{elf} cannot be counted: build it with MODEL_COUNT or MODEL_MARK")
    mark, table = at.get("model_trace"), at.get("model_marks")
    return _Markers(
        begin=at["model_begin"].address,
        end=at["model_end"].address,
        mark=mark.address if mark else 0,
        table=table.address if table else 0,
        entries=table.size if table else 0,
    )


def _merged(edges: Iterator[Edge]) -> tuple[Edge, ...]:
    """Add up the segments of one entry; the order is by entry, block, origin."""
    counts: dict[tuple[int, int, int, int, int], int] = {}
    for edge in edges:
        key = (edge.entry, edge.block, edge.before, edge.bytes, edge.instructions)
        counts[key] = counts.get(key, 0) + edge.count
    return tuple(
        Edge(entry, before, block, size, instructions, count)
        for (entry, block, before, size, instructions), count in sorted(counts.items())
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "mnet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"mnet-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ToolError(f"{folder} belongs to somebody else, and the user's cache folder cannot be written")
    return folder


def _counter_library(kind: str, version: int = 1) -> Path:
    """Build edge_counter.c for "qemu" or "unicorn" on first use, into the user's cache; later calls find it there.

    Raises:
        ToolError: no host compiler, or it failed.
    """
    source = Path(__file__).with_name("edge_counter.c")
    key = hashlib.sha256(source.read_bytes() + f"{kind} {version} {sys.platform}".encode()).hexdigest()[:16]
    library = _cache_folder() / f"edge_counter-{kind}-{key}.so"
    if library.exists():
        return library
    compiler = find_compiler("cc")
    unfinished = library.with_name(f"{library.name}.{os.getpid()}")
    flags = ["-std=c99", "-O2", "-shared", "-fPIC"]
    flags += ["-DFOR_UNICORN"] if kind == "unicorn" else [f"-DPLUGIN_VERSION={version}"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    command = [*compiler.command, *flags, str(source), "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ToolError(f"{compiler.name} cannot build the edge counter: {done.stderr.strip()[:500]}")
    os.replace(unfinished, library)  # at once: another process may build the same
    return library
