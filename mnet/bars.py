"""A bar for each layer as SVG, one colour for each family of kernels; readable for 5 layers and for 80."""

from collections.abc import Sequence
from dataclasses import dataclass

from mnet.svg import LEFT, PALETTE, RIGHT, TOP, WIDTH, Scale, box, document, escape, legend, levels, shortened

NO_FAMILY = "#999999"  # of what is no kernel
_HEIGHT = 240  # of the plot
_WIDEST = 56  # of a bar, in pixels
_LONGEST = 22  # letters of a name below its bar
_LETTER = 6  # pixels, about


@dataclass(frozen=True)
class Bar:
    """One layer."""

    name: str
    family: str  # of its kernel; "" where it has none
    value: int
    title: str  # what hovering tells


def family_colours(families: Sequence[str]) -> dict[str, str]:
    """Return a colour for each family, in the order in which they come.

    >>> list(family_colours(["a", "", "b", "a"]))
    ['a', 'b']
    """
    names = list(dict.fromkeys(name for name in families if name))
    return {name: PALETTE[number % (len(PALETTE) - 1)] for number, name in enumerate(names)}  # the last one is grey


def bar_chart(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """Return the bars as a whole SVG file.

    Args:
        title: of the picture.
        unit: of the values.
        bars: in their order from left to right; at least one.
    """
    colours = family_colours([bar.family for bar in bars])
    upwards = Scale(0, max(bar.value for bar in bars) or 1, TOP + _HEIGHT, TOP)
    column = (WIDTH - LEFT - RIGHT) / len(bars)
    width = min(column * 0.8, _WIDEST)
    parts = levels(upwards, LEFT, WIDTH - RIGHT, unit)
    shown = [shortened(bar.name, _LONGEST) for bar in bars]
    slanted = max(map(len, shown)) * _LETTER > column
    for number, (bar, name) in enumerate(zip(bars, shown, strict=True)):
        middle = LEFT + (number + 0.5) * column
        area = box(middle - width / 2, upwards(bar.value), middle + width / 2, upwards(0))
        colour = colours.get(bar.family, NO_FAMILY)
        parts.append(f'<rect class="dot" {area} fill="{colour}"><title>{escape(bar.title)}</title></rect>')
        y = upwards(0) + 14
        turn = f' text-anchor="end" transform="rotate(-60 {middle + 3:.1f} {y:.1f})"'
        place = f'x="{middle + 3 * slanted:.1f}" y="{y:.1f}"' + (turn if slanted else ' text-anchor="middle"')
        parts.append(f"<text {place}>{escape(name)}</text>")
    below = TOP + _HEIGHT + (max(map(len, shown)) * _LETTER * 0.87 + 20 if slanted else 28)
    names, lines = legend(colours, below)
    return document(title, below + lines, [*parts, *names])
