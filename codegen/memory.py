"""Addresses: buffers are rectangles, known in time, to be placed in as few bytes as possible.

A buffer need not be live all the time: between two bursts of rows its bytes are free for others. Its address stays.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

Span = tuple[int, int]  # first and last step, inclusive

_MOVES = 60  # times that the box at the top is placed earlier


@dataclass(frozen=True)
class Box:
    """A buffer before it has an address, and the spans of steps in which it is live."""

    name: str
    size: int  # bytes, a multiple of 4
    spans: tuple[Span, ...]  # in order, apart

    @cached_property
    def mask(self) -> int:
        """Return the steps in which the box is live, as the bits of an integer."""
        return sum(((1 << (last - first + 1)) - 1) << first for first, last in self.spans)

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


def _first_fit(boxes: Sequence[Box]) -> dict[str, int]:
    """Place boxes in the given order, each at the lowest address that is free during its whole life."""
    placed: list[tuple[int, Box]] = []
    for box in boxes:
        address = 0
        for offset, size in sorted((offset, other.size) for offset, other in placed if other.mask & box.mask):
            if offset - address >= box.size:
                break
            address = max(address, offset + size)
        placed.append((address, box))
    return {box.name: address for address, box in placed}


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
    least = live_bytes(boxes)
    best: tuple[dict[str, int], int] | None = None
    for order in _ORDERS:
        queue = sorted(boxes, key=lambda box: (*order(box), box.name))
        for _ in range(_MOVES):
            addresses = _first_fit(queue)
            taken = max(addresses[box.name] + box.size for box in boxes)
            if best is None or taken < best[1]:
                best = addresses, taken
            if taken == least:
                return addresses, taken
            top = next(i for i, box in enumerate(queue) if addresses[box.name] + box.size == taken)
            if top == 0:
                break
            queue.insert(top // 2, queue.pop(top))
    assert best is not None
    return best
