"""Add a trained and quantized model to the zoo, or measure those in it again.

    python -m mnet.zoo.make add RUN MODEL.tflite NAME
    python -m mnet.zoo.make measure [NAME ...]

Everything that the zoo says of a model comes from here: figures.json, the card, the table in README.md. It needs the
data set that the model was trained on, and arm-none-eabi-gcc.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from mnet.commands.console import write_text
from mnet.errors import MnetError
from mnet.evaluation import evaluate_float, evaluate_int8
from mnet.graph import weights_of
from mnet.pipeline import Options, prepare
from mnet.profile import profile_model
from mnet.resources import shared_folder
from mnet.runs import CARD_FILE, CURVE_FILE, HISTORY_FILE, MODEL_FILE, RUN_FILE, model_card, read_run
from mnet.sources import load
from mnet.tflite import read_model
from mnet.zoo import FIGURES_FILE, Entry, OnBoard, Right, entry, entry_of, names
from mnet.zoo.table import board_rows, index, markdown, zoo_rows

_FOLDER = Path(__file__).resolve().parent
_SMALLEST = Options("cortex-m0plus", input_mode="rows", optimize="ram")
_TABLE_BEGINS, _TABLE_ENDS = "<!-- zoo: written by python -m mnet.zoo.make -->", "<!-- end -->"
_STARTS = {HISTORY_FILE: "start-history.csv", CURVE_FILE: "start-curve.svg"}  # of the run that a run went on from
_ORIGINALS = "cifar10-original-test1017.npz"


@click.group()
def main() -> None:
    """Fill the zoo."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("name")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="The run that RUN went on from, if any.")
@click.option("--quantized-by", help="The command that made MODEL, if it was not plain `mnet quantize`.")
@click.option("--ram", type=int, help="Bytes of the arena of the plan that the table shows.")
@click.option("--optimize", default="balanced", show_default=True, help="Of the same.")
def add(
    run: Path, model: Path, name: str, start: Path | None, quantized_by: str | None, ram: int | None, optimize: str
) -> None:
    """Copy a run and its int8 model into the zoo, and measure them."""
    folder = _FOLDER / name
    folder.mkdir(exist_ok=True)
    for file in (MODEL_FILE, RUN_FILE, HISTORY_FILE, CURVE_FILE):
        shutil.copyfile(run / file, folder / file)
    if start is not None:
        for file, renamed in _STARTS.items():
            shutil.copyfile(start / file, folder / renamed)
    shutil.copyfile(model, folder / f"{name}.tflite")
    pushed = Options("cortex-m4", input_mode="rows", ram=ram, optimize=optimize)
    _measure(name, quantized_by or f"mnet quantize {run.name} -o {name}.tflite", pushed)
    _write_index()


@main.command()
@click.argument("models", nargs=-1)
def measure(models: tuple[str, ...]) -> None:
    """Measure models of the zoo again, by default all."""
    for name in models or names():
        old = entry(name)
        pushed = old.pushed
        options = Options(pushed.target, input_mode=pushed.input_mode, ram=pushed.ram, optimize=pushed.optimize)
        _measure(name, old.quantized_by, options)
    _write_index()


def _measure(name: str, quantized_by: str, pushed: Options) -> None:
    folder = _FOLDER / name
    run, tflite = read_run(folder), folder / f"{name}.tflite"
    options, net = run["options"], run["architecture"]
    size, channels = (net["height"], net["width"]), net["channels"]
    data = load(options["data"], size=size, channels=channels)
    if data.description != run["data"]["description"]:
        raise MnetError(f"{name} was trained on {run['data']['description']}, and this is {data.description}.")
    shared = shared_folder()
    originals = None
    if shared and run["data"]["description"] == "CIFAR-10 (JPEG)":
        with np.load(shared / "data" / _ORIGINALS) as file:
            originals = _right(folder, tflite, file["x"], file["y"].astype(np.int64))
    found = Entry(
        name=name,
        data=data.description,
        licence=data.licence,
        input_shape=(*size, channels),
        classes=tuple(data.class_names),
        multiply_adds=run["multiply_adds"],
        weights=sum(map(weights_of, read_model(tflite).ops)),
        test=_right(folder, tflite, data.x_test, data.y_test),
        originals=originals,
        boards=tuple(_on_board(tflite, options) for options in (Options("cortex-m4"), pushed, _SMALLEST)),
        trained_by=run["command"],
        quantized_by=quantized_by,
        sha256=hashlib.sha256(tflite.read_bytes()).hexdigest(),
    )
    write_text(folder / FIGURES_FILE, json.dumps(asdict(found), indent=1) + "\n")
    write_text(folder / CARD_FILE, _card(run, entry_of(asdict(found))))
    click.echo(f"{name}: {found.test.float_accuracy:.2%} float, {found.test.int8_accuracy:.2%} int8")


def _right(folder: Path, tflite: Path, x: Any, y: Any) -> Right:
    return Right(len(x), evaluate_float(folder, x, y).correct, evaluate_int8(tflite, x, y).correct)


def _on_board(tflite: Path, options: Options) -> OnBoard:
    profile = profile_model(prepare(tflite, options))
    return OnBoard(
        target=options.target,
        input_mode=options.input_mode,
        optimize=options.optimize,
        ram=options.ram,
        instructions=profile.instructions,
        cycles=profile.cycles,
        flash_bytes=profile.flash_bytes,
        arena_bytes=profile.arena_bytes,
        worst_stack_bytes=profile.worst_stack_bytes,
        compiler=profile.compiler,
    )


def _card(run: dict[str, Any], found: Entry) -> str:
    test, originals = found.test, found.originals
    start = found.folder / _STARTS[CURVE_FILE]
    lines = [
        model_card(run).rstrip(),
        *(["", "The training that it started from:", "", f"![before]({start.name})"] if start.is_file() else []),
        "",
        "## As int8",
        f"`{found.name}.tflite` was made with `{found.quantized_by}` (sha256 {found.sha256}).",
        "",
        "| test images | float | int8, LiteRT's reference kernels |",
        "|---|---|---|",
        f"| {test.images:,} of {found.data} | {test.float_accuracy:.2%} | {test.int8_accuracy:.2%} |",
    ]
    if originals:
        share = f"{originals.float_accuracy:.2%} | {originals.int8_accuracy:.2%}"
        lines.append(f"| the first {originals.images:,} test images with their original pixels | {share} |")
    lines += ["", "## On a board", *markdown(*board_rows(found)), "", f"Compiler: {found.boards[0].compiler}."]
    lines += ["Weights and code: the licence of mnet (Apache-2.0)."]
    return "\n".join(lines) + "\n"


def _write_index() -> None:
    """Write README.md of the zoo, and its table into README.md of the project."""
    entries = tuple(entry(name) for name in names())
    write_text(_FOLDER / "README.md", index(entries))
    front = _FOLDER.parent.parent / "README.md"
    before, _, rest = front.read_text().partition(_TABLE_BEGINS)
    _, _, after = rest.partition(_TABLE_ENDS)
    table = "\n".join(markdown(*zoo_rows(entries)))
    write_text(front, f"{before}{_TABLE_BEGINS}\n{table}\n{_TABLE_ENDS}{after}")


if __name__ == "__main__":
    main()
