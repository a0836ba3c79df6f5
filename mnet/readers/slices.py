"""Operators that take some rows, columns and channels of a tensor, by numbers that are known: all become Gathers."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mnet.axes import axes_of
from mnet.flatbuffer import RawOperator, RawTensor
from mnet.graph import Gather, Op, Reshape, Tensor
from mnet.operands import Operands
from mnet.readers.movement import amounts_of
from mnet.readers.reader import Reader
from mnet.shape_values import values_of

Numbers = Sequence[int]  # along one axis


def _gathered(operands: Operands, name: str, tensor: RawTensor, taken: Sequence[Numbers], target: Tensor) -> list[Op]:
    """Return the op that takes these numbers along each axis of the file's tensor."""
    source = operands.tensors[tensor.index]
    operands.same_quantization(source, target)
    if any(not 0 <= number < size for numbers, size in zip(taken, tensor.shape, strict=True) for number in numbers):
        raise operands.fail(f"takes what {list(tensor.shape)} does not have; the file is damaged.")
    groups = axes_of(tensor.shape)
    kept = set(itertools.chain(*groups))
    repeated = [axis for axis, numbers in enumerate(taken) if axis not in kept and len(numbers) != 1]
    if not all(taken) or repeated:
        raise operands.fail(f"makes {[len(numbers) for numbers in taken]} of {list(tensor.shape)}: reshape it before.")
    rows, columns, channels = (
        tuple(
            int(number)
            for number in np.ravel_multi_index(
                np.ix_(*(taken[axis] for axis in group)), [tensor.shape[axis] for axis in group]
            ).reshape(-1)
        )
        if group
        else (0,)
        for group in groups
    )
    made, reshape = operands.reshaped(name, (len(rows), len(columns), len(channels)), target)
    return [Gather(name, source.name, made, rows, columns, channels), *reshape]


_MASKS = ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")


def _strided_slice(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read a STRIDED_SLICE.

    Source: TensorFlow Lite, kernels/strided_slice.cc, BuildStridedSliceParams; begin and end are clamped as Python's.
    """
    operands.input(operator)
    tensor, target = operands.operand(operator, 0), operands.output(operator)
    begin, end, step = (
        operands.integers(operands.operand(operator, 1 + n), word).reshape(-1).tolist()
        for n, word in enumerate(("begin", "end", "strides"))
    )
    begins, ends, ellipses, news, shrinks = (int(operands.option(operator, f"{word}Mask")) for word in _MASKS)
    if operands.option(operator, "Offset"):
        raise operands.fail("counts its ends from its begins, which mnet does not read: export the model again.")
    rank, bits = len(tensor.shape), range(len(begin))
    news &= ~ellipses
    given = sum(1 for bit in bits if not (ellipses | news) >> bit & 1)  # axes of the tensor
    several = sum(ellipses >> bit & 1 for bit in bits) > 1
    if not len(begin) == len(end) == len(step) or several or given > rank or 0 in step:
        raise operands.fail(f"slices {list(tensor.shape)} from {begin} to {end} by {step}; the file is damaged.")
    taken: list[Numbers] = []
    shape: list[int] = []
    for bit in bits:
        if news >> bit & 1:
            shape.append(1)
            continue
        axes = rank - given if ellipses >> bit & 1 else 1
        for size in tensor.shape[len(taken) : len(taken) + axes]:
            if ellipses >> bit & 1:
                taken.append(range(size))
            elif shrinks >> bit & 1:
                number = 0 if begins >> bit & 1 else begin[bit]
                taken.append([number + size if number < 0 else number])
                continue
            else:
                first, last = (None if mask >> bit & 1 else n[bit] for mask, n in ((begins, begin), (ends, end)))
                taken.append(range(*slice(first, last, step[bit]).indices(size)))
            shape.append(len(taken[-1]))
    rest = [range(size) for size in tensor.shape[len(taken) :]]
    operands.makes(operator, [*shape, *map(len, rest)])
    return _gathered(operands, name, tensor, [*taken, *rest], target)


def _slice(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator)
    tensor, target = operands.operand(operator, 0), operands.output(operator)
    begin, size = (
        operands.integers(operands.operand(operator, 1 + n), word).reshape(-1).tolist()
        for n, word in enumerate(("begin", "size"))
    )
    if not len(begin) == len(size) == len(tensor.shape):
        raise operands.fail(f"slices {list(tensor.shape)} from {begin}; the file is damaged.")
    ends = [whole if n == -1 else first + n for first, n, whole in zip(begin, size, tensor.shape, strict=True)]
    taken = [range(first, end) for first, end in zip(begin, ends, strict=True)]
    operands.makes(operator, [len(numbers) for numbers in taken])
    return _gathered(operands, name, tensor, taken, target)


def _parts(
    operands: Operands, operator: RawOperator, name: str, tensor: RawTensor, axis: int, sizes: Sequence[int]
) -> list[Op]:
    """Return the ops that make the outputs of a SPLIT, SPLIT_V or UNPACK: parts of these sizes along an axis."""
    rank = len(tensor.shape)
    if not -rank <= axis < rank or sum(sizes) != tensor.shape[axis] or min(sizes, default=0) < 1:
        raise operands.fail(f"splits {list(tensor.shape)} into {list(sizes)} along axis {axis}; the file is damaged.")
    if len(sizes) != len(operator.outputs):
        raise operands.fail(
            f"makes {len(sizes)} tensors, but has {len(operator.outputs)} outputs; the file is damaged."
        )
    axis %= rank
    ops: list[Op] = []
    ends = list(itertools.accumulate(sizes))
    for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        left = () if operator.kind == "UNPACK" else (size,)
        operands.makes(operator, (*tensor.shape[:axis], *left, *tensor.shape[axis + 1 :]), number)
        taken = [range(end - size, end) if a == axis else range(n) for a, n in enumerate(tensor.shape)]
        target = operands.output(operator, number)
        ops += _gathered(operands, f"{name}_{number}" if number else name, tensor, taken, target)
    return ops


def _split(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator, 1)
    tensor, count = operands.operand(operator, 1), len(operator.outputs)
    axis = operands.number(operands.operand(operator, 0), "axis")
    if not count or not -len(tensor.shape) <= axis < len(tensor.shape) or tensor.shape[axis] % count:
        raise operands.fail(f"splits {list(tensor.shape)} into {count} along axis {axis}; the file is damaged.")
    return _parts(operands, operator, name, tensor, axis, [tensor.shape[axis] // count] * count)


def _split_v(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator)
    tensor = operands.operand(operator, 0)
    sizes = operands.integers(operands.operand(operator, 1), "sizes").reshape(-1).tolist()
    axis = operands.number(operands.operand(operator, 2), "axis")
    if sizes.count(-1) == 1 and -len(tensor.shape) <= axis < len(tensor.shape):  # what is left
        sizes[sizes.index(-1)] = tensor.shape[axis] - sum(sizes) - 1
    return _parts(operands, operator, name, tensor, axis, sizes)


def _unpack(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator)
    axis = int(operands.option(operator, "Axis"))
    return _parts(operands, operator, name, operands.operand(operator, 0), axis, [1] * len(operator.outputs))


def _gather(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator)
    tensor, target = operands.operand(operator, 0), operands.output(operator)
    numbers = operands.integers(operands.operand(operator, 1), "indices")
    axis, rank = int(operands.option(operator, "Axis")), len(tensor.shape)
    if operands.option(operator, "BatchDims") != 0:
        raise operands.fail("gathers for each batch: export the model with batch_dims 0.")
    if not -rank <= axis < rank:
        raise operands.fail(f"gathers along axis {axis} of {list(tensor.shape)}; the file is damaged.")
    axis %= rank
    operands.makes(operator, (*tensor.shape[:axis], *numbers.shape, *tensor.shape[axis + 1 :]))
    taken = [numbers.reshape(-1).tolist() if a == axis else range(size) for a, size in enumerate(tensor.shape)]
    return _gathered(operands, name, tensor, taken, target)


def _mirror_pad(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read a MIRROR_PAD: with REFLECT the edge itself is not repeated.

    Source: TensorFlow Lite, kernels/mirror_pad.cc, GetInputDimension.
    """
    operands.input(operator)
    tensor, target = operands.operand(operator, 0), operands.output(operator)
    mode = int(operands.option(operator, "Mode"))
    amounts = amounts_of(operands, operator)
    if mode not in (0, 1) or any(max(pair) > n - (mode == 0) for pair, n in zip(amounts, tensor.shape, strict=True)):
        raise operands.fail(f"mirrors {amounts} of {list(tensor.shape)} in mode {mode}; the file is damaged.")
    taken = []
    for (before, after), size in zip(amounts, tensor.shape, strict=True):
        edge = 1 - mode
        front = [before - 1 - i + edge for i in range(before)]
        taken.append([*front, *range(size), *(size - 1 - edge - i for i in range(after))])
    operands.makes(operator, [len(numbers) for numbers in taken])
    return _gathered(operands, name, tensor, taken, target)


def _reverse(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    operands.input(operator)
    tensor, target = operands.operand(operator, 0), operands.output(operator)
    axes = operands.integers(operands.operand(operator, 1), "axes").reshape(-1).tolist()
    rank = len(tensor.shape)
    if any(not -rank <= axis < rank for axis in axes):
        raise operands.fail(f"reverses axes {axes} of {list(tensor.shape)}; the file is damaged.")
    turned = {axis % rank for axis in axes}
    operands.makes(operator, tensor.shape)
    taken = [range(n - 1, -1, -1) if axis in turned else range(n) for axis, n in enumerate(tensor.shape)]
    return _gathered(operands, name, tensor, taken, target)


def _tile(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    """Read a TILE, one axis after the other: what is repeated may lie between axes that are rows together."""
    tensor, source = operands.operand(operator, 0), operands.input(operator)
    counts = values_of(operands.model, operands.operand(operator, 1).index)
    given = [] if counts is None else counts.reshape(-1).tolist()
    if counts is None or counts.shape != (len(tensor.shape),) or not all(1 <= count <= 1 << 20 for count in given):
        raise operands.fail(f"repeats {list(tensor.shape)} by {given}: these must be known numbers of at least 1.")
    sizes, made = list(tensor.shape), [int(count) * size for count, size in zip(given, tensor.shape, strict=True)]
    operands.makes(operator, made)
    target = operands.output(operator)
    operands.same_quantization(source, target)
    ops: list[Op] = []
    current = source
    for axis, (size, after) in enumerate(zip(tensor.shape, made, strict=True)):
        if after == size:
            continue
        outer, inner = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
        view = operands.intermediate(f"{target.name}/view_{axis}", (outer, size, inner), source)
        tiled = operands.intermediate(f"{target.name}/tiled_{axis}", (outer, after, inner), source)
        ops += [
            Reshape(f"{name}_view_{axis}", current.name, view.name, view.shape),
            Gather(
                f"{name}_axis_{axis}",
                view.name,
                tiled.name,
                tuple(range(outer)),
                tuple(range(size)) * (after // size),
                tuple(range(inner)),
            ),
        ]
        current, sizes[axis] = tiled, after
    return [*ops, Reshape(name, current.name, target.name, target.shape)]


READERS: Mapping[str, Reader] = {
    "SLICE": Reader(_slice, "from a place that is known"),
    "STRIDED_SLICE": Reader(_strided_slice, "the same, any step, with all its masks"),
    "SPLIT": Reader(_split, "along any axis"),
    "SPLIT_V": Reader(_split_v, "along any axis"),
    "UNPACK": Reader(_unpack, "along any axis"),
    "GATHER": Reader(_gather, "of numbers that are known"),
    "MIRROR_PAD": Reader(_mirror_pad, "both modes"),
    "REVERSE_V2": Reader(_reverse, "any axes"),
    "TILE": Reader(_tile, "any repetition, as UpSampling2D writes it"),
}
