"""`mnet search`, and what `mnet train` does with a budget: the largest network that fits, and why that one."""

from dataclasses import asdict, replace
from typing import Any

from mnet.architecture import Head, Shape
from mnet.budget import Budget
from mnet.commands.console import Column, print_json, print_table, progress
from mnet.errors import MnetError
from mnet.search import MARGIN, Pick, Picture, Planned, pick
from mnet.sources import load
from mnet.training_task import TrainingOptions


def within(options: TrainingOptions, budget: Budget) -> TrainingOptions:
    """Return the options with the shape and the size that a budget allows.

    Raises:
        MnetError: nothing fits, or options that choose widths in another way.
    """
    if options.source is not None:
        raise MnetError(f"--from {options.source} fixes the network, and a budget chooses one; give one of them.")
    if options.alpha is not None or options.stem_stride is not None:
        raise MnetError("a budget chooses widths and strides: leave out --alpha and --stem-stride, or give --blocks.")
    dataset = load(options.data, size=options.size, channels=options.channels)
    picture = Picture(*dataset.image_shape, len(dataset.class_names), options.head)
    with progress() as report:
        chosen = pick(picture, budget, options.shape, smaller=options.size is None, report=report).chosen
    a = chosen.candidate.architecture
    return replace(options, shape=chosen.candidate.shape, size=(a.height, a.width), fit=chosen.fit)


def search(
    budget: Budget | None,
    shape: Shape | None,
    head: Head,
    json_file: str | None,
    *,
    data: str | None,
    size: tuple[int, int] | None,
    channels: int | None,
    classes: int,
) -> None:
    """Print what was planned, the pick, and how to train it.

    Raises:
        MnetError: no limit is given, or nothing fits.
    """
    if budget is None:
        raise MnetError("a search needs a limit: at least one of --ram, --flash and --cycles.")
    if data is not None:
        dataset = load(data, size=size, channels=channels)
        picture = Picture(*dataset.image_shape, len(dataset.class_names), head)
    else:
        picture = Picture(*(size or (32, 32)), channels or 3, classes, head)
    with progress() as report:
        found = pick(picture, budget, shape, smaller=size is None, report=report)
    if json_file:
        print_json(_as_json(budget, found), json_file)
    if json_file != "-":
        _print(budget, found, data)


def _print(budget: Budget, found: Pick, data: str | None) -> None:
    columns = (Column("shape of"), Column("widths, s2: stride"), Column("size"))
    numbers = [Column(name, True) for name in ("multiply-adds", "arena B", "stack B", "flash B", "cycles")]
    print_table((*columns, *numbers, Column("")), [_row(one) for one in found.planned], f"within {budget}\n")
    chosen, fit = found.chosen.candidate, found.chosen.fit
    binding = budget.binding(fit.needs)
    share = budget.load(fit.needs)
    print(f"\n{chosen.multiply_adds:,} multiply-adds, the most of {found.considered} networks that fit:")
    print(f"  {chosen}; --{binding} binds, {share:.1%} of it is taken")
    print(f"flash and cycles are estimates and {MARGIN - 1:.0%}, which compiled code keeps (mnet profile counts)")
    print(f"next: mnet train --data {data or 'D'} {chosen} {budget} --out run")
    print(f"then: mnet codegen run.tflite {fit.codegen_options} -o run-c")


def _row(one: Planned) -> list[object]:
    chosen, needs = one.candidate, one.fit.needs
    size = f"{chosen.architecture.height}x{chosen.architecture.width}"
    costs = needs.arena_bytes, needs.stack_bytes, needs.flash_bytes, needs.cycles
    over = ", ".join(f"--{name}" for name in one.fit.budget.exceeded(needs))
    why = "fits" if one.fit.kept else f"over {over}"
    return [chosen.profile, str(chosen.shape), size, chosen.multiply_adds, *costs, why]


def _as_json(budget: Budget, found: Pick) -> dict[str, Any]:
    def plain(one: Planned) -> dict[str, Any]:
        a = one.candidate.architecture
        return {
            "profile": one.candidate.profile,
            "blocks": str(one.candidate.shape),
            "size": [a.height, a.width],
            "multiply_adds": one.candidate.multiply_adds,
            **asdict(one.fit.needs),
            "codegen": one.fit.codegen_options,
            "fits": one.fit.kept,
        }

    return {
        "budget": asdict(budget),
        "pick": plain(found.chosen) | {"binding": budget.binding(found.chosen.fit.needs)},
        "planned": [plain(one) for one in found.planned],
        "considered": found.considered,
    }
