"""What the convolutions for DSP cores take on a Cortex-M4: the templates' instructions, counted from the views.

The rules of mnet/cycles.py: one cycle an instruction; a load takes two, or one right behind another load or store;
multiple loads and stores take one more than they have words; a branch that is taken takes three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from codegen.call import Cost
from codegen.convolution import ConvolutionView, Loop, Step
from codegen.convolution_fpu import Block, FpuView
from codegen.requantize import RequantizationView
from codegen.stores import Stores

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


def _sum(parts: Iterable[Part]) -> Part:
    return sum(parts, NOTHING)


def _loop(body: Part, count: int) -> Part:
    """Return `count` rounds of a body that ends in a conditional branch."""
    return body.times(count) + NOT_TAKEN


def _add(value: int) -> Part:
    """Return what adding a constant takes: the macro `add`."""
    if value == 0:
        return NOTHING
    if abs(value) < 4096:
        return WIDE
    return Part(2, 6) if 0 < value < 65536 else Part(3, 10)


def _loads(loads: Sequence[tuple[str, int]], behind_load: bool = False) -> Part:
    """Return loads (register, offset) one behind the other."""
    far = sum(offset > 4095 for _, offset in loads)
    near = sum(offset <= 124 and register in LOW_REGISTERS for register, offset in loads)
    cycles = len(loads) + bool(loads and not behind_load) + 3 * far
    return Part(cycles, 4 * len(loads) - 2 * near + 8 * far)


def _stores(stores: Stores) -> Part:
    """Return packing and stores."""
    reach = {"str": 124, "strh": 62, "strb": 31}
    part, base = Part(len(stores.packing), 4 * len(stores.packing)), 0
    for store in stores.stores:
        if store.offset - base > 4095:
            part, base = part + _add(store.offset - base), store.offset
        offset = store.offset - base
        part += NARROW if store.register in LOW_REGISTERS and 0 <= offset <= reach[store.instruction] else WIDE
    return part


def _limits(requantization: RequantizationView, offset: int, registers: int) -> Part:
    """Return the clamps to the activation and the subtraction of the output's offset."""
    sides = (requantization.clamp_low > 0) + (requantization.clamp_high < 255) if requantization.clamps else 0
    return Part(3, 8).copies(sides * registers) + (WIDE.copies(registers) if offset else NOTHING)


# ---- convolution_dsp ----


@lru_cache(maxsize=4096)
def convolution_cost(view: ConvolutionView) -> Cost:
    """Return what one call takes."""
    if not view.assembly:
        return Cost(40 * view.rows * view.pixels * view.groups * (view.kernel_height * view.pairs + 4), C_BYTES)
    row = _pairs(view)
    if view.triple:
        row += _widen(view, 3) + _triple(view)
    elif view.line_pixels % 2:
        row += _widen(view, 1) + _groups(view, 1, view.single_straight, view.single_loop)
        if view.kernel_height == 1 and not view.single_straight and not view.widens:
            row += WIDE
    if view.lines > 1:
        row = _loop(row + WIDE.copies(9) + _add(view.input_row) + _add(view.output.row) + BRANCH_BACK, view.lines)
        row += WIDE.copies(4)
    total = _prologue(view) + row + _add(view.frame) + POP
    return Cost(total.cycles, total.code)


def _prologue(view: ConvolutionView) -> Part:
    each = LOAD + _add(view.input_first) + (NARROW if view.rows_on_stack else WIDE)
    part = PUSH + WIDE.copies(3) + LOAD + _add(4 * view.groups * view.group_words) + _add(view.output.first)
    if view.straddles:
        part += WIDE.copies(3) + _add(4 * len(view.output.walk))
    part += _add(-view.frame) + each.copies(view.kernel_height)
    if view.rows_on_stack and not view.widens:
        part += NARROW.copies(2)
    if view.kernel_height == 1 and not view.widens:
        part += WIDE
    return part


def _pairs(view: ConvolutionView) -> Part:
    """Return all times that two pixels go together in a row."""
    if not view.double_pixels:
        return NOTHING
    part = _widen(view, 2) + _groups(view, 2, view.straight, view.loop)
    part += _to_next_pair(view) + WIDE
    step = _add(2 * view.input_pixel)
    if view.widens:
        pass
    elif view.straight and view.kernel_height == 1:
        part += step
    elif view.rows_on_stack:
        part += (NARROW + step + NARROW).copies(view.kernel_height) + Part(1)
    else:
        part += (WIDE + step + WIDE).copies(view.kernel_height)
    if view.double_pixels == 1:
        return part
    return Part(2, 8) + _loop(part + Part(3, 10) + BRANCH_BACK, view.double_pixels)


def _to_next_pair(view: ConvolutionView) -> Part:
    back = view.groups * view.group_step
    if view.straddles:
        return _add(-back) + WIDE.copies(4) + LOAD + NARROW.copies(4) + WIDE
    if view.output.shuffled:
        return WIDE.copies(2) + _add(1 - back)
    return _add(2 * view.output.pixel - back)


def _groups(view: ConvolutionView, pixels: int, straight: bool, how: Loop) -> Part:
    """Return all groups of four output channels of one or two pixels."""
    stores = view.stores(pixels)
    part = (WIDE + NARROW).copies(len(stores) - 1) + _sum(_stores(some) for some in stores)
    part += Part(5, 4) + _taps(view, pixels, straight, how) + _requantize(view, pixels).copies(2)
    part += WIDE.copies(2) + _add(view.group_step - _reach(stores[0])) + WIDE + NARROW + BRANCH_BACK
    return WIDE + _loop(part, view.groups)


def _reach(stores: Stores) -> int:
    """Return how far the macro `store` moves its pointer to reach all stores."""
    base = 0
    for store in stores.stores:
        base = store.offset if store.offset - base > 4095 else base
    return base


def _requantize(view: ConvolutionView, pixels: int) -> Part:
    """Return the requantisation of two output channels."""
    if view.requantization.form == "fast":
        part = Part(4, 2) + WIDE.copies(6 * pixels)
    else:
        part = Part(4, 2).copies(2) + WIDE.copies(11 * pixels)
    return part + _limits(view.requantization, view.output.offset, 2 * pixels)


def _taps(view: ConvolutionView, pixels: int, straight: bool, how: Loop) -> Part:
    """Return all taps of a group of channels."""
    height, row = view.kernel_height, WIDE
    if straight:
        part = _sum(_some_taps(view, pixels, line * view.pairs, view.column_pairs) for line in range(height))
        if height > 1:
            part += row.copies(height)
        return part + _add(8 * height * view.pairs)
    body, part = _row_loop(view, pixels, how), NARROW.copies(4) if pixels == 2 else NOTHING
    if view.widens:
        part += row
        if height == 1:
            return part + body
        moved = 4 * how.count * how.pairs if how.count > 1 else 0
        step = _add(view.widened_row - moved) + _add(height * (4 + view.widened_row)) + NARROW
        return part + _loop(body + step + BRANCH_BACK, height)
    if view.rows_on_stack:
        load = Part(2, 4)
        return part + NARROW + load + _loop(WIDE + body + WIDE + load + NARROW + BRANCH_BACK, height)
    return part + (row + body).copies(height)


def _row_loop(view: ConvolutionView, pixels: int, how: Loop) -> Part:
    """Return the taps of a kernel row."""
    part = _some_taps(view, pixels, 0, how.pairs)
    done = how.pairs
    if how.count > 1:
        steps = WIDE + _add(4 * how.pairs) + _add(8 * how.pairs) + NARROW + BRANCH_BACK
        part = _add(4 * how.count * how.pairs) + WIDE + _loop(part + steps, how.count)
        part += _some_taps(view, pixels, 0, how.rest)
        done = how.rest
    return part + _add(8 * (view.pairs - view.column_pairs + done))


def _some_taps(view: ConvolutionView, pixels: int, weight: int, count: int) -> Part:
    """Return some words of each column of a kernel row."""
    if pixels == 1:
        return _one_pixel(view.words(count), weight)
    return _sum(_two_pixels(step, weight + step.word) for step in view.steps(pixels, count))


def _two_pixels(step: Step, weight: int) -> Part:
    loads = (*step.loads, ("r4", 8 * weight), ("r5", 8 * weight + 4))
    return _loads(loads) + WIDE.copies(10)


def _one_pixel(words: Sequence[int], weight: int) -> Part:
    part = NOTHING
    for i in range(0, len(words), 2):
        some = words[i : i + 2]
        loads = [("r2", 4 * word) for word in some]
        for word, (first, second) in zip(some, (("r4", "r5"), ("r10", "r11")), strict=False):
            loads += [(first, 8 * (weight + word)), (second, 8 * (weight + word) + 4)]
        part += _loads(loads) + WIDE.copies(6 * len(some))
    return part


def _triple(view: ConvolutionView) -> Part:
    """Return the last three pixels of a row: two output channels at a time."""
    height = view.kernel_height
    taps = _sum(
        _loads((*step.loads, ("r5", 16 + 8 * (line * view.pairs + step.word)))) + WIDE.copies(7)
        for line in range(height)
        for step in view.steps(3, view.column_pairs)
    )
    taps += WIDE.copies(height) if height > 1 else Part(-1)  # its first load is right behind those of the biases
    stores = view.triple_stores
    part = Part(3, 8) + taps + _requantize_triple(view) + WIDE + _stores(stores)
    part += _add(2 * view.output.channel - _reach(stores)) + WIDE.copies(3) + NARROW + BRANCH_BACK
    group = NARROW + _add(16 + 8 * height * view.pairs) + _loop(part, 2) + WIDE + NARROW.copies(2) + BRANCH_BACK
    return WIDE + _loop(group, view.groups)


def _requantize_triple(view: ConvolutionView) -> Part:
    extra = 1 if view.requantization.form == "fast" else 2
    return _requantize(view, 3) + Part(0, 2 * extra)  # LDM from lr has no short form


def _widen(view: ConvolutionView, pixels: int) -> Part:
    """Return how some windows of all kernel rows come to the stack."""
    if not view.widens:
        return NOTHING
    part, read, written = NOTHING, 0, 0
    for run in view.runs(pixels):
        part += _add(run.first - read) + _widen_run(run.loop)
        read, written = run.first + 4 * run.words, written + 8 * run.words
    part += _add(pixels * view.input_pixel - read) + LOAD
    if view.kernel_height == 1:
        return NARROW.copies(3) + part
    part += WIDE + _add(view.widened_row - written) + Part(5, 16)
    return NARROW.copies(2) + _loop(part + BRANCH_BACK, view.kernel_height)


def _widen_run(how: Loop) -> Part:
    part = _widen_words(how.pairs)
    if how.count == 1:
        return part
    return WIDE.copies(2) + _loop(part + WIDE + NARROW + BRANCH_BACK, how.count) + _widen_words(how.rest)


def _widen_words(words: int) -> Part:
    whole, rest = divmod(words, 4)
    part = Part(22, 38).copies(whole)
    return part + Part(2 + 5 * rest, (6, 14, 22, 30)[rest]) if rest else part


# ---- convolution_fpu ----


@lru_cache(maxsize=4096)
def fpu_cost(view: FpuView) -> Cost:
    """Return what one call takes."""
    if not view.assembly:
        words = view.kernel_height * (view.whole_pairs + view.alone)
        return Cost(20 * view.pixels * view.channel_pairs * (words + 4), C_BYTES)
    pair = _constants(view) + _fpu_row(view) + _get(view, "constants", "constants_end") + NARROW + BRANCH_BACK
    saved = max(view.last_register - 15, 0)
    around = PUSH + POP + _add(view.frame).copies(2)
    if saved:
        around += Part(1 + saved, 4).copies(2)
    total = around + _fpu_prologue(view) + _loop(pair, view.channel_pairs)
    return Cost(total.cycles, total.code)


def _get(view: FpuView, *values: str) -> Part:
    """Return what it takes to bring values into registers, one behind the other."""
    part, behind_load = NOTHING, False
    for value in values:
        if view.homes[value].startswith("s"):
            part, behind_load = part + WIDE, False
        else:
            part, behind_load = part + Part(1 if behind_load else 2, 2), True
    return part


def _put(view: FpuView, *values: str) -> Part:
    return _sum(WIDE if view.homes[value].startswith("s") else NARROW for value in values)


def _fpu_prologue(view: FpuView) -> Part:
    words = view.weight_words + view.constant_words
    part = _put(view, "constants", "constants_end", "output", "input") + LOAD.copies(2)
    part += _add(4 * view.channel_pairs * words) + _add(view.output.first) + _add(view.input_first)
    if view.kernel_height > 1:
        names = [f"d{row + 1}" for row in range(view.kernel_height)]
        part += _put(view, *names) + (LOAD + WIDE + NARROW).copies(view.kernel_height - 1) + NARROW + WIDE
    if view.rounds > 1:
        part += _add(view.rounds * len(view.blocks) * 4 * view.input_pixel) + _put(view, "end")
    return part


def _constants(view: FpuView) -> Part:
    """Return how weights and constants of two output channels are loaded."""
    held, count = view.held_constants, view.constant_words
    part = _get(view, "constants", "input") + Part(1 + view.weight_words + held, 4)
    part += _loads([("r8", 0)] * (count - held)) + _put(view, *(f"c{i}" for i in range(held, count)), "constants")
    return part


def _fpu_row(view: FpuView) -> Part:
    """Return a row of two output channels."""
    blocks = _sum(_block(view, block) for block in view.blocks)
    behind_stores = len(view.blocks) - 1 + (view.rounds == 1 and view.last is not None)
    blocks += Part(-behind_stores)
    moved = len(view.blocks) * 4 * view.output.pixel
    last = _block(view, view.last) if view.last else NOTHING
    if view.rounds == 1:
        return blocks + last + _move(view, 2 * view.output.channel)
    around = _get(view, "end") + _add(len(view.blocks) * 4 * view.input_pixel) + NARROW + BRANCH_BACK
    part = _loop(blocks + _move(view, moved) + around, view.rounds) + last
    part += _move(view, 2 * view.output.channel - view.rounds * moved)
    return part if view.last else part + _get(view, "output")


def _move(view: FpuView, step: int) -> Part:
    """Return how the output pointer moves on."""
    return _add(step) + _put(view, "output")


def _block(view: FpuView, block: Block) -> Part:
    """Return some pixels of two output channels, from their words to memory."""
    n, part, fresh = block.pixels, NOTHING, True
    for line in view.steps(block):
        for step in line:
            part += _loads(step.loads) + WIDE.copies(2 + 2 * n)
            if fresh:
                part += _get(view, "c0", "c1")
            fresh = False
    if view.kernel_height > 1:
        part += _sum(_get(view, f"d{row + 1}") + NARROW for row in range(view.kernel_height))
    return part + _fpu_requantize(view, n) + _get(view, "output") + _stores(view.stores(block))


def _fpu_requantize(view: FpuView, pixels: int) -> Part:
    """Return the requantisation of two output channels."""
    part = NOTHING if view.wide else WIDE.copies(pixels)
    if view.requantization.form == "fast":
        part += _get(view, "c2", "c3") if view.wide else _get(view, "c2", "c3", "c4") + WIDE.copies(pixels)
        part += WIDE.copies(4 * pixels)
    else:
        part += _get(view, "c2", "c3", "c4") + _get(view, "c5", "c6", "c7")
        part += WIDE.copies((8 if view.wide else 10) * pixels)
    return part + _limits(view.requantization, view.output.offset, 2 * pixels)
