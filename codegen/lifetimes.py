"""From works to the problem of `codegen.minimax`: which calls make each row live, and which let it die."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from codegen.minimax import CallOf, Problem, Unit
from codegen.schedule import Work


@dataclass(frozen=True)
class Holding:
    """The bytes that the rows of a tensor take."""

    size: int
    together: bool = False  # all rows in one buffer of `size`, live from the first to the last; else `size` for each
    stays: bool = False  # to the end
    given: bool = False  # live from the beginning, before anybody makes them


def problem_of(
    works: Sequence[Work],
    ends: Mapping[str, int],
    holdings: Mapping[str, Holding],
    at_first: Collection[tuple[int, CallOf]] = (),
) -> Problem:
    """Return what orders of the works' calls there are, and the bytes that live in them.

    Args:
        works: the ops in topological order.
        ends: of every tensor, one more than the virtual row of its last row that is not padding.
        holdings: of every tensor.
        at_first: bytes that are live before all calls, and the call that lets them die.
    """
    makers = {work.output: op for op, work in enumerate(works)}
    needs = tuple(
        tuple(
            tuple(
                (makers[name], _calls_for(works[makers[name]], min(windows[number][1], ends[name] - 1)))
                for name, windows in zip(work.inputs, work.windows, strict=True)
                if windows[number][0] <= windows[number][1]
            )
            for number in range(work.calls)
        )
        for work in works
    )
    units = [Unit(size, (), (call,)) for size, call in at_first]
    for (name, _), touched in _touched(works, holdings).items():
        holding, maker = holdings[name], makers[name]
        readers = [op for op in touched if op != maker] or [maker]
        born = [] if holding.given else [maker] if maker in touched else readers  # nobody makes padding
        dies = [] if holding.stays else readers
        units.append(
            Unit(
                holding.size,
                tuple((op, touched[op][0]) for op in born),
                tuple((op, touched[op][1]) for op in dies),
            )
        )
    return Problem(tuple(work.calls for work in works), needs, tuple(units))


def _calls_for(work: Work, row: int) -> int:
    """Return after how many calls virtual row `row` is there; one at least, as it is then that padding is set."""
    return work.calls if work.rows == 0 else max(-(-(row + 1 - work.first_row) // work.rows), 1)


def _touched(
    works: Sequence[Work], holdings: Mapping[str, Holding]
) -> dict[tuple[str, int | None], dict[int, tuple[int, int]]]:
    """Return for each buffer (a tensor, and the virtual row where rows lie apart): op -> its first and last call."""
    buffers: dict[tuple[str, int | None], dict[int, tuple[int, int]]] = {}
    for op, work in enumerate(works):
        for number in range(work.calls):
            first = work.first_row + number * work.rows
            rows = [(work.output, range(first, first + max(work.rows, 1)))]
            for name, windows in zip(work.inputs, work.windows, strict=True):
                rows.append((name, range(windows[number][0], windows[number][1] + 1)))
            for name, touched in rows:
                for row in touched:
                    calls = buffers.setdefault((name, None if holdings[name].together else row), {})
                    calls[op] = calls.get(op, (number, number))[0], number
    return buffers
