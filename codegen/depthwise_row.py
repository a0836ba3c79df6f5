"""The plan of one row of a depthwise 3x3: which products each word takes part in, and when finished outputs leave.

A word holds two neighbouring pixels of a channel; in planar8 it holds four, which become two words of 16-bit lanes. A
kernel row (w0, w1, w2) is packed twice, as P = (w0, w1) and Q = (w1, w2), so that each word is used as it is loaded;
for stride 1:

    out[2k - 1] += low * w2;  out[2k] += (low, high) . Q;  out[2k + 1] += (low, high) . P;  out[2k + 2] += high * w0

`row_words` makes that plan for any width, padding and stride, `row_quads` for the bytes of stride 2, where so few
outputs are alive that a word's four pixels can be used up before the next row's. What would meet padding columns is
not emitted.
"""

from dataclasses import dataclass

ACCUMULATORS = ("r10", "r11", "r12")
ROW_WORDS = ("r7", "r8", "r9")  # the loaded words of the three rows


@dataclass(frozen=True)
class Product:
    """A word times a kernel row, summed in one accumulator: once for each row of the window."""

    accumulator: str
    first: bool  # starts the sum, from the bias
    instruction: str
    weights: str  # P or Q


@dataclass(frozen=True)
class Leave:
    """A finished output."""

    accumulator: str
    pixel: int


@dataclass(frozen=True)
class Word:
    """What one word of a row does: products that finish outputs, outputs that leave, products that start others."""

    offset: int  # bytes in the row
    pixel: int  # its first
    rotation: int | None  # of bytes that are to be widened
    finish: tuple[Product, ...]
    leave: tuple[Leave, ...]
    scratch: str  # a register that is free while outputs leave
    start: tuple[Product, ...]


@dataclass(frozen=True)
class Quad:
    """What four pixels of planar8 do, row by row of the window; then outputs leave."""

    offset: int  # bytes in the row
    even: tuple[Product, ...]  # of pixels 0 and 1
    odd: tuple[Product, ...]  # of pixels 2 and 3
    spare: str  # takes pixels 0 and 1 of the first row; further rows have the word before
    leave: tuple[Leave, ...]
    scratch: str


_BOTH = {0: ("smlad", "P"), 1: ("smlad", "Q"), 2: ("smlabt", "Q"), -1: ("smlatb", "P")}
_LOW_ONLY = {0: ("smlabb", "P"), 1: ("smlabb", "Q"), 2: ("smlabt", "Q")}
_Plan = dict[int, tuple[str, str]]  # instruction and weights for each output that a word takes part in


def _plans(width: int, left: int, stride: int, outputs: int) -> list[_Plan]:
    """Return the plan of each word: column x * stride - left + j of the input meets weight j of output x."""

    def products(word: int) -> _Plan:
        table = _BOTH if 2 * word + 1 < width else _LOW_ONLY
        taps = {x: 2 * word - (x * stride - left) for x in range(outputs)}  # which weight meets the lower lane
        return {x: table[tap] for x, tap in taps.items() if tap in table}

    return [products(word) for word in range((width + 1) // 2)]


class _Registers:
    """Which accumulator holds which output."""

    def __init__(self) -> None:
        self.free = list(ACCUMULATORS)
        self.of = dict[int, str]()

    def product(self, x: int, instruction: str, weights: str) -> Product:
        """Return a product of output x, which gets an accumulator if it has none."""
        first = x not in self.of
        if first:
            self.of[x] = self.free.pop(0)
        return Product(self.of[x], first, instruction, weights)

    def leave(self, finished: list[int]) -> tuple[Leave, ...]:
        """Return how outputs leave; their accumulators are free then."""
        self.free = sorted([*self.free, *(self.of[x] for x in finished)])
        return tuple(Leave(self.of[x], x) for x in finished)


def row_words(width: int, left: int, stride: int, outputs: int, packed: bool) -> tuple[Word, ...]:
    """Return the plan of a row by words of two pixels; `packed`: as the halves of planar8's words."""
    plans = _plans(width, left, stride, outputs)
    last = {x: word for word, plan in enumerate(plans) for x in plan}
    registers, finished = _Registers(), list[int]()
    words = []
    for word, plan in enumerate(plans):
        finish = tuple(registers.product(x, *plan[x]) for x in plan if last[x] == word)
        finished += [x for x in plan if last[x] == word]
        others = [x for x in plan if last[x] != word]
        leave: tuple[Leave, ...] = ()
        free = registers.free
        scratch = free[0] if free else ROW_WORDS[0]
        crowded = len(free) <= sum(x not in registers.of for x in others)  # a register must stay free, as scratch
        if finished and (len(finished) >= 2 or crowded or word == len(plans) - 1):
            assert free or not others  # the loaded words are still needed where outputs go on
            leave = registers.leave(finished)
            finished = []
        start = tuple(registers.product(x, *plan[x]) for x in others)
        offset, rotation = (4 * (word // 2), word % 2 * 8) if packed else (4 * word, None)
        words.append(Word(offset, 2 * word, rotation, finish, leave, scratch, start))
    assert sorted(leaving.pixel for word in words for leaving in word.leave) == list(range(outputs))
    return tuple(words)


def row_quads(width: int, left: int, outputs: int) -> tuple[Quad, ...]:
    """Return the plan of a row of planar8 at stride 2, by words of four pixels."""
    plans = _plans(width, left, 2, outputs)
    last = {x: word // 2 for word, plan in enumerate(plans) for x in plan}
    registers = _Registers()
    quads = []
    for quad in range((len(plans) + 1) // 2):
        even, odd = plans[2 * quad], plans[2 * quad + 1] if 2 * quad + 1 < len(plans) else {}
        evens = tuple(registers.product(x, *even[x]) for x in even)
        spare = registers.free[0]  # an output that the odd pair starts may have it afterwards
        odds = tuple(registers.product(x, *odd[x]) for x in odd)
        finished = [x for x in {**even, **odd} if last[x] == quad]
        scratch = ROW_WORDS[0]  # all words are used up
        quads.append(Quad(4 * quad, evens, odds, spare, registers.leave(finished), scratch))
    assert sorted(leaving.pixel for quad in quads for leaving in quad.leave) == list(range(outputs))
    return tuple(quads)
