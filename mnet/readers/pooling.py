"""Pooling and resizing: operators over windows of pixels."""

from collections.abc import Mapping
from functools import partial

from mnet.flatbuffer import RawOperator
from mnet.graph import AveragePool2D, MaxPool2D, Op, Resize, Sampling
from mnet.operands import Operands
from mnet.readers.reader import Reader
from mnet.windows import grid


def _pool(kind: type[AveragePool2D | MaxPool2D], operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    kernel = (int(operands.option(operator, "FilterHeight")), int(operands.option(operator, "FilterWidth")))
    stride, _, padding = operands.geometry(operator, source, kernel)
    operands.same_quantization(source, target)
    return [kind(name, source.name, target.name, kernel, stride, padding, operands.fused(operator, target))]


def _resize(sampling: Sampling, operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    size = operands.constant(operands.operand(operator, 1), "int32", "size").reshape(-1).tolist()
    operands.same_quantization(source, target)
    if tuple(size) != target.shape[:2]:
        raise operands.fail(f"makes {size} rows and columns, its output has {list(target.shape[:2])}.")
    aligned, half = (bool(operands.option(operator, field)) for field in ("AlignCorners", "HalfPixelCenters"))
    op = Resize(name, source.name, target.name, sampling, (size[0], size[1]), aligned, half)
    if sampling is Sampling.BILINEAR:
        if aligned and half:
            raise operands.fail("has both align_corners and half_pixel_centers: the runtimes refuse that, use one.")
        ends = [int(grid(op, source.shape[axis], axis).positions(size[axis])[-1]) for axis in (0, 1)]
        if any(end >= 1024 * pixels for end, pixels in zip(ends, source.shape, strict=False)):
            raise operands.fail(
                f"resizes {source.shape[:2]} to {tuple(size)}: with their 10 bits of fraction the runtimes read beyond "
                "the input, use a smaller size."
            )
    return [op]


READERS: Mapping[str, Reader] = {
    "AVERAGE_POOL_2D": Reader(partial(_pool, AveragePool2D), "any window"),
    "MAX_POOL_2D": Reader(partial(_pool, MaxPool2D), "any window"),
    "RESIZE_NEAREST_NEIGHBOR": Reader(partial(_resize, Sampling.NEAREST), "to any size"),
    "RESIZE_BILINEAR": Reader(partial(_resize, Sampling.BILINEAR), "to any size"),
}
