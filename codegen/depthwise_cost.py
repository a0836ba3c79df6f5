"""What a call of a DSP depthwise kernel takes on a Cortex-M4: its instructions, priced as mnet/cycles.py does.

Every instruction is 1 cycle here but these: a load that does not follow another one or a store (2), LDM, PUSH and POP
(1 and 1 per word), a taken branch (3).
"""

from functools import lru_cache

from codegen.call import Call, Cost
from codegen.depthwise import Block, DepthwiseView, Line
from codegen.depthwise_row import Quad, Word
from codegen.depthwise_shared import SharedView, shared_numbers
from codegen.requantize import RequantizationView
from mnet.graph import DepthwiseConv2D


def total(*parts: Cost) -> Cost:
    """Return the cost of code that is run through once."""
    return Cost(sum(part.cycles for part in parts), sum(part.code_bytes for part in parts))


def repeated(count: int, part: Cost) -> Cost:
    """Return the cost of a loop's body."""
    return Cost(count * part.cycles, part.code_bytes)


def plain(count: int) -> Cost:
    """Return the cost of so many 4-byte instructions of 1 cycle."""
    return Cost(count, 4 * count)


def in_c(outputs: int, taps: int) -> Cost:
    """Return what a C body takes, as gcc compiles it at -O2: an estimate, within a third."""
    return Cost(outputs * (40 + 14 * taps), 400)


def addition(step: int, moves: bool = False) -> Cost:
    """Return the cost of the macro `add`; `moves` is to another register."""
    if -4096 < step < 4096:
        return plain(1) if step or moves else Cost(0, 0)
    return total(plain(1 if 0 <= step < 65536 else 2), Cost(1, 2))


def limits(r: RequantizationView) -> Cost:
    """Return the cost of limiting one value to the activation."""
    count = (r.clamp_low > 0) + (r.clamp_high < 255) if r.clamps else 0
    return Cost(3 * count, 10 * count)


def leaving(r: RequantizationView, outputs: int) -> Cost:
    """Return the cost of outputs that leave together."""
    each = total(plain(3) if r.form == "fast" else Cost(7, 26), limits(r))
    return total(plain(2 if r.form == "fast" else 4), Cost(outputs * each.cycles, outputs * each.code_bytes))


def _loads(view: DepthwiseView, line: Line, offset: int, behind_store: bool) -> Cost:
    """Return the cost of loading a word of each row."""
    if view.apart:
        return Cost(2 + 2 + 1 + 1, 16)
    near = sum(tap == 0 and distance + offset < 128 for tap, distance in line.taps)  # r7 has short instructions
    count = len(line.taps)
    return Cost(count + (not behind_store), 4 * count - 2 * near)


def _addresses(view: DepthwiseView, line: Line, pixels: list[int]) -> Cost:
    """Return what outputs that leave together take to find their places."""
    if not view.output:
        return plain(4 if len(pixels) == 3 else 3)
    reach = line.output + max(pixels) * view.output.pixel
    return plain(min(reach // 4096, len(pixels)))


def _row(view: DepthwiseView, line: Line, behind_store: bool) -> Cost:
    """Return the cost of one output row."""
    taps = len(line.taps)
    parts = []
    steps: tuple[Word | Quad, ...] = view.quads or view.words
    for step in steps:
        parts.append(_loads(view, line, step.offset, behind_store))
        if isinstance(step, Word):
            products = len(step.finish) + len(step.start)
            parts.append(plain(taps * (products + (step.rotation is not None))))
            behind_store = bool(step.leave) and not step.start
        else:
            products = len(step.even) + len(step.odd)
            parts.append(plain(taps * (products + 1 + bool(step.odd))))
            behind_store = bool(step.leave)
        if step.leave:
            parts.append(leaving(view.requantization, len(step.leave)))
            parts.append(_addresses(view, line, [leave.pixel for leave in step.leave]))
    return total(*parts)


def _block(view: DepthwiseView, block: Block) -> Cost:
    """Return the cost of some rows, or of a loop over rows."""
    body = total(*(_row(view, line, number > 0) for number, line in enumerate(block.lines)))
    if block.rounds == 1:
        return body
    to_output = total(addition(block.output_step), plain(2)) if view.output else plain(0)
    end = total(addition(block.input_step), to_output, plain(1), Cost(1 + 3, 2 + 4))
    before = total(addition(block.rounds * block.input_step, moves=True), plain(1))
    return total(before, repeated(block.rounds, total(body, end)), Cost(-2, 0))


def _constants(view: DepthwiseView) -> Cost:
    """Return the cost of loading the constants of a channel."""
    fast = view.requantization.form == "fast"
    words = 1 + view.requantization.words
    widen = plain(7 if fast else 6)
    moves = plain(3 if fast else 5)
    if view.constants == "pairs":
        return total(moves, Cost(1 + 6 + words, 4))
    if view.constants == "bytes":
        return total(moves, Cost(1 + 3 + words, 4), widen)
    return total(moves, Cost(2, 6), Cost(1 + 3 + words, 4 * (3 + words)), widen)


@lru_cache(maxsize=4096)
def depthwise_cost(view: DepthwiseView, channels: int = 0) -> Cost:
    """Return the cost of one call of `depthwise_dsp`; `channels` is for views that do not hold them."""
    channels = view.output.channels if view.output else channels
    if not view.assembly:
        return in_c(channels * view.rows * view.outputs, 9)
    channel = total(_constants(view), *(_block(view, block) for block in view.blocks))
    to_input, to_output = view.advance
    end = total(
        plain(3),
        addition(view.unroll * view.input_channel - to_input),
        addition(view.output_bytes * view.unroll - to_output),
        Cost(1 + 3, 2 + 4),
    )
    body = total(Cost(view.unroll * channel.cycles, view.unroll * channel.code_bytes), end)
    pointers = Cost(5 + 3 + 2 + 2, 4 + 12 + 4 + 4) if view.apart else Cost(3, 4)
    before = total(Cost(10, 4), pointers, plain(3), Cost(3, 8) if view.constants == "phases" else plain(0))
    if view.output:
        before = total(before, addition(view.output.first), addition(view.output_bytes * channels))
    else:
        body = total(body, plain(2))
        before = total(before, Cost(4 + 3, 12))
    after = Cost(-2 + 12, 4)  # the last branch is not taken
    return total(before, repeated(channels // view.unroll, body), after)


def shared_cost(view: SharedView, call: Call) -> Cost:
    """Return the cost of one call of `depthwise_shared`, whose sizes are not in the view."""
    assert isinstance(call.op, DepthwiseConv2D)
    if not view.assembly:
        return in_c(len(call.op.bias) * call.rows * call.output.width, 9)
    numbers = shared_numbers(call, view)
    runs, rows, pairs = len(numbers.counts), call.rows, call.inputs[0].width // 2
    products, started = (6, 7) if view.stride == 1 else (3, 4)  # of a pair
    fast = view.requantization.form == "fast"
    # Two of the constants of the form shifts come from the stack.
    single, double = (total(leaving(view.requantization, n), Cost(0 if fast else 2, 0)) for n in (1, 2))
    step = plain(2)  # of the output pointer
    load = total(plain(1), Cost(4, 14), plain(3) if view.input_bytes == 1 else plain(0))
    left = total(plain(4), single, step) if view.left else plain(0)
    begin = total(Cost(5, 18), load, left, plain(started), Cost(1, 4))

    odd, even = pairs // 2, (pairs - 1) // 2  # pairs in the loop
    full = total(load, plain(products + started))
    odd_pair = total(full, Cost(2 + 1, 6 + 4), *((double, step) if view.stride == 1 else ()))
    even_pair = total(full, double, step, Cost(3, 4))
    loop = total(repeated(odd, odd_pair), repeated(even, even_pair))
    mid_exit = odd > even
    if view.stride == 2:
        loop = total(loop, repeated(int(mid_exit), total(single, step, Cost(4, 6))))

    tail, closes = numbers.tail != 0, view.right and (view.stride == 1 or not view.left)
    last = total(Cost(9, 26) if view.input_bytes == 1 else Cost(5, 16), plain(3))
    if view.stride == 1 and view.right:
        last = total(last, single, step, Cost(4, 14))
    end = total(
        Cost(4 if tail else 6, 10),
        repeated(int(tail), last),
        repeated(int(tail or closes), total(single, plain(1 if closes else 2))),
        plain(0 if closes else 1),
        Cost(9 + 3, 28 + 4),
    )
    row = total(begin, loop, end)
    # Where branches went otherwise than above: at the end of a row's loop, and of a run of rows.
    row_cycles = row.cycles + (2 if mid_exit or pairs == 1 else -2)
    run, channel = Cost(13 + 5 + 3 - 2, 44 + 18 + 4), Cost(13 + 8 + 3 - 2, 40 + 30 + 4)
    frame = Cost(39 + 13 - 2, 56)
    if not fast:
        run, channel, frame = total(run, Cost(-1, -4)), total(channel, Cost(4, 8)), total(frame, Cost(4, 0))
    cycles = frame.cycles + len(call.op.bias) * (channel.cycles + runs * run.cycles + rows * row_cycles)
    return Cost(cycles, frame.code_bytes + channel.code_bytes + run.code_bytes + row.code_bytes)
