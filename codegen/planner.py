"""What to do with a graph: choose order, forms and kernels together, and place the buffers; Decisions come out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.arrangement import Arrangement, distinct, least_storages, usual_storages
from codegen.assemble import Decisions, arranger_of, assemble
from codegen.choices import Catalogue
from codegen.memory import Box, live_bytes, place
from codegen.objective import Objective, objective
from codegen.optimize import Optimizer, Solution
from codegen.packing import pack
from codegen.plan import Plan
from codegen.schedule import Step
from codegen.selection import alternatives
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph
from mnet.oracle import Oracle

INPUT_MODES = ("const", "arena", "rows")
LARGEST_MAPS = (64, 0, 16, 1 << 30)  # pixels of the maps that are made in one call, where a kernel can
_ATTEMPTS = 3  # to keep a budget
_MORE_ATTEMPTS = 4  # where what is live would fit and only placement loses bytes
_PLACED = 3  # drafts that are placed, and that the solver is asked for
_SLACKS = (1.05, 1.02, 1.005)  # of the bytes that are live at once: what the solver is asked for, the easy one first
_GOOD = 1.015  # so near to those bytes it is not asked for less

Report = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class _Draft:
    """All choices made, nothing placed."""

    catalogue: Catalogue
    largest_map: int
    steps: tuple[Step, ...]
    boxes: Sequence[Box]
    solution: Solution

    def decisions(self, addresses: Mapping[str, int]) -> Decisions:
        """Return what was chosen, with these addresses."""
        catalogue = self.catalogue
        return Decisions(
            largest_map=self.largest_map,
            calls=tuple(step.op for step in self.steps),
            forms={name: form.key for name, form in self.solution.forms.items()},
            kernels=tuple(
                alternatives(stage, catalogue.graph, catalogue.target).index(candidate.kernel)
                for stage, candidate in zip(catalogue.stages, self.solution.candidates, strict=True)
            ),
            addresses=dict(addresses),
        )


@dataclass(frozen=True)
class Request:
    """What a plan is to be for."""

    graph: Graph  # already simplified
    target: Target
    oracle: Oracle  # whose rounding
    input_mode: str = "const"  # the caller's image is only read; "arena": it lies there; "rows": it is pushed
    optimize: str = "balanced"  # what to strive for, see codegen.objective
    ram: int | None = None  # bytes that the arena should keep to


@dataclass(frozen=True, eq=False)
class Found:
    """What a search decided, and what it is expected to take."""

    decisions: Decisions
    plan: Plan  # made from them, and checked
    solution: Solution  # estimates: cycles and flash


@dataclass(frozen=True, eq=False)
class _Road:
    """One way to run the network: the calls, in an order, and what their kernels cost."""

    catalogue: Catalogue
    largest_map: int
    arrangement: Arrangement


class Search:
    """Decides for any number of objectives and budgets; the ways to run the network are arranged and priced once."""

    def __init__(self, request: Request, report: Report = _silent) -> None:
        """Arrange the network of `request`; its objective and budget are not looked at.

        Args:
            request: network, target, rounding, where the image is.
            report: is told (what, done, total) as the work goes on.

        Raises:
            PlanError: there is no op, or one that no kernel takes.
        """
        if not request.graph.ops:
            raise PlanError(f"{request.graph.name} has no operator to generate code for")
        self.request = request
        self.roads = _roads(request, report)
        self._places: dict[tuple[Box, ...], dict[str, int]] = {}
        self._packs: dict[tuple[tuple[Box, ...], int], dict[str, int] | None] = {}

    def drafts(self, goal: Objective, most_ram: float) -> list[_Draft]:
        """Return the best choices for each road, the cheapest first."""
        drafts = []
        for road in self.roads:
            solution = Optimizer(road.catalogue, road.arrangement, goal, most_ram).best()
            if solution is not None:
                units = [unit for form in solution.forms.values() for unit in form.units]
                boxes = [*(Box(unit.name, unit.size, unit.spans) for unit in units), *road.arrangement.image]
                steps = road.arrangement.steps
                drafts.append(_Draft(road.catalogue, road.largest_map, steps, boxes, solution))
        return sorted(drafts, key=lambda draft: draft.solution.price)

    def decide(self, optimize: str, ram: int | None) -> Found:
        """Return what to do; where no plan keeps the budget, the decisions of the smallest.

        Raises:
            PlanError: an unknown objective, or no kernels that fit together.
        """
        request = replace(self.request, optimize=optimize, ram=ram)
        goal = objective(optimize)
        budget = math.inf if ram is None else float(ram)
        found = None
        for attempt in range(_ATTEMPTS + _MORE_ATTEMPTS):
            if attempt >= _ATTEMPTS and found and ram and found.plan.live_bytes + found.plan.state_bytes > ram:
                break
            found, drafts = self._attempt(request, goal, budget)
            if ram is None and optimize != "ram":
                break
            if ram is None:
                found = self._smaller(request, found, drafts[0])
            elif attempt < _ATTEMPTS and found.plan.arena_bytes > ram:
                found = self._within(request, ram, drafts) or found
            if ram is None or found.plan.arena_bytes <= ram:
                break
            budget -= found.plan.arena_bytes - ram  # the state, and what placement loses
            if attempt >= _ATTEMPTS - 1:
                budget = min(budget, found.solution.ram - 4)  # something else
        assert found is not None
        return found

    def at_once(self, optimize: str, ram: int) -> Found:
        """Return the plan of the first attempt, without the solver; `decide` returns it, too, if it keeps the budget.

        Raises:
            PlanError: an unknown objective, or no kernels that fit together.
        """
        request = replace(self.request, optimize=optimize, ram=ram)
        return self._attempt(request, objective(optimize), ram)[0]

    def _attempt(self, request: Request, goal: Objective, budget: float) -> tuple[Found, tuple[_Draft, ...]]:
        """Return the best plan without the solver, and the drafts that were looked at, that of the plan first."""
        drafts = self.drafts(goal, budget)
        if not drafts:
            raise PlanError(f"{request.graph.name}: no kernels for {request.target.name} fit together")
        found, chosen = self._placed(request, goal, drafts)
        return found, (chosen, *(draft for draft in drafts[:_PLACED] if draft is not chosen))

    def _placed(self, request: Request, goal: Objective, drafts: Sequence[_Draft]) -> tuple[Found, _Draft]:
        """Return the draft that is best once it is placed."""
        most = math.inf if request.ram is None else request.ram
        found: list[tuple[float, float, int, tuple[Found, _Draft]]] = []
        for draft in drafts[:_PLACED]:
            solution = draft.solution
            least = goal.price(solution.cycles, solution.ram + solution.stack, solution.flash)
            if any(over == 0 and price <= least for over, price, *_ in found):
                continue  # no addresses make it the best
            decisions = draft.decisions(self._addresses(draft.boxes))
            made = _assembled(request, decisions)
            price = goal.price(solution.cycles, made.arena_bytes + solution.stack, solution.flash)
            over = max(0, made.arena_bytes - most)
            found.append((over, price, len(found), (Found(decisions, made, solution), draft)))
        return min(found)[-1]

    def _smaller(self, request: Request, found: Found, draft: _Draft) -> Found:
        """Return what was found with addresses in fewer bytes, where the solver is there and finds some."""
        least, taken = live_bytes(draft.boxes), found.plan.rows_bytes
        decisions = found.decisions
        for most in (int(least * slack) for slack in _SLACKS):
            if most >= taken or taken <= least * _GOOD:
                continue
            addresses = self._pack(draft, most)
            if addresses is None:
                break  # and less will not do either
            decisions, taken = draft.decisions(addresses), most
        return Found(decisions, _assembled(request, decisions), found.solution)

    def _within(self, request: Request, ram: int, drafts: Sequence[_Draft]) -> Found | None:
        """Return the first of the drafts for which the solver, where it is there, finds addresses in the budget.

        The one that first-fit places in the fewest bytes need not be one of those that have a packing.
        """
        for draft in drafts:
            if live_bytes(draft.boxes) > ram:
                continue
            state = _assembled(request, draft.decisions(self._addresses(draft.boxes))).state_bytes
            addresses = self._pack(draft, ram - state)
            if addresses is not None:
                decisions = draft.decisions(addresses)
                return Found(decisions, _assembled(request, decisions), draft.solution)
        return None

    def _pack(self, draft: _Draft, most_bytes: int) -> Mapping[str, int] | None:
        key = tuple(draft.boxes), most_bytes
        if key not in self._packs:
            self._packs[key] = pack(draft.boxes, most_bytes)
        return self._packs[key]

    def _addresses(self, boxes: Sequence[Box]) -> Mapping[str, int]:
        key = tuple(boxes)
        if key not in self._places:
            self._places[key] = place(boxes)[0]
        return self._places[key]


def _roads(request: Request, report: Report) -> tuple[_Road, ...]:
    """Return the ways to run the network: by rows or by whole layers, in orders for fast and for small forms."""
    graph, target, oracle = request.graph, request.target, request.oracle
    seen = set()
    roads = []
    for number, largest_map in enumerate(LARGEST_MAPS):
        report("ways to run the network", number, len(LARGEST_MAPS))
        arranger = arranger_of(graph, target, oracle, request.input_mode, largest_map)
        rows = tuple(stage.rows for stage in arranger.stages)
        if rows in seen:
            continue
        seen.add(rows)
        catalogue = Catalogue(graph, target, oracle, arranger.stages)
        least = least_storages(arranger)
        small, fast = arranger.search(least), arranger.search(usual_storages(arranger))
        orders = distinct([arranger.fewest(least, small), small, fast])
        roads += [_Road(catalogue, largest_map, arranger.arrange(order)) for order in orders]
    report("ways to run the network", len(LARGEST_MAPS), len(LARGEST_MAPS))
    return tuple(roads)


def _assembled(request: Request, decisions: Decisions) -> Plan:
    return assemble(request.graph, request.target, request.oracle, request.input_mode, request.optimize, decisions)


def decide(request: Request) -> Decisions:
    """Return what to do; where no plan keeps the budget, the decisions of the smallest.

    Raises:
        PlanError: an op that no kernel takes, or an unknown objective.
    """
    objective(request.optimize)
    return Search(request).decide(request.optimize, request.ram).decisions


def plan(
    graph: Graph,
    target: Target,
    oracle: Oracle,
    input_mode: str = "const",
    optimize: str = "balanced",
    ram: int | None = None,
) -> Plan:
    """Return a checked plan of `graph` (already simplified) for `target`, with the bits of `oracle`.

    Args:
        graph: the network.
        target: which core, see `codegen.targets`.
        oracle: whose rounding.
        input_mode: "const" (the caller's image is only read), "arena" (it lies in the arena), "rows" (it is pushed).
        optimize: what to strive for, see `codegen.objective`.
        ram: bytes that the arena should keep to; where no plan does, the smallest is returned.

    Raises:
        PlanError: an op that no kernel takes, or an unknown objective.
    """
    request = Request(graph, target, oracle, input_mode, optimize, ram)
    return _assembled(request, decide(request))
