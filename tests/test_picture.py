"""The picture of the arena: sound XML, every tensor, nothing from the network, rows inside the arena and apart."""

import itertools
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from codegen.plan import Buffer, Plan
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet.cli import main
from mnet.oracle import LITERT
from mnet.picture import _places, blocks_of, maker_of, memory_svg, peak_of, row_lives, spans_of
from tests.models import tiny_mobilenet, tiny_residual


@pytest.fixture(params=(("mobilenet", "cortex-m4", "rows"), ("residual", "cortex-m0", "arena")))
def made(request: pytest.FixtureRequest) -> Plan:
    which, core, mode = request.param
    graph = tiny_mobilenet(size=24) if which == "mobilenet" else tiny_residual()
    return plan(simplify(graph), target(core), LITERT, mode)


def test_the_picture_names_every_tensor_and_needs_nothing_else(made: Plan) -> None:
    text = memory_svg(made)
    root = ElementTree.fromstring(text)
    words = " ".join(element.text or "" for element in root.iter())
    assert all(maker_of(made, name) in words and name in words for name in made.storage)
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "") and "script" not in text
    assert f"{peak_of(made)[1]:,} B live in step" in words


def test_rows_that_live_at_one_time_lie_apart(made: Plan) -> None:
    lives = row_lives(made)
    for name, storage in made.storage.items():
        rows = {life.first + n for life in lives if life.tensor == name for n in range(life.rows)}
        assert set(range(storage.height)) <= rows, name
    taken: list[set[int]] = [set() for _ in made.schedule]
    for life in lives:
        for offset, size in _places(made, life):
            place = set(range(offset, offset + size))
            assert max(place) < made.rows_bytes
            for step in range(life.birth, life.death + 1):
                assert not place & taken[step], life
                taken[step] |= place


def test_the_peak_is_what_the_plan_says(made: Plan) -> None:
    assert peak_of(made)[1] == made.live_bytes


def test_spans_of_one_buffer_stand_together(made: Plan) -> None:
    groups = spans_of(made.buffers)
    assert sum(map(len, groups)) == len(made.buffers)
    assert len({(group[0].tensor, group[0].slot) for group in groups}) == len(groups)
    for group in groups:
        assert len({(b.tensor, b.slot, b.offset, b.size) for b in group}) == 1
        assert all(a.death < b.birth for a, b in itertools.pairwise(group))


@given(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 3)), max_size=30))
def test_blocks_hold_the_bytes_of_the_slots_and_nothing_else(slots: set[tuple[str, int, int]]) -> None:
    buffers = [Buffer(name, 4 * place, 4, birth, birth + 2, slot=place) for name, place, birth in slots]
    blocks = blocks_of(buffers)
    held = [(b.tensor, b.birth, b.death, at) for b in blocks for at in range(b.offset, b.offset + b.size)]
    assert sorted(held) == sorted(
        (b.tensor, b.birth, b.death, at) for b in buffers for at in range(b.offset, b.offset + b.size)
    )
    ends = {(b.tensor, b.birth, b.offset + b.size) for b in blocks}
    assert not ends & {(b.tensor, b.birth, b.offset) for b in blocks}


def test_a_buffer_for_each_row_looks_like_one_for_all_where_they_touch() -> None:
    made = plan(simplify(tiny_mobilenet(size=24)), target("cortex-m4"), LITERT, "rows", "cycles")
    apart = []
    for buffer in made.buffers:
        slots = made.storage[buffer.tensor].slots if buffer.tensor in made.storage and buffer.slot is None else 1
        size = buffer.size // slots
        if slots == 1 or size * slots != buffer.size:
            apart.append(buffer)
        else:
            parts = (replace(buffer, offset=buffer.offset + n * size, size=size, slot=n) for n in range(slots))
            apart += parts
    assert len(apart) > len(made.buffers)
    assert memory_svg(replace(made, buffers=tuple(apart))) == memory_svg(made)


def test_show_writes_the_picture(tmp_path: Path) -> None:
    model = Path(__file__).parent / "models" / "sample_a25.tflite"
    arguments = ["show", str(model), "--target", "cortex-m4", "--stage", "memory", "--svg", str(tmp_path / "arena.svg")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and "no plan of whole rows" in done.output
    assert ElementTree.parse(tmp_path / "arena.svg").getroot().tag.endswith("svg")

    done = CliRunner().invoke(main, [*arguments[:-1], str(tmp_path)])
    assert done.exit_code == 2 and "cannot be written" in done.output
