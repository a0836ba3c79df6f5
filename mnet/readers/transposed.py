"""Transposed convolutions become convolutions of the input as it is: each makes a block of pixels, which then part.

In a transposed convolution of stride s, value y of the output (padding before it included) is the sum over the kernel
rows f = y mod s, y mod s + s, ... of row (y - f) / s of the input. All s values of a block look at the same rows. So a
convolution of stride 1 with ceil(kernel / s) rows and s times as many channels makes them, the weights of each value
in its own channels; DEPTH_TO_SPACE puts the channels beside each other. The same holds for columns. Accumulators are
the same sums: where a value has fewer kernel rows than others, a weight is 0.

Source: TensorFlow Lite, kernels/internal/reference/integer_ops/transpose_conv.h, and kernels/transpose_conv.cc, where
padding is that of the convolution which goes back from the output to the input.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mnet.flatbuffer import RawOperator
from mnet.graph import Conv2D, Gather, Int8Array, Op, output_size
from mnet.movement import rearrange
from mnet.operands import Operands, read_only
from mnet.readers.reader import Reader
from mnet.readers.weighted import checked


@dataclass(frozen=True)
class _Axis:
    """Rows, or columns, of a transposed convolution."""

    source: int
    target: int
    kernel: int
    stride: int
    padding: int  # before the first value of the output

    @property
    def taps(self) -> int:
        """Return the rows of the convolution's kernel."""
        return -(-self.kernel // self.stride)

    @property
    def first(self) -> int:
        """Return the first block that holds a value of the output."""
        return self.padding // self.stride

    @property
    def before(self) -> int:
        """Return the padding before the input: the first window ends at row `first`."""
        return self.taps - 1 - self.first

    @property
    def after(self) -> int:
        """Return the padding behind the input."""
        last = (self.padding + self.target - 1) // self.stride
        return max(last + 1 - self.source, 0)

    @property
    def blocks(self) -> int:
        """Return how many the convolution makes: more than are needed where the output leaves some out."""
        return self.source + self.before + self.after - self.taps + 1

    @property
    def taken(self) -> tuple[int, ...]:
        """Return which of the blocks' values the output has."""
        begin = self.padding - self.first * self.stride
        return tuple(range(begin, begin + self.target))


def _blocks_of_weights(weights: Int8Array, rows: _Axis, columns: _Axis) -> Int8Array:
    """Return [stride * stride * channels_out, taps, taps, channels_in] of [channels_out, kernel, kernel, channels_in].

    The last tap, which looks at the row of the block itself, has the first `stride` kernel rows.
    """
    channels_out, _, _, channels_in = weights.shape
    whole = np.zeros((channels_out, rows.taps * rows.stride, columns.taps * columns.stride, channels_in), np.int8)
    whole[:, : rows.kernel, : columns.kernel] = weights
    parted = whole.reshape(channels_out, rows.taps, rows.stride, columns.taps, columns.stride, channels_in)
    blocks = parted[:, ::-1, :, ::-1].transpose(2, 4, 0, 1, 3, 5)
    return np.ascontiguousarray(blocks.reshape(-1, rows.taps, columns.taps, channels_in))


def _transpose_conv(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator, 2), operands.output(operator)
    weights, scales = operands.weights(operands.operand(operator, 1), rank=4, axis=0)
    if weights.shape[0] != target.shape[2] or weights.shape[3] != source.shape[2]:
        raise operands.fail(
            f"its kernels have shape {list(weights.shape)}, its input has {source.shape[2]} channels and its output "
            f"{target.shape[2]}; the file is damaged."
        )
    stride, _, padding = operands.geometry(operator, target, (weights.shape[1], weights.shape[2]))
    rows, columns = (
        _Axis(source.shape[i], target.shape[i], weights.shape[1 + i], stride[i], padding[2 * i]) for i in (0, 1)
    )
    back = tuple(
        output_size(target.shape[i], weights.shape[1 + i], stride[i], 1, *padding[2 * i : 2 * i + 2]) for i in (0, 1)
    )
    if back != source.shape[:2]:
        raise operands.fail(
            f"makes {target.shape[:2]} of {source.shape[:2]}; its kernel and stride make that of {back}, and the "
            "runtimes refuse it."
        )
    per_block = stride[0] * stride[1]
    shape = (rows.blocks, columns.blocks, per_block * target.shape[2])
    parted = (rows.blocks * stride[0], columns.blocks * stride[1], target.shape[2])
    blocks = operands.intermediate(f"{target.name}/blocks", shape, target)
    convolution = Conv2D(
        name,
        source.name,
        blocks.name,
        read_only(_blocks_of_weights(weights, rows, columns)),
        read_only(np.tile(operands.bias(operator, target.shape[2], 3), per_block)),
        read_only(np.tile(scales, per_block)),
        (1, 1),
        (1, 1),
        (rows.before, rows.after, columns.before, columns.after),
        operands.fused(operator, target),
    )
    whole = target if parted == target.shape else operands.intermediate(f"{target.name}/parted", parted, target)
    view = (rows.blocks, columns.blocks, stride[0], stride[1], target.shape[2])
    ops = checked(operands, convolution)
    ops.append(rearrange(f"{name}_parted", blocks.name, whole.name, view, (0, 2, 1, 3, 4), parted))
    if whole is not target:
        channels = tuple(range(target.shape[2]))
        ops.append(Gather(f"{name}_taken", whole.name, target.name, rows.taken, columns.taken, channels))
    return ops


READERS: Mapping[str, Reader] = {
    "TRANSPOSE_CONV": Reader(_transpose_conv, "any kernel, stride and padding: a convolution, then DEPTH_TO_SPACE"),
}
