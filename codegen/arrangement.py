"""When rows are made and where they may lie: schedule, slots, and the spans of steps in which each buffer is live.

A tensor's rows lie in one buffer, or each slot has a buffer of its own: where every reader takes a pointer for each
row and no padding lies beside them. Layouts are chosen later; they change the bytes of a buffer and nothing here.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from codegen.call import Call
from codegen.layout import SUMS32, Storage, align4
from codegen.memory import Box, Span, merged
from codegen.schedule import FILL_ALL, FILL_ROW, Rows, Schedule, Work, pull_schedule, row_lives
from codegen.selection import Stage
from mnet.graph import DepthwiseConv2D, Graph

IMAGE = "image"  # the buffer of the input in the arena
_PAIRS = 400  # at most so many pairs of tensors are tried together


@dataclass(frozen=True)
class Unit:
    """One buffer: all slots of a tensor, or one of them, and when it is live."""

    tensor: str
    slot: int | None
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Return a name that no other unit has."""
        return self.tensor if self.slot is None else f"{self.tensor}[{self.slot}]"

    def size(self, storage: Storage) -> int:
        """Return its bytes."""
        return storage.buffer_bytes if self.slot is None else storage.slot_bytes


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The steps, how many slots each tensor has, and its buffers in time."""

    schedule: Schedule
    storages: Mapping[str, Storage]
    units: tuple[Unit, ...]
    image: Box | None  # of the input, where it lies in the arena

    @cached_property
    def _live(self) -> npt.NDArray[np.float64]:
        """Return [steps, units]: 1 where a unit is live."""
        live = np.zeros((len(self.schedule.steps), len(self.units)))  # floats: exact here, and fast to multiply
        for number, unit in enumerate(self.units):
            for first, last in unit.spans:
                live[first : last + 1, number] = 1
        return live

    def live_bytes(self, storages: Mapping[str, Storage]) -> int:
        """Return the most bytes that are live at one step, with these layouts."""
        return self.most_bytes([unit.size(storages[unit.tensor]) for unit in self.units])

    def most_bytes(self, sizes: Sequence[int]) -> int:
        """Return the most bytes that are live at one step, with units of these sizes."""
        at = self._live @ np.array(sizes, np.float64)
        if self.image:
            at[self.image.birth : self.image.death + 1] += self.image.size
        return int(at.max())

    def boxes(self, storages: Mapping[str, Storage]) -> list[Box]:
        """Return the buffers to be placed, with these layouts."""
        boxes = [Box(unit.name, unit.size(storages[unit.tensor]), unit.spans) for unit in self.units]
        return [*boxes, self.image] if self.image else boxes


def works_of(
    graph: Graph, stages: Sequence[Stage], calls: Sequence[Call], storages: Mapping[str, Storage]
) -> list[Work]:
    """Return what the scheduler needs to know; the first work takes the rows of the input."""
    source = storages[graph.input]
    works = [Work((), graph.input, source.height, (), source.top, 1)]
    for stage, call in zip(stages, calls, strict=True):
        windows = tuple(
            tuple(_clipped(stage.kernel.window(call, which, number), storages[name]) for number in range(stage.calls))
            for which, name in enumerate(stage.inputs)
        )
        works.append(Work(stage.inputs, stage.output, stage.calls, windows, storages[stage.output].top, stage.rows))
    return works


def _clipped(window: tuple[int, int], storage: Storage) -> tuple[int, int]:
    """Return the virtual rows of a window of real rows."""
    first, last = window[0] + storage.top, window[1] + storage.top
    return max(first, 0), min(last, storage.virtual_rows - 1)


def _slots(storage: Storage, stages: Sequence[Stage], wanted: int, gathered: bool) -> int:
    """Return as few slots as the schedule wants and the kernels can address."""
    name = storage.tensor.name
    slots = wanted
    for reader in stages:
        if name not in reader.inputs:
            continue
        if reader.rows > 1 or reader.reads_whole:
            return storage.virtual_rows  # one pointer, all rows
        if reader.kernel.ring_of_window:
            assert isinstance(reader.op, DepthwiseConv2D)
            height = int(reader.op.weights.shape[0])
            slots = height if slots <= height else storage.virtual_rows
    if gathered or any(stage.output == name and stage.rows > 1 for stage in stages):
        return storage.virtual_rows
    return min(slots, storage.virtual_rows)


def _apart(storage: Storage, stages: Sequence[Stage], calls: Sequence[Call], output: str) -> bool:
    """Return whether each slot may have a buffer of its own."""
    name = storage.tensor.name
    if name == output or storage.layout.planar or storage.layout is SUMS32:
        return False
    if storage.top or storage.filled_beside:
        return False
    for stage, call in zip(stages, calls, strict=True):
        if name == stage.output and stage.rows != 1:
            return False
        if name not in stage.inputs:
            continue
        if stage.rows > 1 or stage.reads_whole or stage.kernel.ring_of_window:
            return False
        single = stage.kernel.consumes_rows or len(stage.inputs) > 1
        if not single and stage.kernel.pointers(call) != _window_rows(stage, call):
            return False
    return True


def _window_rows(stage: Stage, call: Call) -> int:
    first, last = stage.kernel.window(call, 0, 0)
    return last - first + 1


class Arranger:
    """Arranges one list of stages for any set of gathered tensors."""

    def __init__(
        self,
        graph: Graph,
        stages: Sequence[Stage],
        calls: Sequence[Call],
        storages: Mapping[str, Storage],
        input_mode: str,
    ) -> None:
        self.graph, self.stages, self.calls, self.storages = graph, stages, calls, storages
        self.input_mode = input_mode
        self.works = works_of(graph, stages, calls, storages)
        self.rows = {
            name: Rows(s.top, s.height, s.bottom, s.padded or bool(s.bottom) or s.layout is SUMS32)
            for name, s in storages.items()
        }
        self.apart = {name for name, s in storages.items() if _apart(s, stages, calls, graph.output)}
        # Whole-layer calls gather what they read and make in any case.
        gathers = {name for stage in stages if stage.rows > 1 for name in (*stage.inputs, stage.output)}
        self.choices = tuple(
            stage.output
            for stage in stages
            if stage.output not in gathers and stage.output != graph.output and storages[stage.output].height > 1
        )

    def arrange(self, gathered: Collection[str]) -> Arrangement:
        """Return the arrangement that makes all rows of the `gathered` tensors before their first use."""
        schedule = pull_schedule(self.works, self.rows, self.graph.output, gathered)
        fitted = {}
        for name, storage in self.storages.items():
            own = name in gathered or name == self.graph.output
            fitted[name] = replace(storage, slots=_slots(storage, self.stages, schedule.slots[name], own))
        filled = {name for name, storage in fitted.items() if storage.filled_below}

        def needed(op: int, name: str) -> bool:
            storage = fitted[name]
            if op == FILL_ROW:
                return name not in filled
            return op != FILL_ALL or storage.padded or storage.layout is SUMS32

        steps = tuple(step for step in schedule.steps if needed(step.op, step.tensor))
        lives = row_lives(self.works, self.rows, steps, filled)
        units = [unit for name in fitted for unit in self._units(fitted[name], lives[name], len(steps) - 1)]
        image = None
        if self.input_mode == "arena":
            height, width, channels = self.graph.tensors[self.graph.input].shape
            last = max(number for number, step in enumerate(steps) if step.op == 0)
            image = Box(IMAGE, align4(height * width * channels), ((0, last),))
        return Arrangement(replace(schedule, steps=steps), fitted, tuple(units), image)

    def _units(self, storage: Storage, lives: Mapping[int, Span], last_step: int) -> list[Unit]:
        name = storage.tensor.name
        if name in self.apart:
            slots = [
                [span for row, span in lives.items() if row % storage.slots == slot] for slot in range(storage.slots)
            ]
            return [Unit(name, slot, merged(spans)) for slot, spans in enumerate(slots) if spans]
        spans = merged(lives.values())
        if name == self.graph.output:
            spans = merged([*spans, (spans[0][0], last_step)])
        if storage.filled_beside or storage.layout is SUMS32:
            spans = ((spans[0][0], spans[-1][1]),)  # what lies beside the rows was filled once
        return [Unit(name, None, spans)]

    def search(self, storages: Mapping[str, Storage]) -> Arrangement:
        """Return the arrangement of fewest live bytes with these layouts: climb from all streamed and all gathered.

        A streamed network holds all its rings at once; gathering a small tensor cuts it in two stretches that share
        bytes.
        """

        def bytes_of(arrangement: Arrangement) -> int:
            fitted = {name: replace(storages[name], slots=fit.slots) for name, fit in arrangement.storages.items()}
            return arrangement.live_bytes(fitted)

        best: tuple[int, Arrangement] | None = None
        for start in (frozenset[str](), frozenset(self.choices)):
            gathered, trial = start, self.arrange(start)
            least, improved = bytes_of(trial), True
            while improved:
                improved = False
                pairs = itertools.islice(itertools.combinations(self.choices, 2), _PAIRS)
                for move in itertools.chain(((name,) for name in self.choices), pairs):
                    candidate = self.arrange(gathered.symmetric_difference(move))
                    size = bytes_of(candidate)
                    if size < least:
                        gathered, trial, least, improved = gathered.symmetric_difference(move), candidate, size, True
                        break
            if best is None or least < best[0]:
                best = least, trial
        assert best is not None
        return best[1]
