"""How convolutions pack and store their outputs: from registers that hold one stored value each to words in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codegen.layout import PLANAR8, Storage

BYTE_ORDER = (0, 1, 2, 3)
FARTHEST, FARTHEST_MOVE = 4095, 255  # of the offset of a store, and of one that is added to its pointer


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

    def move(self, step: int) -> bool:
        """Return whether the store of the first value can move the output pointer on by `step` bytes: it comes last."""
        return self.stores[0].offset == 0 and self.stores[-1].offset <= FARTHEST and 0 < step <= FARTHEST_MOVE


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


@dataclass(frozen=True)
class OutputView:
    """Where the outputs of one call lie. Distances are in bytes."""

    first: int  # from the start of the row's slot to the first pixel
    pixel: int
    channel: int
    row: int
    size: int  # of a value: 2, or 1, where the pixels of a planar row stand in the order 0, 2, 1, 3
    offset: int  # subtracted from quantized + 128
    wrap: int  # pixels of a row, where those of several rows are taken as one line; else 0

    @property
    def planar(self) -> bool:
        """Return whether the pixels of a channel are neighbours, not the channels of a pixel."""
        return self.pixel == self.size

    @property
    def shuffled(self) -> bool:
        """Return whether pixels stand in the order 0, 2, 1, 3."""
        return self.planar and self.size == 1

    def place(self, pixel: int) -> int:
        """Return the bytes from the first pixel of a line to another one."""
        row, pixel = divmod(pixel, self.wrap) if self.wrap else (0, pixel)
        if self.shuffled:
            return row * self.row + pixel // 4 * 4 + PLANAR8.pixel_order[pixel % 4]
        return row * self.row + pixel * self.pixel

    def distance(self, pair: int) -> int:
        """Return the bytes from the first to the second pixel of a pair."""
        return self.place(2 * pair + 1) - self.place(2 * pair)

    @property
    def walk(self) -> tuple[int, ...]:
        """Return how a pointer walks over pairs that straddle rows, a word for each pair of two rows.

        Bits 0-14: bytes to the next pair; bit 15: the walk begins anew; 16-31: the distance of the next pair.
        """
        words = []
        for pair in range(self.wrap):
            step, last = self.place(2 * pair + 2) - self.place(2 * pair), pair == self.wrap - 1
            assert 0 < step < 1 << 15
            words.append(step | last << 15 | (self.distance(pair + 1) & 0xFFFF) << 16)
        return tuple(words)

    def stores(self, sums: Sequence[Sequence[str]], first: int, in_words: bool, offset: int = 0) -> Stores:
        """Return how sums of neighbouring pixels come into memory.

        Args:
            sums: registers [pixel][channel].
            first: the number of the first pixel of the line.
            in_words: planar pixels fill words of memory, from the first pixel on.
            offset: bytes from the pointer to the first pixel.
        """
        places = [offset + self.place(first + i) - self.place(first) for i in range(len(sums))]
        if not self.planar:
            return together(neighbours(channels, self.size, False, places[i]) for i, channels in enumerate(sums))
        planes = [(pixels, channel * self.channel) for channel, pixels in enumerate(zip(*sums, strict=True))]
        if in_words:
            return together(neighbours(pixels, self.size, True, places[0] + plane) for pixels, plane in planes)
        return together(
            single(pixel, self.size, places[i] + plane) for pixels, plane in planes for i, pixel in enumerate(pixels)
        )


def output_view(target: Storage, row: int, wrap: int) -> OutputView:
    """Return where the outputs of a call lie whose rows are `row` bytes apart."""
    return OutputView(
        first=target.left * target.pixel_bytes,
        pixel=target.pixel_bytes,
        channel=target.channel_bytes,
        row=row,
        size=target.layout.element_bytes,
        offset=target.offset + 128,
        wrap=wrap,
    )
