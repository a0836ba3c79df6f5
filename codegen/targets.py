"""A target is a row: its instruction set's features, how it is compiled, where it is emulated, what instructions cost.

Everything here is data. The planner reads the features and the costs, `mnet.toolchain` the flags, `mnet.emulator` the
boards, `mnet.cycles` the timing tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mnet.errors import PlanError


@dataclass(frozen=True)
class Timing:
    """Cycles per class of instruction, with zero wait states: no caches, no bus contention, no write-buffer stalls.

    `model` names the core whose manual the costs come from; `note` says how far they hold for this target.
    """

    model: str
    note: str
    data_processing: int = 1  # also extends, saturation, SIMD adds, IT, NOP, hints
    multiply: int = 1  # MUL
    multiply_accumulate: int = 1  # MLA, MLS
    long_multiply: int = 1  # SMULL, UMULL
    long_multiply_accumulate: int = 1  # SMLAL, UMLAL, UMAAL
    dsp_multiply: int = 1  # SMLAD, SMUAD, SMMUL, SMLABB, SMLALD and the rest of the DSP extension
    divide: int = 7  # SDIV, UDIV: 2 to 12 by operand
    load: int = 2  # one register, any addressing mode
    load_pipelined: int = 1  # right behind a single load or store, unless that one loaded this one's address register
    store: int = 1
    double: int = 3  # LDRD, STRD
    multiple: int = 1  # LDM, STM, PUSH, POP and the FPU's: this, and 1 per word
    multiple_pc: int = 2  # added when the list holds pc
    branch_taken: int = 3  # B, B<cond>, CBZ, CBNZ
    branch_not_taken: int = 1
    call: int = 3  # BL
    branch_register: int = 3  # BX, BLX, MOV pc, ADD pc
    load_pc: int = 4  # LDR pc
    table_branch: int = 4  # TBB, TBH
    system: int = 1  # MRS, MSR, DMB, DSB, ISB, CPS
    vfp: int = 1  # VADD, VMUL, VCMP, VCVT, VMOV of one word
    vfp_move_two: int = 2  # VMOV of two words
    vfp_multiply_accumulate: int = 3
    vfp_divide: int = 14  # VDIV, VSQRT
    vfp_load: int = 2  # VLDR of a word; a double costs one more
    vfp_store: int = 1  # VSTR of a word; a double costs one more


# Source: Cortex-M4 Technical Reference Manual r0p1, tables 3-1 and 7-1. A pipeline refill (1 to 3 cycles) counts 2.
_M4 = Timing(model="cortex-m4", note="from the Cortex-M4 manual; hardware without wait states takes 1 to 3 % more")

# Source: Cortex-M3 Technical Reference Manual r2p1, table 3-1. Long multiplies depend on the operands (3 to 5, 4 to 7).
_M3 = replace(
    _M4,
    model="cortex-m3",
    note="from the Cortex-M3 manual; long multiplies and divisions depend on operands, their middle is taken",
    multiply_accumulate=2,
    long_multiply=4,
    long_multiply_accumulate=5,
)

# Source: Cortex-M0 Technical Reference Manual r0p0, table 3-1, with the single-cycle multiplier.
_M0 = Timing(
    model="cortex-m0",
    note="from the Cortex-M0 manual, with the single-cycle multiplier (the small one takes 32)",
    load=2,
    load_pipelined=2,
    store=2,
    multiple_pc=3,
    call=4,
    system=4,
)

# Source: Cortex-M0+ Technical Reference Manual r0p1, table 3-1, with the single-cycle multiplier.
_M0PLUS = replace(
    _M0,
    model="cortex-m0plus",
    note="from the Cortex-M0+ manual, with the single-cycle multiplier (the small one takes 32)",
    multiple_pc=2,
    branch_taken=2,
    call=3,
    branch_register=2,
    system=3,
)


def _as_m4(core: str) -> Timing:
    return replace(_M4, note=f"the Cortex-M4's costs: Arm publishes no cycle table for the {core}")


@dataclass(frozen=True)
class Target:
    """One thing that C is generated for.

    `dsp`, `fpu` and `mve` are what the generated kernels may use; where the compiler lacks them the C bodies stand in.
    """

    name: str  # as on the command line, with the prefix
    core: str  # whose instructions are compiled and executed, a compiler's -mcpu; "" on the host
    dsp: bool
    fpu: bool
    mve: bool
    gcc: tuple[str, ...]  # flags of arm-none-eabi-gcc that choose the core
    zig: tuple[str, ...]  # the same for `python -m ziglang cc`
    boards: tuple[str, ...]  # emulated, first choice first; the next ones take what is too large for it
    unicorn: str | None  # name of Unicorn's CPU model; None where it has none
    timing: Timing
    runs_on: tuple[str, ...]  # names of the targets whose emulated runs prove this one
    without: frozenset[str] = frozenset()  # families of kernels that the planner has to do without: see mnet.ablation

    @property
    def board(self) -> str | None:
        """The emulated board of first choice; None on the host."""
        return self.boards[0] if self.boards else None

    @property
    def dual_issue(self) -> bool:
        """Whether the core issues two instructions at a time, see `codegen.dual_issue`."""
        return self.core == "cortex-m7"

    @property
    def dual_16x16(self) -> bool:
        """Whether one instruction makes two 16-bit products (SMLAD)."""
        return self.dsp


def _zig(core: str, abi: str = "eabi") -> tuple[str, ...]:
    return ("-target", f"thumb-freestanding-{abi}", f"-mcpu={core}")


def _gcc(core: str, fpu: str | None = None) -> tuple[str, ...]:
    flags = (f"-mcpu={core}", "-mthumb")
    return (*flags, f"-mfpu={fpu}", "-mfloat-abi=hard") if fpu else (*flags, "-mfloat-abi=soft")


_CORTEX_M0 = Target(
    name="cortex-m0",
    core="cortex-m0",
    dsp=False,
    fpu=False,
    mve=False,
    gcc=_gcc("cortex-m0"),
    zig=_zig("cortex_m0"),
    boards=("microbit", "mps2-an385"),  # the second has an M3, which runs all that an M0 runs
    unicorn="M0",
    timing=_M0,
    runs_on=("cortex-m0",),
)

_CORTEX_M4 = Target(
    name="cortex-m4",
    core="cortex-m4",
    dsp=True,
    fpu=True,
    mve=False,
    gcc=_gcc("cortex-m4", "fpv4-sp-d16"),
    zig=_zig("cortex_m4", "eabihf"),
    boards=("mps2-an386",),
    unicorn="M4",
    timing=_M4,
    runs_on=("cortex-m4",),
)

_CORTEX_M55 = Target(
    name="cortex-m55",
    core="cortex-m55",
    dsp=True,
    fpu=True,
    mve=True,
    gcc=("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
    zig=_zig("cortex_m55+mve", "eabihf"),
    boards=("mps3-an547",),
    unicorn=None,
    timing=_as_m4("Cortex-M55"),
    runs_on=("cortex-m55",),
)

_ROWS = (
    replace(
        _CORTEX_M4,
        name="cortex-m",
        runs_on=("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"),
    ),
    _CORTEX_M0,
    replace(
        _CORTEX_M0,
        name="cortex-m0plus",
        core="cortex-m0plus",
        gcc=_gcc("cortex-m0plus"),
        zig=_zig("cortex_m0plus"),
        timing=_M0PLUS,
        runs_on=("cortex-m0plus",),
    ),
    Target(
        name="cortex-m3",
        core="cortex-m3",
        dsp=False,
        fpu=False,
        mve=False,
        gcc=_gcc("cortex-m3"),
        zig=_zig("cortex_m3"),
        boards=("mps2-an385",),
        unicorn="M3",
        timing=_M3,
        runs_on=("cortex-m3",),
    ),
    _CORTEX_M4,
    replace(
        _CORTEX_M4,
        name="cortex-m7",
        core="cortex-m7",
        gcc=_gcc("cortex-m7", "fpv5-sp-d16"),
        zig=_zig("cortex_m7", "eabihf"),
        boards=("mps2-an500",),
        unicorn="M7",
        timing=_as_m4("Cortex-M7"),
        runs_on=("cortex-m7",),
    ),
    replace(
        _CORTEX_M4,
        name="cortex-m33",
        core="cortex-m33",
        gcc=_gcc("cortex-m33", "fpv5-sp-d16"),
        zig=_zig("cortex_m33+dsp", "eabihf"),
        boards=("mps2-an505",),
        unicorn="M33",
        timing=_as_m4("Cortex-M33"),
        runs_on=("cortex-m33",),
    ),
    _CORTEX_M55,
    # Compiled and executed as an M55: gcc 12 and QEMU 7 know no M85.
    replace(_CORTEX_M55, name="cortex-m85", timing=_as_m4("Cortex-M85"), runs_on=("cortex-m85",)),
    # The host runs the M4's plan through the C bodies of its instructions.
    replace(
        _CORTEX_M4,
        name="host",
        core="",
        gcc=(),
        zig=(),
        boards=(),
        unicorn=None,
        timing=replace(_M4, note="the Cortex-M4's costs, which choose the plan; the host's own are not modelled"),
        runs_on=(),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({row.name: row for row in _ROWS})


def target(name: str) -> Target:
    """Return the target `name`, with or without the prefix `cortex-`.

    Raises:
        PlanError: there is none of that name; the message lists those that there are.

    >>> target("m4").name, target("cortex-m0plus").board
    ('cortex-m4', 'microbit')
    """
    found = TARGETS.get(name) or TARGETS.get(f"cortex-{name}")
    if found is None:
        raise PlanError(f"unknown target {name!r}; the targets are {', '.join(TARGETS)}")
    return found
