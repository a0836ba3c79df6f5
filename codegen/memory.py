"""Addresses: buffers are rectangles, known in time, to be placed in as few bytes as possible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A buffer before it has an address: live from step birth to step death, inclusive."""

    name: str
    size: int  # bytes, a multiple of 4
    birth: int
    death: int


def live_bytes(boxes: Sequence[Box]) -> int:
    """Return the most bytes that are live at one step: no placement can take less."""
    changes: dict[int, int] = {}
    for box in boxes:
        changes[box.birth] = changes.get(box.birth, 0) + box.size
        changes[box.death + 1] = changes.get(box.death + 1, 0) - box.size
    most = now = 0
    for step in sorted(changes):
        now += changes[step]
        most = max(most, now)
    return most


def _first_fit(boxes: Sequence[Box]) -> dict[str, int]:
    """Place boxes in the given order, each at the lowest address that is free during its whole life."""
    placed: list[tuple[Box, int]] = []
    for box in boxes:
        neighbours = sorted(
            (offset, other.size) for other, offset in placed if other.birth <= box.death and box.birth <= other.death
        )
        address = 0
        for offset, size in neighbours:
            if offset - address >= box.size:
                break
            address = max(address, offset + size)
        placed.append((box, address))
    return {box.name: offset for box, offset in placed}


_ORDERS: tuple[Callable[[Box], tuple[int, ...]], ...] = (
    lambda box: (-box.size, box.birth),
    lambda box: (box.birth, -box.size),
    lambda box: (box.birth - box.death, -box.size),
    lambda box: ((box.birth - box.death - 1) * box.size, box.birth),
)


def place(boxes: Sequence[Box]) -> tuple[dict[str, int], int]:
    """Return the address of each box and the bytes taken: the best of first-fit in several orders.

    Deterministic: the same boxes get the same addresses.
    """
    best: tuple[dict[str, int], int] | None = None
    for order in _ORDERS:
        addresses = _first_fit(sorted(boxes, key=lambda box: (*order(box), box.name)))
        taken = max((addresses[box.name] + box.size for box in boxes), default=0)
        if best is None or taken < best[1]:
            best = addresses, taken
    assert best is not None
    return best
