"""The solver's addresses are as sound as first-fit's, and never take more."""

import pytest
from hypothesis import given, settings

from codegen.memory import Box, live_bytes, place
from codegen.packing import pack
from tests.test_memory import boxes, steps_of

pytest.importorskip("ortools")


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(boxes())
def test_what_fits_is_sound_and_deterministic(drawn: list[Box]) -> None:
    _, taken = place(drawn)
    addresses = pack(drawn, taken)
    assert addresses is not None and addresses == pack(drawn, taken)
    for number, a in enumerate(drawn):
        assert addresses[a.name] % 4 == 0 and 0 <= addresses[a.name] <= taken - a.size
        for b in drawn[:number]:
            if steps_of(a) & steps_of(b):
                low, high = sorted((a, b), key=lambda box: addresses[box.name])
                assert addresses[low.name] + low.size <= addresses[high.name]


@given(boxes())
def test_fewer_bytes_than_are_live_at_once_are_too_few(drawn: list[Box]) -> None:
    assert pack(drawn, live_bytes(drawn) - 4) is None


def test_fixed_boxes_stay() -> None:
    image = [Box(f"image[{row}]", 8, ((0, row),), 8 * row) for row in range(4)]
    rows = [Box(f"row[{row}]", 8, ((row, row + 1),)) for row in range(4)]
    addresses = pack([*image, *rows], 44)
    assert addresses is not None and [addresses[box.name] for box in image] == [0, 8, 16, 24]
    assert pack([*image, *rows], 28) is None
