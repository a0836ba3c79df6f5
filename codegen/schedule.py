"""The order of row steps: each op makes a row when somebody needs it, so that rings stay short.

A tensor is *streamed* (its rows live in a ring, made when its consumer asks) or *gathered* (all its rows are made in
one go before the consumer's first call). Gathered tensors cut the network into stretches: while one runs, the rings
of the others hold nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

FILL_ROW, FILL_ALL = -1, -2  # values of Step.op


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
class Rows:
    """What the scheduler knows of one tensor."""

    top: int  # padding rows in memory
    height: int
    bottom: int
    filled: bool  # holds something before its first row: padding, or sums that start at 0


@dataclass(frozen=True)
class Step:
    """One step: call number `number` of `op` (an index of the works), or the fill of padding row `row` of `tensor`."""

    op: int
    number: int
    tensor: str
    row: int  # first virtual row that it makes


@dataclass(frozen=True)
class Schedule:
    """The steps, and for each tensor the slots that its rows need."""

    steps: tuple[Step, ...]
    slots: Mapping[str, int]


class _Run:
    """One simulated run that pulls rows from the end of the network."""

    def __init__(self, works: Sequence[Work], tensors: Mapping[str, Rows], gathered: Collection[str]) -> None:
        self.works, self.tensors, self.gathered = works, tensors, gathered
        self.producer = {work.output: index for index, work in enumerate(works)}
        self.readers: dict[str, list[tuple[int, int]]] = {name: [] for name in tensors}
        for index, work in enumerate(works):
            for which, name in enumerate(work.inputs):
                self.readers[name].append((index, which))
        self.done = [0] * len(works)
        self.made = {name: 0 for name in tensors}  # virtual rows made so far
        self.slots = dict.fromkeys(tensors, 1)
        self.begun: set[str] = set()
        self.steps: list[Step] = []

    def oldest_needed(self, name: str) -> int:
        """Return the first virtual row that some reader still wants."""
        rows = self.tensors[name]
        oldest = rows.top + rows.height + rows.bottom if self.readers[name] else 0
        for index, which in self.readers[name]:
            work = self.works[index]
            for first, _ in work.windows[which][self.done[index] :]:
                oldest = min(oldest, first)
                break
        return oldest

    def mark(self, name: str, upto: int) -> None:
        """Note that the virtual rows below `upto` are made."""
        self.made[name] = max(self.made[name], upto)
        self.slots[name] = max(self.slots[name], upto - self.oldest_needed(name))

    def begin(self, name: str) -> None:
        """Fill the buffer before its first row, where it has padding above or beside, or sums."""
        if name in self.begun:
            return
        self.begun.add(name)
        if self.tensors[name].filled:
            self.steps.append(Step(FILL_ALL, 0, name, 0))
        self.mark(name, self.tensors[name].top)

    def pull(self, name: str, row: int) -> None:
        """Make the virtual rows of `name` up to and including `row`."""
        rows = self.tensors[name]
        end = rows.top + rows.height
        if name in self.gathered:
            row = max(row, end - 1)
        while self.made[name] <= min(row, end - 1):
            self.step(self.producer[name])
        while self.made[name] <= row:
            self.steps.append(Step(FILL_ROW, self.made[name] - end, name, self.made[name]))
            self.mark(name, self.made[name] + 1)

    def step(self, index: int) -> None:
        """Run the next call of an op, after making what it reads."""
        work, number = self.works[index], self.done[index]
        for which, name in enumerate(work.inputs):
            self.pull(name, work.windows[which][number][1])
        self.begin(work.output)
        self.done[index] += 1
        row = work.first_row + number * work.rows
        self.steps.append(Step(index, number, work.output, row))
        if work.rows:
            self.mark(work.output, row + work.rows)
        elif self.done[index] == work.calls:
            self.mark(work.output, work.first_row + 1)


def pull_schedule(
    works: Sequence[Work], tensors: Mapping[str, Rows], output: str, gathered: Collection[str]
) -> Schedule:
    """Return the schedule that makes `output` by asking for rows from the end.

    Args:
        works: the ops in topological order; the one without inputs takes the network's input, a row a call.
        tensors: every tensor.
        output: the tensor to make.
        gathered: tensors to make in one go.
    """
    run = _Run(works, tensors, gathered)
    rows = tensors[output]
    run.pull(output, rows.top + rows.height - 1)
    for index, work in enumerate(works):  # ops whose rows nobody asked for (a stride that skips the last rows)
        while run.done[index] < work.calls:
            run.step(index)
    return Schedule(tuple(run.steps), run.slots)


def row_lives(
    works: Sequence[Work], tensors: Mapping[str, Rows], steps: Sequence[Step], filled_below: Collection[str]
) -> dict[str, dict[int, tuple[int, int]]]:
    """Return for each tensor and virtual row the first and the last step in which the row must lie in memory.

    The padding rows of the tensors in `filled_below` are set with the rest, before the first row.
    """
    lives: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in tensors}
    done = [0] * len(works)

    def touch(name: str, row: int, number: int) -> None:
        lives[name][row] = lives[name].get(row, (number, number))[0], number

    for number, step in enumerate(steps):
        rows = tensors[step.tensor]
        if step.op == FILL_ALL:
            end = rows.top + rows.height
            below = range(end, end + rows.bottom) if step.tensor in filled_below else ()
            for row in (*range(max(rows.top, 1)), *below):  # without padding above: sums, or what lies beside row 0
                touch(step.tensor, row, number)
        elif step.op == FILL_ROW:
            touch(step.tensor, step.row, number)
        else:
            work = works[step.op]
            for which, name in enumerate(work.inputs):
                first, last = work.windows[which][done[step.op]]
                for row in range(first, last + 1):
                    touch(name, row, number)
            for row in range(step.row, step.row + max(work.rows, 1)):
                touch(step.tensor, row, number)
            done[step.op] += 1
    return lives
