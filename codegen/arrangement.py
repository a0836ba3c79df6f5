"""When rows are made: an order of calls, and the forms that each tensor may take in it."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from codegen.call import Call
from codegen.elimination import lower_bound
from codegen.forms import Form, form_of, is_one_buffer, live_of, may_lie_apart
from codegen.layout import Storage, align4
from codegen.lifetimes import Holding, problem_of
from codegen.memory import Box
from codegen.minimax import Problem, search
from codegen.schedule import Pull, Step, Work, pull_order, pulls_of, row_lives, steps_of
from codegen.selection import Stage
from mnet.graph import Graph

IMAGE = "image"  # the buffers of the inputs in the arena
_NEAR = 2  # pairs of tensors so near to each other are tried together
_STATES = 50_000  # that a search looks at, at most
_FINE = 100  # a stopped search is tried again with more bytes, to within this part of them


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The order of the calls, and how each tensor may lie then: what its readers' first kernels ask for comes first."""

    steps: tuple[Step, ...]
    forms: Mapping[str, tuple[Form, ...]]
    image: tuple[Box, ...]  # rows of the inputs, where they lie in the arena: at fixed addresses

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


def image_offsets(graph: Graph) -> dict[str, int]:
    """Return where each input begins in the arena, where inputs lie there: one behind the other, in words."""
    sizes = [align4(math.prod(graph.tensors[name].shape)) for name in graph.inputs]
    return dict(zip(graph.inputs, itertools.accumulate([0, *sizes]), strict=False))


def works_of(
    graph: Graph, stages: Sequence[Stage], calls: Sequence[Call], storages: Mapping[str, Storage]
) -> list[Work]:
    """Return what the scheduler needs to know; the first works take the rows of the inputs."""
    works = [Work((), name, storages[name].height, (), storages[name].top, 1) for name in graph.inputs]
    for stage, call in zip(stages, calls, strict=True):
        windows = tuple(
            tuple(_clipped(stage.kernel.window(call, which, number), storages[name]) for number in range(stage.calls))
            for which, name in enumerate(stage.inputs)
        )
        works.append(Work(stage.inputs, stage.output, stage.calls, windows, storages[stage.output].top, stage.rows))
    return works


def _clipped(window: tuple[int, int], storage: Storage) -> tuple[int, int]:
    """Return the virtual rows of a window of real rows; (0, -1) where there are none."""
    if window[1] < window[0]:
        return 0, -1
    first, last = window[0] + storage.top, window[1] + storage.top
    return max(first, 0), min(last, storage.virtual_rows - 1)


def _both(storage: Storage, stages: Sequence[Stage], outputs: Collection[str]) -> tuple[Storage, ...]:
    """Return a storage and the one whose rows lie apart, where it may be; only that where it costs nothing."""
    if not may_lie_apart(storage, stages, outputs):
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
            name: tuple(itertools.chain.from_iterable(_both(storage, stages, graph.outputs) for storage in found))
            for name, found in storages.items()
        }
        usual = {name: found[0] for name, found in storages.items()}
        self.near = {name: [s for s in stages if name == s.output or name in s.inputs] for name in storages}
        self.pulls = pulls_of(graph.outputs)
        self.works = works_of(graph, stages, calls, usual)
        self.ends = {name: storage.top + storage.height for name, storage in usual.items()}
        # Whole-layer calls gather what they read and make in any case.
        gathers = {name for stage in stages if stage.rows > 1 for name in (*stage.inputs, stage.output)}
        self.choices = tuple(
            stage.output
            for stage in stages
            if stage.output not in gathers and stage.output not in graph.outputs and usual[stage.output].height > 1
        )

    def order(self, pull: Pull, gathered: Collection[str]) -> tuple[Step, ...]:
        """Return the calls, all rows of the `gathered` tensors before their first use."""
        return pull_order(self.works, self.ends, pull, gathered)

    def arrange(self, steps: tuple[Step, ...]) -> Arrangement:
        """Return all forms of the tensors for an order."""
        lives = row_lives(self.works, self.storages, steps)
        forms = {
            name: tuple(
                form_of(storage, self.near[name], lives[name], len(steps), name in self.graph.outputs)
                for storage in storages
            )
            for name, storages in self.storages.items()
        }
        return Arrangement(steps, forms, self._image(steps) if self.input_mode == "arena" else ())

    def _image(self, steps: Sequence[Step]) -> tuple[Box, ...]:
        """Return a box for each row of each input, free as soon as it is taken; a word of two is the later's."""
        boxes: list[Box] = []
        first_row = 0
        for which, (name, start) in enumerate(image_offsets(self.graph).items()):
            height, width, channels = self.graph.tensors[name].shape
            ends = [row * width * channels // 4 * 4 for row in range(height)] + [align4(height * width * channels)]
            taken = [number for number, step in enumerate(steps) if step.op == which]
            boxes += [
                Box(f"{IMAGE}[{row}]", end - begin, ((0, last),), start + begin)
                for row, (begin, end, last) in enumerate(zip(ends, ends[1:], taken, strict=False), first_row)
                if end > begin
            ]
            first_row += height
        return tuple(boxes)

    def _bytes(self, steps: tuple[Step, ...], picked: Mapping[str, Storage]) -> int:
        """Return the most bytes that are live at one step, with these storages."""
        lives = row_lives(self.works, self.storages, steps)
        live = np.zeros(len(steps), np.int64)
        for name, storage in picked.items():
            live += live_of(storage, self.near[name], lives[name], len(steps), name in self.graph.outputs)
        if self.input_mode == "arena":
            live += _live_boxes(self._image(steps), len(steps))
        return int(live.max())

    def problem(self, picked: Mapping[str, Storage]) -> Problem:
        """Return the search for the order of fewest live bytes with these storages.

        Of a ring only the rows count that are live: a bound, where the others are exact.
        """
        holdings = {}
        for name, storage in picked.items():
            output = name in self.graph.outputs
            together = is_one_buffer(storage, self.near[name], output)
            size = storage.buffer_bytes if together else storage.buffer_bytes // storage.slots
            holdings[name] = Holding(storage.slot_bytes if storage.apart else size, together, output)
        takes = [Step(op, row) for op in range(len(self.graph.inputs)) for row in range(self.works[op].calls)]
        image = self._image(takes) if self.input_mode == "arena" else ()
        at_first = [(box.size, (takes[box.death].op, takes[box.death].number)) for box in image]
        return problem_of(self.works, self.ends, holdings, at_first)

    def search(self, picked: Mapping[str, Storage]) -> tuple[Step, ...]:
        """Return the order of fewest live bytes with these storages: climb from all streamed and all gathered.

        A streamed network holds rows of all its tensors at once; gathering a small tensor cuts it in two stretches that
        share bytes.
        """
        moves = [frozenset((name,)) for name in self.choices]
        for distance in range(1, _NEAR + 1):
            moves += [frozenset(pair) for pair in zip(self.choices, self.choices[distance:], strict=False)]
        found: list[tuple[int, int, tuple[Step, ...]]] = []
        for start in (frozenset[str](), frozenset(self.choices)):
            gathered = start
            least, best = min((self._bytes(self.order(pull, start), picked), n) for n, pull in enumerate(self.pulls))
            pull = self.pulls[best]
            tried = 0  # moves since the last that helped
            for move in itertools.cycle(moves):
                if tried == len(moves):
                    break
                tried += 1
                size = self._bytes(self.order(pull, gathered ^ move), picked)
                if size < least:
                    gathered, least, tried = gathered ^ move, size, 0
            found.append((least, len(found), self.order(pull, gathered)))
        return min(found)[2]

    def fewest(self, picked: Mapping[str, Storage], known: tuple[Step, ...]) -> tuple[Step, ...]:
        """Return an order of no more live bytes than `known` has with these storages, the fewest if all goes well.

        Rings count for less than they take: then `known` may be better.
        """
        problem, most = self.problem(picked), self._bytes(known, picked)
        found = search(problem, lower_bound(problem), most, _STATES)
        least, best = found.level, found.order
        while best is None and most - least > most // _FINE:  # the search was stopped: more bytes make it easier
            level = (least + most) // 2
            found = search(problem, level, level, _STATES)
            if found.order is None:
                least = level
            else:
                best, most = found.order, level
        return known if best is None else steps_of(best)


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
