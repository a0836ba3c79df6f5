"""A confusion matrix as a picture: what is right in blue, mistakes from yellow to black; for 2 to 100 classes."""

from bisect import bisect_left
from collections.abc import Sequence

from mnet.drawing import HEAT, Box, Picture, Words, rgb
from mnet.evaluation import Evaluation
from mnet.svg import WIDTH, shortened

# Colours by the share of a class's images, and the upper ends of all but the last.
_RIGHT = ("#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c")
_RIGHT_ENDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_WRONG_ENDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_NONE = "#f1f3f5"

_MOST_NUMBERED = 20  # classes for which cells hold their numbers
_MATRIX, _WIDEST, _NARROWEST, _NUMBERED = 620, 64, 12, 31  # pixels of the matrix, and limits of a cell; with numbers
_MARGIN, _LINE, _SHARES = 12, 16, 56  # pixels; of the column of shares
_LETTERS, _LETTER = 32, 6  # of a class's name; pixels of one, about

_Parts = list[Box | Words]


def confusion_picture(title: str, evaluation: Evaluation, names: Sequence[str]) -> Picture:
    """Return the picture of a confusion matrix.

    Args:
        title: which model, on which images, by whom.
        evaluation: what is drawn.
        names: of the classes.
    """
    count = len(names)
    least = _NUMBERED if count <= _MOST_NUMBERED else _NARROWEST
    cell = max(least, min(_WIDEST, _MATRIX // count))
    shown = [shortened(name, _LETTERS) for name in names]
    margin = max(map(len, shown)) * _LETTER + 8
    left, top = _MARGIN + margin, 20 + 3 * _LINE + margin
    parts: _Parts = [Words(_MARGIN, 20, title), *_legend(20 + _LINE), Box(left, top, count * cell, count * cell, _NONE)]
    for number, (name, figures) in enumerate(zip(shown, evaluation.classes(names), strict=True)):
        middle = (number + 0.5) * cell + 4
        share = "-" if figures.recall is None else f"{figures.recall:.1%}"
        parts += [
            Words(left - 6, top + middle, name, "end"),
            Words(left + middle, top - 6, name, upwards=True),
            Words(left + count * cell + 6, top + middle, share),
        ]
    parts += _cells(evaluation, names, left, top, cell)
    width = max(WIDTH, left + count * cell + _SHARES)
    return Picture(title, top + count * cell + _LINE, tuple(parts), width)


def _legend(y: float) -> _Parts:
    """Return two lines: what the colours of right and of wrong cells stand for."""
    parts: _Parts = []
    for words, colours, ends in (
        ("Rows: the class of an image. On the diagonal: the share that was told.", _RIGHT, _RIGHT_ENDS),
        ("Columns: what it was taken for. Elsewhere: the share that was mistaken.", HEAT, _WRONG_ENDS),
    ):
        parts.append(Words(_MARGIN, y, words))
        labels = (*(f"to {end * 100:g} %" for end in ends), "more")
        for number, (colour, label) in enumerate(zip(colours, labels, strict=True)):
            x = _MARGIN + 72 * _LETTER + number * 66
            parts += [Box(x, y - 9, 10, 10, colour), Words(x + 14, y, label)]
        y += _LINE
    return parts


def _cells(evaluation: Evaluation, names: Sequence[str], left: float, top: float, cell: float) -> _Parts:
    """Return a box for each pair of classes that has images, with their number where there is room for it."""
    parts: _Parts = []
    for row, counts in enumerate(evaluation.confusion):
        images = int(counts.sum())
        for column, number in enumerate(map(int, counts)):
            if not number:
                continue
            colours, ends = (_RIGHT, _RIGHT_ENDS) if row == column else (HEAT, _WRONG_ENDS)
            colour = colours[bisect_left(ends, number / images)]
            x, y = left + column * cell, top + row * cell
            title = f"{names[row]} taken for {names[column]}: {number:,} of {images:,} ({number / images:.1%})"
            parts.append(Box(x, y, cell - 1, cell - 1, colour, title))
            if len(names) <= _MOST_NUMBERED:
                ink = "#1a1a1a" if sum(rgb(colour)) > 3 * 120 else "#ffffff"
                parts.append(Words(x + cell / 2, y + cell / 2 + 4, str(number), "middle", ink))
    return parts
