"""Boards of firmware/boards: what a board's two files say of it, and a model on it with nothing to spare.

`fit` builds firmware/harness/application.c, the least program around a model: the linker refuses what the board's
flash and RAM do not hold, the room for the stack by the header's bound included. The run then shows that the bits are
right, that no guard of the arena was touched, and how deep the stack went.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codegen.plan import Plan
from codegen.targets import TARGETS, Target
from mnet import stack, toolchain
from mnet.emulator import run_qemu
from mnet.errors import PlanError, ToolError
from mnet.graph import Int8Array
from mnet.resources import folder
from mnet.verify import Comparison, Leg, input_bytes, output_labels


@dataclass(frozen=True)
class Board:
    """A row of firmware/boards."""

    name: str
    machine: str  # QEMU's name for it
    core: Target  # whose code it executes


@dataclass(frozen=True)
class Fit:
    """What a model and the least application take of a board's memory, in bytes."""

    board: str
    flash: int  # of the board
    flash_used: int  # code, constants and initial values
    ram: int  # of the board
    arena: int
    variables: int  # .data and .bss without the arena: the output, a row or an image of input, guards
    stack_room: int  # that the linker kept free: the header's bound and the application's own
    stack_worst: int  # that the program can take from reset on, from its machine code
    stack_painted: int  # that it took

    def __str__(self) -> str:
        """Return the memory as three lines."""
        used = self.arena + self.variables + self.stack_room
        return (
            f"{self.board}: flash {self.flash_used:,} of {self.flash:,} B\n"
            f"{self.board}: RAM {used:,} of {self.ram:,} B = arena {self.arena:,} + other variables {self.variables:,} "
            f"+ room for the stack {self.stack_room:,}\n"
            f"{self.board}: stack {self.stack_painted:,} B, at most {self.stack_worst:,} B by the machine code"
        )


def board_names() -> list[str]:
    """Return the boards that QEMU emulates."""
    return [path.stem for path in sorted((folder("firmware") / "boards").glob("*.mk")) if _settings(path)["MACHINE"]]


def find_board(name: str) -> Board:
    """Return the board `name`.

    Raises:
        PlanError: there is none that is emulated; the message lists those that are.
    """
    names = board_names()
    if name not in names:
        raise PlanError(f"no emulated board {name!r}; there are {', '.join(names)}")
    settings = _settings(folder("firmware") / "boards" / f"{name}.mk")
    flags = tuple(settings["CPU"].split())
    core = next(row for row in TARGETS.values() if row.gcc == flags and row.name == row.core)
    return Board(name, settings["MACHINE"], core)


def _settings(path: Path) -> dict[str, str]:
    """Return the variables that a board's makefile sets."""
    return dict(re.findall(r"^(\w+) \??=[ \t]*(.*)$", path.read_text(), re.MULTILINE))


def fit(plan: Plan, generated: Path, board: Board, compiler: str, golden: Mapping[str, Int8Array]) -> tuple[Leg, Fit]:
    """Build a generated folder for a board, run it there within its memory, and compare the outputs.

    Args:
        plan: what the folder was generated from.
        generated: the folder; the program is built in a folder of it.
        board: whose memory has to do.
        compiler: "gcc" or "zig".
        golden: tensors of the golden model, int8 [inputs, height, width, channels]; input and output are needed.

    Raises:
        ToolError: the model does not fit (the message says what is how many bytes too large), a tool is missing or
            failed, or the program did.
    """
    elf = toolchain.build_target(
        generated, board.core, (), compiler, generated / board.name, board=board.name, program="application"
    )
    run = run_qemu(elf, board.machine, _given(plan, golden))
    expected = [golden[name] for name in plan.graph.outputs]
    size = sum(values.nbytes for values in expected)
    if len(run.outputs) != size:
        raise ToolError(f"{plan.graph.name} on {board.name} wrote {len(run.outputs):,} of {size:,} B of output")
    comparison = Comparison(f"C within {board.name}, {compiler}, QEMU")
    comparison.inputs = len(expected[0])
    at = 0
    for number in range(comparison.inputs):
        for label, values in zip(output_labels(plan.graph), expected, strict=True):
            one = np.frombuffer(run.outputs, values.dtype, values[number].size, at).reshape(values[number].shape)
            comparison.compare(label, number, 0, one, values[number])
            at += one.nbytes
    assert run.stack_bytes is not None
    found = _memory(elf, plan, board, run.stack_bytes)
    if not found.stack_painted <= found.stack_worst <= found.stack_room:
        raise ToolError(f"{plan.graph.name} on {board.name} can take {found.stack_worst:,} B of stack:\n  {found}")
    return comparison.leg(), found


def _given(plan: Plan, golden: Mapping[str, Int8Array]) -> bytes:
    """Return what the application reads: all inputs, or their rows in the order in which they are pushed."""
    if plan.input_mode != "rows":
        return input_bytes(plan.graph, golden)
    parts = []
    for number in range(len(golden[plan.graph.inputs[0]])):
        taken = dict.fromkeys(plan.graph.inputs, 0)
        for name in (plan.graph.inputs[~step] for step in plan.schedule if step < 0):
            parts.append(golden[name][number, taken[name]].tobytes())
            taken[name] += 1
    return b"".join(parts)


def _memory(elf: Path, plan: Plan, board: Board, painted: int) -> Fit:
    """Return what the linked application takes of the board's memory."""
    at = {symbol.name: symbol.address for symbol in toolchain.symbols(elf)}
    variables = at["__bss_end"] - at["__ram_start"]
    return Fit(
        board=board.name,
        flash=at["__flash_end"] - at["__flash_start"],
        flash_used=at["__data_load"] + at["__data_end"] - at["__data_start"] - at["__flash_start"],
        ram=at["__ram_end"] - at["__ram_start"],
        arena=plan.arena_bytes,
        variables=variables - plan.arena_bytes,
        stack_room=toolchain.section_bytes(elf, ".stack"),
        stack_worst=stack.worst_case(elf, plan, ("reset",)).bytes,
        stack_painted=painted,
    )
