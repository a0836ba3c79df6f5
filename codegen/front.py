"""What a budget costs: the Pareto front of a network, arena against cycles and flash.

Each point is what `decide` answers to one objective and, mostly, one budget; so the same words on the command line give
the same plan. The budgets lie between the arena of the smallest plan and that of the fastest, at equal ratios.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from codegen.assemble import Decisions
from codegen.objective import OBJECTIVES
from codegen.plan import Plan
from codegen.planner import Found, Report, Request, Search
from codegen.stack_bound import stack_bound

BALANCED = "balanced"
MOST_POINTS = 15
_BUDGETS = 8  # between the least and the fastest
_TRIES = 3  # to keep a budget
_WITHIN = ("cycles", "size")  # what budgets are given to; balanced ones lie between them
_GRAINS = 32  # budgets to a power of two: round numbers
_TOLERANCE = 1.01  # a point that another comes so near to in all three is not shown


@dataclass(frozen=True)
class Point:
    """One plan of the front."""

    optimize: str  # what was asked for, see codegen.objective
    ram: int | None  # bytes, the budget that was asked for
    decisions: Decisions  # `codegen.assemble.assemble` makes the plan from them
    arena_bytes: int  # rows as they are placed, and the state
    stack_bytes: int  # at most, beside the arena
    cycles: int  # estimated, of one inference
    flash_bytes: int  # estimated, of code and constants

    @property
    def options(self) -> str:
        """Return what to say on the command line."""
        budget = "" if self.ram is None else f"--ram {self.ram} "
        return f"{budget}--optimize {self.optimize}"

    def request(self, request: Request) -> Request:
        """Return what the planner was asked."""
        return replace(request, optimize=self.optimize, ram=self.ram)

    @property
    def ram_bytes(self) -> int:
        """Return arena and stack."""
        return self.arena_bytes + self.stack_bytes

    @property
    def costs(self) -> tuple[int, int, int]:
        """Return arena, cycles and flash: less is better."""
        return self.arena_bytes, self.cycles, self.flash_bytes


def front(request: Request, report: Report = lambda what, done, total: None) -> tuple[Point, ...]:
    """Return plans that no other found is better than in arena, cycles and flash, the smallest arena first.

    At most `MOST_POINTS`; least arena, least cycles, least flash, least arena with stack and the balanced default are
    always among them.

    Args:
        request: network, target, rounding, where the image is; its objective and budget are not looked at.
        report: is told (what, done, total) as the work goes on.

    Raises:
        PlanError: an op that no kernel takes.
    """
    search = Search(request, report)
    total = len(OBJECTIVES) + _BUDGETS * len(_WITHIN)
    points: dict[str, Point] = {}
    for name in OBJECTIVES:
        report("plans", len(points), total)
        points[name] = _point(name, None, search.decide(name, None))
    budgets = budgets_between(points["ram"].arena_bytes, points["cycles"].arena_bytes)
    found = list(points.values())
    for row, name in enumerate(_WITHIN):
        last = points[name].arena_bytes
        for column, ram in enumerate(reversed(budgets)):
            report("plans", len(OBJECTIVES) + row * _BUDGETS + column, total)
            point = (_squeezed if ram == budgets[0] else _within)(search, name, ram, last)
            if point is not None:
                found.append(point)
                last = point.arena_bytes
    report("plans", total, total)
    return thinned(found, points[BALANCED])


def budgets_between(least: int, most: int) -> list[int]:
    """Return a few budgets from `least` to less than `most` at about equal ratios, rounded up to round numbers.

    >>> budgets_between(3728, 35224)
    [3776, 4992, 6656, 8704, 11520, 15360, 20480, 26624]
    >>> budgets_between(100, 100)
    []
    """
    exact = (least * (most / least) ** (number / _BUDGETS) for number in range(_BUDGETS))
    return sorted({size for size in map(_rounded, exact) if size < most})


def _rounded(size: float) -> int:
    """Return a round number of at least `size` bytes."""
    grain = max(4, (1 << math.floor(math.log2(size))) // _GRAINS)
    return grain * math.ceil(size / grain)


def non_dominated(points: Iterable[Point]) -> list[Point]:
    """Return the points than which none is better: of equal ones the first."""
    kept: dict[tuple[int, int, int], Point] = {}
    for point in points:
        kept.setdefault(point.costs, point)
    return [point for point in kept.values() if not any(_covers(other, point) for other in kept.values())]


def _covers(one: Point, other: Point, tolerance: float = 1.0) -> bool:
    """Return whether `one` is as good as `other` in everything, and another point."""
    return one is not other and all(a <= b * tolerance for a, b in zip(one.costs, other.costs, strict=True))


def thinned(points: Sequence[Point], balanced: Point) -> tuple[Point, ...]:
    """Return points that are worth a line each, the smallest arena first.

    Least arena, least cycles, least flash, least arena with stack and `balanced` stay. Of the others those stay that
    are not dominated, and that no point comes within 1 % of in all three; of more than `MOST_POINTS`, the one that is
    nearest to another goes, again and again.
    """
    best = non_dominated(points)
    extremes = [min(best, key=lambda point: (point.costs[axis], point.costs)) for axis in range(3)]
    smallest = min(points, key=lambda point: (point.ram_bytes, point.costs))
    pinned = list({id(point): point for point in (*extremes, smallest, balanced)}.values())
    kept = list(pinned)
    for point in sorted(best, key=lambda point: point.costs):
        if point not in kept and not any(_covers(other, point, _TOLERANCE) for other in kept):
            kept.append(point)
    while len(kept) > MOST_POINTS:
        loose = [point for point in kept if point not in pinned]
        kept.remove(min(loose, key=lambda point: min(_distance(point, other) for other in kept if other is not point)))
    return tuple(sorted(kept, key=lambda point: point.costs))


def _distance(one: Point, other: Point) -> float:
    """Return how far two points lie apart, in ratios."""
    return math.dist([math.log(cost) for cost in one.costs], [math.log(cost) for cost in other.costs])


def _within(search: Search, optimize: str, ram: int, most: int) -> Point | None:
    """Return the point within a budget, or within a larger one below `most` that first-fit keeps.

    The solver that may squeeze a plan into a budget takes seconds each time, and these budgets are as good as others.
    """
    for _ in range(_TRIES):
        if ram >= most:
            break  # is kept already
        found = search.at_once(optimize, ram)
        if found.plan.arena_bytes <= ram:
            return _point(optimize, ram, found)
        ram = _rounded(found.plan.arena_bytes)
    return None


def _squeezed(search: Search, optimize: str, ram: int, most: int) -> Point | None:
    """Return the point within a budget, by the solver if need be: worth its seconds where every byte counts."""
    if ram >= most:
        return None
    found = search.decide(optimize, ram)
    return _point(optimize, ram, found) if found.plan.arena_bytes <= ram else None


def _point(optimize: str, ram: int | None, found: Found) -> Point:
    made, solution = found.plan, found.solution
    stack = stack_bytes(made)
    return Point(optimize, ram, found.decisions, made.arena_bytes, stack, solution.cycles, solution.flash)


def stack_bytes(plan: Plan) -> int:
    """Return what the stack takes at most: of the compiled bodies, too, where the core is not known."""
    bound = stack_bound(plan)
    return max(bound.assembly, bound.compiled) if plan.target.name == "cortex-m" else bound.assembly
