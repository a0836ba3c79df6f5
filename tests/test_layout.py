"""Rows packed are rows unpacked, wherever they lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16, Layout, Storage
from mnet.graph import Tensor


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    layout: Layout = draw(st.sampled_from((WIDE16, WIDE8, PLANAR16, PLANAR8)))
    height, width, channels = (draw(st.integers(1, 9)) for _ in range(3))
    top, bottom = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    left, right = (0, 0) if layout.planar else (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    apart, rows = draw(st.booleans()), height + top + bottom
    return Storage(
        tensor=Tensor("t", (height, width, channels), 0.1, draw(st.integers(-128, 127))),
        layout=layout,
        slots=rows if apart else draw(st.integers(1, rows)),
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        stored_channels=channels + draw(st.integers(0, 3)),
        slack_bytes=draw(st.sampled_from((0, 2))),
        apart=apart,
    )


@given(storages(), st.integers(0, 2**32 - 1), st.data())
def test_unpack_undoes_pack(storage: Storage, seed: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, storage.slots))
    values = np.random.default_rng(seed).integers(-128, 128, (rows, *storage.tensor.shape[1:])).astype(np.int8)
    span, mask = storage.pack(values)
    assert len(span) == len(mask) == storage.span_bytes(rows)
    np.testing.assert_array_equal(storage.unpack(span, rows), values)
    assert mask.count(0xFF) == values.size * storage.layout.element_bytes


@given(storages())
def test_slots_lie_apart_inside_an_aligned_buffer(storage: Storage) -> None:
    assert storage.buffer_bytes % 4 == 0 and storage.slot_bytes % 4 == 0
    offsets = [storage.slot_offset(row) for row in range(storage.virtual_rows)]
    assert len(set(offsets)) == min(storage.slots, storage.virtual_rows)
    assert max(offsets) + storage.span_bytes(1) <= storage.buffer_bytes


def test_a_value_outside_int8_does_not_hide() -> None:
    storage = Storage(Tensor("t", (1, 2, 1), 0.1, -128), WIDE16, 1, 0, 0, 0, 0, 1)
    span = np.array([255 + 256, 0], "<i2").tobytes()
    assert storage.unpack(span, 1).reshape(-1).tolist() == [383, -128]


@pytest.mark.parametrize("layout", (WIDE16, WIDE8, PLANAR16, PLANAR8))
def test_padding_stands_for_zero(layout: Layout) -> None:
    storage = Storage(Tensor("t", (1, 1, 1), 0.1, 17), layout, 1, 0, 0, 0, 0, 1)
    assert storage.padding_value + storage.offset == 17
