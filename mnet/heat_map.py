"""Where two sides of a trace differ, as a picture: a bar for each layer, a heat map for each that differs."""

import math
from collections.abc import Sequence

import numpy as np

from mnet.divergence import Layer
from mnet.drawing import HEAT, Box, Map, Picture, Pixels, Words, rgb
from mnet.svg import LEFT, RIGHT, WIDTH, shortened

_COLUMNS, _GAP = 4, 16  # of maps; pixels between them
_MAP = (WIDTH - LEFT - RIGHT - (_COLUMNS - 1) * _GAP) / _COLUMNS  # sides of the square that a map may take
_BARS, _TOP, _LINE = 120, 56, 16  # pixels
_LETTERS = 34  # of a layer's name above its map
_EQUAL, _BAR, _FOLDED = "#dfe3e8", "#d55e00", "#ffffff"


def picture_of(title: str, layers: Sequence[Layer]) -> Picture:
    """Return the picture of a comparison.

    Args:
        title: who is compared, for which model.
        layers: all of them, in their order; at least one.
    """
    parts: list[Box | Words | Map] = [Words(LEFT, 20, title), *_scale(36), *_bars(layers)]
    at: float = _TOP + _BARS + 2 * _LINE
    maps = [layer for layer in layers if layer.differing]
    for start in range(0, len(maps), _COLUMNS):
        made = [_map(layer, number, at) for number, layer in enumerate(maps[start : start + _COLUMNS])]
        parts += [part for map_ in made for part in map_]
        at += max(part.height for map_ in made for part in map_ if isinstance(part, Map)) + 3 * _LINE
    if not maps:
        parts.append(Words(LEFT, at, "All layers are equal."))
        at += _LINE
    return Picture(title, at, tuple(parts))


def _scale(y: float) -> list[Box | Words | Map]:
    """Return the legend: what each colour of a map stands for, |difference| of 1, 2 to 3, 4 to 7, ..., 128 and more."""
    most = len(HEAT) - 1
    labels = ("0", "1", *(f"{2**n}-{2 ** (n + 1) - 1}" for n in range(1, most)), f"{2**most} and more")
    parts: list[Box | Words | Map] = []
    for number, (colour, label) in enumerate(zip((_EQUAL, *HEAT), labels, strict=True)):
        x = LEFT + number * 64
        parts += [Box(x, y - 9, 10, 10, colour), Words(x + 14, y, label)]
    return [*parts, Words(LEFT + (len(HEAT) + 2) * 64, y, "largest |difference| of a pixel's channels")]


def _bars(layers: Sequence[Layer]) -> list[Box | Words | Map]:
    """Return a bar for each layer, as high as the share of its values that differ."""
    parts: list[Box | Words | Map] = []
    column = (WIDTH - LEFT - RIGHT) / len(layers)
    most = max(layer.share for layer in layers) or 1.0
    parts.append(Words(4, _TOP + 10, f"{most:.1%}" if any(layer.differing for layer in layers) else ""))
    for number, layer in enumerate(layers):
        height = max(_BARS * layer.share / most, 1.5 if layer.differing else 0)
        x, width = LEFT + (number + 0.1) * column, 0.8 * column
        colour = _FOLDED if layer.folded else _EQUAL
        title = f"{layer.name}: {_words(layer)}"
        parts.append(Box(x, _TOP, width, _BARS - height, colour, title))
        if height:
            parts.append(Box(x, _TOP + _BARS - height, width, height, _BAR, title))
    note = "share of each layer's values that differ, from the input to the output"
    return [*parts, Words(LEFT, _TOP + _BARS + 14, note)]


def _words(layer: Layer) -> str:
    if layer.folded:
        return f"folded away in {' and '.join(layer.folded)}"
    return f"{layer.differing:,} of {layer.compared:,} values differ, by {layer.largest} at most"


def _map(layer: Layer, number: int, y: float) -> list[Box | Words | Map]:
    pixels = heat(layer)
    size = min(_MAP / pixels.shape[1], _MAP / pixels.shape[0], 24)
    x = LEFT + number * (_MAP + _GAP)
    title = f"{layer.name}: {_words(layer)}"
    return [
        Words(x, y + 12, shortened(layer.name, _LETTERS)),
        Words(x, y + 26, f"{'x'.join(map(str, layer.shape))}: {layer.differing:,} ({layer.share:.2%})"),
        Map(x, y + 32, size * pixels.shape[1], size * pixels.shape[0], pixels, title),
    ]


def heat(layer: Layer) -> Pixels:
    """Return a pixel for each place of a layer: its largest difference over the channels.

    The channels of a vector become the pixels of a near square, row by row; what is left over of it is white.
    """
    assert layer.differences is not None
    sizes = np.abs(layer.differences)
    height, width, channels = sizes.shape
    if height == width == 1:
        side = math.ceil(math.sqrt(channels))
        found = np.full(side * -(-channels // side), -1, np.int32)
        found[:channels] = sizes[0, 0]
        found = found.reshape(-1, side)
    else:
        found = sizes.max(axis=2)
    step = np.where(found > 0, 1 + np.log2(np.maximum(found, 1)).astype(np.int64), found)  # 1, 2.., 4.. -> 1, 2, 3
    colours = np.array([rgb(colour) for colour in (_EQUAL, *HEAT, "#ffffff")], np.uint8)
    return colours[np.where(step < 0, len(colours) - 1, np.minimum(step, len(HEAT)))]
