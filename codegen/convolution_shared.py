"""Convolutions whose code many layers share: what the text of `convolution_shared` depends on, and its constants.

The arithmetic is that of codegen/convolution.py, two pixels of four output channels at a time; but windows and
distances are read at run time from a header before the constants, so that all pointwise, KxK and fully connected layers
with one output layout and one requantisation take one function of about 900 bytes.

No register is left for the distance of the two pixels. So their windows are gathered on the stack, word by word in
turn, and serve all output channels: the sum is one run whatever the kernel's height, and bytes are widened on the way.
The run goes through a body of BODY words, entered where the words left over in the first round begin. The last pixel of
an odd row is taken twice.
"""

from dataclasses import dataclass, replace

import numpy as np

from codegen.call import Call, Cost
from codegen.convolution import BLOCK, SMALL, ConvolutionView, convolution_accepts, convolution_pack, convolution_view
from codegen.requantize import RequantizationView
from mnet.graph import Conv2D, FullyConnected, Graph, Op

BODY = 10  # words of two taps
WORD_BYTES = 48  # of the code of one word
HEADER = 15  # words before the first group
WINDOW_BYTES_WORD = 14  # of them: what the windows take on the stack
MOST_WORDS = 384  # of a window: 3 KiB of stack
SAVED_BYTES = 36  # r4-r11, lr


@dataclass(frozen=True)
class SharedView:
    """Everything that the text depends on."""

    input_bytes: int  # of a value: 2 in wide16, 1 in wide8
    output_bytes: int
    planar: bool
    output_offset: int  # subtracted from quantized + 128
    requantization: RequantizationView

    @property
    def assembly(self) -> bool:
        """Return whether there is an assembly body; else the C body serves every core."""
        return not self.requantization.own_steps

    @property
    def tail_words(self) -> int:
        """Return the words of a group's requantisation."""
        return 6 if self.requantization.form == "fast" else BLOCK * self.requantization.words


def shared_accepts(op: Op, graph: Graph) -> str | None:
    """Return None if the kernel can compute `op`, or why it cannot."""
    if not isinstance(op, Conv2D | FullyConnected):
        return "not a convolution"
    taps = op.weights[0].size
    if taps > 2 * MOST_WORDS:
        return f"the window has {taps} taps, more than {2 * MOST_WORDS}, which would lie on the stack"
    return convolution_accepts(op, graph)


def shared_makes(call: Call) -> bool:
    """Return whether the windows are made of whole words, few enough for the stack."""
    source = call.inputs[0]
    if source.pixel_bytes % 4 or call.output.stored_channels % BLOCK:
        return False
    full = _geometry(call)
    return full.kernel_height * full.pairs <= MOST_WORDS


def _geometry(call: Call) -> ConvolutionView:
    """Return the sizes and distances of a call, none of them part of the text."""
    full = convolution_view(call, SMALL)
    return replace(full, output=replace(full.output, wrap=0))  # every row by itself


def shared_view(call: Call) -> SharedView:
    """Return what the text depends on. Input wide16 or wide8; any output; rows as `convolution_view` has them."""
    assert shared_makes(call)
    output = call.output
    return SharedView(
        input_bytes=call.inputs[0].layout.element_bytes,
        output_bytes=output.layout.element_bytes,
        planar=output.layout.planar,
        output_offset=output.offset + 128,
        requantization=_geometry(call).requantization,
    )


def shared_stack_bytes(call: Call) -> int:
    """Return the bytes of stack that a call takes."""
    full = _geometry(call)
    return SAVED_BYTES + 8 * full.kernel_height * full.pairs


def shared_pack(call: Call, view: SharedView, phase: int) -> tuple[int, ...]:
    """Return the header, whose words the template names, and the groups as `convolution_pack` has them."""
    full = _geometry(call)
    packed = convolution_pack(call, full, phase)
    words = full.kernel_height * full.pairs
    skipped = -words % BODY
    output = full.output
    header = (
        full.kernel_height,
        full.input_first,
        full.pairs * view.input_bytes // 2,  # words of a kernel row in memory
        full.input_pixel,
        full.rows,
        full.input_row,
        full.pixels,
        output.first,
        output.pixel,
        output.channel,
        output.row,
        4 * len(packed),
        WORD_BYTES * skipped + 1,  # where the body is entered; the lowest bit says Thumb
        8 * skipped + 4,  # bytes that its pointers begin before
        8 * words,
    )
    assert len(header) == HEADER and len(packed) == full.groups * full.group_words
    return tuple(int(np.uint32(word)) for word in header) + packed


def shared_cost(call: Call, view: SharedView) -> Cost:
    """Return what a call takes: per pair of pixels the windows are gathered, then each group goes over their words."""
    how, full = view.requantization, _geometry(call)
    pairs, height = full.rows * -(-full.pixels // 2), full.kernel_height
    words, row_words = height * full.pairs, full.pairs * view.input_bytes // 2
    fours, rest = divmod(row_words, 4)
    gather = 8 + 16 * row_words if view.input_bytes == 1 else 11 + (23 * fours or 4) + (11 * rest or 6)
    # Clamping: a comparison, IT and a move for each bound and value. The form shifts: 14 more for each two channels.
    limited = 3 * how.clamps * ((how.clamp_low > 0) + (how.clamp_high < 255)) + (view.output_offset != 0)
    shifts = how.form == "shifts"
    group = 15 * words + 5 * -(-words // BODY) + (68 if view.planar else 63) + 8 * limited + 28 * shifts
    cycles = 54 + 20 * full.rows + pairs * (33 + height * gather + group * full.groups)
    if not view.assembly:
        cycles = pairs * full.groups * (30 * words + 300)  # of the C body, roughly
        return Cost(cycles, 500)
    code = 1020 + 10 * (view.input_bytes == 2) + 12 * view.planar + 8 * 4 * limited + 84 * shifts
    return Cost(cycles, code)
