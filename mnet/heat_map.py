"""Where two sides of a trace differ, as a picture: a bar for each layer, a heat map for each that differs; SVG or PNG.

The picture is made once, as rectangles, words and small images, and drawn by one of two functions.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnet.divergence import Layer
from mnet.svg import LEFT, RIGHT, WIDTH, document, escape

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]

_COLUMNS, _GAP = 4, 16  # of maps; pixels between them
_MAP = (WIDTH - LEFT - RIGHT - (_COLUMNS - 1) * _GAP) / _COLUMNS  # sides of the square that a map may take
_BARS, _TOP, _LINE = 120, 56, 16  # pixels
_LETTERS = 34  # of a layer's name above its map
_EQUAL, _BAR, _FOLDED = "#dfe3e8", "#d55e00", "#ffffff"
# |difference| of 1, 2 to 3, 4 to 7, ..., 128 and more
_HEAT = ("#fee391", "#fec44f", "#fe9929", "#ec7014", "#cc4c02", "#993404", "#662506", "#1a0a02")


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str = ""  # what hovering tells


@dataclass(frozen=True)
class Words:
    """A line of text that begins at (x, y), its base line."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, eq=False)
class Map:
    """A small image, drawn with hard edges."""

    x: float
    y: float
    width: float
    height: float
    pixels: Pixels
    title: str


@dataclass(frozen=True)
class Picture:
    """All that is drawn."""

    title: str
    height: float
    parts: tuple[Box | Words | Map, ...]


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
    """Return the legend: what each colour of a map stands for."""
    most = len(_HEAT) - 1
    labels = ("0", "1", *(f"{2**n}-{2 ** (n + 1) - 1}" for n in range(1, most)), f"{2**most} and more")
    parts: list[Box | Words | Map] = []
    for number, (colour, label) in enumerate(zip((_EQUAL, *_HEAT), labels, strict=True)):
        x = LEFT + number * 64
        parts += [Box(x, y - 9, 10, 10, colour), Words(x + 14, y, label)]
    return [*parts, Words(LEFT + (len(_HEAT) + 2) * 64, y, "largest |difference| of a pixel's channels")]


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
    name = layer.name if len(layer.name) <= _LETTERS else layer.name[: _LETTERS - 3] + "..."
    title = f"{layer.name}: {_words(layer)}"
    return [
        Words(x, y + 12, name),
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
    colours = np.array([_rgb(colour) for colour in (_EQUAL, *_HEAT, "#ffffff")], np.uint8)
    return colours[np.where(step < 0, len(colours) - 1, np.minimum(step, len(_HEAT)))]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def as_svg(picture: Picture) -> str:
    """Return a picture as a whole SVG file; its maps are PNG files inside it."""
    lines = []
    for part in picture.parts:
        match part:
            case Words():
                lines.append(f'<text x="{part.x:.1f}" y="{part.y:.1f}">{escape(part.text)}</text>')
            case Box():
                lines.append(
                    f'<rect class="box" x="{part.x:.2f}" y="{part.y:.2f}" width="{part.width:.2f}" '
                    f'height="{part.height:.2f}" fill="{part.colour}"><title>{escape(part.title)}</title></rect>'
                )
            case Map():
                content = base64.b64encode(_png(part.pixels)).decode()
                lines.append(
                    f'<image x="{part.x:.1f}" y="{part.y:.1f}" width="{part.width:.1f}" height="{part.height:.1f}" '
                    f'preserveAspectRatio="none" style="image-rendering: pixelated" '
                    f'href="data:image/png;base64,{content}"><title>{escape(part.title)}</title></image>'
                )
    return document(picture.title, picture.height, lines)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_png(picture: Picture) -> bytes:
    """Return a picture as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", (WIDTH, math.ceil(picture.height)), "#ffffff")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for part in picture.parts:
        match part:
            case Words():
                draw.text((part.x, part.y), part.text, "#1a1a1a", font, "ls")
            case Box():
                if part.width >= 1 and part.height >= 1:
                    draw.rectangle((part.x, part.y, part.x + part.width - 1, part.y + part.height - 1), part.colour)
            case Map():
                size = (max(round(part.width), 1), max(round(part.height), 1))
                image = Image.fromarray(part.pixels).resize(size, Image.Resampling.NEAREST)
                canvas.paste(image, (round(part.x), round(part.y)))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()
