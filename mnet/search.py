"""The largest network of a family that keeps a budget, found before anything is trained.

The family: the shapes of the recipes tiny, small and large (`mnet/recipes.py`), whose proportions were chosen by
accuracy, with all widths scaled and rounded. Among such shapes accuracy grows with the logarithm of
the multiply-adds (mnet/docs/training.md, "Budgets"), so the pick is the one with the most of them that fits.

What fits is decided by the planner: first by estimates without a search (`codegen/estimate.py`), then by whole plans
of the few that are left. Weights are random (`mnet/untrained.py`).
"""

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.dead_channels import drop_dead_channels
from codegen.estimate import estimates
from codegen.planner import Found, Request, Search
from codegen.simplify import simplify
from codegen.stack_bound import stack_bound
from codegen.targets import target
from mnet.architecture import Architecture, Block, Head, Shape, mobilenet
from mnet.budget import Budget, Fit, Needs
from mnet.cost import cost
from mnet.errors import MnetError
from mnet.oracle import LITERT
from mnet.recipes import RECIPES
from mnet.untrained import untrained_graph

PROFILES = ("tiny", "small", "large")  # recipes whose shapes are scaled
MARGIN = 1.03  # compiled code may take so much more than the planner's estimates of flash and cycles
_SMALLEST_MAP = 4  # pixels along the shorter side: smaller maps cost weights and bring little
_SIDES = (1.0, 0.75, 0.5, 0.375, 0.25)  # of the data's; each is tried only if nothing fits at the ones before
_SMALLEST_IMAGE = 8  # pixels
_STEP, _LEAST, _MOST = 32, -48, 32  # scales of the widths: 2**(n / 32), from 0.35 to 2
_NARROWEST = 8  # channels

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Picture:
    """What a network is to look at and to tell."""

    height: int
    width: int
    channels: int
    classes: int
    head: Head = Head.SOFTMAX


@dataclass(frozen=True)
class Candidate:
    """One network of the family."""

    profile: str  # the recipe whose shape it scales; "given" is the user's own
    shape: Shape
    architecture: Architecture
    multiply_adds: int

    def __str__(self) -> str:
        return f"--blocks {self.shape} --size {self.architecture.height}x{self.architecture.width}"


@dataclass(frozen=True)
class Planned:
    """A candidate and the plan for it that comes nearest to the budget."""

    candidate: Candidate
    fit: Fit


@dataclass(frozen=True)
class Pick:
    """The network that was chosen, and what else was planned."""

    chosen: Planned
    planned: tuple[Planned, ...]  # in the order in which they were looked at, the chosen one last
    considered: int  # networks in the family at that size of the image


Groups = Mapping[str, tuple[Candidate, ...]]  # by profile; the fewest multiply-adds first


def scaled(shape: Shape, scale: float, grain: int = 8) -> Shape:
    """Return a shape with all widths scaled, then rounded to multiples of 8, below 32 of `grain`.

    >>> from mnet.architecture import shape_of
    >>> str(scaled(shape_of("16s2,24,48s2"), 1.5))
    '24s2,40,72s2'
    """

    def width(old: int) -> int:
        step = grain if old * scale < 32 else 8
        return max(_NARROWEST, int(old * scale / step + 0.5) * step)

    stem, *blocks = (Block(block.stride, width(block.width)) for block in (shape.stem, *shape.blocks))
    return Shape(stem, tuple(blocks), shape.linear_depthwise)


def fitted(shape: Shape, side: int) -> Shape:
    """Return a shape with as many strides as images of `side` pixels need to end in maps of 4 to 7 pixels.

    Too many of them are taken from the front, where maps then are as large as before; too few are added there.

    >>> from mnet.architecture import shape_of
    >>> str(fitted(shape_of("16s2,24,48s2,96s2"), 16)), str(fitted(shape_of("16,24,48s2,96s2"), 96))
    ('16,24,48s2,96s2', '16s2,24s2,48s2,96s2')
    """
    halvings = 0
    while -(-side // 2 ** (halvings + 1)) >= _SMALLEST_MAP:
        halvings += 1
    blocks = [shape.stem, *shape.blocks]
    strided = [number for number, block in enumerate(blocks) if block.stride > 1]
    plain = [number for number, block in enumerate(blocks) if block.stride == 1]
    chosen = strided[max(len(strided) - halvings, 0) :] + plain[: max(halvings - len(strided), 0)]
    stem, *rest = (Block(2 if number in chosen else 1, block.width) for number, block in enumerate(blocks))
    return Shape(stem, tuple(rest), shape.linear_depthwise)


def candidate(profile: str, shape: Shape, picture: Picture) -> Candidate:
    """Return the network of a shape for a picture."""
    p = picture
    architecture = mobilenet(1.0, (p.height, p.width), p.channels, p.classes, shape=shape, head=p.head)
    return Candidate(profile, shape, architecture, cost(architecture).multiply_adds)


def family(picture: Picture) -> Groups:
    """Return for each profile its candidates, the fewest multiply-adds first."""
    side = min(picture.height, picture.width)
    found = {}
    for name in PROFILES:
        base = fitted(RECIPES[name].shape, side)
        scales = [2 ** (number / _STEP) for number in range(_LEAST, _MOST + 1)]
        shapes = {str(shape): shape for grain in (4, 8) for shape in (scaled(base, scale, grain) for scale in scales)}
        members = [candidate(name, shape, picture) for shape in shapes.values()]
        found[name] = tuple(sorted(members, key=lambda member: member.multiply_adds))
    return found


def pictures(picture: Picture) -> Iterator[Picture]:
    """Yield the picture at its own size, then smaller."""
    for part in _SIDES:
        height, width = round(picture.height * part), round(picture.width * part)
        if part == 1 or min(height, width) >= _SMALLEST_IMAGE:
            yield replace(picture, height=height, width=width)


def _request(architecture: Architecture, budget: Budget) -> Request:
    graph = drop_dead_channels(simplify(untrained_graph(architecture)), LITERT)
    return Request(graph, target(budget.target), LITERT, budget.input_mode)


def screened(architecture: Architecture, budget: Budget) -> float:
    """Return about how much of a budget the best plan of a network needs, mostly a little too little."""
    found = estimates(_request(architecture, budget))
    return min(budget.load(Needs(one.arena_bytes, one.stack_bytes, one.flash_bytes, one.cycles)) for one in found)


def planned(member: Candidate, budget: Budget) -> Planned:
    """Plan a network as `mnet codegen` does by default; if that takes too many cycles or too much flash, for those."""
    search = Search(_request(member.architecture, budget))

    def plan(optimize: str) -> Fit:
        words = [f"--ram {budget.ram}"] * (budget.ram is not None)
        words += [f"--optimize {optimize}"] * (optimize != "balanced")
        return Fit(budget, _needs(search.decide(optimize, budget.ram)), " ".join(words))

    usual = other = plan("balanced")
    match budget.exceeded(usual.needs):
        case ("cycles",):
            other = plan("cycles")
        case ("flash",):
            other = plan("size")
    return Planned(member, min(usual, other, key=lambda fit: budget.load(fit.needs)))


def _needs(found: Found) -> Needs:
    estimated = found.solution
    return Needs(
        found.plan.arena_bytes,
        stack_bound(found.plan).assembly,
        math.ceil(estimated.flash * MARGIN),
        math.ceil(estimated.cycles * MARGIN),
    )


def largest_below(members: Sequence[Candidate], load: Callable[[Candidate], float], near: int) -> int:
    """Return how many of `members`, the smallest first, have a load of at most 1, by few looks at it.

    The first look is at the one of about `near` multiply-adds.

    Loads grow about as powers of the multiply-adds: so the next look is where a straight line through the last two, on
    two logarithmic scales, says that the load is 1.
    """
    if not members:
        return 0
    sizes = [math.log(member.multiply_adds) for member in members]
    low, high, guess = -1, len(members), _below(sizes, math.log(near))  # fits, does not fit, looked at next
    x = y = slope = 0.0
    while high - low > 1:
        found = load(members[guess])
        low, high = (guess, high) if found <= 1 else (low, guess)
        before = x, y, slope
        x, y = sizes[guess], math.log(max(found, 1e-9))
        slope = max((y - before[1]) / (x - before[0]), 0.3) if before[2] and x != before[0] else 1.0
        guess = min(max(_below(sizes, x - y / slope), low + 1), high - 1)
    return low + 1


def _below(sizes: Sequence[float], most: float) -> int:
    """Return the index of the last of `sizes`, which ascend, that is at most `most`, or of the first."""
    return max(bisect_right(sizes, most) - 1, 0)


def families(picture: Picture, shape: Shape | None = None, *, smaller: bool = True) -> Iterator[Groups]:
    """Yield the family at the picture's own size, then at smaller ones; or only a shape of the user's own.

    Args:
        picture: what the networks look at and tell.
        shape: the user's own.
        smaller: whether the picture may be scaled down.
    """
    for seen in pictures(picture) if smaller else (picture,):
        yield {"given": (candidate("given", shape, seen),)} if shape else family(seen)


def pick(choices: Iterable[Groups], budget: Budget, report: Report = lambda what, done, total: None) -> Pick:
    """Return the largest network that keeps a budget, of the first groups of which one does.

    Args:
        choices: groups of networks, each in the order of their multiply-adds.
        budget: at least one limit.
        report: is told (what, done, total) as the work goes on.

    Raises:
        PlanError: an unknown target or input mode.
        MnetError: nothing fits.
    """
    smallest, count = None, 0
    for groups in choices:
        chosen = _largest(groups, budget, report)
        if chosen is not None:
            return chosen
        smallest = min((members[0] for members in groups.values()), key=lambda member: member.multiply_adds)
        count += sum(len(members) for members in groups.values())
    assert smallest is not None
    which = smallest if count == 1 else f"the smallest network considered, {smallest},"
    raise MnetError(f"nothing fits {budget}: {which} needs {planned(smallest, budget).fit}.")


def _largest(groups: Groups, budget: Budget, report: Report) -> Pick | None:
    """Return the candidate of most multiply-adds whose plan fits; None where there is none."""

    @functools.cache
    def screen(member: Candidate) -> float:
        return screened(member.architecture, budget)

    counts, near = {}, _first_guess(budget)
    for number, (name, members) in enumerate(groups.items()):
        report("estimates", number, len(groups))
        counts[name] = largest_below(members, screen, near)
        near = members[max(counts[name] - 1, 0)].multiply_adds
    report("estimates", len(groups), len(groups))
    looked_at: list[Planned] = []
    while any(counts.values()):
        report("plans", len(looked_at), len(looked_at) + 1)
        name = max((n for n in groups if counts[n]), key=lambda n: groups[n][counts[n] - 1].multiply_adds)
        member = groups[name][counts[name] - 1]
        plan = planned(member, budget)
        looked_at.append(plan)
        if plan.fit.kept:
            return Pick(plan, tuple(looked_at), sum(len(members) for members in groups.values()))
        worse = budget.load(plan.fit.needs) / screen(member)  # than estimated, as those like it will be
        below = groups[name][: counts[name] - 1]
        counts[name] = largest_below(below, lambda m, worse=worse: screen(m) * worse, member.multiply_adds)  # type: ignore[misc]
    return None


def _first_guess(budget: Budget) -> int:
    """Return multiply-adds that are about right on a Cortex-M4 for networks like tiny, small and large."""
    return min(budget.cycles or 1 << 40, 35 * (budget.flash or 1 << 40), 400 * (budget.ram or 1 << 40))
