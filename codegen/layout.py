"""How one tensor lies in the arena: its layout, the ring of row slots, padding, and the way back to int8.

Values are stored as `quantized - offset`. The wide layouts use offset -128, so that every value is 0..255 and a
requantiser ends in one USAT #8; padding is then zero_point + 128. The layout planar16 uses the zero_point, so that
padding is 0 and the depthwise kernels need no code for edges; for a ReLU tensor (zero_point -128) both are the same,
and such a tensor may lie in planar8, in half the bytes.
Vectors take quantized values as they are: offset 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnet.graph import Int8Array, Tensor

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """One way to lay the pixels and channels of a row."""

    name: str
    element_bytes: int
    planar: bool  # [channel][slot][pixel] instead of [slot][pixel][channel]
    offset: int | None  # quantized = stored + offset; None: the zero_point
    pixel_order: tuple[int, ...] = (0,)  # where each pixel of a group of so many stands in it

    @property
    def c_type(self) -> str:
        """Return the C type of one element."""
        bits = 8 * self.element_bytes
        return f"uint{bits}_t" if bits == 8 and self.offset == -128 else f"int{bits}_t"


WIDE16 = Layout("wide16", 2, planar=False, offset=-128)  # int16 [slot][pixel][channel]: input of every DSP convolution
WIDE8 = Layout("wide8", 1, planar=False, offset=-128)  # uint8 [slot][pixel][channel]: cores without DSP instructions
BYTES8 = Layout("bytes8", 1, planar=False, offset=0)  # int8 [slot][pixel][channel]: cores with vectors (MVE)
PLANAR16 = Layout("planar16", 2, planar=True, offset=None)  # int16 [channel][slot][pixel]: input of the DSP depthwise
# uint8 [channel][slot][pixel], four pixels a word in the order 0, 2, 1, 3: UXTB16 makes a pair of neighbours of it, and
# UXTB16 with ROR #8 the next one. For tensors whose zero_point is -128.
PLANAR8 = Layout("planar8", 1, planar=True, offset=-128, pixel_order=(0, 2, 1, 3))
INDICES32 = Layout("indices32", 4, planar=False, offset=0)  # int32 [slot][pixel]: an output of indices
SUMS32 = Layout("sums32", 4, planar=False, offset=-128)  # int32 [channel]: what pooling adds rows to


def align4(count: int) -> int:
    """Return `count` rounded up to a multiple of 4."""
    return (count + 3) // 4 * 4


@dataclass(frozen=True)
class Storage:
    """Where the rows of one tensor lie inside its buffer, or in a buffer for each row: `apart`.

    Padding rows count as rows here: *virtual row* 0 is the topmost padding row, row y of the tensor is virtual row
    top + y, and virtual row v lies in slot v % slots. With slots == top + height + bottom the tensor is stored whole.
    """

    tensor: Tensor
    layout: Layout
    slots: int
    top: int  # padding rows and columns, as wide as the most demanding consumer wants them; 0 columns in planar layouts
    bottom: int
    left: int
    right: int
    stored_channels: int  # >= channels; the rest is filled by zero weights and read by zero weights
    columns_with_rows: bool = False  # who makes a row writes the padding beside it, too; else it is filled once, before
    slack_bytes: int = 0  # readable bytes behind each row, for kernels that read channel pairs over the end
    apart: bool = False  # every row, padding rows included, has a slot of its own somewhere, free as soon as it is dead

    @property
    def offset(self) -> int:
        """Return what was subtracted from the quantized value."""
        return self.tensor.zero_point if self.layout.offset is None else self.layout.offset

    @property
    def padding_value(self) -> int:
        """Return the stored value that stands for real 0."""
        return self.tensor.zero_point - self.offset

    @property
    def height(self) -> int:
        """Return the rows of the tensor, without padding."""
        return self.tensor.shape[0]

    @property
    def width(self) -> int:
        """Return the pixels of a row, without padding."""
        return self.tensor.shape[1]

    @property
    def virtual_rows(self) -> int:
        """Return the rows with padding."""
        return self.top + self.height + self.bottom

    @property
    def stored_width(self) -> int:
        """Return the pixels that a row takes, with padding; whole words in planar layouts."""
        width = self.left + self.width + self.right
        if not self.layout.planar:
            return width
        return align4(width * self.layout.element_bytes) // self.layout.element_bytes

    @property
    def pixel_bytes(self) -> int:
        """Return the distance of two pixels of one row."""
        return self.layout.element_bytes * (1 if self.layout.planar else self.stored_channels)

    @property
    def slot_bytes(self) -> int:
        """Return the distance of two slots."""
        if self.layout.planar:
            return self.stored_width * self.pixel_bytes * (self.stored_channels if self.apart else 1)
        return align4(self.stored_width * self.pixel_bytes + self.slack_bytes)

    @property
    def channel_bytes(self) -> int:
        """Return the distance of two channels of one pixel."""
        if not self.layout.planar:
            return self.layout.element_bytes
        return self.stored_width * self.pixel_bytes * (1 if self.apart else self.slots)

    @property
    def buffer_bytes(self) -> int:
        """Return the size of the whole buffer, a multiple of 4."""
        each = self.layout.planar and not self.apart  # apart, the channels of a row follow each other
        return self.slots * self.slot_bytes * (self.stored_channels if each else 1)

    @property
    def padded(self) -> bool:
        """Return whether some stored pixel is padding and has to be set before the first row is made."""
        return bool(self.top or self.filled_beside or (self.bottom and self.filled_below))

    @property
    def filled_beside(self) -> bool:
        """Return whether the padding columns are set once, so that no row may be lent in between."""
        return bool(self.padding_columns) and not self.columns_with_rows

    @property
    def padding_columns(self) -> tuple[int, ...]:
        """Return which pixels of a stored row are padding; none in planar layouts."""
        if self.layout.planar:
            return ()
        return (*range(self.left), *range(self.left + self.width, self.stored_width))

    @property
    def filled_below(self) -> bool:
        """Return whether the padding rows below are set with the others, not one by one when they are wanted."""
        return self.whole and not self.layout.planar

    @property
    def whole(self) -> bool:
        """Return whether every row, padding included, has a slot of its own, one behind the other."""
        return self.slots >= self.virtual_rows and not self.apart

    @property
    def kept(self) -> str:
        """Return in words which rows are kept."""
        if self.apart:
            return "rows apart"
        return "whole" if self.whole else "1 row" if self.slots == 1 else f"{self.slots} rows"

    @property
    def contiguous(self) -> bool:
        """Return whether the pixels of consecutive rows follow each other without a gap."""
        if not self.whole or self.left or self.right:
            return False
        return self.slot_bytes == self.width * self.pixel_bytes

    def slot_offset(self, virtual_row: int) -> int:
        """Return the byte offset in the buffer of a virtual row."""
        return virtual_row % self.slots * self.slot_bytes

    def span_bytes(self, rows: int) -> int:
        """Return the bytes from the start of a row to the end of the last of `rows` consecutive slots."""
        span = rows * self.slot_bytes
        each = self.layout.planar and not self.apart
        return span + (self.stored_channels - 1) * self.channel_bytes if each else span

    def _index(self, rows: int) -> npt.NDArray[np.int64]:
        """Return [rows, width, channels]: element index, from the start of the first row, of each live value."""
        row = np.arange(rows)[:, None, None] * self.slot_bytes
        group = len(self.layout.pixel_order)
        pixel = self.left + np.arange(self.width)
        pixel = pixel // group * group + np.array(self.layout.pixel_order, np.int64)[pixel % group]
        channel = np.arange(self.tensor.shape[2])[None, None, :] * self.channel_bytes
        return np.asarray(
            (row + pixel[None, :, None] * self.pixel_bytes + channel) // self.layout.element_bytes, np.int64
        )

    @property
    def _dtype(self) -> str:
        return {"uint8_t": "u1", "int8_t": "i1", "int16_t": "<i2", "int32_t": "<i4"}[self.layout.c_type]

    def unpack(self, span: bytes, rows: int) -> npt.NDArray[np.int32]:
        """Return the quantized values [rows, width, channels] (int32: a value out of int8 must not hide) of a span."""
        values = np.frombuffer(span, self._dtype)[self._index(rows)].astype(np.int32)
        return values + np.int32(self.offset)

    def pack(self, values: Int8Array) -> tuple[bytes, bytes]:
        """Return (span, mask) of int8 [rows, width, channels]; mask is 0xff where a byte of the span is live."""
        rows = values.shape[0]
        count = self.span_bytes(rows) // self.layout.element_bytes
        span, mask = np.zeros(count, self._dtype), np.zeros(count, self._dtype)
        index = self._index(rows)
        span[index] = values.astype(np.int32) - self.offset
        mask[index] = 255 if self._dtype == "u1" else -1
        return span.tobytes(), mask.tobytes()


def word_pair(low: int, high: int) -> int:
    """Return the 32-bit word of two 16-bit lanes."""
    return (low & 0xFFFF) | ((high & 0xFFFF) << 16)
