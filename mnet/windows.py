"""Operators over windows of pixels, in NumPy: what each tap sees, pools, and resizing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.graph import (
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    Int8Array,
    MaxPool2D,
    Pool2D,
    Resize,
    Sampling,
    output_size,
)


def padded(x: npt.NDArray[Any], padding: tuple[int, int, int, int], value: int) -> npt.NDArray[Any]:
    """Return x [n, h, w, c] with `value` in rows above and below, in columns left and right."""
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def windows(op: Conv2D | DepthwiseConv2D | Pool2D, x: npt.NDArray[Any], outside: int = 0) -> list[npt.NDArray[Any]]:
    """Return what each tap of the window sees of x [n, h, w, c], `outside` beyond it: [n, *output size, c] each."""
    match op:
        case Conv2D():
            kernel, dilation = op.weights.shape[1:3], op.dilation
        case DepthwiseConv2D():
            kernel, dilation = op.weights.shape[:2], op.dilation
        case AveragePool2D() | MaxPool2D():
            kernel, dilation = op.kernel, (1, 1)
    top, bottom, left, right = op.padding
    height = output_size(x.shape[1], kernel[0], op.stride[0], dilation[0], top, bottom)
    width = output_size(x.shape[2], kernel[1], op.stride[1], dilation[1], left, right)
    x = padded(x, op.padding, outside)
    return [
        x[
            :,
            row * dilation[0] : row * dilation[0] + (height - 1) * op.stride[0] + 1 : op.stride[0],
            column * dilation[1] : column * dilation[1] + (width - 1) * op.stride[1] + 1 : op.stride[1],
        ]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]


def rounded_mean(sums: npt.ArrayLike, counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return sums / counts, halves away from zero.

    >>> rounded_mean([3, -3, 1, -1], [2, 2, 3, 3])
    array([ 2, -2,  0,  0])
    """
    sums, counts = np.asarray(sums, np.int64), np.asarray(counts, np.int64)
    return np.asarray(np.sign(sums) * ((np.abs(sums) + counts // 2) // counts), np.int64)


def average_pool_2d(op: AveragePool2D, x: Int8Array) -> Int8Array:
    """Return the mean of each window, halves away from zero; padding does not count.

    Source: TensorFlow Lite, kernels/internal/reference/integer_ops/pooling.h, AveragePool.
    """
    sums = sum(windows(op, x.astype(np.int32)))
    counts = sum(windows(op, np.ones((1, *x.shape[1:3], 1), np.int32)))
    return np.asarray(np.clip(rounded_mean(sums, counts), *op.activation), np.int8)


def max_pool_2d(op: MaxPool2D, x: Int8Array) -> Int8Array:
    """Return the largest value of each window; padding does not count.

    Source: TensorFlow Lite, kernels/internal/reference/integer_ops/pooling.h, MaxPool.
    """
    return np.asarray(np.clip(np.max(windows(op, x, -128), axis=0), *op.activation), np.int8)


def nearest(op: Resize, size: int, axis: int) -> npt.NDArray[np.int64]:
    """Return for each row (axis 0) or column (1) of the output which one of `size` it takes.

    Source: TensorFlow Lite, kernels/internal/reference/resize_nearest_neighbor.h, GetNearestNeighbor, in float32.
    """
    count = op.size[axis]
    aligned = op.align_corners and count > 1
    scale = np.float32(size - 1) / np.float32(count - 1) if aligned else np.float32(size) / np.float32(count)
    places = (np.arange(count, dtype=np.float32) + np.float32(0.5 * op.half_pixel_centers)) * scale
    places = places.astype(np.float64) + 0.5 * op.align_corners  # rounded, or else cut off
    return np.clip(np.floor(places).astype(np.int64), 0, size - 1)


@dataclass(frozen=True)
class Grid:
    """Where the rows or columns of a bilinear resize lie among those of its input: number * step + start, in 1024ths.

    What lies before the first is taken for it.
    """

    step: int
    start: int

    def positions(self, count: int) -> npt.NDArray[np.int64]:
        """Return where each of `count` lies, at least 0."""
        return np.maximum(np.arange(count, dtype=np.int64) * self.step + self.start, 0)


def grid(op: Resize, size: int, axis: int) -> Grid:
    """Return where the rows (axis 0) or columns (1) of the output lie among `size`.

    Source: TensorFlow Lite, kernels/internal/reference/resize_bilinear.h, ResizeBilinear for int8: 10 fractional bits.
    """
    count = op.size[axis]
    if op.align_corners and count > 1:
        size, count = size - 1, count - 1
    step = (1024 * size + count // 2) // count
    return Grid(step, step // 2 - 512 if op.half_pixel_centers else 0)


def resize(op: Resize, x: Int8Array) -> Int8Array:
    """Return x [n, h, w, c] resized; bilinear means are rounded to nearest, halves away from zero."""
    height, width = x.shape[1:3]
    if op.sampling is Sampling.NEAREST:
        return x[:, nearest(op, height, 0)][:, :, nearest(op, width, 1)]
    blended = x.astype(np.int64)
    for axis, size in ((0, height), (1, width)):
        positions = grid(op, size, axis).positions(op.size[axis])
        first, weight = positions // 1024, (positions % 1024).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        second = np.minimum(first + 1, size - 1)
        blended = blended.take(first, axis + 1) * (1024 - weight) + blended.take(second, axis + 1) * weight
    return rounded_mean(blended, 1 << 20).astype(np.int8)
