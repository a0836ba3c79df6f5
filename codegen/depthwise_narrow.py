"""Depthwise 3x3 on few pixels of interleaved channels, for cores with DSP instructions: rows that planar layouts, whose
rows are whole words, would lengthen.

One channel after the other is taken from rows in bytes or 16 bits, and two values are joined to a word for SMLAD. The
first two rows of the window are joined to each other, column by column; the third row's columns are joined in pairs:

    out[x] += (row 0, row 1) . (w0, w1)     for each of the three columns
    out[x] += (column, next) . (w0, w1) + (the third) * w2, or (the first) * w0 + (column, next) . (w1, w2)

So an output takes five multiplications for nine weights. A block of up to five outputs stays in registers while first
the upper rows pass by, then the third. Columns of padding are left out where padding is stored as 0.
All of a row is unrolled; channels are a loop.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from codegen.call import Call, Cost
from codegen.depthwise import depthwise_numbers
from codegen.depthwise_cost import addition, in_c, leaving, plain, repeated, total
from codegen.layout import WIDE8, WIDE16
from codegen.requantize import RequantizationView
from mnet.graph import DepthwiseConv2D

LARGEST_OFFSET = 4095  # of a load or a store
POOL = ("r7", "r8", "r9", "r10", "r11", "r12", "lr")  # for words and accumulators
EARLY = ("r3", "r4", "r5", "r6")
UPPER = (POOL, EARLY)  # and for values before the weights are loaded
POINTER = "r3"  # of the third row
# The last value of the third row may take the place of its pointer, so that r6 is free for the multiplier.
THIRD = (((*POOL, "r6"), ("r4", "r5")), ((*POOL, POINTER), ("r4", "r5")))
BLOCK = 5  # outputs whose accumulators leave two of them for a word
MOST_OUTPUTS = 24  # of a row: all are unrolled, about 50 bytes of code each
UNROLLED_OUTPUTS = 10  # that two or four channels share the loop for


@dataclass(frozen=True)
class Load:
    """A value of a row of the window. The first one of a row `moves` its pointer to the channel, where it stands."""

    register: str
    row: int
    column: int
    moves: bool

    @property
    def replaces_pointer(self) -> bool:
        """Return whether the value takes the place of its row's pointer."""
        return self.row == 2 and self.register == POINTER


@dataclass(frozen=True)
class Join:
    """Two values become a word; the register of the second is free then."""

    register: str
    second: str


@dataclass(frozen=True)
class Product:
    """A word times one of weights, summed in an accumulator; `first` starts the sum, from the bias."""

    accumulator: str
    instruction: str
    word: str
    weights: int  # which word of them: 0-2 of the upper rows by column; 0 (w0, w1) and 1 (w1, w2) of the third row
    first: bool


Step = Load | Join | Product


@dataclass(frozen=True)
class Pass:
    """What some rows of the window do, before and after their weights are loaded."""

    ahead: tuple[Step, ...]
    then: tuple[Step, ...]

    @property
    def loads(self) -> tuple[Load, ...]:
        """Return all loads."""
        return tuple(step for step in (*self.ahead, *self.then) if isinstance(step, Load))

    @property
    def overwrites(self) -> bool:
        """Return whether some value takes the place of the third row's pointer."""
        return any(load.replaces_pointer for load in self.loads)

    @property
    def sound(self) -> bool:
        """Return whether nothing is loaded behind such a value."""
        return not any(load.replaces_pointer for load in self.loads[:-1])


@dataclass(frozen=True)
class Block:
    """Outputs that are made together, in two passes; (accumulator, pixel) leave."""

    upper: Pass
    third: Pass
    leave: tuple[tuple[str, int], ...]

    @property
    def spare(self) -> bool:
        """Return whether r6 is free during the third row, so that a multiplier comes with the weights."""
        return all(load.register != "r6" for load in self.third.loads)

    @property
    def overwrites(self) -> bool:
        """Return whether the last value of the third row takes the place of its pointer."""
        return self.third.overwrites


@dataclass(frozen=True)
class NarrowView:
    """Everything that the text depends on. Distances are in bytes."""

    channels: int
    columns: int  # that are read
    left: int  # columns before them that are not, as they hold zeros
    stride: int  # columns
    outputs: int  # pixels of a row
    input_bytes: int  # of a value: 2 in wide16, 1 in wide8
    input_first: int
    input_pixel: int
    output_bytes: int  # of a value: 2 in wide16, 1 in wide8
    output_first: int
    output_pixel: int
    constants: Literal["pairs", "bytes"]  # of narrow_pack
    requantization: RequantizationView

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the plan of a row."""
        return _blocks(self)

    @property
    def unroll(self) -> int:
        """Return the channels of one round of the loop."""
        return next(n for n in (4, 2, 1) if n == 1 or (n * self.outputs <= UNROLLED_OUTPUTS and self.channels % n == 0))

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel."""
        return (6 if self.constants == "pairs" else 4) + self.requantization.words

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return (
            self.requantization.form in ("fast", "shifts")
            and self.outputs <= MOST_OUTPUTS
            and self.columns * self.input_pixel + self.unroll * self.input_bytes <= LARGEST_OFFSET
            and self.outputs * self.output_pixel + self.unroll * self.output_bytes <= LARGEST_OFFSET
        )


_Word = tuple[tuple[int, int], ...]  # (row, column) of one value or two
_Products = list[tuple[int, str, int]]  # output, instruction, word of weights

_PAIR = {0: ("smlad", 0), 1: ("smlad", 1)}  # by the tap of the first of two columns
_LOW = {0: ("smlabb", 0), 1: ("smlabb", 1), 2: ("smlabt", 1)}  # by the tap of the column
_HIGH = {0: ("smlatb", 0), 1: ("smlatt", 0), 2: ("smlatt", 1)}


def _upper(view: NarrowView, outputs: range) -> list[tuple[_Word, _Products]]:
    """Return words of the upper rows and their products."""
    found = list[tuple[_Word, _Products]]()
    for column in range(view.columns):
        taps = {x: column - (x * view.stride - view.left) for x in outputs}
        products: _Products = [(x, "smlad", tap) for x, tap in taps.items() if 0 <= tap < 3]
        if products:
            found.append((((0, column), (1, column)), products))
    return found


def _third(view: NarrowView, outputs: range, alone: int) -> list[tuple[_Word, _Products]]:
    """Return words of the third row and their products; so many first columns are not joined."""
    wanted = [word[0][1] for word, _ in _upper(view, outputs)]
    groups = [wanted[:alone], *(wanted[i : i + 2] for i in range(alone, len(wanted), 2))]
    found = list[tuple[_Word, _Products]]()
    for columns in filter(None, groups):
        products: _Products = []
        for x in outputs:
            tap = columns[0] - (x * view.stride - view.left)
            high = tap + 1 if len(columns) == 2 else -1
            if 0 <= tap < 3 and 0 <= high < 3:
                products.append((x, *_PAIR[tap]))
            elif 0 <= tap < 3:
                products.append((x, *_LOW[tap]))
            elif 0 <= high < 3:
                products.append((x, *_HIGH[high]))
        found.append((tuple((2, column) for column in columns), products))
    return found


@dataclass
class _Registers:
    """Which registers hold accumulators, and which may hold words, and values before the weights are loaded."""

    pool: tuple[str, ...]
    early: tuple[str, ...]
    held: dict[int, str]  # accumulators of outputs

    @property
    def free(self) -> list[str]:
        """Return what may hold words."""
        return [register for register in self.pool if register not in self.held.values()]

    def fits(self, words: Sequence[tuple[_Word, _Products]]) -> bool:
        """Return whether words can be loaded together, with the accumulators that start before they are used up."""
        live = set(self.held)
        if sum(len(word) for word, _ in words) > len(self.free) + len(self.early) or len(words) > len(self.free):
            return False
        for done, (_, products) in enumerate(words):
            live |= {x for x, _, _ in products}
            if len(live) + len(words) - done > len(self.pool):
                return False
        return True

    def load(self, words: Sequence[tuple[_Word, _Products]], moved: set[int]) -> tuple[list[Step], list[str]]:
        """Return how words are loaded behind each other, then joined, and the register of each."""
        found = self.free[: len(words)]
        others = [*self.early, *self.free[len(words) :]]
        loads, joins = list[Load](), list[Step]()
        for register, (word, _) in zip(found, words, strict=True):
            registers = (register, *(others.pop(0) for _ in word[1:]))
            for place, (row, column) in zip(registers, word, strict=True):
                loads.append(Load(place, row, column, row not in moved))
                moved.add(row)
            joins += [Join(register, other) for other in registers[1:]]
        loads.sort(key=lambda load: load.replaces_pointer)  # stable: the others stay in order
        return [*loads, *joins], found

    def use(self, words: Sequence[tuple[_Word, _Products]], registers: list[str]) -> list[Step]:
        """Return the products of words."""
        free = [register for register in self.free if register not in registers]
        steps = list[Step]()
        for register, (_, products) in zip(registers, words, strict=True):
            for x, instruction, weights in products:
                first = x not in self.held
                if first:
                    self.held[x] = free.pop(0)
                steps.append(Product(self.held[x], instruction, register, weights, first))
            free.append(register)
        return steps


def _pass(words: list[tuple[_Word, _Products]], registers: _Registers, moves: bool) -> Pass:
    """Return how words are loaded, as many behind each other as there is room for, and used."""
    moved = set[int]() if moves else {0, 1, 2}
    parts = list[list[Step]]()
    while words:
        count = max(n for n in range(1, len(words) + 1) if registers.fits(words[:n]))
        loads, found = registers.load(words[:count], moved)
        parts += [loads, registers.use(words[:count], found)]
        words = words[count:]
        registers.early = ()
    return Pass(tuple(parts[0]), tuple(step for part in parts[1:] for step in part))


@lru_cache(maxsize=1024)
def _blocks(view: NarrowView) -> tuple[Block, ...]:
    count = -(-view.outputs // BLOCK)
    edges = [view.outputs * i // count for i in range(count + 1)]
    return tuple(_block(view, range(first, end)) for first, end in itertools.pairwise(edges))


def _block(view: NarrowView, outputs: range) -> Block:
    held = dict[int, str]()
    moves = outputs.start == 0
    upper = _pass(_upper(view, outputs), _Registers(*UPPER, held), moves)
    leave = tuple((held[x], x) for x in outputs)
    ways = [
        Block(upper, _pass(_third(view, outputs, alone), _Registers(*registers, held), moves), leave)
        for registers in THIRD
        for alone in (0, 1)
    ]

    def cost(block: Block) -> float:
        multiplier = view.requantization.form == "fast" and not block.spare
        return _pass_cost(block.third, 1, 0, 0).cycles + multiplier + block.overwrites / view.unroll

    return min((block for block in ways if block.third.sound), key=cost)


def narrow_view(call: Call, compact: bool = False) -> NarrowView:
    """Return what the text depends on: wide16 or wide8, one output row a call.

    rows[0..2] are the rows of the window, padding included, rows[3] is the output row.

    `compact`: constants without two words of each channel, for 5 more cycles.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and call.rows == 1
    assert source.layout in (WIDE16, WIDE8) and target.layout in (WIDE16, WIDE8)
    left = op.padding[2] if source.padding_value == 0 else 0
    columns = (target.width - 1) * op.stride[1] + 3 - left
    return NarrowView(
        channels=source.tensor.shape[2],
        columns=min(columns, source.width) if source.padding_value == 0 else columns,
        left=left,
        stride=op.stride[1],
        outputs=target.width,
        input_bytes=source.layout.element_bytes,
        input_first=(source.left - op.padding[2] + left) * source.pixel_bytes,
        input_pixel=source.pixel_bytes,
        output_bytes=target.layout.element_bytes,
        output_first=target.left * target.pixel_bytes,
        output_pixel=target.pixel_bytes,
        constants="bytes" if compact else "pairs",
        requantization=depthwise_numbers(call)[0],
    )


def narrow_pack(call: Call, view: NarrowView, phase: int) -> tuple[int, ...]:
    """Return the constants in the order in which the kernel reads them, for each channel:

    pairs   the weights of rows 0 and 1 for each of the columns, as pairs of 16 bits; times 256 in the form fast
    bytes   the same and (w0, w1) of row 2 in two words; bytes 0 and 2 are a pair, bytes 1 and 3 are the next one
    then    the bias, in the form fast times 256 and with the addend
    pairs   (w0, w1) and (w1, w2) of row 2
    bytes   (w1, w2) of row 2
    then    the words of the requantisation
    """
    assert phase == 0
    _, weights, bias, requantization = depthwise_numbers(call)
    taps = [(weights[0, i], weights[1, i]) for i in range(3)] + [(weights[2, i], weights[2, i + 1]) for i in range(2)]
    factor = 256 if view.requantization.form == "fast" else 1
    pairs = [((low * factor) & 0xFFFF) | ((high * factor) & 0xFFFF) << 16 for low, high in taps]
    if view.constants == "bytes":
        lanes = [(low & 0xFF) | (high & 0xFF) << 16 for low, high in taps]
        columns = [lanes[0] | lanes[1] << 8, lanes[2] | lanes[3] << 8, bias, pairs[4]]
    else:
        columns = [*pairs[:3], bias, *pairs[3:]]
    words = np.stack([*columns, *requantization.T], axis=1)
    assert words.shape[1] == view.channel_words
    return tuple((words.ravel() & 0xFFFFFFFF).tolist())


def _pass_cost(some: Pass, value: int, pixel: int, extra: int, behind_store: bool = False, moves: bool = False) -> Cost:
    """Return the cost of a pass without its weights.

    Args:
        some: the pass.
        value: bytes of a value.
        pixel: bytes from pixel to pixel.
        extra: bytes from the pointer of the third row to the channel.
        behind_store: it follows a store.
        moves: the pointers move.
    """
    cost = Cost(0, 0)
    for steps in (some.ahead, some.then):
        waits = not behind_store or steps is some.then  # a load that follows no other access
        for step in steps:
            if isinstance(step, Load):
                offset = step.column * pixel + (extra if step.row == 2 else 0)
                writes = step.moves and (step.row < 2 or extra == 0)
                short = step.register in EARLY + POOL[:1] and offset < 32 * value and not writes
                broken = moves and step.replaces_pointer  # it is kept before
                cost = total(cost, Cost(1 + (waits or broken), 2 if short else 4))
            else:
                cost = total(cost, plain(1))
            waits = not isinstance(step, Load)
    return cost


def _constants_cost(view: NarrowView, block: Block) -> Cost:
    """Return the cost of loading the constants of a channel."""
    r, pairs = view.requantization, view.constants == "pairs"
    if r.form != "fast":
        how = Cost(1 + 3, 2)
    elif block.spare:
        how = Cost(1, 0 if pairs else 4)
    else:
        how = Cost(2, 4)
    if pairs:
        return total(Cost(1 + 4, 2), Cost(1 + 2, 2), how)
    behind_load = isinstance(block.third.ahead[-1], Load)
    return total(Cost(1 + 3, 2), plain(5 + 1 if r.form == "fast" else 3 + 1), Cost(2 + 1 - behind_load, 8), how)


@lru_cache(maxsize=4096)
def narrow_cost(view: NarrowView) -> Cost:
    """Return the cost of one call."""
    if not view.assembly:
        return in_c(view.channels * view.outputs, 9)
    r, blocks = view.requantization, view.blocks
    parts = []
    for channel in range(view.unroll):
        last = channel == view.unroll - 1
        extra = 0 if last else (channel + 1) * view.input_bytes
        for number, block in enumerate(blocks):
            # The pointer is moved once for both; the multiplier does not come from the FPU, nor the other words.
            leave = total(leaving(r, len(block.leave)), plain(-1 if r.form == "fast" else -3))
            pointers = plain(1 + (2 if last and number == 0 else 0))
            upper = _pass_cost(block.upper, view.input_bytes, view.input_pixel, 0, channel > 0)
            third = _pass_cost(block.third, view.input_bytes, view.input_pixel, extra, moves=last and number == 0)
            parts += [_constants_cost(view, block), pointers, upper, third, leave, plain(number < len(blocks) - 1)]
    body = total(*parts, Cost(1 + 1 + 3, 4 + 2 + 4))
    ahead = view.input_first - view.input_bytes
    first = addition(ahead) if ahead else Cost(1, 2)
    before = total(Cost(10 + 1 + 5, 4 + 2 + 4), first, first, first, plain(3))
    before = total(before, addition(view.output_first - view.output_bytes))
    before = total(before, addition(view.channels * view.output_bytes))
    return total(before, repeated(view.channels // view.unroll, body), Cost(-2 + 12, 4))
