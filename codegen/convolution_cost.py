"""What the convolutions for DSP cores take on a Cortex-M4: the templates' instructions, counted from the views."""

from collections.abc import Sequence
from functools import lru_cache

from codegen.call import Cost
from codegen.convolution import ConvolutionView, Loop, Step
from codegen.convolution_fpu import Block, FpuView
from codegen.convolution_parts import (
    BRANCH_BACK,
    C_BYTES,
    LOAD,
    NARROW,
    NOTHING,
    POP,
    PUSH,
    WIDE,
    Part,
    addition,
    limits,
    loaded,
    repeated,
    requantized,
    stored,
    total,
)

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
        row = repeated(
            row + WIDE.copies(9) + addition(view.input_row) + addition(view.output.row) + BRANCH_BACK, view.lines
        )
        row += WIDE.copies(4)
    whole = _prologue(view) + row + addition(view.frame) + POP
    return Cost(whole.cycles, whole.code)


def _prologue(view: ConvolutionView) -> Part:
    each = LOAD + addition(view.input_first) + (NARROW if view.rows_on_stack else WIDE)
    part = PUSH + WIDE.copies(3) + LOAD + addition(4 * view.groups * view.group_words) + addition(view.output.first)
    if view.straddles:
        part += WIDE.copies(3) + addition(4 * len(view.output.walk))
    part += addition(-view.frame) + each.copies(view.kernel_height)
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
    step = addition(2 * view.input_pixel)
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
    return Part(2, 8) + repeated(part + Part(3, 10) + BRANCH_BACK, view.double_pixels)


def _to_next_pair(view: ConvolutionView) -> Part:
    back = view.groups * view.group_step
    if view.straddles:
        return addition(-back) + WIDE.copies(4) + LOAD + NARROW.copies(4) + WIDE
    if view.output.shuffled:
        return WIDE.copies(2) + addition(1 - back)
    return addition(2 * view.output.pixel - back)


def _groups(view: ConvolutionView, pixels: int, straight: bool, how: Loop) -> Part:
    """Return all groups of four output channels of one or two pixels."""
    stores = view.stores(pixels)
    part = (WIDE + NARROW).copies(len(stores) - 1) + stored(stores[0], view.group_step)
    part += total(stored(some) for some in stores[1:])
    part += (
        Part(5, 4)
        + _taps(view, pixels, straight, how)
        + requantized(view.requantization, view.output.offset, pixels).copies(2)
    )
    part += WIDE.copies(3) + NARROW + BRANCH_BACK
    return WIDE + repeated(part, view.groups)


def _taps(view: ConvolutionView, pixels: int, straight: bool, how: Loop) -> Part:
    """Return all taps of a group of channels."""
    height, row = view.kernel_height, WIDE
    if straight:
        part = total(_some_taps(view, pixels, line * view.pairs, view.column_pairs) for line in range(height))
        if height > 1:
            part += row.copies(height)
        return part + addition(8 * height * view.pairs)
    body, part = _row_loop(view, pixels, how), NARROW.copies(4) if pixels == 2 else NOTHING
    if view.widens:
        part += row
        if height == 1:
            return part + body
        moved = 4 * how.count * how.pairs if how.count > 1 else 0
        step = addition(view.widened_row - moved) + addition(height * (4 + view.widened_row)) + NARROW
        return part + repeated(body + step + BRANCH_BACK, height)
    if view.rows_on_stack:
        load = Part(2, 4)
        return part + NARROW + load + repeated(WIDE + body + WIDE + load + NARROW + BRANCH_BACK, height)
    return part + (row + body).copies(height)


def _row_loop(view: ConvolutionView, pixels: int, how: Loop) -> Part:
    """Return the taps of a kernel row."""
    part = _some_taps(view, pixels, 0, how.pairs)
    done = how.pairs
    if how.count > 1:
        steps = WIDE + addition(view.word_bytes * how.pairs) + addition(8 * how.pairs) + NARROW + BRANCH_BACK
        part = addition(view.word_bytes * how.count * how.pairs) + WIDE + repeated(part + steps, how.count)
        part += _some_taps(view, pixels, 0, how.rest)
        done = how.rest
    return part + addition(8 * (view.pairs - view.column_pairs + done))


def _some_taps(view: ConvolutionView, pixels: int, weight: int, count: int) -> Part:
    """Return some words of each column of a kernel row."""
    if pixels == 1:
        return _one_pixel(view, view.words(count), weight)
    return total(_two_pixels(view, step, weight + step.word) for step in view.steps(pixels, count))


def _two_pixels(view: ConvolutionView, step: Step, weight: int) -> Part:
    loads = (*step.loads, ("r4", 8 * weight), ("r5", 8 * weight + 4))
    return loaded(loads) + WIDE.copies(12 if view.in_registers else 10)


def _one_pixel(view: ConvolutionView, words: Sequence[int], weight: int) -> Part:
    part = NOTHING
    for i in range(0, len(words), 2):
        some = words[i : i + 2]
        loads = [("r2", view.place(word)) for word in (some[1:] if view.in_registers else some)]
        for word, (first, second) in zip(some, (("r4", "r5"), ("r10", "r11")), strict=False):
            loads += [(first, 8 * (weight + word)), (second, 8 * (weight + word) + 4)]
        part += loaded(loads) + WIDE.copies(6 * len(some) + 2 * view.in_registers)
    return part


def _triple(view: ConvolutionView) -> Part:
    """Return the last three pixels of a row: two output channels at a time."""
    height = view.kernel_height
    if view.in_registers:
        return _triple_of_bytes(view)
    taps = total(
        loaded((*step.loads, ("r5", 8 * (line * view.pairs + step.word)))) + WIDE.copies(7)
        for line in range(height)
        for step in view.steps(3, view.column_pairs)
    )
    taps += WIDE.copies(height) if height > 1 else Part(-1)  # its first load is right behind those of the biases
    return _triple_groups(view, taps, NOTHING)


def _triple_of_bytes(view: ConvolutionView) -> Part:
    """Return the same where both words that come of one of memory go together."""
    taps = total(
        loaded((*step.loads, ("r5", 8 * step.word))) + WIDE.copies(20) + loaded([("r5", 8 + 8 * step.word)])
        for step in view.steps(3, view.column_pairs)
        if step.word % 2 == 0
    )
    return _triple_groups(view, taps, WIDE.copies(5))


def _triple_groups(view: ConvolutionView, taps: Part, moves: Part) -> Part:
    """Return all groups of four output channels; `moves`: of pointers, for each two channels."""
    stores = view.triple_stores
    part = Part(3, 10) + taps + moves + _requantize_triple(view) + WIDE + stored(stores, 2 * view.output.channel)
    part += WIDE + NARROW + BRANCH_BACK
    pointers = WIDE + addition(4 + 8 * view.kernel_height * view.pairs) + (WIDE if view.in_registers else NOTHING)
    group = pointers + repeated(part, 2) + WIDE.copies(2) + NARROW + BRANCH_BACK
    return WIDE.copies(2) + repeated(group, view.groups)


def _requantize_triple(view: ConvolutionView) -> Part:
    extra = 1 if view.requantization.form == "fast" else 2
    return requantized(view.requantization, view.output.offset, 3) + Part(0, 2 * extra)  # LDM from lr has no short form


def _widen(view: ConvolutionView, pixels: int) -> Part:
    """Return how some windows of all kernel rows come to the stack."""
    if not view.widens:
        return NOTHING
    part, read, written = NOTHING, 0, 0
    for run in view.runs(pixels):
        part += addition(run.first - read) + _widen_run(run.loop)
        read, written = run.first + 4 * run.words, written + 8 * run.words
    part += addition(pixels * view.input_pixel - read) + LOAD
    if view.kernel_height == 1:
        return NARROW.copies(3) + part
    part += WIDE + addition(view.widened_row - written) + Part(5, 16)
    return NARROW.copies(2) + repeated(part + BRANCH_BACK, view.kernel_height)


def _widen_run(how: Loop) -> Part:
    part = _widen_words(how.pairs)
    if how.count == 1:
        return part
    return WIDE.copies(2) + repeated(part + WIDE + NARROW + BRANCH_BACK, how.count) + _widen_words(how.rest)


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
    around = PUSH + POP + addition(view.frame).copies(2)
    if saved:
        around += Part(1 + saved, 4).copies(2)
    whole = around + _fpu_prologue(view) + repeated(pair, view.channel_pairs)
    return Cost(whole.cycles, whole.code)


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
    return total(WIDE if view.homes[value].startswith("s") else NARROW for value in values)


def _fpu_prologue(view: FpuView) -> Part:
    words = view.weight_words + view.constant_words
    part = _put(view, "constants", "constants_end", "output", "input") + LOAD.copies(2)
    part += addition(4 * view.channel_pairs * words) + addition(view.output.first) + addition(view.input_first)
    if view.kernel_height > 1:
        names = [f"d{row + 1}" for row in range(view.kernel_height)]
        part += _put(view, *names) + (LOAD + WIDE + NARROW).copies(view.kernel_height - 1) + NARROW + WIDE
    if view.rounds > 1:
        part += addition(view.rounds * len(view.blocks) * 4 * view.input_pixel) + _put(view, "end")
    return part


def _constants(view: FpuView) -> Part:
    """Return how weights and constants of two output channels are loaded."""
    held, count = view.held_constants, view.constant_words
    part = _get(view, "constants", "input") + Part(1 + view.weight_words + held, 4)
    part += loaded([("r8", 0)] * (count - held)) + _put(view, *(f"c{i}" for i in range(held, count)), "constants")
    return part


def _fpu_row(view: FpuView) -> Part:
    """Return a row of two output channels."""
    moved, step = len(view.blocks) * 4 * view.output.pixel, 2 * view.output.channel
    last_step = moved if view.rounds > 1 else 0 if view.last else step
    blocks = total(_block(view, block, 0) for block in view.blocks[:-1])
    blocks += total(_block(view, block, last_step) for block in view.blocks[-1:])
    behind_stores = len(view.blocks) - 1 + (view.rounds == 1 and view.last is not None)
    blocks += Part(-behind_stores)
    if view.rounds == 1:
        return blocks + (_block(view, view.last, step) if view.last else NOTHING)
    around = _get(view, "end") + addition(len(view.blocks) * 4 * view.input_pixel) + NARROW + BRANCH_BACK
    part, back = repeated(blocks + around, view.rounds), step - view.rounds * moved
    if view.last:
        return part + _block(view, view.last, back)
    return part + _get(view, "output") + addition(back) + _put(view, "output")


def _block(view: FpuView, block: Block, move: int) -> Part:
    """Return some pixels of two output channels, from their words to memory; `move`: of the output pointer."""
    n, part, fresh = block.pixels, NOTHING, True
    for line in view.steps(block):
        for step in line:
            part += loaded(step.loads) + WIDE.copies(2 + 2 * n)
            if fresh:
                part += _get(view, "c0", "c1")
            fresh = False
    if view.kernel_height > 1:
        part += total(_get(view, f"d{row + 1}") + NARROW for row in range(view.kernel_height))
    part += _fpu_requantize(view, n) + _get(view, "output") + stored(view.stores(block), move)
    return part + _put(view, "output") if move else part


def _fpu_requantize(view: FpuView, pixels: int) -> Part:
    """Return the requantisation of two output channels."""
    part = NOTHING if view.wide else WIDE.copies(pixels)
    if view.requantization.form == "fast":
        part += _get(view, "c2", "c3") if view.wide else _get(view, "c2", "c3", "c4") + WIDE.copies(pixels)
        part += WIDE.copies(4 * pixels)
    else:
        part += _get(view, "c2", "c3", "c4") + _get(view, "c5", "c6", "c7")
        part += WIDE.copies((8 if view.wide else 10) * pixels)
    return part + limits(view.requantization, view.output.offset, 2 * pixels)
