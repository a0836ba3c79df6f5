"""`mnet trace`: two sides of a model layer by layer, where they part first, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet.commands.console import Column, print_json, print_table, write_bytes, write_text
from mnet.commands.verify import tensors_of
from mnet.divergence import Layer, as_json, explain, first_of, layers_of, places_of
from mnet.drawing import as_png, as_svg
from mnet.errors import MnetError
from mnet.graph import Graph
from mnet.heat_map import picture_of
from mnet.model_input import random_input, read_input
from mnet.pipeline import Options
from mnet.sides import SIDES, Side, make_side
from mnet.tflite import read_model

_PLACES = 20  # that --layer lists
_COLUMNS = (
    Column("layer"),
    Column("operator"),
    Column("shape", True),
    Column("differing", True),
    Column("share", True),
    Column("first at", True),
    Column("a", True),
    Column("b", True),
    Column("largest", True),
    Column("mean", True),
)


@dataclass(frozen=True, eq=False)
class _Trace:
    """What is printed."""

    model: str
    graph: Graph
    input: str  # in words
    a: Side
    b: Side
    layers: tuple[Layer, ...]  # all of them
    shown: tuple[Layer, ...]  # those that the user asked for

    @property
    def exit_code(self) -> int:
        """Return 0 if nothing that is shown differs, else 1."""
        return int(any(layer.differing for layer in self.shown))

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "model": self.model,
            "input": self.input,
            "a": {"name": self.a.name, "title": self.a.title},
            "b": {"name": self.b.name, "title": self.b.title},
            "layers": [as_json(layer) for layer in self.shown],
            "explanation": explain(self.graph, self.a, self.b, self.layers),
            "exit_code": self.exit_code,
        }


def trace(
    model: Path,
    between: tuple[str, str],
    options: Options,
    input_file: Path | None,
    seed: int | None,
    layer: str | None,
    json_file: str | None,
    picture: Path | None,
) -> int:
    """Let both sides make all tensors of one input, print where they differ, and return the exit code.

    Raises:
        MnetError: unknown words, a model or an input that is not read, a tool that is missing or fails.
    """
    _check(between, input_file, seed, picture)
    graph = read_model(model)
    only = tensors_of(graph, layer) if layer else None
    one = read_input(input_file, graph) if input_file else random_input(graph, seed or 0)
    a, b = (make_side(name, model, options, one) for name in between)
    layers = layers_of(graph, a, b)
    shown = tuple(entry for entry in layers if only is None or entry.tensor in only)
    words = str(input_file) if input_file else f"random, seed {seed or 0}"
    found = _Trace(model.name, graph, words, a, b, layers, shown)
    if picture is not None:
        drawn = picture_of(f"{model.name}: {a.title} against {b.title}", shown)
        if picture.suffix == ".svg":
            write_text(picture, as_svg(drawn))
        else:
            write_bytes(picture, as_png(drawn))
    if json_file:
        print_json(found.as_json(), json_file)
    if json_file != "-":
        _print(found, layer is not None)
    return found.exit_code


def _check(between: Sequence[str], input_file: Path | None, seed: int | None, picture: Path | None) -> None:
    """Raise the sentence for what can be known to be wrong before anything runs."""
    for name in between:
        if name not in SIDES:
            raise MnetError(f"--between {name}: there is no such side; the sides are {', '.join(SIDES)}.")
    if input_file is not None and seed is not None:
        raise MnetError("--input and --seed exclude each other: an input comes from a file or from a seed.")
    if picture is not None and picture.suffix not in (".svg", ".png"):  # --picture model.tflite must not overwrite it
        raise MnetError(f"{picture}: the picture's name must end in .svg or .png.")


def _print(found: _Trace, in_detail: bool) -> None:
    a, b = found.a, found.b
    title = f"{found.model}, input {found.input}\n  a: {a.name}, {a.title}\n  b: {b.name}, {b.title}\n"
    print_table(_COLUMNS, [_row(layer) for layer in found.shown], title)
    absent = [layer for layer in found.shown if layer.absent_channels]
    if absent:
        channels = sum(layer.absent_channels for layer in absent)
        print(f"\n{channels} channels of {len(absent)} layers are absent: C does not make what nobody reads.")
    if in_detail:
        for layer in found.shown:
            _print_places(layer, a, b)
    if found.exit_code == 0:
        print("\n" + _equal(found))
    if first_of(found.layers):
        print("\n" + explain(found.graph, a, b, found.layers))


def _equal(found: _Trace) -> str:
    folded = [layer.name for layer in found.shown if layer.folded]
    compared = sum(layer.compared for layer in found.shown)
    rest = f"; folded away, hence not compared: {', '.join(folded)}" if folded else ""
    return f"Equal in all {compared:,} values{rest}."


def _row(layer: Layer) -> tuple[object, ...]:
    """Return a layer as a row under _COLUMNS."""
    shape = "x".join(map(str, layer.shape))
    if layer.folded:
        return (layer.name, layer.operator, shape, "folded", *[""] * 6)
    if layer.first is None:
        return (layer.name, layer.operator, shape, 0, *[""] * 6)
    first = layer.first
    return (
        layer.name,
        layer.operator,
        shape,
        layer.differing,
        f"{layer.share:.2%}",
        f"{first.row},{first.column},{first.channel}",
        first.a,
        first.b,
        layer.largest,
        f"{layer.mean:.4f}",
    )


def _print_places(layer: Layer, a: Side, b: Side) -> None:
    places = places_of(layer, a, b, _PLACES)
    if not places:
        return
    print(f"\n{layer.name}, the first {len(places)} of {layer.differing:,} places:\n")
    columns = [Column(word, True) for word in ("row", "column", "channel", a.name, b.name)]
    print_table(columns, [(place.row, place.column, place.channel, place.a, place.b) for place in places])
