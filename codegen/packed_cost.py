"""What the kernels of cores without DSP instructions take: their assembly, counted from the views, and the C around it.

Assembly is priced by the timing of the core, as mnet/cycles.py does. The C around it gathers taps and finds rows; its
terms are those of its loops, and its factors were fitted to counted runs of what gcc 12 makes of it:
tests/test_core_costs.py holds them to that.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from codegen.call import Call, Cost
from codegen.convolution_parts import Part
from codegen.packed import DepthwiseBlockView, PackedView, split_weights
from codegen.requantize import RequantizationView
from codegen.targets import Timing
from mnet.graph import Conv2D


def is_armv6(timing: Timing) -> bool:
    """Return whether a core has 16-bit instructions only, on its lower eight registers."""
    return timing.model.startswith("cortex-m0")


def _ldm(timing: Timing, words: int) -> int:
    return timing.multiple + words


def _loop(timing: Timing, body: Part, count: int, branch: int = 2) -> Part:
    """Return `count` rounds of a body with a conditional branch of so many bytes behind it, which it does not hold."""
    last = timing.branch_not_taken - timing.branch_taken
    return (body + Part(timing.branch_taken, branch)).times(count) + Part(last)


def _constant(value: int) -> Part:
    """Return a constant in a register of ARMv6-M: the macro `constant`."""
    return Part(1, 2) if value < 256 else Part(3, 6)


# ---- convolution_packed ----


def _windows(view: PackedView, timing: Timing) -> Part:
    """Return all windows of a pair of channels."""
    rounds = view.windows // view.unroll
    if is_armv6(timing):
        part = Part(34 + 3 * _ldm(timing, 2), 74).copies(view.unroll)
        if rounds == 1:
            return part
        if view.unroll < 3:
            return _loop(timing, part + Part(1, 2), rounds)
        each, last = timing.branch_not_taken + timing.branch_taken, timing.branch_taken
        return (part + Part(1 + each, 6)).times(rounds) + Part(last - each)
    loads = 2 * timing.load + 10 * timing.load_pipelined
    window = Part(loads + 2 * timing.multiply + 6 * timing.multiply_accumulate + 6, 92)
    part = window.copies(view.unroll) + Part(1, 4)
    return part if rounds == 1 else _loop(timing, part + Part(timing.load + 2, 8), rounds)


def _residues(timing: Timing) -> tuple[Part, int]:
    """Return what a pair takes for its residues where it has none, and the cycles of one more."""
    taken = timing.branch_taken
    if is_armv6(timing):
        return Part(2 * (_ldm(timing, 1) + 1 + taken), 56), _ldm(timing, 1) + 8 + timing.load + taken
    return Part(timing.load + timing.load_pipelined + 2 * taken, 64), 2 * timing.load + 7 + taken


def _short_values(view: PackedView, timing: Timing) -> Part:
    """Return how the four sums of a pair become bytes."""
    if not is_armv6(timing):
        value = _short(view.requantization, timing) + Part(timing.store, 4)
        return Part(1 + _ldm(timing, 4), 6).copies(2) + value.copies(4)
    part = _short(view.requantization, timing).copies(4)
    for channel in range(2):
        part += Part(4 + _ldm(timing, 4) + timing.load + 2 * timing.store, 16)
        if view.target_pixel + channel >= 32:
            part += _constant(view.target_pixel) + Part(1, 2)
    return part


def _short(r: RequantizationView, timing: Timing) -> Part:
    """Return how a sum becomes a byte, and the way of those out of range: half of them, as a ReLU has it."""
    low, high = r.clamp_low > 0, r.clamp_high - r.clamp_low < 255
    if is_armv6(timing):
        usual, code, rescue = 6 + timing.branch_not_taken + 2 * timing.multiply, 24 + 2 * low + 4 * high, 3 + 2 * high
    else:
        usual, code, rescue = (
            3 + timing.branch_not_taken + timing.multiply_accumulate + timing.multiply,
            32 + 4 * low,
            4,
        )
    return Part((usual + rescue + 2 * timing.branch_taken) // 2 + low, code)


def _pair(view: PackedView, timing: Timing) -> Part:
    """Return a pair of channels of two pixels, from their constants to sums."""
    if is_armv6(timing):
        part = Part(_ldm(timing, 2) + 8 + 2 * timing.load, 22)
    else:
        part = Part(2 * timing.load + 2 * timing.load_pipelined + 2, 22)
    return part + _windows(view, timing) + _residues(timing)[0]


def _pixels(view: PackedView, timing: Timing) -> Part:
    """Return the function that makes all channels of two pixels, in assembly."""
    t = timing
    part = _pair(view, t) + _short_values(view, t)
    if is_armv6(t):
        part += Part(_ldm(t, 1) + 2 * t.load + 2 * t.store + 2, 14)
        each, last = t.branch_not_taken + t.branch_taken, t.branch_taken
        rounds = (part + Part(each, 4)).times(view.pairs) + Part(last - each)
        enter = Part(2 * t.multiple + 9 + 4 + 1 + 3 * t.store + 8, 36) + _constant(view.pairs)
        return rounds + enter + Part(2 * t.multiple + 9 + t.multiple_pc + 5, 14)
    part += Part(2 * t.load + t.load_pipelined + 2 + t.store, 22)
    enter = Part(t.multiple + 9 + 4 + 4 * t.store, 26)
    return _loop(t, part, view.pairs, 4) + enter + Part(1 + t.multiple + 9 + t.multiple_pc, 6)


# Cycles of the C around the assembly, fitted: for each two pixels, kernel row, group of taps, tap.
_GATHER: Mapping[str, tuple[float, ...]] = {
    "cortex-m0": (20, 0, 8.5, 10.3),
    "cortex-m0plus": (18.5, 0, 7.5, 10.2),
    "cortex-m3": (18, 1.5, 6, 5.8),
}
_GATHER_BYTES = 140

# Of the C that makes bytes of sums where the short form does not: for each pair of channels, and for each byte by the
# form of its requantisation: cycles, bytes of code.
_LONG_PAIR: Mapping[str, float] = {"cortex-m0": 50, "cortex-m0plus": 48, "cortex-m3": 20}
_LONG: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "cortex-m0": {"fast": (41, 83), "shifts": (49, 90), "double": (75, 229)},
    "cortex-m0plus": {"fast": (39, 83), "shifts": (47, 90), "double": (72, 229)},
    "cortex-m3": {"fast": (12, 32), "shifts": (18, 43), "double": (33, 114)},
}


def long_form(r: RequantizationView, timing: Timing) -> Part:
    """Return how compiled C makes a byte of a sum, roughly."""
    cycles, code = _LONG[timing.model].get(r.form) or _LONG[timing.model]["double"]
    return Part(round(cycles), code)


def _gather(view: PackedView, timing: Timing) -> float:
    """Return the cycles of the C that gathers the taps of two pixels."""
    two, row, group, tap = _GATHER[timing.model]
    at_once = next(n for n in (4, 3, 2, 1) if view.run % n == 0)
    return two + view.height * (row + view.runs * view.run // at_once * group) + view.live_taps * tap


@lru_cache(maxsize=1024)
def _two_pixels(view: PackedView, timing: Timing) -> Part:
    """Return all channels of two pixels, without residues."""
    part = Part(round(_gather(view, timing)), _GATHER_BYTES)
    if view.short:
        return part + _pixels(view, timing)
    sums = _pair(view, timing) + (Part(50, 120) if is_armv6(timing) else Part(37, 80))
    part += sums.times(view.pairs) + Part(round(_LONG_PAIR[timing.model] * view.pairs), 100)
    each = long_form(view.requantization, timing)
    return part + each.copies(4).times(view.pairs)


def packed_cost(call: Call, view: PackedView, timing: Timing) -> Cost:
    """Return what one call of `convolution_packed` takes."""
    assert isinstance(call.op, Conv2D)
    part = _two_pixels(view, timing)
    weights = call.op.weights.reshape(view.channels, -1)
    _, rest = split_weights(np.pad(weights, ((0, 0), (0, view.taps - view.live_taps))))
    residues = int(np.count_nonzero(rest)) * _residues(timing)[1]
    return Cost((view.outputs + 1) // 2 * (part.cycles + residues), part.code)


# ---- depthwise_block ----

# Cycles of the C body on ARMv7-M, fitted: of a channel, a kernel row, a column, a product, an output; and of a kernel
# row for each output behind the third, where registers are short.
_CHANNEL, _ROW, _COLUMN, _PRODUCT, _OUTPUT, _CROWDED = 10.9, 0.4, 1.3, 2.7, 10.5, 1.2


def _columns(view: DepthwiseBlockView) -> tuple[int, int]:
    """Return the columns of a block that are read, and the products of them all."""
    return sum(map(bool, view.columns)), sum(map(len, view.columns))


def _row_armv6(view: DepthwiseBlockView, timing: Timing) -> Part:
    """Return a kernel row of a channel of a block."""
    t = timing
    part = Part(t.load + 1 + _ldm(t, 1) + 4, 14)
    for number, products in enumerate(view.columns):
        if products:
            part += Part(t.load + 1 + t.multiply, 6) + Part(2 + t.multiply, 6).copies(len(products) - 1)
        if number % 2 and number < len(view.columns) - 1:
            part += Part(1, 2) if view.pixel < 128 else Part(2, 4)
    return part


def _block_armv6(view: DepthwiseBlockView, timing: Timing) -> Part:
    """Return all channels of a block in assembly."""
    t = timing
    part = Part(_ldm(t, 1) + view.block, 2 + 2 * view.block) + _constant(view.pixel)
    part += _row_armv6(view, t).copies(view.height) + Part(t.load + 1 + _ldm(t, 4), 6)
    part += (Part(1 + t.store, 4) + _short(view.requantization, t)).copies(view.block)
    step = Part(1, 2) if view.target_pixel < 256 else _constant(view.target_pixel) + Part(1, 2)
    part += step.copies(view.block - 1) + Part(3, 6)
    part += Part(1, 2) if view.channels < 256 else _constant(view.channels) + Part(1, 2)
    part = (part + Part(t.branch_not_taken + t.branch_taken, 4)).times(view.channels) + Part(-t.branch_not_taken)
    enter = Part(2 * t.multiple + 17 + (view.height + 1) * (t.load + t.store), 20 + 4 * (view.height + 1))
    return part + enter + Part(2 * t.multiple + 14 + t.multiple_pc, 14)


def _block_in_c(view: DepthwiseBlockView, timing: Timing) -> Part:
    """Return all channels of a block as gcc compiles the C body."""
    columns, products = (view.height * count for count in _columns(view))
    each = _CHANNEL + _ROW * view.height + _COLUMN * columns + _CROWDED * max(0, view.block - 3) * view.height
    code = 4 + 15 * view.height + 3 * columns + 6 * products
    if is_armv6(timing):
        each, code = 6 + 2 * view.height + 3.9 * columns + 5.2 * products, 40 + 5 * columns + 10 * products
    else:
        each += _PRODUCT * products
    if view.short:
        return Part(round((each + _OUTPUT * view.block) * view.channels), code + 56 * view.block)
    part = Part(round(each * view.channels), code)
    return part + long_form(view.requantization, timing).copies(view.block).times(view.channels)


@lru_cache(maxsize=1024)
def block_cost(view: DepthwiseBlockView, timing: Timing) -> Cost:
    """Return what one call of `depthwise_block` takes."""
    if view.assembly and is_armv6(timing):
        part = _block_armv6(view, timing) + Part(15 + 8 * view.height, 64)
    else:
        part = _block_in_c(view, timing) + Part(13 + 15 * view.height)
    return Cost(-(-view.outputs // view.block) * part.cycles, part.code)
