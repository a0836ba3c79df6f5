"""Budgets: what is picked fits, is the largest that does, and holds once it is trained."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from codegen.planner import Search
from mnet import search
from mnet.architecture import Kind, layers, shape_of
from mnet.budget import Budget, Fit, Needs
from mnet.cli import main
from mnet.errors import MnetError
from mnet.pipeline import Options, prepare, requested
from mnet.profile import profile_model
from mnet.proof import find_target_compiler
from mnet.recipes import recipe
from mnet.search import Candidate, Picture, Planned, families, family, fitted, largest_below, pick, planned, screened
from mnet.untrained import untrained_graph
from tests.writer import serialise

CIFAR = Picture(32, 32, 3, 10)
FAMILY = family(CIFAR)
_RANGES = ((1_000, 60_000), (10_000, 900_000), (200_000, 60_000_000))
LIMITS = st.tuples(*(st.one_of(st.none(), st.integers(low, high)) for low, high in _RANGES)).filter(any)


def test_the_recipes_own_shapes_are_in_the_family() -> None:
    for name, members in FAMILY.items():
        assert str(recipe(name).shape) in {str(member.shape) for member in members}


@given(st.integers(8, 256), st.sampled_from(["tiny", "small", "large"]))
def test_maps_end_with_four_to_seven_pixels(side: int, name: str) -> None:
    shape = fitted(recipe(name).shape, side)
    for block in (shape.stem, *shape.blocks):
        side = -(-side // block.stride)
    assert 4 <= side <= 7 or len(shape.blocks) == 0
    assert len(shape.blocks) == len(recipe(name).shape.blocks)


def test_widths_are_multiples_of_four_or_eight_and_maps_no_smaller_than_four() -> None:
    for members in FAMILY.values():
        for member in members:
            assert all(
                block.width % (4 if block.width < 32 else 8) == 0 for block in (member.shape.stem, *member.shape.blocks)
            )
            convolved = [x for x in layers(member.architecture) if x.kind in (Kind.CONVOLUTION, Kind.DEPTHWISE)]
            assert min(x.output_shape[0] for x in convolved[:-1]) == 4
        sizes = [member.multiply_adds for member in members]
        assert sizes == sorted(sizes) and max(b / a for a, b in itertools.pairwise(sizes)) < 1.6


@given(st.sampled_from(search.PROFILES), st.floats(1e4, 1e9), st.floats(0.4, 1.6), st.integers(10_000, 10**9))
def test_the_last_one_that_fits_is_found_by_few_looks(name: str, scale: float, power: float, near: int) -> None:
    looks = []

    def load(member: Candidate) -> float:
        looks.append(member)
        return (member.multiply_adds / scale) ** power

    members = FAMILY[name]
    assert largest_below(members, load, near) == sum((m.multiply_adds / scale) ** power <= 1 for m in members)
    assert len(looks) <= 6


# --- the choice itself, with costs that are made up ------------------------------------------------------------------


def _needs(member: Candidate) -> Needs:
    """Return costs as plans have them, roughly, each profile at its own ratios; some plans need more than others."""
    macs, a = member.multiply_adds, member.architecture
    uneven = 1 + sum(block.width for block in a.blocks) % 7 / 100
    arena = round(uneven * 7 * a.stem_width * a.width // a.stem_stride + 3_000)
    return Needs(
        arena, 300, round(900 + uneven * macs / (30 if a.stem_stride == 1 else 20)), round(uneven * 1.2 * macs)
    )


@pytest.fixture(scope="module")
def made_up() -> Callable[[Budget], Candidate | None]:
    def choose(budget: Budget) -> Candidate | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "family", lambda picture: FAMILY)
            by_net = {id(member.architecture): member for members in FAMILY.values() for member in members}
            patch.setattr(search, "screened", lambda net, b: b.load(_needs(by_net[id(net)])) / 1.02)
            patch.setattr(search, "planned", lambda member, b: Planned(member, Fit(b, _needs(member), "")))
            try:
                return pick(families(CIFAR, smaller=False), budget).chosen.candidate
            except MnetError as error:
                assert str(error).startswith("nothing fits --")
                return None

    return choose


@given(LIMITS)
def test_the_pick_fits_and_what_is_said_to_be_too_large_is(
    made_up: Callable[[Budget], Candidate | None], limits: tuple[int | None, ...]
) -> None:
    budget = Budget(*limits)
    chosen = made_up(budget)
    if chosen is None:
        smallest = min((members[0] for members in FAMILY.values()), key=lambda member: member.multiply_adds)
        assert budget.exceeded(_needs(smallest))
    else:
        assert not budget.exceeded(_needs(chosen))
        easy = [m.multiply_adds for ms in FAMILY.values() for m in ms if budget.load(_needs(m)) <= 0.85]
        assert chosen.multiply_adds >= max(easy, default=0)


@given(LIMITS, st.sampled_from(["ram", "flash", "cycles"]), st.floats(1.2, 8))
def test_a_larger_budget_never_picks_fewer_multiply_adds(
    made_up: Callable[[Budget], Candidate | None], limits: tuple[int | None, ...], name: str, more: float
) -> None:
    small = Budget(*limits)
    values = {"ram": small.ram, "flash": small.flash, "cycles": small.cycles}
    old = values[name]
    values[name] = None if old is None else int(old * more)
    less, larger = made_up(small), made_up(Budget(**values))
    assert less is None or (larger is not None and larger.multiply_adds >= less.multiply_adds)


# --- words ------------------------------------------------------------------------------------------------------------


def _cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "a search needs a limit"),
        (["search", "--cycles", "4X"], "4X is no number: write 1500000, 500k or 1.5M"),
        (["search", "--cycles", "0"], "0 is no number"),
        (["search", "--cycles", "4M", "--target", "cortex-x"], "cortex-x"),
        (["train", "--ram", "8k", "--alpha", "0.5", "--out", "never"], "a budget chooses widths and strides"),
    ],
)
def test_bad_budgets_get_one_sentence(arguments: list[str], message: str) -> None:
    code, output = _cli(*arguments)
    assert code == 2 and message in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("text", "number"), [("4M", 4_000_000), ("500k", 500_000), ("1500000", 1_500_000), ("1.5m", 1_500_000)]
)
def test_cycles_are_written_as_people_write_them(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("mnet.commands.search.search", lambda budget, *rest, **more: seen.append(budget))
    assert _cli("search", "--cycles", text)[0] == 0 and seen == [Budget(cycles=number)]


@pytest.mark.slow
def test_nothing_fits_says_what_the_smallest_needs() -> None:
    code, output = _cli("search", "--ram", "300", "--size", "8", "--channels", "1", "--target", "cortex-m0plus")
    assert code == 2
    assert re.search(
        r"nothing fits --ram 300 --target cortex-m0plus: the smallest network considered, --blocks", output
    )
    assert re.search(r"needs arena [\d,]+ of 300 B, flash [\d,]+ B, [\d,]+ cycles", output)


# --- with the planner itself -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_budget_of_tiny_is_used_and_its_compiled_code_keeps_it(tmp_path: Path) -> None:
    budget = Budget(ram=4608, flash=64_000, cycles=1_650_000)
    found = pick(families(CIFAR), budget)
    chosen = found.chosen
    assert 0.85 <= budget.load(chosen.fit.needs) <= 1
    assert chosen.candidate.multiply_adds >= 1_000_000  # tiny's are 1.17 M
    try:
        find_target_compiler()
    except MnetError as error:
        pytest.skip(str(error))
    path = tmp_path / "net.tflite"
    path.write_bytes(serialise(untrained_graph(chosen.candidate.architecture, seed=1)))  # other weights
    profile = profile_model(prepare(path, Options("cortex-m4", ram=4608, optimize=_optimize(chosen.fit))))
    assert profile.arena_bytes <= 4608 and profile.flash_bytes <= 64_000 and profile.cycles <= 1_650_000


def _optimize(fit: Fit) -> str:
    found = re.search(r"--optimize (\w+)", fit.options)
    return found[1] if found else "balanced"


@pytest.mark.slow
def test_estimates_are_near_what_plans_take() -> None:
    member = search.candidate("tiny", recipe("tiny").shape, Picture(16, 16, 1, 4))
    for limit in (Budget(cycles=1000), Budget(flash=1000)):  # binding
        ratio = limit.load(planned(member, limit).fit.needs) / screened(member.architecture, limit)
        assert 0.97 < ratio < 1.15, limit


@pytest.mark.slow
def test_training_within_a_budget_ends_with_a_model_that_keeps_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = "--data sample --recipe sample --epochs 1 --train-images 320 --threads 1 --cycles 600k --ram 6k"
    code, output = _cli(
        "train", *words.split(), "--size", "16", "--out", str(out), "--json", str(tmp_path / "run.json")
    )
    assert code == 0, output
    run = json.loads((tmp_path / "run.json").read_text())
    assert "--ram 6144 --cycles 600000 --target cortex-m4" in run["command"] and "--blocks" in run["command"]
    assert run["fit"]["budget"]["cycles"] == 600_000 and run["fit"]["words"] in (out / "README.md").read_text()
    assert 0.8 <= max(run["fit"]["needs"]["cycles"] / 600_000, run["fit"]["needs"]["arena_bytes"] / 6_144) <= 1
    assert _cli("quantize", str(out), "-o", str(tmp_path / "net.tflite"), "--images", "20")[0] == 0
    options = Options("cortex-m4", ram=6144, optimize="cycles" if "cycles" in run["fit"]["options"] else "balanced")
    _, request = requested(tmp_path / "net.tflite", options)
    made = Search(request).decide(options.optimize, options.ram)
    assert made.plan.arena_bytes <= 6144 and math.ceil(made.solution.cycles * search.MARGIN) <= 600_000 * 1.01


def test_a_shape_of_ones_own_only_has_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def costs(member: Candidate, budget: Budget) -> Planned:
        return Planned(member, Fit(budget, _needs(member), ""))

    monkeypatch.setattr(search, "planned", costs)
    monkeypatch.setattr(search, "screened", lambda net, budget: 0.5 if budget.cycles == 4_000_000 else 2.0)
    shape = shape_of("8,16s2,16s2,16s2")
    assert pick(families(CIFAR, shape), Budget(cycles=4_000_000)).chosen.candidate.shape is shape
    with pytest.raises(
        MnetError, match=r"nothing fits --cycles 4000.*considered, --blocks 8,16s2,16s2,16s2 --size 8x8, needs arena"
    ):
        pick(families(CIFAR, shape), Budget(cycles=4000))
