"""`mnet report`: write the page, and say on a few lines what it shows."""

from collections.abc import Sequence
from pathlib import Path

from mnet.commands.console import progress, write_text
from mnet.errors import MnetError
from mnet.pipeline import Options, prepare
from mnet.report import Report, html, measure


def report(
    model: Path,
    options: Options,
    out: Path,
    inputs: int,
    emulated: int,
    seed: int,
    wait_states: int,
    clocks: Sequence[int],
    allow_missing: bool,
) -> int:
    """Verify and profile a model, write the page, and return the exit code.

    Raises:
        MnetError: the model is not read or planned, or `out` cannot be written: then nothing is.
    """
    if out.suffix not in (".html", ".htm"):  # -o model.tflite must not overwrite a model
        raise MnetError(f"{out}: the page's name must end in .html.")
    prepared = prepare(model, options)
    with progress() as report_leg:
        found = measure(prepared, inputs, emulated, seed, wait_states, clocks, report_leg)
    write_text(out, html(found))
    for line in summary(found):
        print(line)
    print(f"{out}: open it in a browser; it needs no network.")
    return 0 if allow_missing and found.exit_code == 3 else found.exit_code


def summary(found: Report) -> list[str]:
    """Return the headline figures, and what could not be run."""
    plan, profile = found.prepared.plan, found.profile
    lines = [f"{found.prepared.path.name} for {plan.target.name}: arena {plan.arena_bytes:,} B"]
    if profile:
        lines[0] += f", flash {profile.flash_bytes:,} B, {profile.cycles:,} cycles (modelled)"
    else:
        lines.append(f"not profiled: {found.not_profiled}")
    for leg in found.proof.legs:
        if leg.reason:
            lines.append(f"{leg.name}, {leg.status}: {leg.reason}")
    values, differing = (sum(getattr(leg, what) for leg in found.proof.legs) for what in ("values", "differing"))
    return [*lines, f"{values:,} values compared, {differing:,} differ"]
