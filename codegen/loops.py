"""Loops that move values from row to row: found from where each value is read and written, and said in C.

Steps from value to value that repeat are a loop, loops that repeat are a loop around them. Values of an innermost loop
are read in fours before they are written, as words where they lie so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from codegen.plain import Access

Int64Array = npt.NDArray[np.int64]
Loop = tuple[int, int, int]  # how often; elements from turn to turn of the source, of the target
Nest = tuple[int, int, tuple[Loop, ...]]  # first element of the source, of the target, loops around loops

MOST_STRAIGHT = 8  # values that no loop is worth
_VARIABLES = "ijklmnop"


def _index(first: int, names: str, steps: Sequence[int]) -> str:
    """Return a sum in C.

    >>> _index(4, "ij", (8, 1)), _index(0, "i", (0,)), _index(5, "i", (-1,))
    ('i * 8 + j + 4', '0', '5 - i')
    """
    terms = [
        (step < 0, f"{name} * {abs(step)}" if abs(step) > 1 else name)
        for name, step in zip(names, steps, strict=True)
        if step
    ]
    ordered = [term for term in terms if not term[0]] + [(first < 0, str(abs(first)))] * (first != 0 or not terms)
    ordered += [term for term in terms if term[0]]
    (is_less, text), *others = ordered
    return ("-" if is_less else "") + text + "".join((" - " if less else " + ") + term for less, term in others)


@dataclass(frozen=True)
class Piece:
    """Values that one nest of loops copies, or sets."""

    pointer: int  # of the rows that a call gets; -1: values are set
    pointers: int  # so many follow each other, for a part of the output each
    pointer_step: int  # elements of the output from part to part
    c_type: str  # of the source
    source: int  # element of the row where it begins
    target: int
    loops: tuple[Loop, ...]  # the outermost first
    offset: int  # added to each stored value; or the stored value that is set
    words: bool = False  # as words: bases, steps and counts are whole ones

    @property
    def nest(self) -> tuple[Loop, ...]:
        """Return the loops that are printed as such: a short innermost one is not."""
        return self.loops if self.straight == 1 or self.loops[-1][0] > self.straight else self.loops[:-1]

    @property
    def straight(self) -> int:
        """Return how many values of the innermost loop are moved one behind the other."""
        count = self.loops[-1][0] if self.loops else 1
        return count if count <= MOST_STRAIGHT else next(few for few in (4, 3, 2, 1) if count % few == 0)

    @property
    def heads(self) -> tuple[tuple[str, int, int], ...]:
        """Return variable, end and step of each loop that is printed."""
        ends = [(name, count, 1) for name, (count, *_) in zip(_VARIABLES, self.nest, strict=False)]
        if ends and len(ends) == len(self.loops):
            ends[-1] = (*ends[-1][:2], self.straight)
        return tuple(ends)

    @property
    def variables(self) -> tuple[str, ...]:
        """Return the names that the loops need."""
        return (*(name for name, *_ in self.heads), *("r" if self.pointers > 1 else ""))

    @property
    def groups(self) -> tuple[tuple[tuple[str, str, str], ...], ...]:
        """Return values that are read before any of them is written: variable, places in C to read and to write."""
        names = "".join(name for name, *_ in self.heads)
        step = self.loops[-1][1:] if self.loops else (0, 0)
        sources, targets = [source for _, source, _ in self.nest], [target for *_, target in self.nest]
        by_row = ("r", [self.pointer_step]) if self.pointers > 1 else ("", [])
        places = [
            (
                "abcd"[number % 4],
                _index(number * step[0], names, sources),
                _index(self.target + number * step[1], names + by_row[0], [*targets, *by_row[1]]),
            )
            for number in range(self.straight)
        ]
        return tuple(tuple(places[first : first + 4]) for first in range(0, len(places), 4))


def _runs(source: Int64Array, target: Int64Array) -> list[Nest]:
    """Return runs of equal steps: (first source, first target, loops) each; a value alone has no loop."""
    steps = np.stack((np.diff(source), np.diff(target)), axis=1)
    changes = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1  # here another step begins
    runs: list[Nest] = []
    first, count = 0, len(source)
    while first < count:
        place = int(np.searchsorted(changes, first, side="right"))
        last = int(changes[place]) if place < len(changes) else count - 1
        length = last - first + 1
        loops = ((length, int(steps[first, 0]), int(steps[first, 1])),) if length > 1 else ()
        runs.append((int(source[first]), int(target[first]), loops))
        first = last + 1
    return runs


def nests(source: Int64Array, target: Int64Array) -> list[Nest]:
    """Return (first source, first target, loops around loops) of values at these places, in order.

    >>> nests(np.array([0, 1, 2, 10, 11, 12]), np.array([0, 1, 2, 3, 4, 5]))
    [(0, 0, ((2, 10, 3), (3, 1, 1)))]
    """
    found, before = _runs(source, target), len(source) + 1
    while len(found) < before:
        before = len(found)
        grouped: list[Nest] = []
        first = 0
        while first < len(found):
            begin, to, loops = found[first]
            last = first
            while last + 1 < len(found) and found[last + 1][2] == loops:
                step = found[last + 1][0] - found[last][0], found[last + 1][1] - found[last][1]
                if step != (found[first + 1][0] - begin, found[first + 1][1] - to):
                    break
                last += 1
            around = (
                ((last - first + 1, found[first + 1][0] - begin, found[first + 1][1] - to),) if last > first else ()
            )
            grouped.append((begin, to, (*around, *loops)))
            first = last + 1
        found = grouped
    return [(begin, to, _joined(loops)) for begin, to, loops in found]


def _joined(loops: tuple[Loop, ...]) -> tuple[Loop, ...]:
    """Return loops of which none goes on where the one inside it ends."""
    made: list[Loop] = []
    for count, source, target in reversed(loops):
        if made and (source, target) == (made[0][0] * made[0][1], made[0][0] * made[0][2]):
            made[0] = (made[0][0] * count, *made[0][1:])
        else:
            made.insert(0, (count, source, target))
    return tuple(made)


def over_pointers(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return pieces of which none could take the rows of the next one, too."""
    made: list[Piece] = []
    for piece in pieces:
        for place, known in enumerate(made):
            step = piece.target - known.target - (known.pointers - 1) * known.pointer_step
            same = replace(known, pointer=piece.pointer, pointers=1, pointer_step=0, target=piece.target) == piece
            follows = piece.pointer == known.pointer + known.pointers and known.pointer >= 0
            if same and follows and (known.pointers == 1 or step == known.pointer_step):
                made[place] = replace(known, pointers=known.pointers + 1, pointer_step=step)
                break
        else:
            made.append(piece)
    return tuple(made)


def in_fours(pieces: Sequence[Piece], target: Access) -> tuple[Piece, ...]:
    """Return the pieces, the last values of long odd loops apart from fours; not where they may be words."""
    made = []
    for piece in pieces:
        count, source, to = piece.loops[-1] if piece.loops else (1, 0, 0)
        rest = count % 4
        if count <= MOST_STRAIGHT or rest * element_bytes(target) % 4 == 0:
            made.append(piece)
            continue
        fours = replace(piece, loops=(*piece.loops[:-1], (count - rest, source, to)))
        last = ((rest, source, to),) if rest > 1 else ()
        begin, end = piece.source + (count - rest) * source, piece.target + (count - rest) * to
        made += [fours, replace(piece, source=begin, target=end, loops=(*piece.loops[:-1], *last))]
    return tuple(made)


def element_bytes(access: Access) -> int:
    """Return the bytes of an element."""
    return int(access.c_type.strip("uint_")) // 8


def as_words(pieces: Sequence[Piece], target: Access) -> Piece:
    """Return the piece that these are which begin elsewhere in their rows: word by word where all may be."""
    piece = pieces[0]
    size = element_bytes(target)
    count, source_step, target_step = piece.loops[-1] if piece.loops else (1, 1, 1)
    bases = [place for other in pieces for place in (other.source, other.target)]
    steps = [step for _, *both in piece.loops[:-1] for step in both] + [piece.pointer_step, count]
    sets = piece.pointer < 0
    plain = sets or (piece.offset == 0 and piece.c_type.strip("u") == target.c_type.strip("u"))
    if not plain or (source_step, target_step) != (1 - sets, 1) or any(n * size % 4 for n in (*bases, *steps)):
        return piece
    each = 4 // size
    loops = tuple((n, a // each, b // each) for n, a, b in piece.loops[:-1])
    pattern = sum((piece.offset & ((1 << 8 * size) - 1)) << shift for shift in range(0, 32, 8 * size))
    return replace(
        piece,
        pointer_step=piece.pointer_step // each,
        source=piece.source // each,
        target=piece.target // each,
        loops=(*loops, (count // each, 1 - sets, 1)) if count > each else loops,
        offset=pattern if sets else 0,
        words=True,
    )


def cycles_of(piece: Piece, target: Access) -> int:
    """Return what compiled C takes, roughly: groups of loads and stores, and the loops around them."""
    converts = not piece.words and piece.c_type != target.c_type
    read = 0 if piece.pointer < 0 else (1 + converts) * len(piece.groups) + piece.straight
    turns, cycles = 1, 0
    for count, *_ in piece.nest[:-1]:
        turns *= count
        cycles += 5 * turns
    if piece.heads:
        turns *= -(-piece.heads[-1][1] // piece.heads[-1][2])
        cycles += 5 * turns
    return piece.pointers * (8 + cycles + turns * (read + piece.straight))


def code_bytes_of(piece: Piece) -> int:
    """Return the code of a piece, roughly."""
    return 16 + (2 if piece.pointer < 0 else 4) * piece.straight + 10 * len(piece.heads)
