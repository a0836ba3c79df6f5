"""The order of calls in which fewest bytes are live at once: an exact search, forwards and backwards at a time.

A *state* says how many calls of each op are done. Live between two calls is every unit of bytes of which one of its
first calls is done and not all of its last ones; so the live bytes f of a state are a submodular function:
f(A | B) + f(A & B) <= f(A) + f(B), where | and & take the larger and the smaller count of each op. While a call runs,
what it makes is live, too. (A call may be seen as two steps, a beginning and an end: then f alone tells the peak.)

*Commit*: let D be reached from S within a level of bytes, and no state between S and D have fewer live bytes than D.
Then an order that goes on from S within that level has one that goes on from D: of its states P take P | D, as
f(P | D) <= f(P) + f(D) - f(P & D) <= f(P). Such a D need not be looked for beyond what is reached within the level:
were Z between S and D the lowest, then the way Q to D gives one to Z, f(Q & Z) <= f(Q) + f(Z) - f(Q | Z) <= f(Q).
One call that ends with no more live bytes than it began with is such a D; so is, of the states with no more than S,
one that no other such state lies below. The same holds for orders read backwards, and often one of the two directions
sees few states where the other sees millions: they take turns, and whichever finds a D moves its end of the problem.

The level begins at a lower bound. Where one direction has seen all that is within it, every order needs more, and the
level rises to the least that was refused. So a search that ends has the optimum, and one that is stopped a bound.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

CallOf = tuple[int, int]  # op, number of its call
_State = tuple[int, ...]  # calls done, of each op
_FIRST_TURN = 16  # states that a direction looks at before it is the other's turn; each turn is twice as long


@dataclass(frozen=True)
class Unit:
    """Bytes that are live from the first of some calls to the last of others, those calls included."""

    size: int
    born: tuple[CallOf, ...]  # in whichever comes first; none: before all calls
    dies: tuple[CallOf, ...]  # when all of them are done; none: stays


@dataclass(frozen=True)
class Problem:
    """What is to be put in order."""

    calls: tuple[int, ...]  # of each op
    needs: tuple[tuple[tuple[CallOf, ...], ...], ...]  # [op][call] -> (other op, how many of its calls come before)
    units: tuple[Unit, ...]

    def backwards(self) -> "Problem":
        """Return the same problem with time reversed: call 0 of an op is its last."""
        last = [count - 1 for count in self.calls]
        needs: list[list[dict[int, int]]] = [[{} for _ in range(count)] for count in self.calls]
        for op, calls in enumerate(self.needs):
            for number, before in enumerate(calls):
                for other, count in before:
                    if count:
                        least = needs[other][self.calls[other] - count]
                        least[op] = max(least.get(op, 0), self.calls[op] - number)

        def turned(calls: Sequence[CallOf]) -> tuple[CallOf, ...]:
            return tuple((op, last[op] - number) for op, number in calls)

        return Problem(
            self.calls,
            tuple(tuple(tuple(before.items()) for before in calls) for calls in needs),
            tuple(Unit(unit.size, turned(unit.dies), turned(unit.born)) for unit in self.units),
        )


@dataclass(frozen=True)
class Found:
    """What a search knows when it ends."""

    order: tuple[int, ...] | None  # the op of each call; None where there is none, or the search was stopped
    level: int  # bytes: that many are live at most in the order; without one, every order needs at least as many
    states: int  # that were looked at


Conditions = tuple[tuple[int, tuple[CallOf, ...]], ...]  # sizes, and what they depend on


class _Tables:
    """A problem, prepared for quick steps from state to state."""

    def __init__(self, problem: Problem) -> None:
        self.calls, self.needs = problem.calls, problem.needs
        # Bytes are as good as tuples for counts of up to 255, in an eighth of the memory.
        kind = bytes if max(problem.calls) < 256 else tuple
        self.state = cast(Callable[[Iterable[int]], _State], kind)
        self.count = [self.state((number,)) for number in range(max(problem.calls) + 1)]
        self.at_first = sum(unit.size for unit in problem.units if not unit.born)
        self.born, self.born_unless = self._sums(problem, [unit.born for unit in problem.units])
        self.dies, self.dies_if = self._sums(problem, [unit.dies for unit in problem.units])
        self.wakes = [{op} for op in range(len(self.calls))]  # whose next call may become possible by a call of this
        for op, calls in enumerate(self.needs):
            for before in calls:
                for other, _ in before:
                    self.wakes[other].add(op)

    def _sums(
        self, problem: Problem, events: Sequence[tuple[CallOf, ...]]
    ) -> tuple[list[list[int]], list[list[Conditions]]]:
        """Return for each call the bytes that depend on nothing else, and those that depend on calls of others."""
        always = [[0] * count for count in self.calls]
        depends: list[list[Conditions]] = [[()] * count for count in self.calls]
        for unit, calls in zip(problem.units, events, strict=True):
            for op, number in calls:
                others = tuple(other for other in calls if other != (op, number))
                if others:
                    depends[op][number] += ((unit.size, others),)
                else:
                    always[op][number] += unit.size
        return always, depends

    def can(self, state: _State, op: int, end: _State) -> bool:
        """Return whether `op` may make its next call, on the way to `end`."""
        number = state[op]
        return number < end[op] and all(state[other] >= count for other, count in self.needs[op][number])

    def call(self, state: _State, live: int, op: int) -> tuple[int, int]:
        """Return the bytes that are live during the next call of `op`, and after it."""
        number = state[op]
        during = live + self.born[op][number]
        for size, others in self.born_unless[op][number]:
            if all(state[other] <= count for other, count in others):
                during += size
        after = during - self.dies[op][number]
        for size, others in self.dies_if[op][number]:
            if all(state[other] > count for other, count in others):
                after -= size
        return during, after

    def after(self, state: _State, op: int, calls: int = 1) -> _State:
        """Return the state after so many more calls of `op`."""
        return state[:op] + self.count[state[op] + calls] + state[op + 1 :]


_Node = tuple[_State, int, list[int]]  # a state, its live bytes, the ops that may go on


class _Exploration:
    """What is reached from one state within a level: for a state with no more live bytes, or the end."""

    def __init__(self, tables: _Tables, start: _State, live: int, end: _State, shortest: bool) -> None:
        """Begin at `start`; `shortest`: fewest calls first, so that the first find may be committed to."""
        self.tables, self.start, self.live, self.end = tables, start, live, end
        self.shortest, self.sum_of_calls = shortest, sum(tables.calls)
        self.found: tuple[_State, int] | None = None  # with its live bytes
        able = [op for op in range(len(start) - 1, -1, -1) if tables.can(start, op, end)]
        self.made_by: dict[_State, int] = {start: -1}  # the op whose call led there
        self.open: list[tuple[int, int, _Node]] = [(0, 0, (start, live, able))]
        self.refused: list[tuple[int, int, _Node]] = []  # the least level that a call of it asks for

    def run(self, level: int, most: int) -> None:
        """Look at up to `most` states more, until one is `found`."""
        while self.refused and self.refused[0][0] <= level:
            self._push(heapq.heappop(self.refused)[2], level)
        for _ in range(most):
            if not self.open:
                return
            node = heapq.heappop(self.open)[2]
            state, live, able = node
            if state == self.end or (live <= self.live and state != self.start):
                self.found = state, live
                return
            refused = [during for op in able if (during := self._take(node, op, level)) > level]
            if refused:
                heapq.heappush(self.refused, (min(refused), len(self.made_by) + len(self.refused), node))

    def _push(self, node: _Node, level: int) -> None:
        """Put a node where it belongs: few live bytes for what is done come first, as such orders are easy to place."""
        state, live, _ = node
        rank = sum(state) if self.shortest else live * self.sum_of_calls - level * sum(state)
        heapq.heappush(self.open, (rank, len(self.made_by) + len(self.refused), node))

    def _take(self, node: _Node, op: int, level: int) -> int:
        """Go on from a node by a call of `op`, and by all that then costs nothing; return what is live during it."""
        state, live, able = node
        during, live = self.tables.call(state, live, op)
        if during > level:
            return during
        state = self.tables.after(state, op)
        next_op: int | None = op
        while next_op is not None:
            if state in self.made_by:
                return during
            self.made_by[state] = next_op
            able = self._able(able, state, next_op)
            next_op = None
            for other in able:
                most, left = self.tables.call(state, live, other)
                if left <= live and most <= level:
                    state, live, next_op = self.tables.after(state, other), left, other
                    break
        self._push((state, live, able), level)
        return during

    def _able(self, able: Sequence[int], state: _State, op: int) -> list[int]:
        """Return which ops may go on after a call of `op`, the last of the network first."""
        wakes = self.tables.wakes[op]
        now = [other for other in able if other not in wakes]
        now += [other for other in wakes if self.tables.can(state, other, self.end)]
        return sorted(now, reverse=True)

    def way(self, state: _State) -> list[int]:
        """Return the ops of the calls from the start to a state."""
        ops = []
        while (op := self.made_by[state]) >= 0:
            ops.append(op)
            state = self.tables.after(state, op, -1)
        return ops[::-1]


class _End:
    """One end of the order, as far as it is committed to; the last calls are counted backwards."""

    def __init__(self, problem: Problem) -> None:
        self.tables = _Tables(problem)
        self.state = self.tables.state([0] * len(problem.calls))
        self.live = self.tables.at_first
        self.order: list[int] = []

    def seen_from_behind(self) -> _State:
        """Return the state as the other end counts it."""
        return self.tables.state(count - done for count, done in zip(self.tables.calls, self.state, strict=True))

    def exploration(self, other: "_End") -> _Exploration:
        """Return what looks for the next commit."""
        return _Exploration(self.tables, self.state, self.live, other.seen_from_behind(), shortest=False)

    def nearest(self, reached: _Exploration, target: _State, level: int, most: int) -> _Exploration:
        """Return what found the nearest state on the way to `target` that may be committed to, or `most` others."""
        if target == reached.end:
            return reached  # no commit, but the rest of an order
        nearest = _Exploration(self.tables, self.state, self.live, target, shortest=True)
        nearest.run(level, most)
        return nearest

    def go(self, exploration: _Exploration) -> None:
        """Move to what an exploration found."""
        assert exploration.found is not None
        self.order += exploration.way(exploration.found[0])
        self.state, self.live = exploration.found


def search(problem: Problem, level: int, most_level: int, most_states: int) -> Found:
    """Return an order within the least level of live bytes that an order can keep to.

    Args:
        problem: the calls, and the bytes that live.
        level: a lower bound of what every order needs, 0 if need be; or bytes that are granted in any case.
        most_level: give up above it.
        most_states: give up after so many.

    Deterministic: the same problem and limits give the same order.
    """
    ends = _End(problem), _End(problem.backwards())
    level, states = max(level, *(end.live for end in ends)), 0
    while ends[0].state != ends[1].seen_from_behind():
        explorations = ends[0].exploration(ends[1]), ends[1].exploration(ends[0])
        turn = _FIRST_TURN
        while not any(exploration.found for exploration in explorations):
            looked_at = states + sum(len(exploration.made_by) for exploration in explorations)
            if level > most_level or looked_at > most_states:
                return Found(None, level, looked_at)
            level = _take_turns(explorations, level, most_level, turn)
            turn *= 2
        states += sum(len(exploration.made_by) for exploration in explorations)
        number = 0 if explorations[0].found else 1
        end, reached = ends[number], explorations[number]
        assert reached.found is not None
        nearest = end.nearest(reached, reached.found[0], level, most_states - states)
        states += len(nearest.made_by)
        if nearest.found is None:
            return Found(None, level, states)
        end.go(nearest)
    return Found((*ends[0].order, *reversed(ends[1].order)), level, states)


def _take_turns(explorations: Sequence[_Exploration], level: int, most_level: int, turn: int) -> int:
    """Let each look at so many states, until one has found something; return the level that then is needed."""
    for exploration in explorations:
        exploration.run(level, turn)
        while not exploration.open and not exploration.found and level <= most_level:
            level = exploration.refused[0][0]
            if level <= most_level:
                exploration.run(level, turn)
        if exploration.found or level > most_level:
            break
    return level


def peak(problem: Problem, order: Sequence[int]) -> int:
    """Return the most bytes that are live at once in an order.

    Raises:
        ValueError: a call comes before what it needs, or the calls are not those of the problem.
    """
    tables = _Tables(problem)
    state, live = tables.state([0] * len(problem.calls)), tables.at_first
    end = tables.state(problem.calls)
    most = live
    for op in order:
        if not tables.can(state, op, end):
            raise ValueError(f"call {state[op]} of op {op} comes too early, or is one too many")
        during, live = tables.call(state, live, op)
        state, most = tables.after(state, op), max(most, during)
    if state != end:
        raise ValueError("some calls are missing")
    return most
