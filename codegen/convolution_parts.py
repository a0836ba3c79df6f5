"""Cycles and code bytes of pieces of the convolutions' assembly: what cost functions are put together from.

The rules of mnet/cycles.py: one cycle an instruction; a load takes two, or one right behind another load or store;
multiple loads and stores take one more than they have words; a branch that is taken takes three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codegen.requantize import RequantizationView
from codegen.stores import FARTHEST, Stores

LOW_REGISTERS = tuple(f"r{i}" for i in range(8))  # instructions of two bytes reach these only
C_BYTES = 350  # of the C bodies; roughly, as their cycles are


@dataclass(frozen=True)
class Part:
    """Some instructions, as often as they run."""

    cycles: int = 0
    code: int = 0  # bytes

    def __add__(self, other: "Part") -> "Part":
        return Part(self.cycles + other.cycles, self.code + other.code)

    def times(self, count: int) -> "Part":
        """Return the same text, running `count` times."""
        return Part(self.cycles * count, self.code)

    def copies(self, count: int) -> "Part":
        """Return the same text, written `count` times."""
        return Part(self.cycles * count, self.code * count)


NOTHING = Part()
WIDE = Part(1, 4)  # an instruction of four bytes
NARROW = Part(1, 2)
LOAD = Part(2, 2)
PUSH, POP = Part(10, 4), Part(12, 4)  # r4-r11, lr or pc
BRANCH_BACK = Part(3, 4)
NOT_TAKEN = Part(-2, 0)  # the last round


def total(parts: Iterable[Part]) -> Part:
    return sum(parts, NOTHING)


def repeated(body: Part, count: int) -> Part:
    """Return `count` rounds of a body that ends in a conditional branch."""
    return body.times(count) + NOT_TAKEN


def addition(value: int) -> Part:
    """Return what adding a constant takes: the macro `add`."""
    if value == 0:
        return NOTHING
    if abs(value) < 4096:
        return WIDE
    return Part(2, 6) if 0 < value < 65536 else Part(3, 10)


def loaded(loads: Sequence[tuple[str, int]], behind_load: bool = False) -> Part:
    """Return loads (register, offset) one behind the other."""
    far = sum(offset > 4095 for _, offset in loads)
    near = sum(offset <= 124 and register in LOW_REGISTERS for register, offset in loads)
    cycles = len(loads) + bool(loads and not behind_load) + 3 * far
    return Part(cycles, 4 * len(loads) - 2 * near + 8 * far)


def stored(stores: Stores, step: int = 0) -> Part:
    """Return packing, stores and the step of the output pointer: the macro `store`."""
    reach = {"str": 124, "strh": 62, "strb": 31}
    part, base = Part(len(stores.packing), 4 * len(stores.packing)), 0
    moves = stores.move(step)
    for store in stores.stores[moves:]:
        if store.offset - base > FARTHEST:
            part, base = part + addition(store.offset - base), store.offset
        offset = store.offset - base
        part += NARROW if store.register in LOW_REGISTERS and 0 <= offset <= reach[store.instruction] else WIDE
    return part + (WIDE if moves else addition(step - base) if step else NOTHING)


def limits(requantization: RequantizationView, offset: int, registers: int) -> Part:
    """Return the clamps to the activation and the subtraction of the output's offset."""
    sides = (requantization.clamp_low > 0) + (requantization.clamp_high < 255) if requantization.clamps else 0
    return Part(3, 8).copies(sides * registers) + (WIDE.copies(registers) if offset else NOTHING)


def requantized(requantization: RequantizationView, offset: int, pixels: int) -> Part:
    """Return the requantisation of two output channels that share lanes: the macro `requantize_lanes`."""
    if requantization.form == "fast":
        part = Part(4, 2) + WIDE.copies(6 * pixels)
    else:
        part = Part(4, 2).copies(2) + WIDE.copies(11 * pixels)
    return part + limits(requantization, offset, 2 * pixels)
