"""Kernels that move values and change none: padding, joining, slicing, reshaping, transposing.

Where each value comes from is not worked out op by op: `mnet.movement.move`, run on the numbers of all places of the
inputs, says it. From there follow the input rows that a call reads, and loops that copy them: steps from value to
value that repeat are a loop, loops that repeat are a loop around them. Rows of the output that differ only in where
they begin in their input rows share their code and have a constant each; other differences are cases of it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, wide_rows, wide_whole
from codegen.layout import Storage
from codegen.plain import Access, access, as_word, no_constants
from codegen.targets import Target
from mnet.graph import Graph, Move, Op, Pad, Rearrange, Reshape, Shape, inputs_of
from mnet.movement import move

Int64Array = npt.NDArray[np.int64]
Loop = tuple[int, int, int]  # how often; elements from turn to turn of the source, of the target

_VARIABLES = "ijklmnop"

MOST_POINTERS = 24  # of a call that makes a row
MOST_CASES = 32  # rows that begin at different places
MOST_PIECES = 32  # loops with all that is in them
MOST_STRAIGHT = 8  # values that no loop is worth


@dataclass(frozen=True, eq=False)
class Origins:
    """Where each value of an output [height, width, channels] comes from."""

    which: Int64Array  # input; -1: the value of a Pad
    row: Int64Array
    pixel: Int64Array
    channel: Int64Array


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


@dataclass(frozen=True)
class MoveView:
    """All that a row of the output is made of: one or several cases."""

    target: Access
    pointers: int
    cases: tuple[tuple[Piece, ...], ...]
    by_case: bool  # constants begin with the case
    by_row: bool  # then say where each piece begins; `Piece.source` is 0

    @property
    def variables(self) -> tuple[str, ...]:
        """Return the names that the loops need."""
        return tuple(sorted({name for pieces in self.cases for piece in pieces for name in piece.variables}))


@dataclass(frozen=True, eq=False)
class Moves:
    """The view, the constants of each phase, and the phase of each call."""

    view: MoveView
    constants: tuple[tuple[int, ...], ...]
    phases: tuple[int, ...]


def _shapes(call: Call) -> tuple[Shape, ...]:
    return tuple(source.tensor.shape for source in call.inputs)


@lru_cache(maxsize=16)
def origins(op: Move, shapes: tuple[Shape, ...]) -> Origins:
    """Return where the values of `op` come from, for inputs of these shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    begins = ends - [math.prod(shape) for shape in shapes]
    places = tuple(
        np.arange(begin, begin + math.prod(shape)).reshape(1, *shape)
        for begin, shape in zip(begins, shapes, strict=True)
    )
    made = move(op, places, padding=-1)[0]
    which = np.where(made < 0, -1, np.searchsorted(ends, made, side="right"))
    width, channels = (np.array([shape[axis] for shape in shapes])[which] for axis in (1, 2))
    place = made - begins[which]
    return Origins(which, place // (width * channels), place // channels % width, place % channels)


@lru_cache(maxsize=16)
def rows_of(op: Move, shapes: tuple[Shape, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return [row of the output][input]: the rows that it is made of; of all inputs as many for every row.

    Where a row needs fewer, the last one stands for the others; where it needs none, those of the row before.
    """
    known = origins(op, shapes)
    found = [
        [np.unique(row[which == i]).tolist() for i in range(len(shapes))]
        for which, row in zip(known.which, known.row, strict=True)
    ]
    most = max(sum(map(len, rows)) for rows in found)
    last = next(rows for rows in found if any(rows))
    made = []
    for rows in found:
        last = rows if any(rows) else last
        filled = next(i for i in reversed(range(len(shapes))) if last[i])
        more = most - sum(map(len, last))
        made.append(tuple((*part, *part[-1:] * (more if i == filled else 0)) for i, part in enumerate(last)))
    return tuple(made)


def _runs(source: Int64Array, target: Int64Array) -> list[tuple[int, int, tuple[Loop, ...]]]:
    """Return runs of equal steps: (first source, first target, loops) each; a value alone has no loop."""
    steps = np.stack((np.diff(source), np.diff(target)), axis=1)
    changes = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1  # here another step begins
    runs: list[tuple[int, int, tuple[Loop, ...]]] = []
    first, count = 0, len(source)
    while first < count:
        place = int(np.searchsorted(changes, first, side="right"))
        last = int(changes[place]) if place < len(changes) else count - 1
        length = last - first + 1
        loops = ((length, int(steps[first, 0]), int(steps[first, 1])),) if length > 1 else ()
        runs.append((int(source[first]), int(target[first]), loops))
        first = last + 1
    return runs


def nests(source: Int64Array, target: Int64Array) -> list[tuple[int, int, tuple[Loop, ...]]]:
    """Return (first source, first target, loops around loops) of values at these places, in order.

    >>> nests(np.array([0, 1, 2, 10, 11, 12]), np.array([0, 1, 2, 3, 4, 5]))
    [(0, 0, ((2, 10, 3), (3, 1, 1)))]
    """
    found, before = _runs(source, target), len(source) + 1
    while len(found) < before:
        before = len(found)
        grouped: list[tuple[int, int, tuple[Loop, ...]]] = []
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


def _row_pieces(
    where: tuple[Int64Array, Int64Array, Int64Array], sources: Sequence[Access], value: int, target: Int64Array
) -> tuple[Piece, ...]:
    """Return what makes a row, in as few pieces as are found: of all channels together, or of some at a time.

    Args:
        where: of each value [pixels, channels]: pointer (-1: none), input, element (0 where there is no pointer).
        sources: how to reach the elements of each input.
        value: stored value that is set where nothing is copied.
        target: [pixels, channels]; element of each value.
    """
    pointer, _, element = where
    tries = []
    for edges in ([0, target.shape[1]], _edges(pointer, element)):
        pieces = []
        for first, last in itertools.pairwise(edges):
            part = slice(first, last)
            pieces += _pieces([array[:, part] for array in where], sources, value, target[:, part])
        tries.append(_over_pointers(pieces))
    return min(tries, key=len)


def _edges(pointer: Int64Array, element: Int64Array) -> list[int]:
    """Return where runs of channels begin that every pixel reads alike, and the number of channels."""
    same_row = (pointer[:, 1:] == pointer[:, :-1]).all(axis=0)
    steps = np.diff(element, axis=1)
    edges = [0]
    for channel in range(1, pointer.shape[1]):
        begins = channel == edges[-1] + 1  # its first step is free
        if not same_row[channel - 1] or not (begins or (steps[:, channel - 1] == steps[:, channel - 2]).all()):
            edges.append(channel)
    return [*edges, pointer.shape[1]]


def _pieces(where: Sequence[Int64Array], sources: Sequence[Access], value: int, target: Int64Array) -> list[Piece]:
    """Return what makes some channels of a row, pointer by pointer."""
    pointer, which, element = where
    pieces = []
    for number in np.unique(pointer):
        here = pointer == number
        for begin, to, loops in nests(element[here], target[here]):
            if number < 0:
                loops = tuple((count, 0, step) for count, _, step in loops)
                pieces.append(Piece(-1, 1, 0, "", 0, to, loops, value))
            else:
                source = sources[int(which[here][0])]
                pieces.append(Piece(int(number), 1, 0, source.c_type, begin, to, loops, source.offset))
    return pieces


def _over_pointers(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
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


def _in_fours(pieces: Sequence[Piece], target: Access) -> tuple[Piece, ...]:
    """Return the pieces, the last values of long odd loops apart from fours; not where they may be words."""
    made = []
    for piece in pieces:
        count, source, to = piece.loops[-1] if piece.loops else (1, 0, 0)
        rest = count % 4
        if count <= MOST_STRAIGHT or rest * _size(target) % 4 == 0:
            made.append(piece)
            continue
        fours = replace(piece, loops=(*piece.loops[:-1], (count - rest, source, to)))
        last = ((rest, source, to),) if rest > 1 else ()
        begin, end = piece.source + (count - rest) * source, piece.target + (count - rest) * to
        made += [fours, replace(piece, source=begin, target=end, loops=(*piece.loops[:-1], *last))]
    return tuple(made)


def _size(access: Access) -> int:
    """Return the bytes of an element."""
    return int(access.c_type.strip("uint_")) // 8


def _as_words(pieces: Sequence[Piece], target: Access) -> Piece:
    """Return the piece that these are which begin elsewhere in their rows: word by word where all may be."""
    piece = pieces[0]
    size = _size(target)
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


def _elements(known: Origins, sources: Sequence[Access], whole: bool) -> Int64Array:
    """Return [height, width, channels]: which element of its input row, or of its input, each value is."""
    first, row, pixel, channel = (
        np.array([getattr(source, step) for source in sources], np.int64)[known.which]
        for step in ("first", "row", "pixel", "channel")
    )
    return np.asarray(first + known.pixel * pixel + known.channel * channel + (known.row * row if whole else 0))


def _pointers(known: Origins, rows: Sequence[Sequence[Sequence[int]]]) -> Int64Array:
    """Return [height, width, channels]: which of the pointers of its call each value is read through; -1: none."""
    found = known.which.copy()
    for y, parts in enumerate(rows):
        first = 0
        for which, part in enumerate(parts):
            here = known.which[y] == which
            found[y][here] = first + np.searchsorted(part, known.row[y][here])
            first += len(part)
    return found


def _moved(op: Move, sources: Sequence[Access], shapes: tuple[Shape, ...], target: Access, whole: bool) -> Moves:
    """Return how rows are made, or the whole output in one call."""
    known = origins(op, shapes)
    height, width, channels = known.which.shape
    value = (op.value if isinstance(op, Pad) else 0) - target.offset
    offset = tuple(replace(source, offset=source.offset - target.offset) for source in sources)
    out = target.first + np.arange(width)[:, None] * target.pixel + np.arange(channels) * target.channel
    if whole:
        out, count, pointers = out + np.arange(height)[:, None, None] * target.row, 1, len(sources)
        pointer = known.which  # one to each input
    else:
        rows = rows_of(op, shapes)
        count, pointers = height, sum(map(len, rows[0]))
        pointer = _pointers(known, rows)
    element = _elements(known, sources, whole)
    by_call = [array.reshape(count, -1, channels) for array in (pointer, known.which, element)]
    made: dict[bytes, tuple[Piece, ...]] = {}
    by_row: list[tuple[Piece, ...]] = []
    for number, which, place in zip(*by_call, strict=True):
        copied = number >= 0
        begin = int(place[copied].min()) if copied.any() else 0
        place = np.where(copied, place - begin, 0)
        key = number.tobytes() + which.tobytes() + place.tobytes()
        if key not in made:
            made[key] = _row_pieces((number, which, place), offset, value, out.reshape(-1, channels))
        by_row.append(tuple(replace(p, source=p.source + begin) if p.pointer >= 0 else p for p in made[key]))
    return _shared(by_row, target, pointers)


def _shared(by_row: Sequence[tuple[Piece, ...]], target: Access, pointers: int) -> Moves:
    """Return the code that all rows share, and what tells them from each other."""
    distinct = [_in_fours(pieces, target) for pieces in dict.fromkeys(by_row)]
    forms = [tuple(replace(piece, source=0) for piece in pieces) for pieces in distinct]
    cases = list(dict.fromkeys(forms))
    by_place = len(distinct) > len(cases)
    made, constants = [], []
    for case in cases:
        rows = [pieces for pieces, form in zip(distinct, forms, strict=True) if form == case]
        made.append(tuple(_as_words(same, target) for same in zip(*rows, strict=True)))
    for pieces, form in zip(distinct, forms, strict=True):
        number = cases.index(form)
        unit = [4 // _size(target) if piece.words else 1 for piece in made[number]]
        places = [piece.source // each for piece, each in zip(pieces, unit, strict=True)] if by_place else []
        constants.append(((number,) if len(cases) > 1 else ()) + tuple(map(as_word, places)))
    if by_place:
        made = [tuple(replace(piece, source=0) for piece in pieces) for pieces in made]
    view = MoveView(target, pointers, tuple(made), len(cases) > 1, by_place)
    numbers = {pieces: number for number, pieces in enumerate(dict.fromkeys(by_row))}
    return Moves(view, tuple(constants), tuple(numbers[pieces] for pieces in by_row))


@lru_cache(maxsize=64)
def _moves(op: Move, inputs: tuple[Storage, ...], output: Storage, whole: bool) -> Moves:
    shapes = tuple(source.tensor.shape for source in inputs)
    return _moved(op, [access(source) for source in inputs], shapes, access(output), whole)


def moves(call: Call, whole: bool = False) -> Moves:
    """Return how a call makes its row, or the whole output."""
    assert isinstance(call.op, Move)
    return _moves(call.op, call.inputs, call.output, whole)


@lru_cache(maxsize=64)
def _fits(op: Move, shapes: tuple[Shape, ...], whole: bool) -> bool:
    """Return whether the code for rows, or for the whole output, stays small, however the tensors lie."""
    far = [Access("int16_t", 0, 1 << 16, 1, 1 << 32, 0, *shape[1::-1], shape[2]) for shape in shapes]
    shape = op.output_shape(*shapes)
    if not whole and sum(map(len, rows_of(op, shapes)[0])) > MOST_POINTERS:
        return False
    found = _moved(op, far, shapes, replace(far[0], height=shape[0], width=shape[1], channels=shape[2]), whole)
    return len(found.constants) <= MOST_CASES and sum(map(len, found.view.cases)) <= MOST_PIECES


def _accepts(op: Op, graph: Graph, target: Target, whole: bool) -> str | None:
    if not isinstance(op, Move):
        return "not a move"
    shapes = tuple(graph.tensors[name].shape for name in inputs_of(op))
    if whole and _fits(op, shapes, False):
        return "rows do"
    return None if _fits(op, shapes, whole) else "too many loops"


def _accepts_any(op: Op, graph: Graph, target: Target) -> str | None:
    if not isinstance(op, Reshape | Rearrange):
        return "neither a RESHAPE nor a transposition"
    shapes = tuple(graph.tensors[name].shape for name in inputs_of(op))
    return "loops do" if any(_fits(op, shapes, whole) for whole in (False, True)) else None


@dataclass(frozen=True)
class RearrangeView:
    """Any order of values, each found by division: the whole tensor in one call."""

    source: Access
    target: Access
    loops: tuple[tuple[int, int], ...]  # in the order of the output: how often, values of the source from turn to turn


def rearrange_view(call: Call) -> RearrangeView:
    """Return the view of a Reshape or Rearrange."""
    op = call.op
    assert isinstance(op, Reshape | Rearrange)
    view = op.view if isinstance(op, Rearrange) else (math.prod(op.shape),)
    order = op.permutation if isinstance(op, Rearrange) else (0,)
    steps = [math.prod(view[axis + 1 :]) for axis in range(len(view))]
    loops = tuple((view[axis], steps[axis]) for axis in order)
    return RearrangeView(access(call.inputs[0]), access(call.output), loops)


def _pack(call: Call, view: MoveView, phase: int) -> tuple[int, ...]:
    return moves(call).constants[phase]


def _rows_read(call: Call, which: int, number: int) -> Sequence[int]:
    assert isinstance(call.op, Move)
    return rows_of(call.op, _shapes(call))[number][which]


def cost(view: MoveView) -> Cost:
    """Return what a call takes: the dearest of its cases, and the code of all."""
    return Cost(
        20 + max(sum(_cycles(piece, view.target) for piece in pieces) for pieces in view.cases),
        16 + sum(_code_bytes(piece) for pieces in view.cases for piece in pieces),
    )


def _cycles(piece: Piece, target: Access) -> int:
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


def _code_bytes(piece: Piece) -> int:
    return 16 + (2 if piece.pointer < 0 else 4) * piece.straight + 10 * len(piece.heads)


MOVE = Kernel(
    family="move",
    template="move.c.j2",
    accepts=lambda op, graph, target: _accepts(op, graph, target, False),
    reads=ANY,
    writes=ANY,
    needs=wide_rows,
    view=lambda call: moves(call).view,
    pack=_pack,
    rows_read=_rows_read,
    phase=lambda call, number: moves(call).phases[number],
    cost=lambda call, view: cost(view),
)
KERNELS = (
    MOVE,
    replace(
        MOVE,
        family="move_whole",
        accepts=lambda op, graph, target: _accepts(op, graph, target, True),
        needs=wide_whole,
        view=lambda call: moves(call, whole=True).view,
        pack=no_constants,
        rows_read=None,
        phase=lambda call, number: 0,
        only_whole=True,
    ),
    Kernel(
        family="rearrange",
        template="rearrange.c.j2",
        accepts=_accepts_any,
        reads=ANY,
        writes=ANY,
        needs=wide_whole,
        view=rearrange_view,
        pack=no_constants,
        only_whole=True,
    ),
)
