"""The history of a training as SVG: accuracy over epochs, of the images kept back and of those trained on."""

import math
from collections.abc import Callable, Sequence

from mnet.runs import EpochRow
from mnet.svg import BOTTOM, LEFT, PALETTE, RIGHT, TOP, WIDTH, Scale, axes, document, escape

_HEIGHT = 300  # of the plot
_GAP = 40

_LINES: tuple[tuple[str, Callable[[EpochRow], float]], ...] = (
    ("validation images", lambda row: row.validation_accuracy),
    ("training images, augmented, as they passed", lambda row: row.train_accuracy),
)


def curve_svg(history: Sequence[EpochRow], title: str) -> str:
    """Return the picture; hovering over a point tells its figures.

    Args:
        history: at least one epoch.
        title: which network.
    """
    values = [100 * pick(row) for row in history for _, pick in _LINES if math.isfinite(pick(row))]
    across = Scale(0, max(row.epoch for row in history), LEFT, WIDTH - RIGHT)
    upwards = Scale(max(0, min(values) - 2), min(100, max(values) + 2), TOP + _HEIGHT, TOP)
    parts = [f'<text x="{WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{escape(title)}</text>']
    parts += axes(across, upwards, "epoch", "accuracy, %")
    for number, (name, pick) in enumerate(_LINES):
        colour = PALETTE[4 + number]
        points = [(across(row.epoch), upwards(100 * pick(row)), row) for row in history if math.isfinite(pick(row))]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, row in points:
            words = f"epoch {row.epoch}, {name}: {pick(row):.2%}, loss {row.loss:.3f}, rate {row.learning_rate:.4g}"
            parts.append(
                f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"><title>{escape(words)}</title>'
                "</circle>"
            )
        x, y = LEFT + 24, TOP + _HEIGHT + BOTTOM + 16 * number
        parts.append(f'<rect class="box" x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{y}">{escape(name)}</text>')
    return document(f"Training of {title}", TOP + _HEIGHT + BOTTOM + _GAP, parts)
