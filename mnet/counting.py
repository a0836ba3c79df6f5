"""Count exactly what a harness program executes: how often control took each edge between basic blocks.

Three counters, one answer: edge_counter.c as QEMU's plugin, the same file as Unicorn's hook, and the hook in Python.
The harness marks where the model begins and ends and after each call, so every edge belongs to an entry of its table.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import unicorn
from unicorn import arm_const, unicorn_const

from codegen.targets import Target
from mnet.cache import cache_folder
from mnet.emulator import Machine, Run, board_of, qemu_command, run_program
from mnet.errors import ToolError
from mnet.toolchain import code_of, find_compiler, instruction_bytes, symbols

REST = 0xFFFFFFFF  # entry of what runs after the last marked call

_COUNTS = "counts.txt"


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
    """All edges between subject_begin and subject_end, over all inputs, and what the run gave."""

    edges: tuple[Edge, ...]
    run: Run


@dataclass(frozen=True)
class _Markers:
    begin: int
    end: int
    mark: int  # 0 in a program that was built with SUBJECT_COUNT only
    table: int
    entries: int


def _markers(elf: Path) -> _Markers:
    at = {symbol.name: symbol for symbol in symbols(elf)}
    if "subject_begin" not in at:
        raise ToolError(f"{elf} cannot be counted: build it with SUBJECT_COUNT or SUBJECT_MARK")
    mark, table = at.get("subject_trace"), at.get("subject_marks")
    return _Markers(
        begin=at["subject_begin"].address,
        end=at["subject_end"].address,
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


# --- QEMU -----------------------------------------------------------------------------------------------------------


def count_qemu(elf: Path, board: str | None, inputs: bytes, timeout_s: float = 120) -> Counts:
    """Run an ELF file built with SUBJECT_COUNT or SUBJECT_MARK in QEMU and count its edges; all six cores.

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
            command = [*qemu_command(elf, board), "-plugin", argument]
            try:
                run = run_program(f"{elf.name} on {board}, counted", command, inputs, Path(name), timeout_s, elf)
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


# --- Unicorn --------------------------------------------------------------------------------------------------------


def count_unicorn(elf: Path, target: Target, inputs: bytes, timeout_s: float = 120, portable: bool = False) -> Counts:
    """Run an ELF file built with SUBJECT_COUNT or SUBJECT_MARK in Unicorn and count its edges.

    Args:
        elf: the program.
        target: whose Unicorn model runs it.
        inputs: SUBJECT_INPUT_BYTES for each inference.
        timeout_s: seconds of real time.
        portable: count in Python even where a C compiler could build the fast counter (same counts, 20 times slower).

    Raises:
        ToolError: as `run_unicorn`.
    """
    machine = Machine(elf, target, inputs)
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


def _count_in_python(machine: Machine, at: _Markers, timeout_s: float) -> Counts:
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


# --- the counter's library ------------------------------------------------------------------------------------------


def _counter_library(kind: str, version: int = 1) -> Path:
    """Build edge_counter.c for "qemu" or "unicorn" on first use, into the user's cache; later calls find it there.

    Raises:
        ToolError: no host compiler, or it failed.
    """
    source = Path(__file__).with_name("edge_counter.c")
    key = hashlib.sha256(source.read_bytes() + f"{kind} {version} {sys.platform}".encode()).hexdigest()[:16]
    library = cache_folder() / f"edge_counter-{kind}-{key}.so"
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
