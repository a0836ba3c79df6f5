"""Which axis of [height, width, channels] each axis of a file's tensor is."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnet.axes import axes_of, shape_of
from mnet.errors import ModelError
from mnet.flatbuffer import parse
from mnet.operands import Operands
from tests.models import Builder
from tests.test_tflite import set_field
from tests.writer import edited, serialise

_SHAPES = st.lists(st.sampled_from((1, 1, 2, 3, 5)), max_size=6).map(tuple)


@given(_SHAPES)
def test_axes_keep_their_order_and_only_ones_are_left_out(shape: tuple[int, ...]) -> None:
    groups = axes_of(shape)
    kept = list(itertools.chain(*groups))
    assert kept == sorted(set(kept))
    assert all(shape[axis] == 1 for axis in range(len(shape)) if axis not in kept)
    assert math.prod(shape_of(shape)) == math.prod(shape)
    assert len(groups[1]) <= 1 and len(groups[2]) <= 1
    assert len(groups[0]) <= 1 or all(shape[axis] > 1 for axis in groups[0])


def operands(shape: list[int]) -> Operands:
    build = Builder(0, (1, 1, math.prod(shape)))
    data = edited(serialise(build.graph(build.softmax("input"))), set_field("tensors.input.shape", shape))
    return Operands(parse(data, Path("net.tflite")), Path("net.tflite"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    (
        ([7], [2]),
        ([1, 7], [1, 2]),
        ([4, 5, 6], [0, 1, 2]),
        ([1, 4, 5, 6], [None, 0, 1, 2]),
        ([1, 1, 5, 1], [None, 0, 1, 2]),
        ([1, 4, 1, 5, 6], [None, 0, None, 1, 2]),
        ([4, 5, 1, 6, 1], [-1, -1, None, 1, 2]),  # the first two are rows together
    ),
)
def test_an_axis_may_be_counted_from_the_end(shape: list[int], expected: list[int | None]) -> None:
    taken = operands(shape)
    for axis, ours in enumerate(expected):
        for number in (axis, axis - len(shape)):
            if ours == -1:
                with pytest.raises(ModelError, match="axis 0 and axis 1 are rows there"):
                    taken.axis(taken.raw(0), number)
            else:
                assert taken.axis(taken.raw(0), number) == ours
    for number in (len(shape), -len(shape) - 1):
        with pytest.raises(ModelError, match="the file is damaged"):
            taken.axis(taken.raw(0), number)
