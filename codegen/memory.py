"""Addresses: buffers are rectangles, known in time, to be placed in as few bytes as possible.

A buffer need not be live all the time: between two bursts of rows its bytes are free for others. Its address stays.
"""

from bisect import insort
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


class _FirstFit:
    """Places boxes in an order, each at the lowest address that is free during its whole life.

    An order that begins as the one before keeps what was placed for that beginning.
    """

    def __init__(self, boxes: Sequence[Box], conflicts: npt.NDArray[np.bool_]) -> None:
        self.sizes = [box.size for box in boxes]
        self.addresses = [box.fixed or 0 for box in boxes]
        self._conflicts = [row.tobytes() for row in conflicts]  # a byte for each other box
        self._fixed = [index for index, box in enumerate(boxes) if box.fixed is not None]
        self._order: list[int] = []

    def place(self, order: Sequence[int]) -> int:
        """Place the boxes; return the bytes taken."""
        pairs = enumerate(zip(order, self._order, strict=False))
        same = next((number for number, (new, old) in pairs if new != old), min(len(order), len(self._order)))
        placed = sorted((self.addresses[index], index) for index in (*self._fixed, *order[:same]))
        sizes = self.sizes
        for index in order[same:]:
            conflicts, size, free = self._conflicts[index], sizes[index], 0
            for address, other in placed:
                if conflicts[other]:
                    if address - free >= size:
                        break
                    end = address + sizes[other]
                    if end > free:
                        free = end
            self.addresses[index] = free
            insort(placed, (free, index))
        self._order = list(order)
        return max(address + size for address, size in zip(self.addresses, sizes, strict=True))


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
    conflicts = _conflicts(boxes)
    least = max(live_bytes(boxes), max((box.fixed or 0) + box.size for box in boxes))
    best = min((_fitted(boxes, conflicts, order, least) for order in _ORDERS), key=lambda found: found[1])
    return {box.name: address for box, address in zip(boxes, best[0], strict=True)}, best[1]


def _fitted(
    boxes: Sequence[Box],
    conflicts: npt.NDArray[np.bool_],
    order: Callable[[Box], tuple[int, ...]],
    least: int,
) -> tuple[Sequence[int], int]:
    """Return the best first-fit from an order, and the bytes that it takes."""
    loose = [index for index, box in enumerate(boxes) if box.fixed is None]
    queue = sorted(loose, key=lambda index: (order(boxes[index]), index))
    fit = _FirstFit(boxes, conflicts)
    best: tuple[Sequence[int], int] | None = None
    for _ in range(_MOVES):
        taken = fit.place(queue)
        if best is None or taken < best[1]:
            best = list(fit.addresses), taken
        top = next((i for i, index in enumerate(queue) if fit.addresses[index] + fit.sizes[index] == taken), 0)
        if taken == least or top == 0:
            break
        queue.insert(top // 2, queue.pop(top))
    assert best is not None
    return best
