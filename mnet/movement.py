"""Ops that move values and change none, on arrays of any type: golden values, or the numbers of places.

Generated code follows from these functions, too: run on the numbers of all places of the inputs, they say where each
value of the output comes from (codegen/movement.py).
"""

import math
from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from mnet.graph import Concat, Gather, Move, Pad, Rearrange, Reshape, Shape, inputs_of

Array = npt.NDArray[Any]


def move(op: Move, inputs: tuple[Array, ...], padding: int | None = None) -> Array:
    """Return the output [n, height, width, channels] of `op` for its inputs, each [n, height, width, channels].

    Args:
        op: what to move.
        inputs: arrays of one type.
        padding: what a Pad puts around instead of its own value.
    """
    x = inputs[0]
    match op:
        case Pad():
            top, bottom, left, right = op.padding
            around = ((0, 0), (top, bottom), (left, right), op.channels)
            return np.pad(x, around, constant_values=op.value if padding is None else padding)
        case Concat():
            return np.concatenate(inputs, axis=1 + op.axis)
        case Gather():
            return x[:, np.array(op.rows)[:, None, None], np.array(op.columns)[:, None], np.array(op.channels)]
        case Reshape():
            return x.reshape(len(x), *op.shape)
        case Rearrange():
            order = (0, *(1 + axis for axis in op.permutation))
            return np.ascontiguousarray(x.reshape(len(x), *op.view).transpose(order)).reshape(len(x), *op.shape)
        case _:
            assert_never(op)


def gather_of(ops: Sequence[Move], name: str, shape: Shape) -> Gather | None:
    """Return the one op that does what a chain of moves does with a tensor of this shape, if it is a Gather.

    Args:
        ops: each reads what the one before makes; none of them pads, none has several inputs.
        name: of the Gather.
        shape: of what the first one reads.

    >>> chain = (Reshape("a", "in", "x", (4, 1, 3)), Gather("b", "x", "y", (0, 1, 2, 3), (0, 0), (0, 1, 2)))
    >>> gather_of((*chain, Reshape("c", "y", "out", (2, 4, 3))), "d", (2, 2, 3))
    Gather(name='d', input='in', output='out', rows=(0, 1), columns=(0, 0, 1, 1), channels=(0, 1, 2))
    """
    places = np.arange(math.prod(shape)).reshape(1, *shape)
    for op in ops:
        places = move(op, (places,))
    numbers = np.unravel_index(places[0], shape)
    along = []
    for axis, number in enumerate(numbers):
        first = np.moveaxis(number, axis, 0)[:, 0, 0]
        if (np.moveaxis(number, axis, -1) != first).any():
            return None
        along.append(tuple(first.tolist()))
    return Gather(name, inputs_of(ops[0])[0], ops[-1].output, *along)


def rearrange(
    name: str, source: str, target: str, view: tuple[int, ...], permutation: tuple[int, ...], shape: Shape
) -> Rearrange | Reshape:
    """Return the op out = in.reshape(view).transpose(permutation).reshape(shape), with as few axes as do.

    Axes of size one are left out, and axes that stay behind each other are one.

    >>> rearrange("op", "in", "out", (1, 6, 5, 4), (0, 3, 1, 2), (4, 6, 5))
    Rearrange(name='op', input='in', output='out', view=(30, 4), permutation=(1, 0), shape=(4, 6, 5))
    >>> rearrange("op", "in", "out", (6, 1, 4), (1, 0, 2), (1, 6, 4))
    Reshape(name='op', input='in', output='out', shape=(1, 6, 4))
    """
    kept = [axis for axis in permutation if view[axis] != 1]
    order = sorted(kept)
    place = {axis: order.index(axis) for axis in kept}
    groups: list[list[int]] = []  # axes that stay together, in the order of the output
    for axis in kept:
        if groups and place[axis] == place[groups[-1][-1]] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) < 2:
        return Reshape(name, source, target, shape)
    sizes = sorted((group[0], math.prod(view[axis] for axis in group)) for group in groups)
    firsts = [first for first, _ in sizes]
    return Rearrange(
        name,
        source,
        target,
        tuple(size for _, size in sizes),
        tuple(firsts.index(group[0]) for group in groups),
        shape,
    )
