"""Bodies in another order compute the same: executed, and by their dependencies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.dual_issue import Instruction, issue_cycles, parsed, reordered

MULTIPLY_STEP = """
ldr r2, [r0, #{at}]
ldr r3, [r0, #{beside}]
ldr r4, [r1, #{weight}]
ldr r5, [r1, #{next}]
smlad r11, r4, r3, r11
smlad lr, r5, r3, lr
smlad r7, r4, r2, r7
smlad r9, r5, r2, r9
sxtb16 r4, r4
sxtb16 r5, r5
smlad r10, r4, r3, r10
smlad r12, r5, r3, r12
smlad r6, r4, r2, r6
smlad r8, r5, r2, r8
"""

REGISTERS = [f"r{i}" for i in range(8)]


@st.composite
def lines(draw: st.DrawFn) -> str:
    a, b, c, d = (draw(st.sampled_from(REGISTERS)) for _ in range(4))
    offset = 4 * draw(st.integers(0, 7))
    return draw(
        st.sampled_from(
            (
                f"ldr {a}, [sp, #{offset}]",
                f"str {a}, [sp, #{offset}]",
                f"smlad {a}, {b}, {c}, {d}",
                f"smmul {a}, {b}, {c}",
                f"usat {a}, #8, {b}, asr #3",
                f"sxtb16 {a}, {b}",
                f"add {a}, {b}, {c}",
                f"sub {a}, {b}, #{offset}",
                f"vmov s{offset % 4}, {a}",
                f"vmov {a}, s{offset % 4}",
                f"vmov {a}, {b}, s2, s3",
                f"vmov s2, s3, {a}, {b}",
                f"cmp {a}, #{offset}\nit lt\nmovlt {b}, #{offset}",
                f"subs {a}, {b}, {c}\nit gt\nmovgt {d}, #1",
            )
        )
    )


class Model:
    """A machine whose instructions mix what they read into what they write: order matters, arithmetic does not."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {}

    def run(self, instructions: list[Instruction]) -> dict[str, int]:
        for one in instructions:
            seen = hash((one.lines, tuple(self.state.get(name, 0) for name in sorted(one.reads))))
            for name in one.writes:
                self.state[name] = hash((seen, name))
        return self.state


@settings(deadline=None)
@given(st.lists(lines(), max_size=60))
def test_every_reader_reads_what_it_read_before(drawn: list[str]) -> None:
    text = "\n".join(drawn) + "\n"
    before = [line for line in text.splitlines() if line]
    after = reordered(text).splitlines() if drawn else []
    assert sorted(before) == sorted(after)
    assert Model().run(parsed(before)) == Model().run(parsed(after))
    assert issue_cycles(parsed(after)) <= issue_cycles(parsed(before))


def test_a_pointwise_step_loses_its_loads() -> None:
    steps = [MULTIPLY_STEP.format(at=4 * i, beside=64 + 4 * i, weight=8 * i, next=8 * i + 4).strip() for i in range(6)]
    text = "\n".join(steps)
    before = issue_cycles(parsed(text.splitlines()))
    after = issue_cycles(parsed(reordered(text).splitlines()))
    assert before >= 6 * 13 and after <= 6 * 11


def test_a_move_of_two_words_writes_both() -> None:
    to_core, to_fpu = parsed(["vmov r8, r9, s10, s11", "vmov s10, s11, r3, r4"])
    assert [sorted(to_core.writes), sorted(to_core.reads)] == [["r8", "r9"], ["s10", "s11"]]
    assert [sorted(to_fpu.writes), sorted(to_fpu.reads)] == [["s10", "s11"], ["r3", "r4"]]


def test_labels_and_branches_stay_where_they_are() -> None:
    text = "1:\nldr r2, [r0]\nsmlad r3, r4, r5, r3\nbne 1b\nldr r6, [r0]\npop {r4, pc}\n"
    after = reordered(text).splitlines()
    assert [after[0], after[3], after[5]] == ["1:", "bne 1b", "pop {r4, pc}"]


@pytest.mark.parametrize("jump", ("bx r3", "add pc, pc, r2", "tbb [pc, r1]"))
def test_bodies_with_computed_jumps_stay_as_they_are(jump: str) -> None:
    text = f"ldr r2, [r0]\nsmlad r3, r4, r5, r3\n{jump}\nldr r6, [r0]\nsmlad r3, r4, r5, r3\n"
    assert reordered(text) == text


def test_comments_stay_with_their_instructions() -> None:
    text = "ldr r2, [r0] @ pixels\nldr r3, [r0, #4]\nsmlad r4, r5, r6, r4 @ sum\nsmlad r4, r2, r6, r4\n"
    assert sorted(reordered(text).splitlines()) == sorted(text.splitlines())
