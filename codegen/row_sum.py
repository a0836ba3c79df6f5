"""The first stage of an average over whole channels: a row of pixels is added to the sums of its channels.

Stored values are 0..255, so 16 bits hold the sum of up to 257 of them: on cores with DSP instructions the pixels of a
row are added in the lanes of words, eight channels at a time, before the lanes go to the sums of 32 bits. A word of
four bytes is two pairs of lanes, channels 0, 2 and 1, 3. Every other input is summed in plain C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from codegen.call import Call, Cost
from codegen.convolution_parts import (
    BRANCH_BACK,
    LOAD,
    NARROW,
    NOTHING,
    POP,
    PUSH,
    WIDE,
    Part,
    addition,
    loaded,
    repeated,
    total,
)
from codegen.layout import WIDE8, WIDE16, align4
from codegen.plain import Access, access
from codegen.plain_cost import row_sum_in_c_cost
from codegen.targets import Timing

LANES = ("r2", "r3", "r4", "r5")
WORDS = ("r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr")  # of the input, then sums
MOST_PIXELS = 65535 // 255
STRAIGHT = 16  # pixels; rows of more are a loop
ROUND = 8  # pixels of its body
LARGEST_OFFSET = 4095  # of a load


@dataclass(frozen=True)
class Group:
    """Loads one behind the other, and what becomes of the words."""

    loads: tuple[tuple[str, int], ...]  # register, bytes from the first pixel
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Eight channels, or the last four, of all pixels."""

    channels: int
    count: int  # of such blocks
    words: int  # of a pixel

    @property
    def sums(self) -> tuple[str, ...]:
        """Return the registers of the sums."""
        return WORDS[: self.channels]


@dataclass(frozen=True)
class RowSumView:
    """Add one row to the sums of its channels."""

    source: Access
    assembly: bool

    @property
    def in_bytes(self) -> bool:
        """Return whether a word is four values; else it is two."""
        return self.source.c_type == "uint8_t"

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a value."""
        return 1 if self.in_bytes else 2

    @property
    def pixel_bytes(self) -> int:
        """Return the bytes from pixel to pixel."""
        return self.source.pixel * self.value_bytes

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the channels in the order in which they are summed."""
        eights, rest = divmod(align4(self.source.channels), 8)
        counts = ((8, eights), (4, rest // 4))
        return tuple(Block(n, count, n * self.value_bytes // 4) for n, count in counts if count)

    @property
    def pixels(self) -> int:
        """Return the pixels of a round, or of a row without a loop."""
        reach = max(1, 1 + (LARGEST_OFFSET - 12) // self.pixel_bytes)
        return self.source.width if self.source.width <= min(STRAIGHT, reach) else min(ROUND, reach)

    @property
    def rounds(self) -> int:
        """Return how many there are."""
        return self.source.width // self.pixels

    @property
    def rest(self) -> int:
        """Return the pixels behind them."""
        return self.source.width % self.pixels

    def first_lanes(self, block: Block) -> tuple[str, ...]:
        """Return the registers that the lanes of a block take."""
        return LANES[: block.channels // 2]

    def groups(self, block: Block, pixels: int, fresh: bool) -> tuple[Group, ...]:
        """Return how some pixels come into the lanes; `fresh`: they are the first."""
        places = [p * self.pixel_bytes + 4 * word for p in range(pixels) for word in range(block.words)]
        groups, start = [], block.words if fresh else 0
        loads = [(self._lanes(word)[0], places[word]) for word in range(start)]
        steps = [step for word in range(start) for step in self._set(word)]
        while loads or start < len(places):
            some = list(zip(WORDS, places[start:], strict=False))
            steps += [step for i, (register, _) in enumerate(some) for step in self._add(i % block.words, register)]
            groups.append(Group((*loads, *some), tuple(steps)))
            loads, steps, start = [], [], start + len(some)
        return tuple(groups)

    def fold(self, block: Block) -> tuple[str, ...]:
        """Return how lanes are added to the sums of 32 bits."""
        steps = []
        for word in range(block.words):
            order = (0, 2, 1, 3) if self.in_bytes else (0, 1)
            for i, channel in enumerate(order):
                register = block.sums[len(order) * word + channel]
                lanes = self._lanes(word)[i // 2]
                steps.append(
                    f"add {register}, {register}, {lanes}, lsr #16"
                    if i % 2
                    else f"uxtah {register}, {register}, {lanes}"
                )
        return tuple(steps)

    def _lanes(self, word: int) -> Sequence[str]:
        return LANES[2 * word : 2 * word + 2] if self.in_bytes else LANES[word : word + 1]

    def _set(self, word: int) -> tuple[str, ...]:
        if not self.in_bytes:
            return ()
        even, odd = self._lanes(word)
        return f"uxtb16 {odd}, {even}, ror #8", f"uxtb16 {even}, {even}"

    def _add(self, word: int, register: str) -> tuple[str, ...]:
        lanes = self._lanes(word)
        if not self.in_bytes:
            return (f"uadd16 {lanes[0]}, {lanes[0]}, {register}",)
        even, odd = lanes
        return f"uxtab16 {even}, {even}, {register}", f"uxtab16 {odd}, {odd}, {register}, ror #8"


def row_sum_view(call: Call, dsp: bool = False) -> RowSumView:
    """Return what the text depends on; `dsp`: for a core with DSP instructions."""
    source, channels = call.inputs[0], call.output.tensor.shape[2]
    words = source.layout in (WIDE16, WIDE8) and source.stored_channels % 4 == 0
    # what lies behind the last channel is added to what lies behind the last sum
    inside = call.output.stored_channels >= align4(channels)
    return RowSumView(access(source), dsp and words and inside and source.width <= MOST_PIXELS)


@lru_cache(maxsize=4096)
def row_sum_cost(view: RowSumView, timing: Timing) -> Cost:
    """Return what one call takes."""
    if not view.assembly:
        return row_sum_in_c_cost(view.source, timing)
    whole = PUSH + LOAD + NARROW + addition(view.source.first * view.value_bytes) + POP
    for block in view.blocks:
        whole += _block(view, block)
    return Cost(whole.cycles, whole.code)


def _block(view: RowSumView, block: Block) -> Part:
    """Return all blocks of so many channels."""
    count = len(block.sums)
    part = _pixels(view, block) + Part(2 * (1 + count), 8) + WIDE.copies(count)
    moved = view.rounds * view.pixels * view.pixel_bytes if view.rounds > 1 else 0
    part += addition(4 * block.words - moved)
    if block.count == 1:
        return part
    return addition(4 * count * block.count) + WIDE + repeated(part + WIDE + NARROW + BRANCH_BACK, block.count)


def _pixels(view: RowSumView, block: Block) -> Part:
    """Return how all pixels come into the lanes."""
    if view.rounds == 1:
        return _groups(view.groups(block, view.pixels, True))
    step = view.pixels * view.pixel_bytes
    start = WIDE.copies(len(view.first_lanes(block))) + addition(view.rounds * step) + WIDE
    body = _groups(view.groups(block, view.pixels, False)) + addition(step) + WIDE + NARROW + BRANCH_BACK
    return start + repeated(body, view.rounds) + _groups(view.groups(block, view.rest, False))


def _groups(groups: Sequence[Group]) -> Part:
    return total(loaded(group.loads) + WIDE.copies(len(group.steps)) for group in groups) if groups else NOTHING
