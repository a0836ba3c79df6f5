"""What the planner strives for: cycles, RAM and flash, weighed against each other by their ratios.

The price of a plan is cycles * ram**a * flash**b: an exponent of 1/10 says that ten percent of that memory are worth
one percent of the cycles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mnet.errors import PlanError


@dataclass(frozen=True)
class Objective:
    """How much memory is worth. Exponents of the price; the exponent of cycles is 1."""

    name: str
    ram: float
    flash: float

    def price(self, cycles: int, ram: int, flash: int) -> float:
        """Return the logarithm of the price of a plan."""
        return math.log(max(cycles, 1)) + self.ram * math.log(max(ram, 1)) + self.flash * math.log(max(flash, 1))


OBJECTIVES: Mapping[str, Objective] = {
    "balanced": Objective("balanced", ram=0.06, flash=0.12),
    "cycles": Objective("cycles", ram=2e-3, flash=1e-3),
    "ram": Objective("ram", ram=20.0, flash=0.02),
    "size": Objective("size", ram=0.01, flash=1.0),
}


def objective(name: str) -> Objective:
    """Return the objective `name`.

    Raises:
        PlanError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise PlanError(f"unknown objective {name!r} of --optimize; choose {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
