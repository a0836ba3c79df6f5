"""Buffers that live at one time never share bytes."""

from hypothesis import given
from hypothesis import strategies as st

from codegen.memory import Box, live_bytes, place


@st.composite
def boxes(draw: st.DrawFn) -> list[Box]:
    made = []
    for number in range(draw(st.integers(1, 25))):
        birth = draw(st.integers(0, 40))
        made.append(Box(f"t{number}", 4 * draw(st.integers(1, 50)), birth, birth + draw(st.integers(0, 20))))
    return made


@given(boxes())
def test_placement_is_sound_and_deterministic(drawn: list[Box]) -> None:
    addresses, taken = place(drawn)
    assert (addresses, taken) == place(list(reversed(drawn)))
    assert taken >= live_bytes(drawn)
    for number, a in enumerate(drawn):
        assert addresses[a.name] % 4 == 0 and 0 <= addresses[a.name] <= taken - a.size
        for b in drawn[:number]:
            if a.birth <= b.death and b.birth <= a.death:
                low, high = sorted((a, b), key=lambda box: addresses[box.name])
                assert addresses[low.name] + low.size <= addresses[high.name]


def test_buffers_that_never_meet_share_their_bytes() -> None:
    assert place([Box("a", 400, 0, 3), Box("b", 400, 4, 9), Box("c", 100, 0, 9)])[1] == 500


def test_the_peak_counts_both_ends_of_a_life() -> None:
    assert live_bytes([Box("a", 8, 0, 3), Box("b", 4, 3, 5)]) == 12
