"""The order of instructions for cores that issue two at a time, in order: the Cortex-M7.

The bodies of the DSP kernels load some words and then multiply them, which suits the Cortex-M4, where neighbouring
loads pipeline. The Cortex-M7 issues a load beside a multiplication, if neither needs the other: loads that are spread
between the multiplications of the step before cost nothing. `reordered` is a list scheduler over the straight runs of a
body; registers, flags and the order of memory accesses stay as they are, so the bits do too.

Rules, simplified from measurements: https://www.quinapalus.com/cm7cycles.html (Arm publishes no table).
- Two neighbouring instructions issue together if the second reads nothing that the first writes.
- Multiplications, SIMD and saturating instructions only issue as the first of a pair (`FIRST_ONLY`), one a cycle.
- One of the two may access memory; multiple loads and stores issue alone.
- What a load brings can be used two cycles later, what a multiplication makes one cycle later as an accumulator of the
  next and two cycles later elsewhere.
`issue_cycles` counts a run by these rules, so that the gain can be stated; no emulator models it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MULTIPLIES = ("smla", "smul", "smua", "smml", "smmu", "mul", "mla", "mls")
FIRST_ONLY = (*MULTIPLIES, "usat", "ssat", "sxt", "uxt", "pkh", "sadd", "uadd", "rev")
LOADS = ("ldr", "vldr")
STORES = ("str", "vstr")
MULTIPLE = ("ldm", "stm", "push", "pop", "vldm", "vstm", "vpush", "vpop")
BRANCHES = ("b", "bx", "bl", "blx", "bne", "beq", "bgt", "bge", "blt", "ble", "bhi", "bls", "bcc", "bcs", "cbz", "cbnz")
WINDOW = 96  # instructions that are ordered together; longer runs are cut
FLAGS = "flags"
MEMORY = "memory"

_REGISTER = re.compile(r"\b(r\d+|lr|sp|pc|s\d+)\b")
_RANGE = re.compile(r"\b([rs])(\d+)-[rs](\d+)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction (IT and what it covers are one): its lines, and the registers, flags and memory it touches."""

    lines: tuple[str, ...]
    mnemonic: str
    reads: frozenset[str]
    writes: frozenset[str]
    accumulator: str = ""  # the register that a multiplication adds to

    def starts(self, *prefixes: str) -> bool:
        """Return whether the mnemonic begins with one of the prefixes."""
        return self.mnemonic.startswith(prefixes)

    @property
    def memory(self) -> bool:
        """Return whether it accesses memory."""
        return self.starts(*LOADS, *STORES, *MULTIPLE)

    @property
    def alone(self) -> bool:
        """Return whether nothing issues beside it."""
        return self.starts(*MULTIPLE) or len(self.lines) > 1


def _code(line: str) -> str:
    return line.split("@")[0].strip()


def _registers(text: str) -> list[str]:
    text = _RANGE.sub(lambda m: ", ".join(f"{m[1]}{i}" for i in range(int(m[2]), int(m[3]) + 1)), text)
    return _REGISTER.findall(text)


def _parsed(line: str) -> Instruction:
    code = _code(line)
    mnemonic, _, operands = code.partition(" ")
    mnemonic = mnemonic.removesuffix(".w").removesuffix(".n")
    registers = _registers(operands)
    reads, writes = set(registers), set[str]()
    accumulator = ""
    if mnemonic.startswith(MULTIPLE):
        inside = set(_registers(operands[operands.index("{") :]))
        base = set(registers) - inside or {"sp"}
        into = mnemonic.startswith(("ldm", "pop", "vldm", "vpop"))
        reads = base if into else base | inside
        writes = (inside if into else set()) | (base if "!" in operands or base == {"sp"} else set())
        writes |= {MEMORY} if not into else set()
        reads |= {MEMORY} if into else set()
    elif mnemonic.startswith(STORES):
        writes = {MEMORY} | ({registers[-1]} if "!" in operands or "], #" in operands else set())
    elif mnemonic.startswith("cmp") or mnemonic.startswith("tst"):
        writes = {FLAGS}
    elif registers:
        writes = {registers[0]}
        reads = set(registers[1:])
        if mnemonic.startswith("ldrd"):
            writes.add(registers[1])
            reads = set(registers[2:])
        if mnemonic == "vmov" and len(registers) == 4:
            writes, reads = set(registers[:2]), set(registers[2:])
        if mnemonic.startswith(LOADS):
            reads.add(MEMORY)
            if "!" in operands or "], #" in operands:
                writes.add(registers[-1])
        if mnemonic == "movt":
            reads.add(registers[0])
        if mnemonic in ("subs", "adds", "ands", "lsls", "lsrs", "asrs", "movs"):
            writes.add(FLAGS)
    if mnemonic.startswith(("smla", "mla", "smmla")):
        accumulator = registers[-1]
    return Instruction((line,), mnemonic, frozenset(reads), frozenset(writes), accumulator)


def parsed(lines: Sequence[str]) -> list[Instruction]:
    """Return the instructions of a straight run; an IT block is one that stays together.

    >>> [sorted(i.writes) for i in parsed(["ldr r2, [r0, #4]", "smlad r6, r4, r2, r6", "cmp r6, #7", "it lt"])]
    [['r2'], ['r6'], ['flags'], ['flags']]
    """
    instructions: list[Instruction] = []
    covered = 0
    for line in lines:
        one = _parsed(line)
        if covered:
            covered -= 1
            it = instructions.pop()
            # What is not executed leaves the register as it was, which counts as reading it.
            reads = it.reads | one.reads | one.writes
            instructions.append(Instruction((*it.lines, line), it.mnemonic, reads, it.writes | one.writes))
        elif re.fullmatch(r"it[te]*", one.mnemonic):
            covered = len(one.mnemonic) - 1
            instructions.append(Instruction((line,), one.mnemonic, frozenset({FLAGS}), frozenset({FLAGS})))
        else:
            instructions.append(one)
    return instructions


def _latency(first: Instruction, register: str, second: Instruction) -> int:
    """Return the cycles from `first` to `second`, which reads what it writes."""
    if first.starts(*LOADS) or first.alone:
        return 2
    if first.starts(*MULTIPLIES):
        return 1 if second.accumulator == register else 2
    return 1


def _after(instructions: Sequence[Instruction]) -> list[dict[int, int]]:
    """Return for each instruction those before it that must come first, and by how many cycles."""
    needs: list[dict[int, int]] = []
    for number, later in enumerate(instructions):
        found: dict[int, int] = {}
        for index in range(number):
            earlier = instructions[index]
            true = earlier.writes & later.reads
            if true:
                found[index] = max(_latency(earlier, register, later) for register in true)
            elif earlier.writes & later.writes or earlier.reads & later.writes:
                found[index] = 0  # the order has to stay; in one cycle it does
        needs.append(found)
    return needs


def _together(first: Instruction, second: Instruction) -> bool:
    """Return whether two instructions may issue in one cycle, as far as they alone decide."""
    if first.alone or second.alone or second.starts(*FIRST_ONLY):
        return False
    if first.memory and second.memory:
        return False
    return not (first.writes & (second.reads | second.writes))


def _heights(needs: Sequence[dict[int, int]]) -> list[int]:
    """Return for each instruction the cycles from it to the end of the run."""
    heights = [0] * len(needs)
    for number in range(len(needs) - 1, -1, -1):
        for index, latency in needs[number].items():
            heights[index] = max(heights[index], heights[number] + max(latency, 1))
    return heights


def _scheduled(instructions: Sequence[Instruction]) -> Iterator[Instruction]:
    """Yield the instructions in a better order: cycle by cycle, the one that most depends on first."""
    needs = _after(instructions)
    heights = _heights(needs)
    at: dict[int, int] = {}
    cycle = 0

    def ready(number: int, beside: int | None) -> bool:
        for index, latency in needs[number].items():
            if index not in at or at[index] + latency > cycle or (index == beside and latency > 0):
                return False
        return beside is None or _together(instructions[beside], instructions[number])

    waiting = list(range(len(instructions)))
    while waiting:
        beside: int | None = None
        for _ in range(2):
            options = [number for number in waiting if ready(number, beside)]
            if not options:
                break
            # What can only be first goes first; a load beside it.
            first = beside is None
            chosen = max(options, key=lambda n: (first and instructions[n].starts(*FIRST_ONLY), heights[n], -n))
            yield instructions[chosen]
            at[chosen] = cycle
            waiting.remove(chosen)
            beside = chosen
        cycle += 1


def issue_cycles(instructions: Sequence[Instruction]) -> int:
    """Return the cycles of a straight run in its order, by the rules above."""
    needs = _after(instructions)
    at: list[int] = []
    cycle, pair = 0, 0  # pair: how many have issued in this cycle
    for number, one in enumerate(instructions):
        earliest = max((at[index] + latency for index, latency in needs[number].items()), default=0)
        fits = pair == 1 and earliest <= cycle and _together(instructions[number - 1], one)
        if not fits and pair:
            cycle, pair = cycle + 1, 0
        if earliest > cycle:
            cycle, pair = earliest, 0
        at.append(cycle)
        pair += 1
        if pair == 2 or one.alone:
            cycle, pair = cycle + 1, 0
    return cycle + (pair > 0)


def _is_border(line: str) -> bool:
    """Return whether a straight run ends at this line: a label, a branch, or what writes pc."""
    code = _code(line)
    mnemonic = code.partition(" ")[0].removesuffix(".w").removesuffix(".n")
    return code.endswith(":") or mnemonic in BRANCHES or "pc" in _registers(code)


def reordered(text: str) -> str:
    """Return the lines of a body (comments behind an @) in an order that issues in fewer cycles.

    A run that would not gain stays as it was written, and so does a body with computed jumps.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(_computed_jump(line) for line in lines):
        return text
    result: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        if line and not _is_border(line):
            run.append(line)
            continue
        whole = parsed(run)
        for start in range(0, len(whole), WINDOW):
            before = whole[start : start + WINDOW]
            after = list(_scheduled(before))
            best = after if issue_cycles(after) < issue_cycles(before) else before
            result += [part for instruction in best for part in instruction.lines]
        run = []
        if line:
            result.append(line)
    return "\n".join(result) + "\n"


def _computed_jump(line: str) -> bool:
    code = _code(line)
    return re.match(r"(tb[bh]|bx (?!lr)|(add|mov|ldr)(\.w)? pc)", code) is not None
