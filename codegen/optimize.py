"""Forms of tensors and kernels for one arrangement: descend from candidate to candidate while the price falls.

Moves: a tensor takes another form, and the ops around it take what then is best; an op takes another kernel; several
ops take one function, which pays where each alone would not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codegen.arrangement import Arrangement
from codegen.choices import Candidate, Catalogue, Forms
from codegen.forms import Form
from codegen.objective import Objective

# Of the generated loop, tables and state, which no choice changes much.
LOOP_CYCLES = 35  # per step
FIXED_CODE = 900


@dataclass(frozen=True, eq=False)
class Solution:
    """A form for each tensor, a candidate for each stage, and what they take."""

    forms: Forms
    candidates: tuple[Candidate, ...]
    cycles: int
    ram: int  # live bytes of rows
    stack: int  # of the kernel that takes most
    flash: int
    price: float


class Optimizer:
    """Finds the cheapest solution of one arrangement."""

    def __init__(
        self,
        catalogue: Catalogue,
        arrangement: Arrangement,
        objective: Objective,
        most_ram: float = math.inf,
    ) -> None:
        self.catalogue, self.arrangement = catalogue, arrangement
        self.objective, self.most_ram = objective, most_ram
        self.base = LOOP_CYCLES * len(arrangement.steps)
        self.image = arrangement.image_live
        self._users: dict[str, list[int]] = {name: [] for name in arrangement.forms}
        for index, stage in enumerate(catalogue.stages):
            for name in (*stage.inputs, stage.output):
                self._users[name].append(index)

    def _ram(self, forms: Forms) -> int:
        """Return the live bytes with these forms."""
        return int((np.sum([form.live for form in forms.values()], axis=0) + self.image).max())

    def solution(self, forms: Forms, candidates: Sequence[Candidate], ram: int) -> Solution:
        """Return what these choices take."""
        cycles, flash, stack = self.base, FIXED_CODE, 0
        code: dict[int, int] = {}
        for candidate in candidates:  # in one go: searches ask often
            cycles += candidate.cycles
            flash += candidate.constant_bytes
            code[candidate.function] = candidate.code_bytes
            if candidate.stack_bytes > stack:
                stack = candidate.stack_bytes
        for form in forms.values():
            cycles += form.cycles
        flash += sum(code.values())
        price = self.objective.price(cycles, ram + stack, flash)
        if ram > self.most_ram:
            price += 1e6 + ram  # out of budget: first of all less memory
        return Solution(forms, tuple(candidates), cycles, ram, stack, flash, price)

    def _with_forms(self, old: Solution | None, forms: Forms, changed: Sequence[int]) -> Solution | None:
        """Return a solution in which the `changed` stages take the best candidates for `forms`."""
        chosen: list[Candidate | None] = list(old.candidates) if old else [None] * len(self.catalogue.stages)
        for index in changed:
            chosen[index] = None
        for index in changed:
            options = self.catalogue.candidates(index, forms)
            if not options:
                return None
            functions = {candidate.function for candidate in chosen if candidate}
            cycles = old.cycles if old else sum(candidate.cycles for candidate in options) + 1_000_000
            flash = old.flash if old else 50_000

            def price(
                option: Candidate,
                functions: set[int] = functions,
                cycles: int = cycles,
                flash: int = flash,
            ) -> float:
                code = 0 if option.function in functions else option.code_bytes
                return option.cycles / cycles + self.objective.flash * (code + option.constant_bytes) / flash

            chosen[index] = min(options, key=price)
        return self.solution(forms, [candidate for candidate in chosen if candidate], self._ram(forms))

    def _neighbours(self, now: Solution) -> Iterator[Solution | None]:
        for name, forms in self.arrangement.forms.items():
            for form in forms:
                if form is not now.forms[name]:
                    yield self._with_forms(now, {**now.forms, name: form}, self._users[name])
        shared: dict[int, dict[int, Candidate]] = {}
        for index in range(len(now.candidates)):
            for option in self.catalogue.candidates(index, now.forms):
                shared.setdefault(option.function, {})[index] = option
                if option is not now.candidates[index]:
                    yield self._replaced(now, {index: option})
        for options in shared.values():
            lost = {index: option.cycles - now.candidates[index].cycles for index, option in options.items()}
            order = sorted(options, key=lost.__getitem__)
            for count in range(2, len(order) + 1):  # those that lose least come first
                yield self._replaced(now, {index: options[index] for index in order[:count]})

    def _replaced(self, now: Solution, options: Mapping[int, Candidate]) -> Solution:
        return self.solution(now.forms, [options.get(i, old) for i, old in enumerate(now.candidates)], now.ram)

    def starts(self) -> Iterator[Solution]:
        """Yield what the usual forms take with the best kernels for them, then those that take least memory.

        Nothing where no kernel takes a stage's tensors.
        """
        for forms in (self._usual(), self._least()):
            solution = self._with_forms(None, forms, range(len(self.catalogue.stages)))
            if solution is not None:
                yield solution

    def best(self) -> Solution | None:
        """Return the cheapest solution found: descents from the usual forms, and from those that take least memory.

        None where no kernel takes a stage's tensors.
        """
        found: Solution | None = None
        for now in self.starts():
            while True:
                lower = [other for other in self._neighbours(now) if other and other.price < now.price - 1e-9]
                if not lower:
                    break
                now = min(lower, key=lambda solution: solution.price)
            if found is None or now.price < found.price:
                found = now
        return found

    def _usual(self) -> Forms:
        return {name: forms[0] for name, forms in self.arrangement.forms.items()}

    def _least(self) -> Forms:
        """Return the smallest form of each tensor, one after the other, for which every stage still has a kernel."""

        def size(form: Form) -> tuple[int, int]:
            return int(form.live.sum()), form.cycles

        chosen = self._usual()
        for name, forms in self.arrangement.forms.items():
            for form in sorted(forms, key=size):
                trial = {**chosen, name: form}
                if all(self.catalogue.candidates(index, trial) for index in self._users[name]):
                    chosen = trial
                    break
        return chosen
