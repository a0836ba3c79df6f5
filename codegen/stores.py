"""From registers that hold one stored value each to words in memory: how convolutions pack and store their outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codegen.layout import PLANAR8

BYTE_ORDER = (0, 1, 2, 3)


@dataclass(frozen=True)
class Store:
    """One store instruction."""

    instruction: str
    register: str
    offset: int  # bytes from the output pointer


@dataclass(frozen=True)
class Stores:
    """Instructions that pack values, and the stores of what they leave, by ascending offset."""

    packing: tuple[str, ...]
    stores: tuple[Store, ...]


def together(parts: Iterable[Stores]) -> Stores:
    """Return all of them as one: first all packing, then all stores."""
    parts = tuple(parts)
    packing = tuple(line for part in parts for line in part.packing)
    stores = sorted((store for part in parts for store in part.stores), key=lambda store: store.offset)
    return Stores(packing, tuple(stores))


def single(register: str, size: int, offset: int) -> Stores:
    """Return the store of one value of `size` bytes."""
    return Stores((), (Store("strb" if size == 1 else "strh", register, offset),))


def neighbours(registers: Sequence[str], size: int, planar: bool, offset: int) -> Stores:
    """Return the stores of values of `size` bytes that follow each other in memory, from a whole word on.

    Bytes are at most four. `planar`: they are pixels, in the order of planar8, and the whole word may be written.

    >>> neighbours(("r6", "r7", "r8"), 2, True, 0).packing
    ('pkhbt r6, r6, r7, lsl #16',)
    >>> neighbours(("r6", "r7", "r8", "r9"), 1, False, 0)  # doctest: +NORMALIZE_WHITESPACE
    Stores(packing=('pkhbt r6, r6, r8, lsl #16', 'pkhbt r7, r7, r9, lsl #16', 'orr r6, r6, r7, lsl #8'),
           stores=(Store(instruction='str', register='r6', offset=0),))
    """
    if size == 2:
        pairs = [registers[i : i + 2] for i in range(0, len(registers), 2)]
        packing = [f"pkhbt {pair[0]}, {pair[0]}, {pair[1]}, lsl #16" for pair in pairs if len(pair) == 2]
        stores = [Store("str" if len(pair) == 2 else "strh", pair[0], offset + 4 * i) for i, pair in enumerate(pairs)]
        return Stores(tuple(packing), tuple(stores))
    place = PLANAR8.pixel_order if planar else BYTE_ORDER
    byte = {place[i]: register for i, register in enumerate(registers)}
    packing = [f"pkhbt {byte[i]}, {byte[i]}, {byte[i + 2]}, lsl #16" for i in (0, 1) if i + 2 in byte]
    if 1 in byte:
        packing.append(f"orr {byte[0]}, {byte[0]}, {byte[1]}, lsl #8")
    assert planar or len(byte) in (2, 4)
    return Stores(tuple(packing), (Store("str" if planar or len(byte) == 4 else "strh", byte[0], offset),))
