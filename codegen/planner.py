"""From Graph to Plan: choose schedule, layouts and kernels together, place the buffers, write the tables, check."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen.arrangement import Arranger, distinct, least_storages, usual_storages
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
_PLACED = 3  # drafts that are placed
_SLACKS = (1.02, 1.05)  # of the bytes that are live at once: arenas that the solver is asked for


@dataclass(frozen=True, eq=False)
class _Draft:
    """All choices made, nothing placed."""

    arranger: Arranger
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


def _drafts(request: Request, goal: Objective, most_ram: float) -> list[_Draft]:
    """Return the best choices for each arrangement, the cheapest first.

    The network runs by rows or by whole layers, in orders for fast and for small forms.
    """
    graph, target, oracle = request.graph, request.target, request.oracle
    seen = set()
    drafts = []
    for largest_map in LARGEST_MAPS:
        arranger = arranger_of(graph, target, oracle, request.input_mode, largest_map)
        rows = tuple(stage.rows for stage in arranger.stages)
        if rows in seen:
            continue
        seen.add(rows)
        catalogue = Catalogue(graph, target, oracle, arranger.stages)
        for order in distinct([arranger.search(pick(arranger)) for pick in (least_storages, usual_storages)]):
            arrangement = arranger.arrange(order)
            solution = Optimizer(catalogue, arrangement, goal, most_ram).best()
            if solution is not None:
                units = [unit for form in solution.forms.values() for unit in form.units]
                boxes = [*(Box(unit.name, unit.size, unit.spans) for unit in units), *arrangement.image]
                drafts.append(_Draft(arranger, catalogue, largest_map, order, boxes, solution))
    return sorted(drafts, key=lambda draft: draft.solution.price)


def _placed(request: Request, goal: Objective, drafts: Sequence[_Draft]) -> tuple[Decisions, Plan, _Draft]:
    """Return the draft that is best once it is placed."""
    found: list[tuple[float, float, int, tuple[Decisions, Plan, _Draft]]] = []
    for draft in drafts[:_PLACED]:
        decisions = draft.decisions(place(draft.boxes)[0])
        made = _assembled(request, decisions)
        solution = draft.solution
        price = goal.price(solution.cycles, made.arena_bytes + solution.stack, solution.flash)
        over = max(0, made.arena_bytes - (math.inf if request.ram is None else request.ram))
        found.append((over, price, len(found), (decisions, made, draft)))
    return min(found)[-1]


def _assembled(request: Request, decisions: Decisions) -> Plan:
    return assemble(request.graph, request.target, request.oracle, request.input_mode, request.optimize, decisions)


def _packed(request: Request, decisions: Decisions, made: Plan, draft: _Draft) -> Decisions:
    """Return the decisions with addresses in fewer bytes, where the solver is there and finds some."""
    least = live_bytes(draft.boxes)
    wanted = [int(least * slack) for slack in _SLACKS]
    if request.ram is not None:
        wanted = [request.ram - made.state_bytes]
    for most in wanted:
        if most >= made.rows_bytes:
            break
        addresses = pack(draft.boxes, most)
        if addresses is not None:
            return draft.decisions(addresses)
    return decisions


def decide(request: Request) -> Decisions:
    """Return what to do; where no plan keeps the budget, the decisions of the smallest.

    Raises:
        PlanError: an op that no kernel takes, or an unknown objective.
    """
    if not request.graph.ops:
        raise PlanError(f"{request.graph.name} has no operator to generate code for")
    goal = objective(request.optimize)
    budget = math.inf if request.ram is None else float(request.ram)
    decisions = None
    for _ in range(_ATTEMPTS):
        drafts = _drafts(request, goal, budget)
        if not drafts:
            raise PlanError(f"{request.graph.name}: no kernels for {request.target.name} fit together")
        decisions, made, draft = _placed(request, goal, drafts)
        if request.ram is None and request.optimize != "ram":
            break
        if request.ram is None or made.arena_bytes > request.ram:
            decisions = _packed(request, decisions, made, draft)
            made = _assembled(request, decisions)
        if request.ram is None or made.arena_bytes <= request.ram:
            break
        budget -= made.arena_bytes - request.ram  # the state, and what placement loses
    assert decisions is not None
    return decisions


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
