"""Operators that move values and change none: padding, joining, reshaping, transposing. Slices: slices.py."""

import math
from collections.abc import Mapping, Sequence

from mnet.flatbuffer import RawOperator
from mnet.graph import Concat, Gather, Op, Pad, Reshape, Tensor
from mnet.movement import rearrange
from mnet.operands import Operands
from mnet.readers.reader import Reader
from mnet.shape_values import values_of


def amounts_of(operands: Operands, operator: RawOperator) -> list[list[int]]:
    """Return [before, after] for each axis of the file's tensor: the constant of a PAD or MIRROR_PAD, checked."""
    tensor, pads = operands.operand(operator, 0), operands.operand(operator, 1)
    amounts: list[list[int]] = operands.integers(pads, "paddings").tolist()
    if pads.shape != (len(tensor.shape), 2) or any(pixels < 0 for pair in amounts for pixels in pair):
        raise operands.fail(f"has paddings of shape {list(pads.shape)} for {list(tensor.shape)}; the file is damaged.")
    return amounts


def _pad(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensor, source, target = operands.operand(operator, 0), operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    value = source.zero_point
    if operator.kind == "PADV2":
        constant = operands.operand(operator, 2)
        if (constant.scales.tolist(), constant.zero_points.tolist()) != ([source.scale], [source.zero_point]):
            raise operands.fail("pads with a value of another scale or zero_point than its input's.")
        value = int(operands.constant(constant, "int8", "value").reshape(-1)[0])
    around = [[0, 0], [0, 0], [0, 0]]
    amounts = amounts_of(operands, operator)
    for axis, pair in enumerate(amounts):
        if any(pair):
            ours = operands.axis(tensor, axis)
            if ours is None:
                raise operands.fail(f"pads axis {axis} of {list(tensor.shape)}: the batch must stay 1.")
            around[ours] = pair
    operands.makes(operator, [size + sum(pair) for size, pair in zip(tensor.shape, amounts, strict=True)])
    (top, bottom), (left, right), (before, after) = around
    return [Pad(name, source.name, target.name, (top, bottom, left, right), (before, after), value)]


def _reshape(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    is_open = -1 in operands.raw(operator.outputs[0]).signature and math.prod(source.shape) != math.prod(target.shape)
    if operator.kind == "RESHAPE" and is_open and len(operator.inputs) > 1:
        values = values_of(operands.model, operator.inputs[1])
        if values is None or values.ndim != 1 or (values < -1).any() or (values == -1).sum() > 1:
            raise operands.fail("makes a shape that depends on the input: convert the model with a fixed input shape.")
        rest = math.prod(values[values != -1].tolist())
        sizes = [math.prod(source.shape) // max(rest, 1) if size == -1 else size for size in values.tolist()]
        operands.makes(operator, sizes)
        target = operands.output(operator)
    return [Reshape(name, source.name, target.name, target.shape)]


def _joined(
    operands: Operands, name: str, sources: Sequence[Tensor], sizes: Sequence[int], inner: int, target: Tensor
) -> list[Op]:
    """Return what joins tensors, each [outer, its size, inner] in the order of the file, along the middle axis."""
    for source in sources:
        operands.same_quantization(source, target)
    outer = math.prod(target.shape) // (sum(sizes) * inner)
    wholes = [outer * size * inner for size in sizes]
    if wholes != [math.prod(s.shape) for s in sources] or sum(wholes) != math.prod(target.shape):
        raise operands.fail(f"joins {[s.shape for s in sources]} to {target.shape}; the file is damaged.")
    for axis in range(3):
        direct = Concat(name, tuple(source.name for source in sources), target.name, axis)
        fits = direct.output_shape(*(source.shape for source in sources)) == target.shape
        if fits and (math.prod(target.shape[:axis]), math.prod(target.shape[axis + 1 :])) == (outer, inner):
            return [direct]
    ops: list[Op] = []
    parts = []
    for number, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        part = operands.intermediate(f"{target.name}/part_{number}", (outer, size, inner), source)
        ops.append(Reshape(f"{name}_part_{number}", source.name, part.name, part.shape))
        parts.append(part.name)
    made, reshape = operands.reshaped(name, (outer, sum(sizes), inner), target)
    return [*ops, Concat(name, tuple(parts), made, 1), *reshape]


def _concatenation(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensors = [operands.operand(operator, position) for position in range(max(1, len(operator.inputs)))]
    sources, target = [operands.input(operator, n) for n in range(len(tensors))], operands.output(operator)
    if operands.fused(operator, target) != (-128, 127):
        raise operands.fail("has a fused activation: use a layer of its own.")
    rank, axis = len(tensors[0].shape), int(operands.option(operator, "Axis"))
    if not -rank <= axis < rank or {len(tensor.shape) for tensor in tensors} != {rank}:
        raise operands.fail(f"joins {[list(t.shape) for t in tensors]} along axis {axis}; the file is damaged.")
    axis %= rank
    sizes = [tensor.shape[axis] for tensor in tensors]
    expected = (*tensors[0].shape[:axis], sum(sizes), *tensors[0].shape[axis + 1 :])
    operands.makes(operator, expected)
    return _joined(operands, name, sources, sizes, math.prod(expected[axis + 1 :]), target)


def _pack(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensors = [operands.operand(operator, position) for position in range(max(1, len(operator.inputs)))]
    sources, target = [operands.input(operator, n) for n in range(len(tensors))], operands.output(operator)
    shape, axis = tensors[0].shape, int(operands.option(operator, "Axis"))
    if not -len(shape) <= axis + 1 <= len(shape) + 1 or {tensor.shape for tensor in tensors} != {shape}:
        raise operands.fail(f"packs {[list(t.shape) for t in tensors]} along axis {axis}; the file is damaged.")
    axis %= len(shape) + 1
    operands.makes(operator, (*shape[:axis], len(tensors), *shape[axis:]))
    return _joined(operands, name, sources, [1] * len(sources), math.prod(shape[axis:]), target)


def _transpose(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensor, source, target = operands.operand(operator, 0), operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    rank = len(tensor.shape)
    given = [int(axis) for axis in operands.integers(operands.operand(operator, 1), "permutation").reshape(-1)]
    order = tuple(axis + rank if axis < 0 else axis for axis in given)
    if sorted(order) != list(range(rank)):
        raise operands.fail(f"has the permutation {given} for {list(tensor.shape)}; the file is damaged.")
    operands.makes(operator, [tensor.shape[axis] for axis in order])
    return [rearrange(name, source.name, target.name, tensor.shape, order, target.shape)]


def _block(operands: Operands, operator: RawOperator) -> tuple[int, Tensor, Tensor]:
    source, target = operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    size = int(operands.option(operator, "BlockSize"))
    shape = operands.operand(operator, 0).shape
    if len(shape) != 4 or not 1 <= size < 1 << 15:
        raise operands.fail(f"has blocks of {size} for {list(shape)}; the file is damaged.")
    return size, source, target


def _space_to_depth(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    size, source, target = _block(operands, operator)
    height, width, channels = source.shape
    if height % size or width % size:
        raise operands.fail(f"has blocks of {size} for {source.shape}; the file is damaged.")
    operands.makes(operator, (1, height // size, width // size, channels * size * size))
    view = (height // size, size, width // size, size, channels)
    return [rearrange(name, source.name, target.name, view, (0, 2, 1, 3, 4), target.shape)]


def _depth_to_space(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    size, source, target = _block(operands, operator)
    height, width, channels = source.shape
    if channels % (size * size):
        raise operands.fail(f"has blocks of {size} for {source.shape}; the file is damaged.")
    operands.makes(operator, (1, height * size, width * size, channels // (size * size)))
    view = (height, width, size, size, channels // (size * size))
    return [rearrange(name, source.name, target.name, view, (0, 2, 1, 3, 4), target.shape)]


def _around(operands: Operands, operator: RawOperator) -> list[list[int]]:
    """Return the amounts along rows, columns and channels of a SPACE_TO_BATCH_ND or BATCH_TO_SPACE_ND."""
    is_begin = operator.kind == "SPACE_TO_BATCH_ND"
    inner = operands.raw((operator.outputs or (-1,))[0]) if is_begin else operands.operand(operator, 0)
    if not inner.is_whole:
        raise operands.fail(
            "is read only around a convolution without stride or padding, as dilated layers are written: use "
            "dilation_rate of a layer."
        )
    amounts = values_of(operands.model, operator.inputs[2])
    assert amounts is not None  # mnet.dilation has read it
    around = [[0, 0], [0, 0], [0, 0]]
    for axis, pair in enumerate(amounts.tolist(), 1):
        ours = operands.axis(inner, axis)
        if ours is not None:
            around[ours] = pair
    return around


def _space_to_batch(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read what pads the input of a dilated convolution; see mnet/dilation.py."""
    (top, bottom), (left, right), _ = _around(operands, operator)
    source, target = operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    return [Pad(name, source.name, target.name, (top, bottom, left, right), (0, 0), source.zero_point)]


def _batch_to_space(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read what crops the output of a dilated convolution."""
    source, target = operands.input(operator), operands.output(operator)
    rows, columns, channels = (
        tuple(range(before, size - after))
        for (before, after), size in zip(_around(operands, operator), source.shape, strict=True)
    )
    operands.same_quantization(source, target)
    return [Gather(name, source.name, target.name, rows, columns, channels)]


READERS: Mapping[str, Reader] = {
    "PAD": Reader(_pad, "of rows, columns and channels"),
    "PADV2": Reader(_pad, "the same, with any value"),
    "CONCATENATION": Reader(_concatenation, "of activations of one scale, along any axis"),
    "PACK": Reader(_pack, "as CONCATENATION, along a new axis"),
    "TRANSPOSE": Reader(_transpose, "any permutation"),
    "SPACE_TO_DEPTH": Reader(_space_to_depth, "any block"),
    "DEPTH_TO_SPACE": Reader(_depth_to_space, "any block"),
    "SPACE_TO_BATCH_ND": Reader(_space_to_batch, "around a convolution: a dilated layer"),
    "BATCH_TO_SPACE_ND": Reader(_batch_to_space, "around a convolution: a dilated layer"),
    "RESHAPE": Reader(_reshape, "that keeps the values"),
    "SQUEEZE": Reader(_reshape, "as RESHAPE"),
    "EXPAND_DIMS": Reader(_reshape, "as RESHAPE"),
}
