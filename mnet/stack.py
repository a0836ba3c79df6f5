"""Worst-case stack of generated code, from its machine code: no run, no input, whatever a compiler made of it.

    stack(function) = the most of what it pushes itself, and of (bytes pushed at a call) + stack(callee) over its calls

Every path through a function is followed, with the depth of the stack on it. The loop over the schedule calls kernels
through a pointer: that call may reach any of them. Naked assembly is machine code like the rest. gcc's -fstack-usage
agrees for functions in C (tested), but says nothing of assembly, and clang has no such file.

One kernel, `convolution_shared`, takes as many bytes as a word of its constants says: the largest that a plan gives it.
"""

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import capstone
from capstone import arm as ins

from codegen.convolution_shared import WINDOW_BYTES_WORD
from codegen.plan import Plan
from mnet.errors import ToolError
from mnet.graph import numbered
from mnet.toolchain import code_of, instruction_bytes, symbols

_MOST_VISITS = 64  # of an instruction, each with a deeper stack than before: more is a loop that pushes

# What is known of a register: ("number", n); ("depth", bytes from it to the entry's stack pointer); ("popped", 0).
_Known = Mapping[int, tuple[str, int]]


@dataclass(frozen=True)
class Frame:
    """What one function does to the stack, in bytes below the stack pointer that it was entered with."""

    own: int  # pushed at most by itself
    calls: tuple[tuple[int, int], ...] = ()  # bytes pushed at a call, address of the callee
    indirect: tuple[int, ...] = ()  # bytes pushed at a call through a pointer


@dataclass(frozen=True)
class Stack:
    """Worst-case stack of a linked model, in bytes; the caller's own frame is not part of it."""

    public: Mapping[str, int]  # by name of a public function: what a call takes
    functions: Mapping[str, int]  # of the model, by name: what each takes with all that it calls
    frames: Mapping[str, int]  # of the model, by name: what each pushes itself

    @property
    def bytes(self) -> int:
        """Return what the deepest call of a public function takes."""
        return max(self.public.values())


def public_functions(plan: Plan) -> tuple[str, ...]:
    """Return the names that generated C gives to its callers."""
    inputs = len(plan.graph.inputs)
    match plan.input_mode:
        case "arena":
            names: tuple[str, ...] = (*numbered("input", inputs), "run_in_place")
        case "rows":
            more = ("next_input",) if inputs > 1 else ()
            names = ("run", "begin", *numbered("push_rows", inputs), "finish", *more)
        case _:
            names = ("run",)
    return tuple(f"{plan.graph.name}_{name}" for name in names)


def worst_case(elf: Path, plan: Plan, of: Sequence[str] = ()) -> Stack:
    """Return the worst-case stack of the public functions in an ELF file of `toolchain.build_target`.

    Args:
        elf: linked, built without the harness's switches: a trace would be part of the figure.
        plan: what it was generated from.
        of: other functions of the program instead of the public ones, such as "reset" for all of it.

    Raises:
        ToolError: a function has no bound that can be seen, or the file lacks the model's functions.
    """
    kernels = {entry.symbol for entry in plan.entries}
    kernels |= {f"{plan.graph.name}_{name}" for name in numbered("take", len(plan.graph.inputs))}
    return stack_of(elf, of or public_functions(plan), kernels, _dynamic(plan))


def stack_of(elf: Path, of: Sequence[str], pointed_at: Collection[str], dynamic: Mapping[str, int]) -> Stack:
    """Return the worst-case stack of functions of an ELF file.

    Args:
        elf: linked.
        of: names of the functions; those that it lacks are left out.
        pointed_at: names of the functions that a call through a pointer may reach.
        dynamic: bytes that functions take by `sub sp, sp, register`, by name.

    Raises:
        ToolError: a function has no bound that can be seen, or the file has none of them.
    """
    found = [symbol for symbol in symbols(elf) if symbol.is_function]
    starts = frozenset(symbol.address for symbol in found)
    names = {symbol.address: symbol.name for symbol in found}
    ends = {symbol.address: symbol.address + symbol.size for symbol in found}
    code = code_of(elf)

    @cache
    def frame(address: int) -> Frame:
        name = names.get(address, f"{address:#x}")
        return _Walk(name, address, code, starts, dynamic.get(_plain(name))).frame(ends.get(address, address))

    depth = _Depth(frame, [symbol.address for symbol in found if _plain(symbol.name) in pointed_at], names)
    model = [symbol for symbol in found if symbol.section == ".model_code"]
    wanted = {symbol.name: symbol.address for symbol in found if symbol.name in of}
    if not wanted:
        raise ToolError(f"{elf.name} has none of the functions {', '.join(of)}")
    return Stack(
        public={name: depth(address) for name, address in wanted.items()},
        functions={symbol.name: depth(symbol.address) for symbol in model},
        frames={symbol.name: frame(symbol.address).own for symbol in model},
    )


def _plain(name: str) -> str:
    """Return the name of a function without what compilers add: .constprop.0, .isra.0."""
    return name.split(".")[0]


def _dynamic(plan: Plan) -> dict[str, int]:
    """Return for each function whose constants say how many bytes it takes the largest such number."""
    found: dict[str, int] = {}
    shared = {op.symbol for op in plan.ops if op.kernel.family == "convolution_shared"}
    for entry in plan.entries:
        if entry.symbol in shared:
            word = plan.constants[entry.constants][entry.first_word + WINDOW_BYTES_WORD]
            found[entry.symbol] = max(found.get(entry.symbol, 0), word)
    return found


class _Depth:
    """The deepest path of calls from a function on."""

    def __init__(self, frame: Callable[[int], Frame], pointed_at: list[int], names: Mapping[int, str]) -> None:
        self._frame = frame
        self._pointed_at = pointed_at
        self._names = names
        self._known: dict[int, int | None] = {}  # None while a function is being looked at

    def __call__(self, address: int) -> int:
        """Return the bytes of stack that a call of the function at `address` takes.

        Raises:
            ToolError: it can call itself.
        """
        if address in self._known:
            known = self._known[address]
            if known is None:
                raise ToolError(f"{self._names.get(address, hex(address))} can call itself: its stack has no bound")
            return known
        self._known[address] = None
        frame = self._frame(address)
        calls = [*frame.calls, *((depth, kernel) for depth in frame.indirect for kernel in self._pointed_at)]
        deepest = max([frame.own, *(depth + self(callee) for depth, callee in calls)])
        self._known[address] = deepest
        return deepest


@cache
def _decoder() -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8)
    decoder.detail = True
    return decoder


class _Walk:
    """Follows all paths of one function; addresses are those of the linked program."""

    def __init__(
        self,
        name: str,
        start: int,
        code: Callable[[int, int], bytes],
        starts: frozenset[int],
        dynamic: int | None,
    ) -> None:
        self._name = name
        self._start = start
        self._code = code
        self._starts = starts  # of all functions
        self._dynamic = dynamic  # what `sub sp, sp, register` takes
        self._depths: dict[int, int] = {}
        self._visits: dict[int, int] = {}
        self._calls: set[tuple[int, int]] = set()
        self._indirect: set[int] = set()
        self._jumps: set[int] = set()  # depths at jumps to computed places
        self._conditional: set[int] = set()  # addresses of instructions in IT blocks

    def frame(self, end: int) -> Frame:
        """Return what the function does; `end` is the address behind it, which only computed jumps need."""
        self._follow(self._start, 0)
        address = self._start
        while self._jumps and address < end:  # whatever was not reached yet is where such a jump may go
            if address not in self._depths:
                self._follow(address, max(self._jumps), end)
            address += instruction_bytes(self._code(address, 2), 0)
        return Frame(max(self._depths.values()), tuple(sorted(self._calls)), tuple(sorted(self._indirect)))

    def _fail(self, address: int, what: str) -> ToolError:
        return ToolError(f"the stack of {self._name} has no bound that can be seen: {what} at {address:#x}")

    def _follow(self, start: int, depth: int, end: int | None = None) -> None:
        work: list[tuple[int, int, _Known]] = [(start, depth, {})]
        while work:
            address, depth, known = work.pop()
            if self._depths.get(address, -1) >= depth or address == end:  # gcc puts a NOP behind naked functions
                continue
            self._visits[address] = self._visits.get(address, 0) + 1
            if self._visits[address] > _MOST_VISITS:
                raise self._fail(address, "a loop that pushes more each time")
            self._depths[address] = depth
            work.extend(self._step(address, depth, known))

    def _step(self, address: int, depth: int, known: _Known) -> list[tuple[int, int, _Known]]:
        """Return where control goes from an instruction, with the depth there."""
        size = instruction_bytes(self._code(address, 2), 0)
        after = address + size
        decoded = next(_decoder().disasm(self._code(address, size), address, 1), None)
        if decoded is None:  # MVE and its loops: none of them moves the stack pointer
            return [(after, depth, known)]
        if decoded.id == ins.ARM_INS_IT:
            self._note_conditional(address)
            return [(after, depth, known)]
        always = decoded.cc in (ins.ARM_CC_AL, ins.ARM_CC_INVALID) and address not in self._conditional
        if decoded.id in (ins.ARM_INS_B, ins.ARM_INS_CBZ, ins.ARM_INS_CBNZ):
            goal = decoded.operands[-1].imm & ~1
            following = [] if always and decoded.id == ins.ARM_INS_B else [(after, depth, known)]
            if goal in self._starts and goal != self._start:
                self._calls.add((depth, goal))  # a tail call
                return following
            return [(goal, depth, known), *following]
        if decoded.id in (ins.ARM_INS_BL, ins.ARM_INS_BLX):
            self._call(decoded, depth)
            kept = {register: what for register, what in known.items() if register not in _CHANGED_BY_CALLS}
            return [(after, depth, kept)]
        skipped = [] if always else [(after, depth, known)]
        if self._leaves(decoded, depth, known):
            return skipped
        return [(after, *self._moved(decoded, address, depth, known)), *skipped]

    def _note_conditional(self, address: int) -> None:
        """Note the one to four instructions that the IT at `address` governs: the lowest set bit of its mask says."""
        mask = self._code(address, 1)[0] & 15
        count = 4 - ((mask & -mask).bit_length() - 1)
        address += 2
        for _ in range(count):
            self._conditional.add(address)
            address += instruction_bytes(self._code(address, 2), 0)

    def _call(self, decoded: Any, depth: int) -> None:
        goal = decoded.operands[0]
        if goal.type == ins.ARM_OP_IMM:
            self._calls.add((depth, goal.imm & ~1))
        else:
            self._indirect.add(depth)

    def _leaves(self, decoded: Any, depth: int, known: _Known) -> bool:
        """Return whether control does not go on behind an instruction: a return, or a jump to a computed place."""
        if decoded.id in (ins.ARM_INS_TBB, ins.ARM_INS_TBH):
            self._jumps.add(depth)
            return True
        registers = [operand.reg for operand in decoded.operands if operand.type == ins.ARM_OP_REG]
        if decoded.id == ins.ARM_INS_UDF:
            return True
        into_pc = ins.ARM_REG_PC in registers[:1] or ins.ARM_REG_PC in decoded.regs_access()[1]
        if decoded.id != ins.ARM_INS_BX and not into_pc:
            return False
        from_stack = any(
            operand.type == ins.ARM_OP_MEM and operand.mem.base == ins.ARM_REG_SP for operand in decoded.operands
        )
        listed = decoded.id in (ins.ARM_INS_POP, ins.ARM_INS_LDM)
        goes_to = registers[-1]
        if listed or from_stack or goes_to == ins.ARM_REG_LR or known.get(goes_to, ("", 0))[0] == "popped":
            return True
        if decoded.id == ins.ARM_INS_BX and depth == 0:
            self._indirect.add(0)  # a tail call through a pointer
        else:
            self._jumps.add(depth)
        return True

    def _moved(self, decoded: Any, address: int, depth: int, known: _Known) -> tuple[int, _Known]:
        """Return the depth behind an instruction, and what is known there."""
        written = set(decoded.regs_access()[1])
        listed = [operand.reg for operand in decoded.operands if operand.type == ins.ARM_OP_REG]
        if decoded.id in (ins.ARM_INS_PUSH, ins.ARM_INS_VPUSH):
            return depth + _bytes_of(decoded, listed), known
        if decoded.id in (ins.ARM_INS_POP, ins.ARM_INS_VPOP):
            popped = dict.fromkeys(listed, ("popped", 0))
            return depth - _bytes_of(decoded, listed), {**known, **popped}
        now = self._value(decoded, depth, known)
        kept = {register: what for register, what in known.items() if register not in written}
        if ins.ARM_REG_SP not in written:
            return depth, {**kept, listed[0]: now} if now and listed and listed[0] in written else kept
        if decoded.id in _MULTIPLE:
            size = _bytes_of(decoded, listed[1:])
            return depth + (size if decoded.id in _STORES else -size), kept
        if now is not None and now[0] == "depth":
            return now[1], kept
        if any(operand.type == ins.ARM_OP_MEM for operand in decoded.operands):
            return depth - _writeback(decoded), kept
        if decoded.id in (ins.ARM_INS_SUB, ins.ARM_INS_ADD) and self._dynamic is not None:
            return depth + self._dynamic * (1 if decoded.id == ins.ARM_INS_SUB else -1), kept
        raise self._fail(address, f"{decoded.mnemonic} {decoded.op_str}")

    def _value(self, decoded: Any, depth: int, known: _Known) -> tuple[str, int] | None:
        """Return what an instruction puts into its first register, where that is a number or a place on the stack."""

        def of(operand: Any) -> tuple[str, int] | None:
            if operand.type == ins.ARM_OP_IMM:
                return ("number", int(operand.imm))
            if operand.type == ins.ARM_OP_REG:
                return ("depth", depth) if operand.reg == ins.ARM_REG_SP else known.get(operand.reg)
            return None

        operands = decoded.operands
        if decoded.id in (ins.ARM_INS_MOV, ins.ARM_INS_MOVW) and len(operands) == 2:
            return of(operands[1])
        if decoded.id == ins.ARM_INS_LDR and len(operands) == 2 and operands[1].type == ins.ARM_OP_MEM:
            if operands[1].mem.base != ins.ARM_REG_PC or operands[1].mem.index:
                return None
            place = (decoded.address + 4 & ~3) + operands[1].mem.disp
            return ("number", int(struct.unpack("<i", self._code(place, 4))[0]))
        if len(operands) < 2:
            return None
        one, other = of(operands[-2]), of(operands[-1])
        if one is None or other is None or other[0] != "number" or one[0] not in ("number", "depth"):
            return None
        sign = 1 if one[0] == "number" else -1  # a depth grows as addresses fall
        match decoded.id:
            case ins.ARM_INS_ADD | ins.ARM_INS_ADDW:
                return (one[0], one[1] + sign * other[1])
            case ins.ARM_INS_SUB | ins.ARM_INS_SUBW:
                return (one[0], one[1] - sign * other[1])
            case ins.ARM_INS_LSL if one[0] == "number":
                bits = other[1] & 0xFF  # of a register
                return ("number", _signed(one[1] << bits & 0xFFFFFFFF))
            case ins.ARM_INS_MOVT if one[0] == "number":
                return ("number", _signed((one[1] & 0xFFFF) | other[1] << 16))
            case ins.ARM_INS_RSB if one[0] == "number":
                return ("number", other[1] - one[1])
            case _:
                return None


_CHANGED_BY_CALLS = frozenset(
    (ins.ARM_REG_R0, ins.ARM_REG_R1, ins.ARM_REG_R2, ins.ARM_REG_R3, ins.ARM_REG_R12, ins.ARM_REG_LR)
)
_STORES = frozenset((ins.ARM_INS_STM, ins.ARM_INS_STMDB, ins.ARM_INS_VSTMDB, ins.ARM_INS_VSTMIA))
_MULTIPLE = _STORES | {ins.ARM_INS_LDM, ins.ARM_INS_LDMDB, ins.ARM_INS_VLDMIA, ins.ARM_INS_VLDMDB}


def _bytes_of(decoded: Any, registers: list[int]) -> int:
    """Return what registers take on the stack: d0 to d31 two words."""
    return sum(8 if str(decoded.reg_name(register)).startswith("d") else 4 for register in registers)


def _writeback(decoded: Any) -> int:
    """Return what a load or store with write-back adds to the stack pointer."""
    last = decoded.operands[-1]
    if last.type == ins.ARM_OP_MEM:
        return int(last.mem.disp)
    return -int(last.imm) if last.subtracted else int(last.imm)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
