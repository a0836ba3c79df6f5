"""Depthwise 3x3 whose code many layers share: what the text of `depthwise_shared` depends on, and its constants.

The text knows stride, side padding and the bytes of an element; channels, rows, widths and distances are read at run
time from a header before the constants. So the late small layers of a network, which take few cycles and would have a
kernel each, take one of about 600 bytes; an output costs 16 to 20 cycles instead of 11 to 14.

As in codegen/depthwise_row.py a pair of pixels finishes outputs and starts others, but pair by pair in a loop, with
two accumulators. Rows that touch padding need no code of their own, and no padding in memory: the window is moved into
the tensor, and so are the kernel rows, with zeros for the row that is missing:

    0 k2 k1 k0 0      top, inner and bottom rows begin one word after the other, and meet rows 2, 1, 0
    k2 k1 k0 k2 k1    in a ring of three slots, for the phases 0, 1, 2
"""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call
from codegen.depthwise import depthwise_accepts, depthwise_numbers
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16
from codegen.requantize import RequantizationView
from mnet.graph import DepthwiseConv2D, Graph, Op, output_size

MOST_INNER_ROWS = 255  # counted in a byte
HEADER = 15  # words before the first channel


@dataclass(frozen=True)
class SharedView:
    """Everything that the text depends on."""

    stride: int
    left: int  # padding columns, which are not stored
    right: int
    input_bytes: int  # of a pixel: 2 in planar16, 1 in planar8
    output_bytes: int  # of a value: 2 in wide16, 1 in wide8
    requantization: RequantizationView

    @property
    def channel_words(self) -> int:
        """Return the constants of a channel."""
        return 6 + self.requantization.words

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; its loop keeps a comparison in the flags, as no clamp does."""
        return self.requantization.form in ("fast", "shifts") and not self.requantization.clamps


def _edges(op: DepthwiseConv2D, height: int, rows: int) -> tuple[int, int, int]:
    """Return how many output rows touch padding above, how many none, and how many padding below."""
    top = op.padding[0]
    bottom = int((rows - 1) * op.stride[0] - top + 3 > height)
    return top, rows - top - bottom, bottom


def shared_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, row by row or whole, or why it cannot."""
    reason = depthwise_accepts(op, graph)
    if reason is not None or not isinstance(op, DepthwiseConv2D):
        return reason
    height, width, _ = graph.tensors[op.input].shape
    if width < 2:
        return "rows of one pixel"
    rows = output_size(height, 3, op.stride[0], 1, *op.padding[:2])
    if height < 3 or not 1 <= _edges(op, height, rows)[1] <= MOST_INNER_ROWS:
        return f"{rows} rows"
    return None


def shared_view(call: Call) -> SharedView:
    """Return what the text depends on. Input planar16 or planar8, output wide16 or wide8.

    rows[0] is, for one output row, the first slot of a ring of three, or the top row of the window in a tensor stored
    whole, padding rows included; for all output rows it is row 0 of the tensor. rows[1] is the first output row.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D)
    assert source.layout in (PLANAR16, PLANAR8) and target.layout in (WIDE16, WIDE8)
    assert source.slots == 3 or source.whole
    return SharedView(
        stride=op.stride[1],
        left=op.padding[2],
        right=op.padding[3],
        input_bytes=source.layout.element_bytes,
        output_bytes=target.layout.element_bytes,
        requantization=depthwise_numbers(call)[0],
    )


@dataclass(frozen=True)
class SharedNumbers:
    """The numbers of a call that the header holds. Distances are in bytes."""

    counts: tuple[int, ...]  # output rows of each run that has its own kernel rows
    first: int  # which kernel rows the first run has
    consumed: int  # bytes that a row moves the input pointer
    end: int  # what the loop over pairs compares with, from the row's start
    tail: int  # bit 1: the width is odd; bit 0: the last pixel is byte 1 of its word


def shared_numbers(call: Call, view: SharedView) -> SharedNumbers:
    """Return the numbers of a call."""
    op, source = call.op, call.inputs[0]
    assert isinstance(op, DepthwiseConv2D)
    pairs, odd = divmod(source.width, 2)
    if view.stride == 2 and view.left and not view.right:
        odd = 0  # no window has the last pixel
    edges = _edges(op, source.height, call.rows) if call.rows > 1 else (1, 0, 0)
    first = next(i for i, count in enumerate(edges) if count)
    counts = tuple(count for count in edges if count)
    # The loop takes an odd pair and the next even one; the first even pair comes before it. It ends behind an odd pair
    # if it began at `end`, and behind an even pair if it began beyond that.
    last_odd = pairs - 1 - pairs % 2
    if view.input_bytes == 2:
        return SharedNumbers(counts, first, 4 * pairs, 4 * last_odd - pairs % 2, 2 * odd)
    return SharedNumbers(counts, first, 4 * (pairs // 2), 4 * (last_odd // 2) - pairs % 2, (2 + pairs % 2) * odd)


def shared_pack(call: Call, view: SharedView, phase: int) -> tuple[int, ...]:
    """Return the constants: a header, then for each channel

        the words of the requantisation, then the bias, in the form fast times 256 and with the addend
        5 words, each a kernel row as bytes w0 w1 w1 w2: see above

    The header begins with three words, one for each phase, that say how far the rest is from them. `phase` is the slot
    of the ring that holds the top row of the window; the constants of phase p are those of phase 0 without the first p
    words: one array serves all three.
    """
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and (phase == 0 or (call.rows == 1 and source.slots == 3))
    _, weights, bias, requantization = depthwise_numbers(call)
    shape, slot = shared_numbers(call, view), source.slot_bytes
    moved = call.rows * view.stride * slot - (len(shape.counts) - 1) * slot
    header = [
        *(4 * (3 - i) for i in range(3)),
        slot,
        shape.end,
        view.stride * slot - shape.consumed,
        target.slot_bytes - target.width * target.pixel_bytes,
        sum(count << (8 * i) for i, count in enumerate(shape.counts)),
        4 * shape.first,
        source.channel_bytes - moved,
        view.output_bytes - call.rows * target.slot_bytes,
        len(bias),
        target.left * target.pixel_bytes,
        target.pixel_bytes,
        shape.tail | source.width << 2,
    ]
    assert len(header) == HEADER
    rows = (2, 1, 0, 2, 1) if call.rows == 1 else (None, 2, 1, 0, None)
    words = np.zeros((len(bias), view.channel_words), np.int64)
    words[:, : view.requantization.words] = requantization
    words[:, view.requantization.words] = bias
    for place, row in enumerate(rows, view.requantization.words + 1):
        if row is not None:
            w = weights[row] & 0xFF
            words[:, place] = w[0] | w[1] << 8 | w[1] << 16 | w[2] << 24
    return tuple(int(word) & 0xFFFFFFFF for word in [*header, *words.ravel()][phase:])
