"""`mnet search`, and what `mnet train` does with a budget: the largest network that fits, and why that one."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from mnet.architecture import Head, Shape
from mnet.budget import Budget
from mnet.commands.console import Column, print_json, print_table, progress
from mnet.cost import cost
from mnet.errors import MnetError
from mnet.pruning import narrower, nested_shapes
from mnet.search import MARGIN, Groups, Pick, Picture, Planned, candidate, families, pick
from mnet.sources import load
from mnet.training_task import TrainingOptions
from mnet.transfer import find_source


def within(options: TrainingOptions, budget: Budget) -> TrainingOptions:
    """Return the options with the shape and the size that a budget allows; with --from, of its narrower forms.

    Raises:
        MnetError: nothing fits, or options that choose widths in another way.
    """
    if options.alpha is not None or options.stem_stride is not None:
        raise MnetError("a budget chooses widths and strides: leave out --alpha and --stem-stride, or give --blocks.")
    with progress() as report:
        chosen = pick(_choices(options), budget, report).chosen
    a = chosen.candidate.architecture
    size = (a.height, a.width) if options.source is None else None
    return replace(options, shape=chosen.candidate.shape, size=size, fit=chosen.fit)


def _choices(options: TrainingOptions) -> Iterable[Groups]:
    dataset = load(options.data, size=options.size, channels=options.channels)
    classes = len(dataset.class_names)
    if options.source is None:
        picture = Picture(*dataset.image_shape, classes, options.head)
        return families(picture, options.shape, smaller=options.size is None)
    source = find_source(options.source)
    a = source.architecture
    picture = Picture(a.height, a.width, a.channels, classes, a.head if options.head is Head.SOFTMAX else options.head)
    shapes = (options.shape,) if options.shape else nested_shapes(source.weights(), a)
    return ({"pruned": tuple(candidate("pruned", shape, picture) for shape in shapes)},)


def pruned(options: TrainingOptions, keep: float) -> TrainingOptions:
    """Return the options with the widest narrower form of --from that has at most a share of its multiply-adds.

    Raises:
        MnetError: no network to prune, or a share that leaves nothing.
    """
    if options.source is None or options.shape is not None:
        raise MnetError("--prune takes channels from a trained network: give it with --from, and no --blocks.")
    if not 0 < keep <= 1:
        raise MnetError(f"--prune {keep:g} is no share of multiply-adds to keep: more than 0, at most 1.")
    source = find_source(options.source)
    most = keep * cost(source.architecture).multiply_adds
    shapes = nested_shapes(source.weights(), source.architecture)
    sizes = [cost(narrower(source.architecture, shape, source.name)).multiply_adds for shape in shapes]
    if sizes[0] > most:
        raise MnetError(
            f"--prune {keep:g} leaves too little of {source.name}: its narrowest form, {shapes[0]}, has "
            f"{sizes[0]:,} multiply-adds, {keep:.0%} are {most:,.0f}."
        )
    return replace(options, shape=[shape for shape, size in zip(shapes, sizes, strict=True) if size <= most][-1])


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
        found = pick(families(picture, shape, smaller=size is None), budget, report)
    if json_file:
        print_json(_as_json(budget, found), json_file)
    if json_file != "-":
        _print(budget, found, data)


def _print(budget: Budget, found: Pick, data: str | None) -> None:
    columns = (Column("shape of"), Column("widths, s2: stride"), Column("size"))
    numbers = [Column(name, True) for name in ("multiply-adds", "arena B", "stack B", "flash B", "cycles")]
    print_table((*columns, *numbers, Column("")), [_row(one) for one in found.planned], f"within {budget}\n")
    chosen, fit = found.chosen.candidate, found.chosen.fit
    print(f"\n{chosen.multiply_adds:,} multiply-adds, the most found to fit, of {found.considered} considered:")
    print(f"  {chosen}: {fit}")
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
        "pick": plain(found.chosen),
        "planned": [plain(one) for one in found.planned],
        "considered": found.considered,
    }
