"""`mnet plan`: what a RAM budget costs, as a table, JSON and a picture; and the bound that no plan gets below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.assemble import assemble
from codegen.certificate import Certificate, certificate
from codegen.front import Point
from codegen.planner import Request
from mnet.commands.console import Column, print_json, print_table, progress, write_text
from mnet.errors import MnetError
from mnet.front_picture import front_svg, notes_of
from mnet.pipeline import Options, requested
from mnet.plan_cache import cached_front


@dataclass(frozen=True, eq=False)
class _Front:
    """What is printed."""

    model: str
    request: Request
    points: Sequence[Point]
    certificate: Certificate  # of the plan of the smallest arena

    def as_json(self) -> dict[str, Any]:
        """Return the front as plain values."""
        notes = notes_of(self.points)
        return {
            "model": self.model,
            "target": self.request.target.name,
            "oracle": self.request.oracle.name,
            "input_mode": self.request.input_mode,
            "arena_bound_bytes": self.certificate.value_bound_bytes,
            "points": [
                {
                    "arena_bytes": point.arena_bytes,
                    "stack_bytes": point.stack_bytes,
                    "cycles": point.cycles,
                    "flash_bytes": point.flash_bytes,
                    "optimize": point.optimize,
                    "ram": point.ram,
                    "options": point.options,
                    "notes": list(notes[number]),
                }
                for number, point in enumerate(self.points)
            ],
        }


def plan(model: Path, options: Options, json_file: str | None, svg: Path | None) -> None:
    """Print the front of a model.

    Raises:
        MnetError: the model is not read or planned, or a file cannot be written.
    """
    if svg is not None and svg.suffix != ".svg":  # --svg model.tflite must not overwrite a model
        raise MnetError(f"{svg}: the picture's name must end in .svg.")
    _, request = requested(model, options)
    with progress() as report:
        points = cached_front(request, report)
    least = points[0]
    arguments = request.graph, request.target, request.oracle, request.input_mode, least.optimize
    made = assemble(*arguments, least.decisions)
    found = _Front(model.name, request, points, certificate(made))
    if svg is not None:
        write_text(svg, front_svg(points, f"{model.name} for {request.target.name}"))
    if json_file:
        print_json(found.as_json(), json_file)
    if json_file != "-":
        _print(found)


def _print(found: _Front) -> None:
    request, points = found.request, found.points
    default = next(point for point in points if point.optimize == "balanced" and point.ram is None)
    columns = [Column("", True), *(Column(word, True) for word in ("arena B", "stack B", "cycles", "", "flash B", ""))]
    rows = [
        [
            number,
            point.arena_bytes,
            point.stack_bytes,
            point.cycles,
            _percent(point.cycles, default.cycles),
            point.flash_bytes,
            _percent(point.flash_bytes, default.flash_bytes),
            point.options,
            ", ".join(notes),
        ]
        for number, (point, notes) in enumerate(zip(points, notes_of(points), strict=True), 1)
    ]
    title = (
        f"{found.model} for {request.target.name}, oracle {request.oracle.name}, --input {request.input_mode}: "
        f"what RAM costs\n"
    )
    print_table([*columns, Column("to get it"), Column("")], rows, title)
    bound = found.certificate
    print(
        f"\nno plan of whole rows has an arena of less than {bound.value_bound_bytes:,} B; "
        f"{points[0].arena_bytes:,} B are {bound.value_percent:.1f} % more"
    )
    print("arena: rows and state; stack: a bound, beside the arena; cycles and flash: estimated (mnet profile counts)")


def _percent(value: int, default: int) -> str:
    """Return how a figure differs from the default's."""
    return "" if value == default else f"{100 * (value / default - 1):+.1f} %"
