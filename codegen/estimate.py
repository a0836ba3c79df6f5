"""What a network will take at the least, before anything is searched or placed: a tenth of the time of a plan."""

from collections.abc import Iterator
from dataclasses import dataclass

from codegen.arrangement import Arranger, least_storages
from codegen.assemble import arranger_of
from codegen.choices import Catalogue
from codegen.objective import OBJECTIVES
from codegen.optimize import Optimizer, Solution
from codegen.planner import LARGEST_MAPS, Request
from mnet.errors import PlanError


@dataclass(frozen=True)
class Estimate:
    """One way to run a network. A plan takes about so many cycles and flash bytes, and at least about so much RAM."""

    arena_bytes: int  # live bytes of rows, in the forms that take least, whatever that costs
    stack_bytes: int  # of the kernel that takes most
    flash_bytes: int
    cycles: int


def estimates(request: Request) -> tuple[Estimate, ...]:
    """Return one estimate for each objective and each choice of forms; the request's objective is not looked at.

    Raises:
        PlanError: an op that no kernel takes.
    """
    solutions = list(_solutions(_arranger(request, LARGEST_MAPS[0]), request))
    least = list(_solutions(_arranger(request, 0), request))
    if not solutions or not least:
        raise PlanError(f"{request.graph.name}: no kernels for {request.target.name} fit together")
    ram = min(solution.ram for solution in (*solutions, *least))
    return tuple(Estimate(ram, solution.stack, solution.flash, solution.cycles) for solution in (*solutions, *least))


def _arranger(request: Request, largest_map: int) -> Arranger:
    return arranger_of(request.graph, request.target, request.oracle, request.input_mode, largest_map)


def _solutions(arranger: Arranger, request: Request) -> Iterator[Solution]:
    catalogue = Catalogue(request.graph, request.target, request.oracle, arranger.stages)
    arrangement = arranger.arrange(arranger.search(least_storages(arranger)))
    for goal in OBJECTIVES.values():
        yield from Optimizer(catalogue, arrangement, goal).starts()
