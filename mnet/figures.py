"""The figures of two profiles side by side: what changed, and whether it grew by more than it may."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet.errors import MnetError

TOTALS = ("cycles", "instructions", "flash_bytes", "arena_bytes", "stack_bytes")
LIMITS = {"cycles": 0.01, "instructions": 0.01, "flash_bytes": 0.02, "arena_bytes": 0.02}  # a figure may grow by
_SAME = ("model_hash", "target", "compiler", "flags")  # without which two figures say nothing about each other
_CHOICES = ("oracle", "input_mode", "simplify", "optimize")


@dataclass(frozen=True)
class Change:
    """One figure, before and now; None where it is not known or the layer is not there."""

    layer: str  # "" for the whole model
    what: str
    old: int | None
    new: int | None

    @property
    def growth(self) -> float | None:
        """Return how much larger the new figure is, as a share of the old one; None where that is no number."""
        return self.new / self.old - 1 if self.old and self.new is not None else None

    @property
    def percent(self) -> str:
        """Return the growth for a table: "+1.23 %", or "" where nothing changed or a figure is missing."""
        return "" if self.growth is None or self.new == self.old else f"{100 * self.growth:+.2f} %"


@dataclass(frozen=True)
class Comparison:
    """All changes between two profiles of one model for one target by one compiler."""

    totals: tuple[Change, ...]
    layers: tuple[Change, ...]  # of cycles
    choices: tuple[str, ...]  # options that differ, as "input_mode const -> rows"

    @property
    def slower(self) -> str:
        """Return a sentence where the model takes more than 1 % more cycles (instructions without them), or ""."""
        known = {change.what: change for change in self.totals if change.growth is not None}
        change = known.get("cycles") or known.get("instructions")
        return over_limit([change] if change else [])


def over_limit(changes: Iterable[Change]) -> str:
    """Return a sentence on each figure that grew by more than it may, or ""."""
    sentences = []
    for change in changes:
        growth, limit = change.growth, LIMITS.get(change.what)
        if growth is not None and limit is not None and growth > limit:
            sentences.append(
                f"{change.what.replace('_', ' ')} grew by {100 * growth:.2f} %, from {change.old:,} to {change.new:,}; "
                f"the limit is {100 * limit:g} %."
            )
    return " ".join(sentences)


def summary(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return the totals of a profile, and what they are of: what tests/figures keeps."""
    return {what: profile[what] for what in ("model", *_SAME, *_CHOICES, *TOTALS)}


def read_profile(path: Path) -> dict[str, Any]:
    """Return what `mnet profile --json` wrote.

    Raises:
        MnetError: the file cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise MnetError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        found = None
    layers = found.get("layers") if isinstance(found, dict) else None
    needed = {*TOTALS, *_SAME, *_CHOICES, "model"}
    if (
        not isinstance(found, dict)
        or not needed <= set(found)
        or not all(found[what] is None or isinstance(found[what], int) for what in TOTALS)
        or not isinstance(layers, list)
        or not all(isinstance(row, dict) and isinstance(row.get("cycles"), int) and "name" in row for row in layers)
    ):
        raise MnetError(f"{path} is no profile of this version: make one with mnet profile MODEL --json {path.name}.")
    return found


def _said(profile: Mapping[str, Any], what: str) -> str:
    """Return a figure with its name: "target cortex-m4"."""
    if what == "model_hash":
        return f"model {profile['model']} (hash {profile[what]})"
    return f"{what} {' '.join(profile[what]) if what == 'flags' else profile[what]}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Comparison:
    """Compare two profiles, as `ModelProfile.as_json` gives them.

    Args:
        old: as `read_profile` returned it.
        new: of the same model.
        where: the old one's file, for messages.

    Raises:
        MnetError: they are of different models, targets or compilers.
    """
    for what in _SAME:
        there, here = _said(old, what), _said(new, what)
        if there != here:
            raise MnetError(
                f"{where} is not to be compared with this profile: {there} there, {here} here. "
                "Make a new one with mnet profile --json."
            )
    cycles = [{row["name"]: row["cycles"] for row in profile["layers"]} for profile in (old, new)]
    names = dict.fromkeys([*cycles[1], *cycles[0]])
    return Comparison(
        totals=tuple(Change("", what, old[what], new[what]) for what in TOTALS),
        layers=tuple(Change(name, "cycles", cycles[0].get(name), cycles[1].get(name)) for name in names),
        choices=tuple(f"{what} {old[what]} -> {new[what]}" for what in _CHOICES if old[what] != new[what]),
    )
