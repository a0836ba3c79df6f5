"""A picture as rectangles, words and small images, made once and drawn by one of two functions: SVG or PNG."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mnet.svg import WIDTH, document, escape

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]
HEAT = ("#fee391", "#fec44f", "#fe9929", "#ec7014", "#cc4c02", "#993404", "#662506", "#1a0a02")  # from little to much
_LETTER_SIZE, _INK = 11, "#1a1a1a"


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
    """A line of text whose base line begins, has its middle or ends at (x, y)."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    colour: str = ""  # for words on a box; by default that of ink on the ground
    upwards: bool = False  # turned by 90 degrees, from below to above


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
    width: float = WIDTH


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def as_svg(picture: Picture) -> str:
    """Return a picture as a whole SVG file; its maps are PNG files inside it."""
    lines = []
    for part in picture.parts:
        match part:
            case Words():
                lines.append(_svg_words(part))
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
    return document(picture.title, picture.height, lines, picture.width)


def _svg_words(words: Words) -> str:
    place = f'x="{words.x:.1f}" y="{words.y:.1f}"'
    if words.anchor != "start":
        place += f' text-anchor="{words.anchor}"'
    if words.upwards:
        place += f' transform="rotate(-90 {words.x:.1f} {words.y:.1f})"'
    if words.colour:
        place += f' style="fill: {words.colour}"'
    return f"<text {place}>{escape(words.text)}</text>"


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_png(picture: Picture) -> bytes:
    """Return a picture as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", (math.ceil(picture.width), math.ceil(picture.height)), "#ffffff")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LETTER_SIZE)
    for part in picture.parts:
        match part:
            case Words(upwards=True):
                _draw_upwards(canvas, part, font)
            case Words():
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[part.anchor]
                draw.text((part.x, part.y), part.text, part.colour or _INK, font, anchor)
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


def _draw_upwards(canvas: Any, words: Words, font: Any) -> None:
    """Draw words on a strip of their own, turn it, and put its base line at words.x."""
    from PIL import Image, ImageDraw

    length, above = math.ceil(font.getlength(words.text)) + 2, _LETTER_SIZE + 1
    strip = Image.new("L", (length, above + _LETTER_SIZE // 2), 0)
    ImageDraw.Draw(strip).text((1, above), words.text, 255, font, "ls")
    turned = strip.rotate(90, expand=True)
    down = {"start": length - 1, "middle": length // 2, "end": 1}[words.anchor]
    canvas.paste(words.colour or _INK, (round(words.x) - above, round(words.y) - down), turned)
