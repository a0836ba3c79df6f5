"""The order of calls: each op makes a row when somebody needs it, so that few rows wait.

A tensor is *streamed* (its rows are made when its consumer asks) or *gathered* (all its rows are made in one go before
the consumer's first call). Gathered tensors cut the network into stretches: while one runs, little of the others is
live.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # first and last step, inclusive


@dataclass(frozen=True)
class Work:
    """What the scheduler knows of one op. Rows are virtual: padding rows that lie in memory count."""

    inputs: tuple[str, ...]
    output: str
    calls: int
    windows: tuple[tuple[tuple[int, int], ...], ...]  # [input][call] -> first and last virtual row read
    first_row: int  # virtual row of the output that call 0 makes
    rows: int  # made by a call; 0 = the output's one row is complete after the last call


@dataclass(frozen=True)
class Step:
    """Call number `number` of `op`, an index of the works."""

    op: int
    number: int


def steps_of(calls: Sequence[int]) -> tuple[Step, ...]:
    """Return the steps of an order of ops: their calls are numbered as they come."""
    done: dict[int, int] = {}
    steps = []
    for op in calls:
        steps.append(Step(op, done.get(op, 0)))
        done[op] = done.get(op, 0) + 1
    return tuple(steps)


class _Run:
    """One simulated run that pulls rows from the end of the network; `eager` ops run as soon as they can."""

    def __init__(
        self, works: Sequence[Work], ends: Mapping[str, int], gathered: Collection[str], eager: Sequence[int]
    ) -> None:
        self.works, self.ends, self.gathered, self.eager = works, ends, gathered, eager
        self.producer = {work.output: index for index, work in enumerate(works)}
        self.done = [0] * len(works)
        self.made = dict.fromkeys(ends, 0)  # virtual rows that are there
        self.steps: list[Step] = []

    def pull(self, name: str, row: int) -> None:
        """Make the virtual rows of `name` up to and including `row`; padding is there already."""
        while not self.has(name, row):
            self.step(self.producer[name])

    def has(self, name: str, row: int) -> bool:
        """Return whether the virtual rows of `name` up to and including `row` are there."""
        last = self.ends[name] - 1
        return self.made[name] > (last if name in self.gathered else min(row, last))

    def step(self, index: int) -> None:
        """Run the next call of an op, after making what it reads."""
        work, number = self.works[index], self.done[index]
        for which, name in enumerate(work.inputs):
            self.pull(name, work.windows[which][number][1])
        if self.done[index] > number:  # an eager op ran while its inputs were made
            return
        self.done[index] += 1
        self.steps.append(Step(index, number))
        if work.rows:
            self.made[work.output] = work.first_row + (number + 1) * work.rows
        elif self.done[index] == work.calls:
            self.made[work.output] = work.first_row + 1
        for reader in self.eager:
            while work.output in self.works[reader].inputs and self.can_run(reader):
                self.step(reader)

    def can_run(self, index: int) -> bool:
        """Return whether what the next call of an op reads is there."""
        work, number = self.works[index], self.done[index]
        return number < work.calls and all(
            self.has(name, work.windows[which][number][1]) for which, name in enumerate(work.inputs)
        )


@dataclass(frozen=True)
class Pull:
    """In which order the outputs of a network are asked for."""

    outputs: tuple[str, ...]
    eager: bool  # what the first does not need runs as soon as it can; else when its own output is asked for


def pulls_of(outputs: Sequence[str]) -> tuple[Pull, ...]:
    """Return the ways to ask for outputs that are tried: each as the first, the others beside it or after it.

    >>> pulls_of(["y"])
    (Pull(outputs=('y',), eager=False),)
    """
    if len(outputs) == 1:
        return (Pull(tuple(outputs), False),)
    orders = [(first, *(name for name in outputs if name != first)) for first in outputs]
    return tuple(Pull(order, eager) for order in orders for eager in (True, False))


def pull_order(
    works: Sequence[Work], ends: Mapping[str, int], pull: Pull, gathered: Collection[str]
) -> tuple[Step, ...]:
    """Return the calls in the order that makes the outputs by asking for rows from the end.

    Args:
        works: the ops in topological order; those without inputs take the network's inputs, a row a call.
        ends: of every tensor, one more than the virtual row of its last row that is not padding.
        pull: the tensors to make.
        gathered: tensors to make in one go.
    """
    run = _Run(works, ends, gathered, _beside(works, pull.outputs[0]) if pull.eager else ())
    for output in pull.outputs:
        run.pull(output, ends[output] - 1)
    for index, work in enumerate(works):  # ops whose rows nobody asked for (a stride that skips the last rows)
        while run.done[index] < work.calls:
            run.step(index)
    return tuple(run.steps)


def _beside(works: Sequence[Work], output: str) -> tuple[int, ...]:
    """Return the ops that `output` does not need; those that take inputs are not among them."""
    needed = {output}
    for work in reversed(works):
        needed |= set(work.inputs) if work.output in needed else set()
    return tuple(index for index, work in enumerate(works) if work.inputs and work.output not in needed)


def row_lives(works: Sequence[Work], tensors: Collection[str], steps: Sequence[Step]) -> dict[str, dict[int, Span]]:
    """Return for each tensor and virtual row the first and the last step in which the row must lie in memory.

    A row lives from the step that makes it to the last one that reads it; a padding row from the first that reads it.
    """
    lives: dict[str, dict[int, Span]] = {name: {} for name in tensors}
    for number, step in enumerate(steps):
        work = works[step.op]
        first = work.first_row + step.number * work.rows
        touched = [(work.output, range(first, first + max(work.rows, 1)))]
        for which, name in enumerate(work.inputs):
            oldest, newest = work.windows[which][step.number]
            touched.append((name, range(oldest, newest + 1)))
        for name, rows in touched:
            life = lives[name]
            for row in rows:
                life[row] = life[row][0] if row in life else number, number
    return lives
