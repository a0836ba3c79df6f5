"""When rows are made: an order of calls, and the forms that each tensor may take in it."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from codegen.call import Call
from codegen.forms import Form, form_of, is_one_buffer, live_of, may_lie_apart
from codegen.layout import Storage, align4
from codegen.lifetimes import Holding, problem_of
from codegen.memory import Box
from codegen.minimax import Problem
from codegen.schedule import Step, Work, pull_order, row_lives
from codegen.selection import Stage
from mnet.graph import Graph

IMAGE = "image"  # the buffers of the input in the arena
_NEAR = 2  # pairs of tensors so near to each other are tried together


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The order of the calls, and how each tensor may lie then: what its readers' first kernels ask for comes first."""

    steps: tuple[Step, ...]
    forms: Mapping[str, tuple[Form, ...]]
    image: tuple[Box, ...]  # rows of the input, where it lies in the arena: at fixed addresses

    @property
    def image_live(self) -> npt.NDArray[np.int64]:
        """Return [steps]: bytes of the image that are not taken yet."""
        return _live_boxes(self.image, len(self.steps))


def _live_boxes(boxes: Sequence[Box], steps: int) -> npt.NDArray[np.int64]:
    changes = np.zeros(steps + 1, np.int64)
    for box in boxes:
        changes[box.birth] += box.size
        changes[box.death + 1] -= box.size
    return np.cumsum(changes[:-1])


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


def _both(storage: Storage, stages: Sequence[Stage], output: str) -> tuple[Storage, ...]:
    """Return a storage and the one whose rows lie apart, where it may be; only that where it costs nothing."""
    if not may_lie_apart(storage, stages, output):
        return (storage,)
    apart = replace(storage, apart=True)
    return (apart,) if not storage.layout.planar and not storage.filled_beside else (storage, apart)


class Arranger:
    """Arranges one list of stages for any set of gathered tensors."""

    def __init__(
        self,
        graph: Graph,
        stages: Sequence[Stage],
        calls: Sequence[Call],
        storages: Mapping[str, Sequence[Storage]],
        input_mode: str,
    ) -> None:
        self.graph, self.stages, self.input_mode = graph, stages, input_mode
        self.storages = {
            name: tuple(itertools.chain.from_iterable(_both(storage, stages, graph.output) for storage in found))
            for name, found in storages.items()
        }
        usual = {name: found[0] for name, found in storages.items()}
        self.near = {name: [s for s in stages if name == s.output or name in s.inputs] for name in storages}
        self.works = works_of(graph, stages, calls, usual)
        self.ends = {name: storage.top + storage.height for name, storage in usual.items()}
        # Whole-layer calls gather what they read and make in any case.
        gathers = {name for stage in stages if stage.rows > 1 for name in (*stage.inputs, stage.output)}
        self.choices = tuple(
            stage.output
            for stage in stages
            if stage.output not in gathers and stage.output != graph.output and usual[stage.output].height > 1
        )

    def order(self, gathered: Collection[str]) -> tuple[Step, ...]:
        """Return the calls, all rows of the `gathered` tensors before their first use."""
        return pull_order(self.works, self.ends, self.graph.output, gathered)

    def arrange(self, steps: tuple[Step, ...]) -> Arrangement:
        """Return all forms of the tensors for an order."""
        lives = row_lives(self.works, self.storages, steps)
        forms = {
            name: tuple(
                form_of(storage, self.near[name], lives[name], len(steps), name == self.graph.output)
                for storage in storages
            )
            for name, storages in self.storages.items()
        }
        return Arrangement(steps, forms, self._image(steps) if self.input_mode == "arena" else ())

    def _image(self, steps: Sequence[Step]) -> tuple[Box, ...]:
        """Return a box for each row of the input, free as soon as it is taken; a word of two is the later's."""
        height, width, channels = self.graph.tensors[self.graph.input].shape
        ends = [row * width * channels // 4 * 4 for row in range(height)] + [align4(height * width * channels)]
        taken = [number for number, step in enumerate(steps) if step.op == 0]
        rows = zip(ends, ends[1:], taken, strict=False)
        return tuple(
            Box(f"{IMAGE}[{row}]", end - begin, ((0, last),), begin)
            for row, (begin, end, last) in enumerate(rows)
            if end > begin
        )

    def _bytes(self, steps: tuple[Step, ...], picked: Mapping[str, Storage]) -> int:
        """Return the most bytes that are live at one step, with these storages."""
        lives = row_lives(self.works, self.storages, steps)
        live = np.zeros(len(steps), np.int64)
        for name, storage in picked.items():
            live += live_of(storage, self.near[name], lives[name], len(steps), name == self.graph.output)
        if self.input_mode == "arena":
            live += _live_boxes(self._image(steps), len(steps))
        return int(live.max())

    def problem(self, picked: Mapping[str, Storage]) -> Problem:
        """Return the search for the order of fewest live bytes with these storages.

        Of a ring only the rows count that are live: a bound, where the others are exact.
        """
        holdings = {}
        for name, storage in picked.items():
            output = name == self.graph.output
            together = is_one_buffer(storage, self.near[name], output)
            size = storage.buffer_bytes if together else storage.buffer_bytes // storage.slots
            holdings[name] = Holding(storage.slot_bytes if storage.apart else size, together, output)
        image = self._image(tuple(Step(0, row) for row in range(self.works[0].calls)))
        at_first = [(box.size, (0, box.death)) for box in image] if self.input_mode == "arena" else []
        return problem_of(self.works, self.ends, holdings, at_first)

    def search(self, picked: Mapping[str, Storage]) -> tuple[Step, ...]:
        """Return the order of fewest live bytes with these storages: climb from all streamed and all gathered.

        A streamed network holds rows of all its tensors at once; gathering a small tensor cuts it in two stretches that
        share bytes.
        """
        moves = [frozenset((name,)) for name in self.choices]
        for distance in range(1, _NEAR + 1):
            moves += [frozenset(pair) for pair in zip(self.choices, self.choices[distance:], strict=False)]
        found: list[tuple[int, int, frozenset[str]]] = []
        for start in (frozenset[str](), frozenset(self.choices)):
            gathered, least = start, self._bytes(self.order(start), picked)
            tried = 0  # moves since the last that helped
            for move in itertools.cycle(moves):
                if tried == len(moves):
                    break
                tried += 1
                size = self._bytes(self.order(gathered ^ move), picked)
                if size < least:
                    gathered, least, tried = gathered ^ move, size, 0
            found.append((least, len(found), gathered))
        return self.order(min(found)[2])


def usual_storages(arranger: Arranger) -> dict[str, Storage]:
    """Return what the first kernels ask for: fast."""
    return {name: storages[0] for name, storages in arranger.storages.items()}


def least_storages(arranger: Arranger) -> dict[str, Storage]:
    """Return for each tensor the storage whose rows are smallest, apart where that may be."""

    def row_bytes(storage: Storage) -> tuple[int, bool]:
        return storage.buffer_bytes // storage.slots, not storage.apart

    return {name: min(storages, key=row_bytes) for name, storages in arranger.storages.items()}


def distinct(orders: Collection[tuple[Step, ...]]) -> list[tuple[Step, ...]]:
    """Return the orders, each once."""
    return [order for number, order in enumerate(orders) if order not in list(itertools.islice(orders, number))]
