"""Plots as SVG, by hand: scales, axes, legends, colours. No script, nothing from the network; light and dark."""

import re
import xml.sax.saxutils
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Okabe and Ito's palette: eight colours that stay apart for readers with any colour vision, on white and on black.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 64, 12, 30, 40  # pixels; margins around the plot
_COLUMNS, _LINE = 5, 16
_STYLE = """
.mnet { --ground: #ffffff; --ink: #1a1a1a; --faint: #d8d8d8; font: 11px system-ui, sans-serif }
@media (prefers-color-scheme: dark) { .mnet { --ground: #15181c; --ink: #e4e4e4; --faint: #3a3f45 } }
.mnet .ground { fill: var(--ground) }
.mnet text { fill: var(--ink) }
.mnet .axis { stroke: var(--faint); stroke-width: 1 }
.mnet .box { shape-rendering: crispEdges }
.mnet .row { shape-rendering: crispEdges; stroke: var(--ground); stroke-width: 0.5 }
.mnet .row:hover, .mnet .dot:hover { stroke: var(--ink); stroke-width: 1.5 }
.mnet .peak { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3 }
.mnet .name { pointer-events: none; paint-order: stroke; stroke: var(--ground); stroke-width: 3px }
.mnet .line { stroke: var(--ink); stroke-width: 1.5; fill: none }
"""
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(text: str) -> str:
    """Return `text` for XML or HTML: markup escaped, characters that XML does not allow replaced.

    >>> escape("a<b & \x1b")
    'a&lt;b &amp; \ufffd'
    """
    return xml.sax.saxutils.escape(_NO_XML.sub("\ufffd", text))


def ascii_only(document: str) -> str:
    """Return XML or HTML with every other letter as a reference, so that it reads the same in any encoding.

    >>> ascii_only("\xb5s")
    '&#181;s'
    """
    return document.encode("ascii", "xmlcharrefreplace").decode("ascii")


def shortened(name: str, letters: int) -> str:
    """Return a name in at most so many letters.

    >>> shortened("conv_dw_13", 10), shortened("conv_dw_13_bn", 10)
    ('conv_dw_13', 'conv_dw...')
    """
    return name if len(name) <= letters else name[: letters - 3] + "..."


def colour(number: int) -> str:
    """Return the colour of thing `number`: the palette, then the same darker, then lighter, then anew.

    >>> colour(0), colour(8), colour(16), colour(24)
    ('#56b4e9', '#387597', '#a2d6f3', '#56b4e9')
    """
    ground, part = ((0, 0.0), (0, 0.35), (255, 0.45))[number // len(PALETTE) % 3]
    code = PALETTE[number % len(PALETTE)]
    parts = (int(code[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(value + (ground - value) * part):02x}" for value in parts)


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) * (self.end - self.start) / ((self.high - self.low) or 1)


def round_numbers(low: float, high: float, about: int = 6) -> list[int]:
    """Return a few round numbers between `low` and `high`.

    >>> round_numbers(0, 9888), round_numbers(7, 31)
    ([0, 2000, 4000, 6000, 8000], [10, 15, 20, 25, 30])
    """
    rough = max((high - low) / about, 1)
    power = 10 ** (len(str(int(rough))) - 1)
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return list(range(-(-int(low) // step) * step, int(high) + 1, step))


def levels(upwards: Scale, start: float, end: float, beside: str) -> list[str]:
    """Return a line from `start` to `end` for each round number of a vertical axis, and what the numbers are."""
    parts = []
    for value in round_numbers(upwards.low, upwards.high):
        y = upwards(value)
        parts.append(f'<line class="axis" x1="{start}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{start - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    return [*parts, f'<text x="4" y="{upwards.end - 12}">{escape(beside)}</text>']


def axes(across: Scale, upwards: Scale, below: str, beside: str) -> list[str]:
    """Return grid and numbers of a plot."""
    parts = levels(upwards, across.start, across.end, beside)
    for value in round_numbers(across.low, across.high, 10):
        x = across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{upwards.start}" y2="{upwards.start + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{upwards.start + 16}" text-anchor="middle">{value:,}</text>')
    middle = (across.start + across.end) / 2
    return [*parts, f'<text x="{middle:.1f}" y="{upwards.start + 30}" text-anchor="middle">{escape(below)}</text>']


def document(title: str, height: float, parts: Iterable[str], width: float = WIDTH) -> str:
    """Return a whole SVG file, which may also stand inside HTML."""
    lines = "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="mnet" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{width:.0f}" height="{height:.0f}"/>',
            *parts,
            "</svg>\n",
        ]
    )
    return ascii_only(lines)


def box(left: float, top: float, right: float, bottom: float) -> str:
    """Return the attributes of a rectangle, which is never too thin to be seen."""
    return f'x="{left:.2f}" y="{top:.2f}" width="{max(right - left, 0.5):.2f}" height="{max(bottom - top, 0.5):.2f}"'


def legend(colours: Mapping[str, str], top: float) -> tuple[list[str], int]:
    """Return a square and a name for each tensor, and the pixels that they take."""
    parts = []
    column = (WIDTH - LEFT - RIGHT) / _COLUMNS
    for number, (name, colour) in enumerate(colours.items()):
        x = LEFT + number % _COLUMNS * column
        y = top + number // _COLUMNS * _LINE
        parts.append(f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.1f}" y="{y + 9:.1f}">{escape(name)}</text>')
    return parts, (-(-len(colours) // _COLUMNS) + 1) * _LINE
