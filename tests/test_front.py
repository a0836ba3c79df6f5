"""The front: no plan on it is worse than another, the words beside a plan give it, and the picture shows them all."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from codegen.assemble import Decisions, assemble
from codegen.front import MOST_POINTS, Point, budgets_between, front, non_dominated, thinned
from codegen.planner import Request, decide
from codegen.simplify import simplify
from codegen.targets import target
from mnet import plan_cache, report
from mnet.cli import main
from mnet.front_picture import front_svg, notes_of, stairs
from mnet.graph import Graph
from mnet.oracle import LITERT
from mnet.pipeline import Options, prepare, requested
from mnet.plan_cache import cached_front, cached_plan, front_if_cached
from mnet.proof import Proof
from mnet.report import Report
from tests.models import tiny_mobilenet
from tests.writer import serialise

MODELS = Path(__file__).parent / "models"
NOTHING = Decisions(0, (), {}, (), {})


@pytest.fixture(scope="module")
def graph() -> Graph:
    return tiny_mobilenet(size=24)


@pytest.fixture(scope="module")
def request_(graph: Graph) -> Request:
    return Request(simplify(graph), target("cortex-m4"), LITERT, "rows")


@pytest.fixture(scope="module")
def points(request_: Request) -> tuple[Point, ...]:
    return front(request_)


def _sound(points: tuple[Point, ...], request: Request) -> None:
    assert 1 <= len(points) <= MOST_POINTS
    assert list(points) == sorted(points, key=lambda point: point.costs)
    assert any(point.optimize == "balanced" and point.ram is None for point in points)
    for point in points:
        made = assemble(
            request.graph, request.target, request.oracle, request.input_mode, point.optimize, point.decisions
        )
        assert made.arena_bytes == point.arena_bytes
        assert point.ram is None or point.arena_bytes <= point.ram


def test_the_plans_are_what_the_points_say(points: tuple[Point, ...], request_: Request) -> None:
    _sound(points, request_)
    assert len(points) >= 4
    assert len(non_dominated(points)) >= len(points) - 2  # the default, and least with stack, stay whatever they cost
    fastest = min(points, key=lambda point: point.cycles)
    assert points[0].arena_bytes < fastest.arena_bytes


@pytest.mark.slow
def test_the_words_beside_a_point_give_its_plan(points: tuple[Point, ...], request_: Request) -> None:
    for point in points:
        assert decide(point.request(request_)) == point.decisions, point.options


@pytest.mark.slow
def test_the_same_front_comes_again_and_tells_how_far_it_is(points: tuple[Point, ...], request_: Request) -> None:
    told: list[tuple[str, int, int]] = []
    assert front(replace(request_, optimize="size", ram=7), lambda *words: told.append(words)) == points
    for what in {word for word, _, _ in told}:
        done = [(number, total) for word, number, total in told if word == what]
        assert done == sorted(done) and done[-1][0] == done[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("const", "rows"))
def test_a_bundled_model_has_plans_between_the_smallest_and_the_fastest(mode: str) -> None:
    _, request = requested(MODELS / "cifar10_a25.tflite", Options(target="cortex-m4", input_mode=mode))
    points = front(request)
    _sound(points, request)
    assert len(points) >= 6
    between = [point for point in points if point.ram is not None and point.optimize == "cycles"]
    for point in (between[0], between[-1]):
        assert decide(point.request(request)) == point.decisions


# --- which points stay ------------------------------------------------------------------------------------------------

costs = st.tuples(*(st.integers(100, 400) for _ in range(4)))


def _points(numbers: list[tuple[int, int, int, int]]) -> list[Point]:
    return [Point("cycles", ram, NOTHING, a, s, c, f) for ram, (a, c, f, s) in enumerate(numbers)]


@given(st.lists(costs, min_size=1, max_size=60), st.data())
def test_what_is_left_out_is_no_better(numbers: list[tuple[int, int, int, int]], data: Any) -> None:
    found = _points(numbers)
    balanced = data.draw(st.sampled_from(found))
    kept = thinned(found, balanced)
    assert len(kept) <= MOST_POINTS and balanced in kept and len(set(map(id, kept))) == len(kept)
    for axis in range(3):
        assert min(point.costs[axis] for point in kept) == min(point.costs[axis] for point in found)
    assert min(point.ram_bytes for point in kept) == min(point.ram_bytes for point in found)
    if len(kept) < MOST_POINTS:
        for point in found:
            assert any(all(a <= 1.01 * b for a, b in zip(other.costs, point.costs, strict=True)) for other in kept), (
                point
            )


@given(st.lists(costs, min_size=1, max_size=40))
def test_no_point_of_the_front_is_beaten(numbers: list[tuple[int, int, int, int]]) -> None:
    best = non_dominated(_points(numbers))
    for one, other in itertools.permutations(best, 2):
        assert any(a < b for a, b in zip(one.costs, other.costs, strict=True))
    line = stairs(best, lambda point: point.cycles)
    assert all(a.arena_bytes < b.arena_bytes and a.cycles > b.cycles for a, b in itertools.pairwise(line))


@given(st.integers(16, 1 << 20), st.integers(16, 1 << 20))
def test_budgets_are_whole_words_between_the_two(one: int, other: int) -> None:
    least, most = min(one, other), max(one, other)
    found = budgets_between(least, most)
    assert found == sorted(set(found)) and all(least <= size < most and size % 4 == 0 for size in found)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_front_and_its_plans_are_found_once(
    points: tuple[Point, ...], request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert front_if_cached(request_) is None
    monkeypatch.setattr(plan_cache, "front", lambda *_: points)
    assert cached_front(request_) == points

    def never(*args: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(plan_cache, "front", never)
    monkeypatch.setattr(plan_cache, "decide", never)
    assert cached_front(replace(request_, optimize="ram", ram=9)) == points
    for point in points:
        assert cached_plan(point.request(request_)).arena_bytes == point.arena_bytes
    with pytest.raises(AssertionError, match="searched again"):
        cached_front(replace(request_, input_mode="arena"))
    (file,) = (tmp_path / "mnet").glob("front-*.json")
    text = file.read_text()
    for damage in ("", "[]", "[1]", "{}", text[:-9], text.replace('"cycles": ', '"cycles": "x", "_": ')):
        file.write_text(damage)
        assert front_if_cached(request_) is None


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_point_twice(points: tuple[Point, ...]) -> None:
    text = front_svg(points, "a<b & \x1b.tflite")
    root = ElementTree.fromstring(text)
    dots = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(dots) == 2 * len(points)
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < 1000 and 0 < float(dot.attrib["cy"]) < 600
    words = [element.text or "" for element in root.iter()]
    for number, point in enumerate(points, 1):
        assert sum(word.startswith(f"{number}: {point.options}: arena {point.arena_bytes:,} B") for word in words) == 2
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "") and "script" not in text


def test_one_point_is_a_picture_too() -> None:
    (point,) = _points([(100, 100, 100, 100)])
    assert front_svg([point], "one").count("<circle") == 2
    assert notes_of([point]) == (("least arena", "least with stack", "least cycles", "least flash"),)


@pytest.mark.parametrize("known", (True, False))
def test_a_report_shows_the_front_where_it_is_known(
    known: bool, points: tuple[Point, ...], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "front_if_cached", lambda request: points if known else None)
    prepared = prepare(model, Options("cortex-m4", input_mode="rows"))
    page = report.html(Report(prepared, None, "no compiler", Proof("m", "cortex-m4", "litert", 5, ()), (80,)))
    assert ("What RAM costs: tiny.tflite for cortex-m4" in page) == known
    assert page.count("<svg") == page.count("</svg>") == (3 if known else 2)


# --- what a user types ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, graph: Graph) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    path.write_bytes(serialise(graph))
    return path


@pytest.mark.slow
def test_plan_prints_the_front_and_codegen_keeps_to_it(model: Path, tmp_path: Path) -> None:
    arguments = ["plan", str(model), "--target", "cortex-m4", "--input", "rows"]
    done = CliRunner().invoke(main, [*arguments, "--svg", str(tmp_path / "front.svg")])
    assert done.exit_code == 0, done.output
    assert "no plan of whole rows has an arena of less than" in done.output and "least arena" in done.output
    assert "--optimize balanced" in done.output
    assert ElementTree.parse(tmp_path / "front.svg").getroot().tag.endswith("svg")
    done = CliRunner().invoke(main, [*arguments, "--json"])
    data = json.loads(done.stdout)
    assert data["model"] == "tiny.tflite" and data["target"] == "cortex-m4" and data["input_mode"] == "rows"
    assert data["arena_bound_bytes"] <= min(row["arena_bytes"] for row in data["points"])
    for number, row in enumerate(data["points"]):
        words = ["codegen", *arguments[1:], *row["options"].split(), "-o", str(tmp_path / str(number)), "--json"]
        made = json.loads(CliRunner().invoke(main, words).stdout)
        assert made["arena_bytes"] == row["arena_bytes"] and made["stack_bytes"] == row["stack_bytes"]
        assert row["ram"] is None or made["arena_bytes"] <= row["ram"]


def test_what_plan_cannot_do_is_said_in_a_sentence(model: Path, tmp_path: Path) -> None:
    for words, sentence in (
        (["--target", "cortex-m99"], "cortex-m4, "),
        (["--input", "disk"], "const, arena, rows"),
        (["--svg", str(tmp_path / "model.tflite")], "must end in .svg"),
    ):
        done = CliRunner().invoke(main, ["plan", str(model), *words])
        assert done.exit_code == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_budget_that_is_too_small_names_the_smallest_plan(model: Path, tmp_path: Path) -> None:
    words = ["codegen", str(model), "--target", "cortex-m4", "--input", "arena", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*words, "--optimize", "ram", "--json"])
    least = json.loads(done.stdout)["arena_bytes"]
    done = CliRunner().invoke(main, [*words, "--ram", "256"])
    assert done.exit_code == 2 and "`mnet plan tiny.tflite` shows what a budget costs" in done.stderr
    needed = int(done.stderr.split(" takes ")[1].split(" B")[0].replace(",", ""))
    assert needed == least and "--input rows" in done.stderr
    assert f"{needed - 256:,} B more than --ram 256" in done.stderr
    done = CliRunner().invoke(main, [*words, "--ram", str(least), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["arena_bytes"] <= least, done.stderr
