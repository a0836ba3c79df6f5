"""How plain C goes over the channels of a pixel: value by value, or four at a time where they are whole words.

A word is two channels of 16 bits, or four bytes, which become two words of 16-bit lanes: channels 0, 2 and 1, 3. Lanes
hold quantized + 128; two words of them, `first` and `second`, hold what is gathered of four channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from codegen.layout import BYTES8, WIDE8, WIDE16, Storage
from codegen.plain import Access, access


def plus(constant: int) -> str:
    """Return a constant behind a term."""
    return f" {'+' if constant > 0 else '-'} {abs(constant)}" if constant else ""


@dataclass(frozen=True)
class Passes:
    """From a source to a target with as many channels."""

    source: Access
    target: Access
    words: bool  # four channels at a time

    @property
    def channels(self) -> range:
        """Return the first channel of each pass."""
        return range(0, self.target.channels, 4 if self.words else 1)

    @property
    def signed(self) -> bool:
        """Return whether bytes are quantized as they are, not + 128."""
        return self.source.c_type == "int8_t"

    @property
    def halves(self) -> bool:
        """Return whether a word is two channels; else it is four."""
        return self.source.c_type == "int16_t"

    @property
    def units(self) -> int:
        """Return the loads that one pass takes from each pixel: words, or a value."""
        return 2 if self.words and self.halves else 1

    @property
    def step(self) -> int:
        """Return the units from one pass to the next."""
        return self.units if self.words else self.source.channel

    @property
    def pixel(self) -> int:
        """Return the units from pixel to pixel."""
        return self.in_units(self.source.pixel)

    @property
    def first(self) -> int:
        """Return the units from the start of a row to its first pixel."""
        return self.in_units(self.source.first)

    @property
    def target_step(self) -> int:
        """Return the elements of the target from one pass to the next."""
        return self.channels.step * self.target.channel

    def in_units(self, elements: int) -> int:
        """Return a distance in units."""
        return elements * (2 if self.halves else 1) // 4 if self.words else elements

    def unit(self, name: str) -> str:
        """Return the C type of a unit."""
        return f"{name}_word" if self.words else self.source.c_type

    def loads(self, row: str, place: str, first: int = 0) -> list[str]:
        """Return the units of one pixel, `first` units from a place in a row."""
        return [f"{row}[{place}{plus(first + unit)}]" for unit in range(self.units)]

    @property
    def same(self) -> bool:
        """Return whether what is loaded may be stored as it is."""
        kinds = [(a.c_type, a.offset, a.channel) for a in (self.source, self.target)]
        return kinds[0] == kinds[1]

    @property
    def lanes(self) -> tuple[str, ...]:
        """Return the four channels that are gathered in lanes."""
        lanes = [f"({word} {part})" for word in ("first", "second") for part in ("& 0xffffu", ">> 16")]
        return tuple(lanes[i] for i in ((0, 1, 2, 3) if self.halves else (0, 2, 1, 3)))

    def stores(self, values: Sequence[str]) -> list[str]:
        """Return the statements that store the channels of a pass, int32 expressions of quantized + 128."""
        addend, kind = plus(-128 - self.target.offset), self.target.c_type
        return [f"out[{i * self.target.channel}] = ({kind})({value}{addend});" for i, value in enumerate(values)]


def passes(source: Storage, target: Storage, fits: bool) -> Passes:
    """Return how to go over the channels; `fits`: what is gathered of a channel fits into a lane.

    In words where they are whole, those behind the last channel included.
    """
    whole = source.stored_channels % 4 == target.stored_channels % 4 == 0
    return Passes(access(source), access(target), fits and whole and source.layout in (WIDE16, WIDE8, BYTES8))
