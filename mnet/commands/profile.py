"""`mnet profile`: exact instructions and modelled cycles, layer by layer; flash, arena and stack; what changed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mnet import ablation, figures
from mnet.commands.console import Column, print_json, print_table
from mnet.figures import Change, Comparison
from mnet.pipeline import Options, prepare
from mnet.profile import LayerProfile, ModelProfile, profile_model

__all__ = ["ModelProfile", "ablate", "profile", "profile_model"]


def profile(
    model: Path, options: Options, json_file: str | None, wait_states: int = 0, compare: Path | None = None
) -> int:
    """Profile one inference and print it; return the exit code: 1 where it is slower than the profile compared with."""
    old = figures.read_profile(compare) if compare else None
    found = profile_model(prepare(model, options), wait_states)
    comparison = figures.compare(old, found.as_json(), str(compare)) if old else None
    if json_file:
        print_json(found.as_json(), json_file)
    if json_file != "-":
        _print_layers(found)
        if comparison:
            _print_comparison(comparison, str(compare))
    if comparison and comparison.slower:
        print(f"Slower than {compare}: {comparison.slower}", file=sys.stderr)
        return 1
    return 0


def _print_layers(found: ModelProfile) -> None:
    waits = f"{found.wait_states} waits"
    slow = (Column(waits, True), Column(f"{waits}, uncached", True)) if found.wait_states else ()
    columns = (
        Column("layer"),
        Column("kernel"),
        *(Column(word, True) for word in ("calls", "MACs", "in file", "instructions", "cycles")),
        *slow,
        *(Column(word, True) for word in ("%", "cycles/MAC", "in file", "code B")),
        Column("shared with"),
        Column("constants B", True),
    )
    rows = [_row(layer, found) for layer in found.layers]
    total: list[object] = ["total", "", None, found.macs, found.file_macs, found.instructions, found.cycles]
    total += [found.flash_cycles, found.fetch_cycles] if slow else []
    total += ["100.0", found.cycles / max(found.macs, 1), found.cycles / max(found.file_macs, 1)]
    total += [found.code_bytes, "", found.constant_bytes]
    title = f"{found.model} for {found.target}, oracle {found.oracle}, one inference\n"
    print_table(columns, [*rows, ("",), total], title)
    print(f"\nflash {found.flash_bytes:,} B = code {found.code_bytes:,} + constants {found.constant_bytes:,}")
    painted = "" if found.stack_bytes is None else f" ({found.stack_bytes:,} B in this run)"
    print(f"RAM   arena {found.arena_bytes:,} B, stack at most {found.worst_stack_bytes:,} B{painted}")
    print(f"\n{found.compiler}, {' '.join(found.flags)}")
    print(f"instructions: exact, counted in {found.emulator}; cycles: modelled for zero wait states, {found.timing}")
    if found.wait_states:
        times, most = found.flash_cycles / found.cycles, found.fetch_cycles / found.cycles
        print(
            f"with {found.wait_states} wait states: {times:.2f} times that if loops fit the code cache (estimate),"
            f"\n{most:.2f} times if the flash has to deliver the code of loops over 1 KB (bound): mnet/docs/cycles.md"
        )


def _row(layer: LayerProfile, found: ModelProfile) -> Sequence[object]:
    row: list[object] = [layer.name, layer.kernel, layer.calls or None, layer.macs or None, layer.file_macs or None]
    row += [layer.instructions, layer.cycles]
    row += [layer.flash_cycles, layer.fetch_cycles] if found.wait_states else []
    row += [f"{100 * layer.cycles / found.cycles:.1f}", layer.cycles_per_mac, layer.cycles_per_file_mac]
    return [*row, layer.code_bytes or None, layer.shares_code_with, layer.constant_bytes or None]


def _print_comparison(comparison: Comparison, where: str) -> None:
    columns = (Column("layer"), Column("figure"), *(Column(word, True) for word in ("old", "new", "change")))

    def row(change: Change) -> tuple[object, ...]:
        return change.layer or "total", change.what.replace("_", " "), change.old, change.new, change.percent

    changed = [change for change in comparison.layers if change.old != change.new]
    rows = [row(change) for change in changed]
    same = len(comparison.layers) - len(changed)
    print()
    title = f"compared with {where}; {same} of {len(comparison.layers)} layers take the same cycles\n"
    print_table(columns, [*rows, *([("",)] if rows else []), *map(row, comparison.totals)], title)
    if comparison.choices:
        print(f"\nother options: {', '.join(comparison.choices)}")


def ablate(model: Path, options: Options, json_file: str | None) -> None:
    """Profile the model with one more idea at a time and print what each brings."""
    steps = ablation.ablate(model, options)
    if json_file:
        print_json([result.as_json() for result in steps], json_file)
        if json_file == "-":
            return
    columns = (Column("step"), *(Column(word, True) for word in ("cycles", "of the step before", "MACs", "cycles/MAC")))
    columns += (Column("flash B", True), Column("arena B", True))
    rows, before = [], 0
    for result in steps:
        found = result.profile
        share = f"{100 * found.cycles / before:.0f} %" if before else ""
        per_mac = found.cycles / max(found.macs, 1)
        rows.append((result.step, found.cycles, share, found.macs, per_mac, found.flash_bytes, found.arena_bytes))
        before = found.cycles
    found = steps[-1].profile
    print_table(columns, rows, f"{found.model} for {found.target}, oracle {found.oracle}, what each step brings\n")
    print(f"\n{found.compiler}, {' '.join(found.flags)}; cycles: modelled for zero wait states")
