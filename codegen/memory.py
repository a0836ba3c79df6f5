"""Addresses: buffers are rectangles, known in time, to be placed in as few bytes as possible.

A buffer need not be live all the time: between two bursts of rows its bytes are free for others. Its address stays.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.schedule import Span

_MOVES = 60  # times that the box at the top is placed earlier


@dataclass(frozen=True)
class Box:
    """A buffer before it has an address, and the spans of steps in which it is live."""

    name: str
    size: int  # bytes, a multiple of 4
    spans: tuple[Span, ...]  # in order, apart
    fixed: int | None = None  # its address, where that is given

    @property
    def birth(self) -> int:
        """Return the first step of its life."""
        return self.spans[0][0]

    @property
    def death(self) -> int:
        """Return the last step of its life."""
        return self.spans[-1][1]


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same steps as spans that are in order and apart.

    >>> merged([(5, 6), (0, 2), (3, 3), (6, 9)])
    ((0, 3), (5, 9))
    """
    result: list[Span] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(last, result[-1][1])
        else:
            result.append((first, last))
    return tuple(result)


def live_bytes(boxes: Sequence[Box]) -> int:
    """Return the most bytes that are live at one step: no placement can take less."""
    changes: dict[int, int] = {}
    for box in boxes:
        for first, last in box.spans:
            changes[first] = changes.get(first, 0) + box.size
            changes[last + 1] = changes.get(last + 1, 0) - box.size
    most = now = 0
    for step in sorted(changes):
        now += changes[step]
        most = max(most, now)
    return most


def _conflicts(boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """Return [boxes, boxes]: whether two are live at one step."""
    steps = max(box.death for box in boxes) + 1
    live = np.zeros((len(boxes), steps), np.float32)
    for number, box in enumerate(boxes):
        for first, last in box.spans:
            live[number, first : last + 1] = 1
    return np.asarray(live @ live.T > 0)


def _first_fit(boxes: Sequence[Box], conflicts: npt.NDArray[np.bool_], order: Sequence[int]) -> npt.NDArray[np.int64]:
    """Place boxes in the given order, each at the lowest address that is free during its whole life."""
    placed = np.array([box.fixed is not None for box in boxes])
    address = np.array([box.fixed or 0 for box in boxes])
    end = address + [box.size for box in boxes]
    for index in order:
        others = np.flatnonzero(conflicts[index] & placed)
        others = others[np.argsort(address[others], kind="stable")]
        free = np.maximum.accumulate(np.concatenate(([0], end[others])))  # where a gap may begin
        fits = address[others] - free[:-1] >= boxes[index].size
        address[index] = free[int(np.argmax(fits))] if fits.any() else free[-1]
        end[index] = address[index] + boxes[index].size
        placed[index] = True
    return address


_ORDERS: tuple[Callable[[Box], tuple[int, ...]], ...] = (
    lambda box: (-box.size, box.birth),
    lambda box: (box.birth, -box.size),
    lambda box: (box.birth - box.death, -box.size),
    lambda box: ((box.birth - box.death - 1) * box.size, box.birth),
)


def place(boxes: Sequence[Box]) -> tuple[dict[str, int], int]:
    """Return the address of each box and the bytes taken: the best of first-fit in several orders.

    From each order, the box that ends highest is placed ever earlier, as long as that may help. Deterministic: the
    same boxes get the same addresses.
    """
    if not boxes:
        return {}, 0
    boxes = sorted(boxes, key=lambda box: box.name)
    conflicts, sizes = _conflicts(boxes), np.array([box.size for box in boxes])
    least = max(live_bytes(boxes), max((box.fixed or 0) + box.size for box in boxes))
    best = min((_fitted(boxes, conflicts, sizes, order, least) for order in _ORDERS), key=lambda found: found[1])
    return {box.name: int(address) for box, address in zip(boxes, best[0], strict=True)}, best[1]


def _fitted(
    boxes: Sequence[Box],
    conflicts: npt.NDArray[np.bool_],
    sizes: npt.NDArray[np.int64],
    order: Callable[[Box], tuple[int, ...]],
    least: int,
) -> tuple[Sequence[int], int]:
    """Return the best first-fit from an order, and the bytes that it takes."""
    loose = [index for index, box in enumerate(boxes) if box.fixed is None]
    queue = sorted(loose, key=lambda index: (order(boxes[index]), index))
    best: tuple[Sequence[int], int] | None = None
    for _ in range(_MOVES):
        addresses = _first_fit(boxes, conflicts, queue)
        taken = int((addresses + sizes).max())
        if best is None or taken < best[1]:
            best = addresses.tolist(), taken
        top = next((i for i, index in enumerate(queue) if addresses[index] + sizes[index] == taken), 0)
        if taken == least or top == 0:
            break
        queue.insert(top // 2, queue.pop(top))
    assert best is not None
    return best
