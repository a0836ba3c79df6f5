"""The front of a network as SVG: cycles against arena above, flash against arena below; each plan has its number."""

import math
from collections.abc import Callable, Sequence

from codegen.front import BALANCED, Point
from mnet.svg import BOTTOM, LEFT, PALETTE, RIGHT, TOP, WIDTH, Scale, document, escape, levels

_CYCLES, _FLASH = 260, 170  # heights of the plots
_GAP = 46
_INDENT = LEFT + 24  # numbers of seven digits
_NUMBER = 24  # half of what a number takes
_MARGIN = 0.06  # of the plot, around the points


def notes_of(points: Sequence[Point]) -> tuple[tuple[str, ...], ...]:
    """Return for each point what it is best at, and whether it is the default."""
    best = {
        "least arena": min(points, key=lambda point: point.costs),
        "least with stack": min(points, key=lambda point: (point.ram_bytes, point.costs)),
        "least cycles": min(points, key=lambda point: (point.cycles, point.costs)),
        "least flash": min(points, key=lambda point: (point.flash_bytes, point.costs)),
        "default": next((point for point in points if point.optimize == BALANCED and point.ram is None), None),
    }
    return tuple(tuple(note for note, owner in best.items() if owner is point) for point in points)


def stairs(points: Sequence[Point], value: Callable[[Point], int]) -> list[Point]:
    """Return the points that no other is better than in arena and `value`, the smallest arena first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.arena_bytes, value(point))):
        if not kept or value(point) < value(kept[-1]):
            kept.append(point)
    return kept


def front_svg(points: Sequence[Point], title: str) -> str:
    """Return both plots; hovering over a point tells how to get it.

    Args:
        points: at least one; their numbers are those of the table.
        title: which model, for which core.
    """
    least, most = (math.log2(pick(point.arena_bytes for point in points)) for pick in (min, max))
    wide = max(most - least, 0.1) * _MARGIN
    across = Scale(least - wide, most + wide, _INDENT, WIDTH - RIGHT)
    below = TOP + _CYCLES + _GAP
    parts = [f'<text x="{WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{escape(title)}</text>']
    parts += _panel(points, lambda point: point.cycles, "cycles", across, (TOP, TOP + _CYCLES), PALETTE[0])
    parts += _panel(points, lambda point: point.flash_bytes, "flash B", across, (below, below + _FLASH), PALETTE[1])
    parts += _arenas(across, below + _FLASH)
    return document(f"What RAM costs: {title}", below + _FLASH + BOTTOM, parts)


def _panel(
    points: Sequence[Point],
    value: Callable[[Point], int],
    unit: str,
    across: Scale,
    edges: tuple[float, float],
    fill: str,
) -> list[str]:
    """Return one plot: grid, a line that says what a budget gets at best, a numbered dot for each point."""
    values = [value(point) for point in points]
    room = max(max(values) - min(values), 1) * 2 * _MARGIN
    upwards = Scale(min(values) - room, max(values) + room, edges[1], edges[0])
    parts = [*levels(upwards, across.start, across.end, unit)]
    best = stairs(points, value)
    path, height = "", 0.0
    for point in best:
        x, y = across(math.log2(point.arena_bytes)), upwards(value(point))
        path += f"M{x:.1f} {y:.1f}" if not path else f"L{x:.1f} {height:.1f}L{x:.1f} {y:.1f}"
        height = y
    parts.append(f'<path class="line" d="{path}L{across.end:.1f} {height:.1f}"/>')
    notes = notes_of(points)
    for number, point in enumerate(points):
        x, y = across(math.log2(point.arena_bytes)), upwards(value(point))
        words = f"{number + 1}: {point.options}: arena {point.arena_bytes:,} B, stack {point.stack_bytes:,} B, "
        words += f"{point.cycles:,} cycles, flash {point.flash_bytes:,} B"
        label = f"{number + 1} {', '.join(notes[number])}".rstrip()
        opacity = 1 if point in best else 0.35
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" fill-opacity="{opacity}">'
            f"<title>{escape(words)}</title></circle>"
        )
        beside = f'x="{x + 8:.1f}" y="{y - 5:.1f}"'
        if x > across.end - 8 * len(label):  # below the line, which comes from the left
            beside = f'x="{x - 8:.1f}" y="{y + 13:.1f}" text-anchor="end"'
        parts.append(f'<text class="name" {beside}>{escape(label)}</text>')
    return parts


def _arenas(across: Scale, y: float) -> list[str]:
    """Return the numbers of the arena's axis: ratios are distances."""
    parts = []
    for power in range(math.floor(across.low), math.ceil(across.high)):
        for eighths in (8, 10, 12, 14):
            size = 2**power * eighths // 8
            x = across(math.log2(max(size, 1)))
            if across.start <= x <= across.end - _NUMBER:
                parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
                parts.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{size:,}</text>')
    middle = (across.start + across.end) / 2
    return [
        *parts,
        f'<text x="{middle:.1f}" y="{y + 30}" text-anchor="middle">arena, bytes (and stack beside it)</text>',
    ]
