"""What commands share: options, and how a user writes their values.

Nothing heavy is imported before a command runs.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def byte_count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return a number of bytes: 12288 or 12k (1 k = 1,024 B)."""
    if value is None:
        return None
    text = value.lower().removesuffix("b")
    unit = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdecimal() or not int(digits):
        raise click.BadParameter(f"{value} is no number of bytes: write 12288 or 12k (1 k = 1,024 B)")
    return int(digits) * unit


def count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return a number: 1500000, 500k or 1.5M (1 k = 1,000)."""
    if value is None:
        return None
    unit = {"k": 1_000, "m": 1_000_000}.get(value[-1:].lower(), 1)
    try:
        number = round(float(value[:-1] if unit > 1 else value) * unit)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise click.BadParameter(f"{value} is no number: write 1500000, 500k or 1.5M (1 k = 1,000)")
    return number


def height_width(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return height and width: 32, or 48x64."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise click.BadParameter(f"{value} is no size: write 32, or 48x64 for height x width")
    return int(sides[0]), int(sides[-1])


def count_or_all(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """Return a number of images, or None for "all"."""
    if value == "all":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value} is no number of images: write 200, or all")
    return int(value)


def json_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the name of a JSON file, or "-" for stdout; `--json model.tflite` must not overwrite a model."""
    if value is not None and value != "-" and not value.endswith(".json"):
        raise click.BadParameter(f"{value}: the file's name must end in .json (or write --json last, for stdout)")
    return value


def model_path(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    """Return the file of a model: a path, or zoo:NAME."""
    from mnet.zoo import tflite_path

    return tflite_path(value)


json_option = click.option(
    "--json", "json_file", callback=json_name, is_flag=False, flag_value="-", metavar="[FILE.json]",
    help="Print JSON instead of tables; with a name, write it to that file.",
)  # fmt: skip
model_argument = click.argument("model", callback=model_path, metavar="MODEL.tflite|zoo:NAME")
layer_option = click.option("--layer", metavar="L", help="Only this layer or tensor.")
simplify_option = click.option(
    "--no-simplify", "simplify", is_flag=True, flag_value=False, default=True,
    help="Plan the graph as it stands in the file.",
)  # fmt: skip
input_option = click.option(
    "--input", "input_mode", default="const", show_default=True, metavar="const|arena|rows",
    help="Where the image is: read-only memory, the arena, or pushed row by row.",
)  # fmt: skip
oracle_option = click.option(
    "--oracle", default="litert", show_default=True, metavar="litert|tflm",
    help="Whose rounding: the runtime that the bits must equal.",
)  # fmt: skip
target_option = click.option(
    "--target", default="cortex-m", show_default=True, metavar="T",
    help="cortex-m (any core), cortex-m0, -m0plus, -m3, -m4, -m7, -m33, -m55, -m85, or host.",
)  # fmt: skip


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of generated code; the command gets them as one `options`, a `mnet.pipeline.Options`."""

    @functools.wraps(command)
    def wrapped(
        target: str,
        name: str | None,
        oracle: str,
        input_mode: str,
        optimize: str,
        ram: int | None,
        simplify: bool,
        **rest: Any,
    ) -> Any:
        from mnet.pipeline import Options

        return command(options=Options(target, oracle, input_mode, name, simplify, ram, optimize), **rest)

    for option in (
        simplify_option,
        click.option("--ram", callback=byte_count, metavar="BYTES", help="What the arena may take: 12288, 12k."),
        click.option("--optimize", default="balanced", show_default=True, metavar="GOAL",
                     help="balanced, cycles (whatever the memory), ram, or size (flash)."),
        input_option,
        oracle_option,
        click.option("--name", help="Of the C functions and files; by default the model's file name."),
        target_option,
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a network may take; the command gets a `mnet.budget.Budget`, or None without a limit."""

    @functools.wraps(command)
    def wrapped(
        ram: int | None, flash: int | None, cycles: int | None, target: str, input_mode: str, **rest: Any
    ) -> Any:
        from mnet.budget import Budget

        budget = Budget(ram, flash, cycles, target, input_mode)
        return command(budget=budget if budget.limits else None, **rest)

    for option in (
        input_option,
        click.option("--target", default="cortex-m4", show_default=True, metavar="T",
                     help="The core whose cycles, flash and arena a budget limits; as for codegen."),
        click.option("--cycles", callback=count, metavar="N", help="Budget: of one inference; 4M, 500k."),
        click.option("--flash", callback=byte_count, metavar="BYTES", help="Budget: code and constants; 128k."),
        click.option("--ram", callback=byte_count, metavar="BYTES",
                     help="Budget: the arena, as for codegen; the largest network that fits is chosen."),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped
