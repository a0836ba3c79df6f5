"""Modelled cycles: exact counts of what ran, times the costs that a core's manual gives each instruction.

    counts of edges between basic blocks (mnet.counting, exact)  x  disassembly  x  Timing (codegen.targets)

Instructions are exact. Cycles are a model of a core with zero wait states: no caches, no flash latency, no bus
contention, no write-buffer stalls. Hardware takes more: a Cortex-M4 without wait states 1 to 3 %, an STM32L4R5 running
from flash at 120 MHz about 18 %. The rules, beyond the table of a target:

  * A single load costs `load_pipelined` right behind another single load or store, unless that one was a load of the
    register that forms this one's address; otherwise `load`.
  * A branch costs `branch_taken` or `branch_not_taken` by where control really went.
  * An instruction that an IT block skips costs what it costs when executed; a skipped branch costs `branch_not_taken`.
  * What the disassembler does not know (MVE, low-overhead loops on a Cortex-M55) costs `data_processing`.
  * M7, M33, M55 and M85 take the M4's costs, for Arm publishes none: good to compare kernels by, no prediction.

What a flash with wait states costs is in mnet.flash, from the code that `Profile.fetch` says comes from it.
"""

import bisect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import capstone
from capstone import arm as capstone_arm

from codegen.targets import Target, Timing
from mnet.counting import REST, Counts, Edge, count_qemu, count_unicorn
from mnet.flash import Fetch, fetched
from mnet.toolchain import Symbol, build_target, code_of, instruction_bytes, symbols

# Functions of the harness that run between subject_begin and subject_end; what they do is not the model's.
_HARNESS = frozenset({"measured_run", "subject_begin", "subject_end", "subject_trace"})


@dataclass(frozen=True)
class Cost:
    """What some part of a run took."""

    instructions: int = 0
    cycles: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.instructions + other.instructions, self.cycles + other.cycles)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.instructions - other.instructions, self.cycles - other.cycles)


@dataclass(frozen=True)
class Profile:
    """One inference: `total` == the sum of `entries` + `runner` == the sum of `functions`."""

    target: str
    emulator: str  # "unicorn" or "qemu"
    timing: str  # whose costs, and how far they hold
    entries: Mapping[int, Cost]  # by entry of the generated table: its kernel's calls, without the loop that calls them
    runner: Cost  # that loop, preparation, copying the output
    functions: Mapping[str, Cost]
    total: Cost
    stack_bytes: int | None
    fetch: Mapping[int, Fetch]  # by entry: code that a small instruction cache does not hold


# --- the costs of a block -----------------------------------------------------------------------------------------

_LOAD = re.compile(r"^ldr(b|h|sb|sh)?t?$|^ldrex[bh]?$")
_STORE = re.compile(r"^str(b|h)?t?$|^strex[bh]?$")
_LONG_MULTIPLY = ("smull", "umull")
_LONG_ACCUMULATE = ("smlal", "umlal", "umaal")
_DSP_MULTIPLY = re.compile(r"^sm(la|ls|ua|us|mul|mla|mls|ul)")
_SYSTEM = ("mrs", "msr", "dmb", "dsb", "isb", "cps", "cpsid", "cpsie")
_VFP_ACCUMULATE = re.compile(r"^v(n?mla|n?mls|fn?ma|fn?ms|nmul)$")


@dataclass(frozen=True)
class _Instruction:
    """What the model needs to know of a decoded instruction."""

    kind: str  # the mnemonic without width and condition
    conditional: bool
    registers: tuple[str, ...]
    address: frozenset[str]  # registers that form the address of a load or store
    words: int  # of a register list


@dataclass(frozen=True)
class _Block:
    instructions: int
    cycles: int  # when the branch at its end is taken
    not_taken_saves: int
    end: int  # the address behind it
    branches: bool
    first: _Instruction | None
    last: _Instruction | None

    @property
    def ends_in(self) -> str:
        """Return the last instruction, without width and condition."""
        return self.last.kind if self.last else ""


@cache
def _decoder() -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8)
    decoder.detail = True
    return decoder


@lru_cache(maxsize=1 << 16)
def _decoded(code: bytes) -> _Instruction:
    """Return the instruction of these 2 or 4 bytes; what it costs does not depend on where it stands."""
    decoded = next(_decoder().disasm(code, 0, 1), None)
    if decoded is None:
        return _Instruction("unknown", False, (), frozenset(), 0)
    kind = str(decoded.mnemonic).split(".")[0]
    conditional = decoded.cc not in (capstone_arm.ARM_CC_AL, capstone_arm.ARM_CC_INVALID)
    if conditional and len(kind) > 2 and kind != "it":
        kind = kind[:-2]
    registers, address = [], set()
    for operand in decoded.operands:
        if operand.type == capstone_arm.ARM_OP_REG:
            registers.append(str(decoded.reg_name(operand.reg)))
        elif operand.type == capstone_arm.ARM_OP_MEM:
            parts = (operand.mem.base, operand.mem.index)
            address |= {str(decoded.reg_name(part)) for part in parts if part}
    listed = registers if kind in ("push", "pop", "vpush", "vpop") else registers[1:]
    words = sum(2 if re.match(r"d\d", register) else 1 for register in listed)
    return _Instruction(kind, conditional or kind in ("cbz", "cbnz"), tuple(registers), frozenset(address), words)


class BlockCosts:
    """Static costs of basic blocks, by the rules above.

    Args:
        code: gives the bytes of an address and a length.
        timing: the table.
    """

    def __init__(self, code: Callable[[int, int], bytes], timing: Timing) -> None:
        self._code = code
        self._timing = timing
        self._blocks: dict[tuple[int, int], _Block] = {}

    def __call__(self, address: int, size: int) -> _Block:
        key = (address, size)
        if key not in self._blocks:
            self._blocks[key] = self._block(address, size)
        return self._blocks[key]

    def after(self, block: _Block, following: _Block) -> int:
        """Cycles that `following`'s first instruction gains from `block`, which runs on into it without a branch."""
        if following.first is None:
            return 0
        return self._cycles(following.first, block.last) - self._cycles(following.first, None)

    def _block(self, address: int, size: int) -> _Block:
        found: list[_Instruction] = []
        code = self._code(address, size)
        at = 0
        while at < size:
            length = instruction_bytes(code, at)
            found.append(_decoded(code[at : at + length]))
            at += length
        cycles = 0
        previous = None
        for instruction in found:
            cycles += self._cycles(instruction, previous)
            previous = instruction
        last = found[-1] if found else None
        branches = last is not None and _is_branch(last)
        saves = 0
        if last is not None and branches:
            taken = self._cycles(last, found[-2] if len(found) > 1 else None)
            saves = taken - self._timing.branch_not_taken
        return _Block(len(found), cycles, saves, address + size, branches, found[0] if found else None, last)

    def _cycles(self, instruction: _Instruction, previous: _Instruction | None) -> int:
        """Cycles of `instruction` behind `previous` (None: unknown); a branch as if taken."""
        t = self._timing
        kind, registers = instruction.kind, instruction.registers
        to_pc = bool(registers) and registers[0] == "pc"
        if _LOAD.match(kind):
            if to_pc:
                return t.load_pc
            single = previous is not None and (_LOAD.match(previous.kind) or _STORE.match(previous.kind))
            if single and previous is not None:
                waits = bool(_LOAD.match(previous.kind)) and previous.registers[0] in instruction.address
                return t.load if waits else t.load_pipelined
            return t.load
        if _STORE.match(kind):
            return t.store
        if kind in ("ldrd", "strd"):
            return t.double
        if kind in ("push", "vpush", "vpop") or kind.startswith(("stm", "vldm", "vstm")):
            return t.multiple + instruction.words
        if kind == "pop" or kind.startswith("ldm"):
            return t.multiple + instruction.words + (t.multiple_pc if "pc" in registers else 0)
        if kind in ("vldr", "vstr"):
            return (t.vfp_load if kind == "vldr" else t.vfp_store) + (1 if registers[0].startswith("d") else 0)
        if kind in ("b", "cbz", "cbnz"):
            return t.branch_taken
        if kind == "bl":
            return t.call
        if kind in ("bx", "blx") or (to_pc and kind in ("mov", "add")):
            return t.branch_register
        if kind in ("tbb", "tbh"):
            return t.table_branch
        if kind in ("sdiv", "udiv"):
            return t.divide
        if kind in ("mul", "muls"):
            return t.multiply
        if kind in ("mla", "mls"):
            return t.multiply_accumulate
        if kind in _LONG_MULTIPLY:
            return t.long_multiply
        if kind in _LONG_ACCUMULATE:
            return t.long_multiply_accumulate
        if _DSP_MULTIPLY.match(kind):
            return t.dsp_multiply
        if kind in _SYSTEM:
            return t.system
        if kind in ("vdiv", "vsqrt"):
            return t.vfp_divide
        if _VFP_ACCUMULATE.match(kind):
            return t.vfp_multiply_accumulate
        if kind == "vmov" and len(registers) >= 3:
            return t.vfp_move_two
        return t.vfp if kind.startswith("v") else t.data_processing


def _is_branch(instruction: _Instruction) -> bool:
    kind, registers = instruction.kind, instruction.registers
    if kind in ("b", "bl", "bx", "blx", "cbz", "cbnz", "tbb", "tbh"):
        return True
    if kind == "pop" or kind.startswith("ldm"):
        return "pc" in registers
    return bool(registers) and registers[0] == "pc" and (kind in ("mov", "add") or bool(_LOAD.match(kind)))


# --- costs of a run -----------------------------------------------------------------------------------------------


class _Functions:
    """Which function an address lies in."""

    def __init__(self, table: Iterable[Symbol]) -> None:
        self._found = [symbol for symbol in table if symbol.is_function]
        self._starts = [symbol.address for symbol in self._found]

    def __call__(self, address: int) -> str:
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0 and (self._found[at].size == 0 or address < self._found[at].address + self._found[at].size):
            return self._found[at].name
        return f"{address:#x}"


def apply(edges: Iterable[Edge], costs: BlockCosts, function_of: Callable[[int], str]) -> dict[tuple[int, str], Cost]:
    """Return the cost of each (entry, function) in a run: the timing model over exact counts."""
    edges = tuple(edges)
    size_of: dict[int, int] = {}
    for edge in edges:
        size_of[edge.block] = max(edge.bytes, size_of.get(edge.block, 0))
    result: dict[tuple[int, str], Cost] = {}

    def add(entry: int, address: int, cost: Cost) -> None:
        key = (entry, function_of(address))
        result[key] = result.get(key, Cost()) + cost

    for edge in edges:
        block = costs(edge.block, edge.bytes)
        add(edge.entry, edge.block, Cost(edge.count * edge.instructions, edge.count * block.cycles))
        if edge.before not in size_of:
            continue
        origin = costs(edge.before, size_of[edge.before])
        if edge.block != origin.end:
            continue
        if origin.branches:
            add(edge.entry, edge.before, Cost(0, -edge.count * origin.not_taken_saves))
        else:
            # The emulator cut straight code in two: the first load behind the cut may be pipelined after all.
            add(edge.entry, edge.block, Cost(0, edge.count * costs.after(origin, block)))
    return result


def _counts(elf: Path, target: Target, image: bytes, emulator: str) -> Counts:
    return count_unicorn(elf, target, image) if emulator == "unicorn" else count_qemu(elf, None, image)


def _costs_of(elf: Path, target: Target, counts: Counts) -> dict[tuple[int, str], Cost]:
    found = apply(counts.edges, BlockCosts(code_of(elf), target.timing), _Functions(symbols(elf)))
    return {key: cost for key, cost in found.items() if key[1] not in _HARNESS}


def profile(
    elf: Path, target: Target, image: bytes, marked: Path | None = None, emulator: str | None = None
) -> Profile:
    """Count and model one inference.

    Args:
        elf: built by `build_target` with SUBJECT_COUNT (the model's code as shipped), or with SUBJECT_MARK.
        target: whose instructions the ELF file holds; gives the emulated core and the costs.
        image: SUBJECT_INPUT_BYTES.
        marked: the same model built with SUBJECT_MARK, which tells the entries apart; None leaves `entries` empty
            unless `elf` is marked itself.
        emulator: "unicorn" or "qemu"; by default Unicorn where it has the core.

    Returns:
        Totals from `elf`; each entry's kernels from `marked`, where their code is the same, and `runner` is the
        difference, so that marks cost nothing. Calls of marks in `elf` itself count to `runner`.

    Raises:
        ToolError: no emulator for the core, or the program failed.
    """
    chosen = emulator or ("unicorn" if target.unicorn else "qemu")
    counts = _counts(elf, target, image, chosen)
    shipped = _costs_of(elf, target, counts)
    functions: dict[str, Cost] = {}
    for (_, function), cost in shipped.items():
        functions[function] = functions.get(function, Cost()) + cost
    total = sum(functions.values(), Cost())

    marked = marked or elf
    entries: dict[int, Cost] = {}
    fetch: Mapping[int, Fetch] = {}
    mark = next((symbol.address for symbol in symbols(marked) if symbol.name == "subject_trace"), None)
    if mark is not None:
        marked_counts = counts if marked is elf else _counts(marked, target, image, chosen)
        function_of = _Functions(symbols(marked))
        runners = {function_of(edge.before) for edge in marked_counts.edges if edge.block == mark}
        for (entry, function), cost in _costs_of(marked, target, marked_counts).items():
            if entry != REST and function not in runners:
                entries[entry] = entries.get(entry, Cost()) + cost
        kernels = (e for e in marked_counts.edges if e.entry != REST and function_of(e.block) not in runners)
        fetch = fetched(kernels, BlockCosts(code_of(marked), target.timing))
    return Profile(
        target=target.name,
        emulator=chosen,
        timing=target.timing.note,
        entries=MappingProxyType(dict(sorted(entries.items()))),
        runner=total - sum(entries.values(), Cost()),
        functions=MappingProxyType(dict(sorted(functions.items(), key=lambda item: (-item[1].cycles, item[0])))),
        total=total,
        stack_bytes=counts.run.stack_bytes,
        fetch=MappingProxyType(dict(fetch)),
    )


def profile_folder(
    folder: Path, target: Target, image: bytes, out_dir: Path, compiler: str = "gcc", emulator: str | None = None
) -> Profile:
    """Build a generated folder twice, as shipped and marked, and profile one inference.

    Args:
        folder: what `mnet codegen` wrote.
        target: the core.
        image: SUBJECT_INPUT_BYTES.
        out_dir: where the builds go.
        compiler: "gcc" (arm-none-eabi-gcc) or "zig".
        emulator: "unicorn" or "qemu"; by default Unicorn where it has the core.

    Raises:
        ToolError: a compiler or emulator is missing, or failed.
    """
    shipped = build_target(folder, target, ("SUBJECT_COUNT",), compiler, out_dir / "counted")
    marked = build_target(folder, target, ("SUBJECT_MARK",), compiler, out_dir / "marked")
    return profile(shipped, target, image, marked, emulator)
