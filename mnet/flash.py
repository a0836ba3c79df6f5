"""What a flash with wait states adds to modelled cycles: a calibrated estimate, and a bound by its bandwidth.

The estimate is two coefficients; where they come from, and their error bars, is in mnet/docs/cycles.md. It holds for
programs whose loops fit a small instruction cache. The bound is for the others: code that is not in the cache comes at
the speed of the flash, whatever the core could do.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mnet.counting import Edge

# Calibrated on an STM32L4R5 at 120 MHz (5 wait states, caches on).
WAITS_PER_CYCLE = 0.036  # what convolutional networks wait for code and for constants that they read again
BYTES_PER_WAIT = 16  # of constants that stream from flash: each such line waits once

# Of the STM32L4's flash interface, for the bound.
CACHE_BYTES = 1024  # of instructions
FETCH_BYTES = 8  # in 1 + wait states cycles

_CALLS_AND_RETURNS = ("bl", "bx", "blx", "pop", "ldm")


class Block(Protocol):
    """What has to be known of a basic block: see `mnet.cycles.BlockCosts`."""

    @property
    def cycles(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def ends_in(self) -> str: ...


@dataclass(frozen=True)
class Fetch:
    """Code that runs, but does not come from the cache: how often which block, its bytes and cycles."""

    blocks: tuple[tuple[int, int, int], ...] = ()  # times, bytes, cycles

    def stall(self, wait_states: int) -> int:
        """Return the cycles that a core waits for this code, at the speed of the flash.

        >>> Fetch(((1000, 80, 20),)).stall(5), Fetch(((1000, 80, 20),)).stall(0)
        (40000, 0)
        """
        slow = (1 + wait_states) / FETCH_BYTES
        return round(sum(times * max(0.0, slow * size - cycles) for times, size, cycles in self.blocks))


def estimate(cycles: int, constant_bytes: int, wait_states: int) -> int:
    """Return cycles with code and constants in a flash of so many wait states, behind a small cache.

    Args:
        cycles: with none.
        constant_bytes: read from flash, once for each call that reads them.
        wait_states: of the flash; 0 returns `cycles` as they are.

    >>> estimate(1_000_000, 0, 5), estimate(1_000_000, 160_000, 5), estimate(1_000_000, 160_000, 0)
    (1180000, 1230000, 1000000)
    """
    return cycles + round(wait_states * (WAITS_PER_CYCLE * cycles + constant_bytes / BYTES_PER_WAIT))


def fetched(edges: Iterable[Edge], block_of: Callable[[int, int], Block]) -> Mapping[int, Fetch]:
    """Return for each entry the code that its runs take from flash: all but what a loop that fits the cache repeats.

    A loop is what lies between the target of a branch backwards and the branch. Of its rounds, all but the first find
    their code in the cache if the loop fits; then the same is asked of the loop around it.
    """
    by_entry: dict[int, list[Edge]] = {}
    for edge in edges:
        by_entry.setdefault(edge.entry, []).append(edge)
    return {entry: Fetch(tuple(_missed(some, block_of))) for entry, some in by_entry.items()}


def _missed(edges: list[Edge], block_of: Callable[[int, int], Block]) -> Iterable[tuple[int, int, int]]:
    size = {edge.block: edge.bytes for edge in edges}
    times: dict[int, int] = {}
    rounds: dict[tuple[int, int], int] = {}  # first and last address of a loop -> branches back
    for edge in edges:
        times[edge.block] = times.get(edge.block, 0) + edge.count
        if edge.before in size and edge.block <= edge.before:
            origin = block_of(edge.before, size[edge.before])
            if origin.ends_in not in _CALLS_AND_RETURNS:
                loop = edge.block, origin.end
                rounds[loop] = rounds.get(loop, 0) + edge.count
    loops = sorted(rounds, key=lambda loop: loop[1] - loop[0])
    for address, count in times.items():
        left = count
        for start, end in loops:
            if end - start > CACHE_BYTES:
                break
            if start <= address < end:
                left -= min(left, rounds[start, end])
        if left:
            yield left, size[address], block_of(address, size[address]).cycles
