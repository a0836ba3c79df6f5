"""Kernels that move values and change none: padding, joining, slicing, reshaping, transposing.

Where each value comes from is not worked out op by op: `mnet.movement.move`, run on the numbers of all places of the
inputs, says it. From there follow the input rows that a call reads, and the loops that copy them (codegen/loops.py).
Rows of the output that differ only in where they begin in their input rows share their code and have a constant each;
other differences are cases of it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, wide_rows, wide_whole
from codegen.layout import Storage
from codegen.loops import (
    Int64Array,
    Piece,
    as_words,
    code_bytes_of,
    cycles_of,
    element_bytes,
    in_fours,
    nests,
    over_pointers,
)
from codegen.plain import Access, access, as_word, no_constants
from codegen.targets import Target
from mnet.graph import Graph, Move, Op, Pad, Rearrange, Reshape, Shape, inputs_of
from mnet.movement import move

MOST_POINTERS = 24  # of a call that makes a row
MOST_CASES = 32  # rows that begin at different places
MOST_PIECES = 32  # loops with all that is in them


@dataclass(frozen=True, eq=False)
class Origins:
    """Where each value of an output [height, width, channels] comes from."""

    which: Int64Array  # input; -1: the value of a Pad
    row: Int64Array
    pixel: Int64Array
    channel: Int64Array


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
        tries.append(over_pointers(pieces))
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
    distinct = [in_fours(pieces, target) for pieces in dict.fromkeys(by_row)]
    forms = [tuple(replace(piece, source=0) for piece in pieces) for pieces in distinct]
    cases = list(dict.fromkeys(forms))
    by_place = len(distinct) > len(cases)
    made, constants = [], []
    for case in cases:
        rows = [pieces for pieces, form in zip(distinct, forms, strict=True) if form == case]
        made.append(tuple(as_words(same, target) for same in zip(*rows, strict=True)))
    for pieces, form in zip(distinct, forms, strict=True):
        number = cases.index(form)
        unit = [4 // element_bytes(target) if piece.words else 1 for piece in made[number]]
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
        20 + max(sum(cycles_of(piece, view.target) for piece in pieces) for pieces in view.cases),
        16 + sum(code_bytes_of(piece) for pieces in view.cases for piece in pieces),
    )


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
