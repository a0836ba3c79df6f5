"""What the kernels for cores with vectors take: their templates' instructions, counted from the views.

Every vector instruction counts one cycle, as mnet/cycles.py does (Arm publishes no table for the Cortex-M55); the
others take what they take on a Cortex-M4.
"""

from functools import lru_cache

from codegen.call import Cost
from codegen.convolution_mve import Block, ConvolutionView
from codegen.convolution_parts import BRANCH_BACK, LOAD, NARROW, NOTHING, WIDE, Part, addition, repeated, total
from codegen.depthwise_mve import DepthwiseView
from codegen.plain_cost import in_c
from codegen.requantize import RequantizationView
from codegen.targets import Timing

_AROUND = Part(10 + 17, 8)  # PUSH, VPUSH
_BACK = Part(17 + 12, 8)  # VPOP, POP
_STORE = NARROW  # STR to the stack
_NEXT_LOAD = Part(1, 2)  # right behind a store
_MOVE_LANES = WIDE  # VMOV of two registers to two lanes


def _narrowed(r: RequantizationView) -> Part:
    """Return a vector narrowed to 16 bits: the macro `narrowing_shift`, or one instruction."""
    return WIDE.copies(2 if r.form == "fast" and r.shift + 1 > 16 else 1)


def _limited(r: RequantizationView) -> Part:
    """Return bytes within the activation: the macro `limit`."""
    return WIDE.copies(3 * ((r.clamp_low > 0) + (r.clamp_high < 255) if r.clamps else 0))


# ---- convolution_mve ----


def _chunk(view: ConvolutionView, pixels: int, tail: bool) -> Part:
    """Return a chunk of a kernel row: two channels of some pixels, or four of one."""
    if view.lanes == 4:
        return WIDE.copies(9 + tail)
    return WIDE.copies(2 + 3 * pixels + (tail * (pixels + 1) // 2))


def _taps(view: ConvolutionView, pixels: int) -> Part:
    """Return all taps of a block of channels."""
    part, pointers = NOTHING, -(-pixels // view.shared(pixels))
    if not view.resident(pixels):
        row = LOAD + addition(view.shared(pixels) * view.input_pixel).copies(pointers - 1)
        part += row.copies(view.kernel_height)
    if view.straight:
        whole, tail = view.chunks * view.kernel_height, (view.tail > 0) * view.kernel_height
        return part + _chunk(view, pixels, False).copies(whole) + _chunk(view, pixels, True).copies(tail)
    body = _chunk(view, pixels, False)
    if view.chunks > 1 and view.lanes == 4:
        body = WIDE.copies(2) + (body + WIDE).times(view.chunks)
    elif view.chunks > 1:
        body = WIDE + repeated(body + WIDE + BRANCH_BACK, view.chunks)
    if view.tail:
        body += _chunk(view, pixels, True)
    zeros = WIDE.copies(4 if view.lanes == 4 else 2 * pixels)
    return zeros + part + body.copies(view.kernel_height) + (WIDE if view.padding_bytes else NOTHING)


def _requantized(view: ConvolutionView, pixels: int) -> Part:
    """Return how two channels of some pixels become halves of vectors, or four of one leave."""
    r = view.requantization
    if view.lanes == 4:
        part = _MOVE_LANES.copies(2) + (WIDE.copies(5) if r.form == "fast" else WIDE.copies(9)) + _narrowed(r)
        return part + WIDE.copies(3) + _limited(r) + LOAD + WIDE + _STORE
    part = _MOVE_LANES.copies(4 if pixels > 1 else 2)
    part += Part(5, 2) + WIDE.copies(4) if r.form == "fast" else Part(5, 2).copies(2) + WIDE.copies(12)
    return part + _narrowed(r).copies(2)


def _leave(view: ConvolutionView, pixels: int) -> Part:
    """Return how four channels of some pixels leave."""
    part = WIDE.copies(4) + _limited(view.requantization)
    if not view.resident(pixels):
        part += LOAD + _STORE
    if pixels == 4:
        return part + WIDE.copies(2)
    return part + WIDE.copies(pixels) + NARROW + (addition(view.output_pixel) + WIDE).copies(pixels - 1) + WIDE


def _advance(view: ConvolutionView, pixels: int) -> Part:
    """Return how a block moves on to the next."""
    step, back = addition(pixels * view.input_pixel), addition(pixels * view.output_pixel - 4 * view.groups)
    if view.resident(pixels):
        return step.copies(view.kernel_height * -(-pixels // view.shared(pixels))) + back
    return (LOAD + step + _STORE).copies(view.kernel_height) + LOAD + back + _STORE


def _block(view: ConvolutionView, block: Block, last: bool) -> Part:
    """Return a block of pixels, all times that it is made."""
    n = block.pixels
    taps = _taps(view, n) + _requantized(view, n)
    group = taps if view.lanes == 4 else taps.copies(2) + _leave(view, n)
    if view.groups > 1:
        group = repeated(group + LOAD + NARROW + BRANCH_BACK, view.groups)
    part = LOAD + group
    if block.count > 1 or not last:
        part += _advance(view, n)
    pointers = NOTHING
    if view.resident(n):
        more = -(-n // view.shared(n)) - 1
        pointers = (LOAD + addition(view.shared(n) * view.input_pixel).copies(more)).copies(view.kernel_height)
        pointers += LOAD if view.lanes == 2 else NOTHING
    if block.count == 1:
        return pointers + part
    return pointers + WIDE + _STORE + repeated(part + LOAD + WIDE + _STORE + BRANCH_BACK, block.count)


def _pointers(height: int, input_first: int, output_first: int) -> Part:
    """Return how the rows of the window and the output come to the stack."""
    each = addition(input_first) + _STORE + _NEXT_LOAD
    return LOAD + each.copies(height) + addition(output_first) + _STORE


@lru_cache(maxsize=1024)
def convolution_mve_cost(view: ConvolutionView, timing: Timing) -> Cost:
    """Return what one call of `convolution_mve` takes."""
    if not view.assembly:
        outputs = 4 * view.groups * view.pixels
        return in_c(view.requantization, timing, outputs, outputs * view.kernel_height * view.run)
    part = _AROUND + _pointers(view.kernel_height, view.input_first, view.output_first) + NARROW.copies(2) + _STORE
    part += addition(4 * view.block_words * (4 * view.groups // view.lanes))
    part += WIDE.copies(2 * (view.tail > 0) + (6 if view.lanes == 2 else 0))
    part += total(_block(view, block, block is view.blocks[-1]) for block in view.blocks)
    whole = part + NARROW + _BACK
    return Cost(whole.cycles, whole.code)


# ---- depthwise_mve ----


def _made(view: DepthwiseView, pixels: int) -> Part:
    """Return some pixels of eight channels."""
    r, (height, width) = view.requantization, view.kernel
    few, groups = WIDE if view.few else NOTHING, len(view.groups)
    part = WIDE.copies(2 * pixels + 1)
    if not view.resident:
        part += (_NEXT_LOAD + _STORE + (addition(view.input_pixel) if pixels == 2 else NOTHING)).copies(height)
    far = addition(view.input_column) if view.input_column > 127 else NOTHING
    part += WIDE.copies(view.taps + (3 * view.taps - groups) * pixels) + few.copies(view.taps * pixels)
    part += far.copies(height * (width - 1) * pixels) + WIDE.copies(4 * groups * pixels)
    rest = addition(pixels * view.input_pixel - (width - 1) * view.input_column)
    part += rest.copies(height * (pixels if view.resident else 1))
    part += (WIDE.copies(1 + pixels) if r.form == "fast" else WIDE.copies(3 + 5 * pixels)).copies(2)
    part += addition(-32 - 8 * view.taps)
    leave = _narrowed(r).copies(2) + WIDE.copies(3) + _limited(r) + few
    leave += NOTHING if view.output_pixel <= 127 else addition(view.output_pixel)
    return part + leave.copies(pixels)


@lru_cache(maxsize=1024)
def depthwise_mve_cost(view: DepthwiseView, timing: Timing) -> Cost:
    """Return what one call of `depthwise_mve` takes."""
    if not view.assembly:
        outputs = view.channels * view.pixels
        return in_c(view.requantization, timing, outputs, outputs * view.taps)
    height, blocks = view.kernel[0], len(view.starts)
    second = addition(view.input_pixel) if view.pixels > 1 else NOTHING
    part = (LOAD + second if view.resident else _NEXT_LOAD + _STORE).copies(height)
    pairs = _made(view, 2)
    if view.pixels > 3:
        part += WIDE + repeated(pairs + WIDE + BRANCH_BACK, view.pixels // 2)
    elif view.pixels > 1:
        part += pairs
    if view.pixels % 2:
        part += _made(view, 1)
    if blocks > 1:
        part += addition(4 * view.block_words) + LOAD + WIDE + (Part(3, 8) if view.channels % 8 else NOTHING)
        part += (LOAD + NARROW + _STORE).copies(height + 1) + WIDE + WIDE + BRANCH_BACK
        part = repeated(part, blocks)
    around = _AROUND + _pointers(height, view.input_first, view.output_first)
    around += NARROW.copies(2) + WIDE.copies(1 + 2 * (blocks > 1) + 2 * view.few)
    whole = around + part + NARROW + _BACK
    return Cost(whole.cycles, whole.code)
