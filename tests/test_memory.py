"""Buffers that live at one time never share bytes."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.memory import Box, live_bytes, merged, place


@st.composite
def boxes(draw: st.DrawFn) -> list[Box]:
    made = []
    for number in range(draw(st.integers(1, 25))):
        births = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
        spans = merged((birth, birth + draw(st.integers(0, 9))) for birth in births)
        made.append(Box(f"t{number}", 4 * draw(st.integers(1, 50)), spans))
    return made


def steps_of(box: Box) -> set[int]:
    return {step for first, last in box.spans for step in range(first, last + 1)}


@settings(deadline=None, max_examples=40)
@given(boxes())
def test_placement_is_sound_and_deterministic(drawn: list[Box]) -> None:
    addresses, taken = place(drawn)
    assert (addresses, taken) == place(list(reversed(drawn)))
    assert taken >= live_bytes(drawn)
    for number, a in enumerate(drawn):
        assert addresses[a.name] % 4 == 0 and 0 <= addresses[a.name] <= taken - a.size
        for b in drawn[:number]:
            if steps_of(a) & steps_of(b):
                low, high = sorted((a, b), key=lambda box: addresses[box.name])
                assert addresses[low.name] + low.size <= addresses[high.name]


def test_buffers_that_never_meet_share_their_bytes() -> None:
    assert place([Box("a", 400, ((0, 3),)), Box("b", 400, ((4, 9),)), Box("c", 100, ((0, 9),))])[1] == 500


def test_a_buffer_lends_its_bytes_between_its_spans() -> None:
    assert place([Box("a", 400, ((0, 1), (4, 5))), Box("b", 400, ((2, 3), (6, 9)))])[1] == 400


def test_the_peak_counts_both_ends_of_a_life() -> None:
    assert live_bytes([Box("a", 8, ((0, 3),)), Box("b", 4, ((3, 5),))]) == 12


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=9))
def test_merged_spans_are_the_same_steps(drawn: list[tuple[int, int]]) -> None:
    spans = [(first, first + more) for first, more in drawn]
    result = merged(spans)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(result))
    assert {s for a, b in spans for s in range(a, b + 1)} == {s for a, b in result for s in range(a, b + 1)}
