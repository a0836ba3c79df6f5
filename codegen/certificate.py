"""The certificate of a plan: a lower bound of the arena, and why no schedule of its class gets below it.

The class: whole rows, made from the top down, each once (no recompute), in other bytes than those that the call reads.
While a call runs, the rows that it reads, the row that it makes, and every other row that was made and will still be
read are live; padding rows are not counted. A call that makes several rows is never better than one call for each, in
the same order. The bound is the largest over all calls of the fewest live bytes in which that call can run
(`codegen.elimination`), or what `codegen.minimax` proves beyond it: mostly, that an order needs no more.

Two bounds come out: at a byte for each value, which no layout beats, and with the plan's layouts.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from codegen.elimination import lower_bound
from codegen.layout import SUMS32, Storage
from codegen.lifetimes import Holding, problem_of
from codegen.minimax import CallOf, Found, Problem, search
from codegen.plan import Plan, PlannedOp
from codegen.schedule import Work

_STATES = 20_000  # of a search: a fraction of a second

RowBytes = Callable[[Storage], int]


@dataclass(frozen=True)
class Certificate:
    """How far a plan is from what is possible."""

    arena_bytes: int
    live_bytes: int  # most bytes live at one step of the plan
    bound_bytes: int  # no plan of whole rows and these layouts has fewer
    value_bound_bytes: int  # the same at a byte for each value: whatever the layouts
    is_reached: bool  # an order of whole rows was found that has no more than `bound_bytes` live
    value_is_reached: bool  # the same of `value_bound_bytes`

    @property
    def verdict(self) -> str:
        """Return in words what is known of the plan's order."""
        if self.live_bytes == self.bound_bytes:
            return "its order is proven optimal for whole rows"
        if self.is_reached:
            return f"an order without padding rows has no more, this one has {self.live_bytes:,} B"
        return f"the best order lies between that and the {self.live_bytes:,} B of this one"

    @property
    def percent(self) -> float:
        """Return how much the arena exceeds the bound of its layouts."""
        return 100 * (self.arena_bytes / self.bound_bytes - 1)

    @property
    def value_percent(self) -> float:
        """Return how much the arena exceeds the bound of any layouts."""
        return 100 * (self.arena_bytes / self.value_bound_bytes - 1)


def certificate(plan: Plan) -> Certificate:
    """Return the lower bounds of a plan and its distance from them."""
    stored, value = least(problem_of_plan(plan, stored_row_bytes)), least(problem_of_plan(plan, value_row_bytes))
    return Certificate(
        plan.arena_bytes,
        plan.live_bytes,
        stored.level,
        value.level,
        stored.order is not None,
        value.order is not None,
    )


def least(problem: Problem, most_states: int = _STATES) -> Found:
    """Return an order of fewest live bytes, or a bound where the search had to stop."""
    return search(problem, lower_bound(problem), sys.maxsize, most_states)


def stored_row_bytes(storage: Storage) -> int:
    """Return the bytes of one row as it lies in the arena."""
    return storage.buffer_bytes // storage.slots


def value_row_bytes(storage: Storage) -> int:
    """Return the bytes of one row at a byte for each value; sums have four."""
    _, width, channels = storage.tensor.shape
    return width * channels * (4 if storage.layout.element_bytes == 4 else 1)


def problem_of_plan(plan: Plan, row_bytes: RowBytes) -> Problem:
    """Return the orders in which the ops of a plan may make their rows, one a call.

    Args:
        plan: its ops are read, not its schedule or addresses.
        row_bytes: of one row of a tensor. At a byte for each value an image in the arena needs no copy of its rows.
    """
    graph, storages = plan.graph, plan.storage
    works = [Work((), name, storages[name].height, (), 0, 1) for name in graph.inputs]
    works += [_work(op) for op in plan.ops]
    in_arena = plan.input_mode == "arena"
    copied = in_arena and row_bytes is not value_row_bytes
    holdings = {
        name: Holding(
            row_bytes(storage),
            together=storage.layout is SUMS32,
            stays=name in graph.outputs,
            given=name in graph.inputs and in_arena and not copied,
        )
        for name, storage in storages.items()
    }
    image: list[tuple[int, CallOf]] = [
        (value_row_bytes(storages[name]), (op, row))
        for op, name in enumerate(graph.inputs)
        for row in range(storages[name].height)
    ]
    ends = {name: storage.height for name, storage in storages.items()}
    return problem_of(works, ends, holdings, image if copied else ())


def _work(op: PlannedOp) -> Work:
    """Return an op that makes a row a call, or adds one; rows are counted without padding."""
    single = op.call if op.kernel.consumes_rows else replace(op.call, rows=1)
    calls = op.calls if op.kernel.consumes_rows else op.call.output.height
    windows = tuple(
        tuple(_clipped(op.kernel.window(single, which, number), source.height) for number in range(calls))
        for which, source in enumerate(op.call.inputs)
    )
    return Work(op.inputs, op.output, calls, windows, 0, 0 if op.kernel.consumes_rows else 1)


def _clipped(window: tuple[int, int], height: int) -> tuple[int, int]:
    return max(window[0], 0), min(window[1], height - 1)
