"""Which axis of [height, width, channels] each axis of a file's tensor is.

The last axis is always the channels, the one before the columns, the one before that the rows. A tensor of rank 4 is
[1, height, width, channels]. Of more axes those of size one are left out, from the front, until three remain; where
that does not do, the foremost become rows together, as [1, 6, 5, 2, 4] is 30 rows of [2, 4]. Values keep their order.
"""

import math

from mnet.graph import Shape

Group = tuple[int, ...]  # axes of the file that together are one of ours; none where ours has size one


def axes_of(shape: tuple[int, ...]) -> tuple[Group, Group, Group]:
    """Return the axes of a file's tensor that make rows, columns and channels.

    >>> axes_of((1, 6, 5, 4)), axes_of((6, 4))
    (((1,), (2,), (3,)), ((), (0,), (1,)))
    >>> axes_of((1, 6, 5, 2, 4)), axes_of((1, 6, 1, 5, 4))
    (((1, 2), (3,), (4,)), ((1,), (3,), (4,)))
    """
    kept = list(range(len(shape)))
    for axis, size in enumerate(shape[:-1]):
        if size == 1 and len(kept) > 3:
            kept.remove(axis)
    return tuple(kept[:-2]), tuple(kept[-2:-1]), tuple(kept[-1:])


def shape_of(shape: tuple[int, ...]) -> Shape:
    """Return [height, width, channels] of a file's tensor.

    >>> shape_of((1, 6, 5, 2, 4)), shape_of((7,)), shape_of(())
    ((30, 2, 4), (1, 1, 7), (1, 1, 1))
    """
    height, width, channels = (math.prod(shape[axis] for axis in group) for group in axes_of(shape))
    return height, width, channels
