"""What a board leaves for a network: bytes of RAM and flash, cycles; as a user writes it, and as a run records it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Needs:
    """What a plan takes: the arena as placed, the stack at most, the rest estimated."""

    arena_bytes: int
    stack_bytes: int  # beside the arena; no budget counts it
    flash_bytes: int  # code and constants
    cycles: int  # of one inference

    @property
    def limited(self) -> Mapping[str, int]:
        """Return what a budget may limit, by the names of its options."""
        return MappingProxyType({"ram": self.arena_bytes, "flash": self.flash_bytes, "cycles": self.cycles})


@dataclass(frozen=True)
class Budget:
    """The most that a network may take; None sets no limit."""

    ram: int | None = None  # bytes of the arena, as for `mnet codegen`
    flash: int | None = None  # bytes of code and constants
    cycles: int | None = None  # of one inference
    target: str = "cortex-m4"
    input_mode: str = "const"  # where the image is, as for `mnet codegen`

    @property
    def limits(self) -> dict[str, int]:
        """Return the limits that are set."""
        values = {"ram": self.ram, "flash": self.flash, "cycles": self.cycles}
        return {name: value for name, value in values.items() if value is not None}

    def load(self, needs: Needs) -> float:
        """Return the largest share of a limit that is needed: at most 1 fits; 0 without limits."""
        return max((needs.limited[name] / limit for name, limit in self.limits.items()), default=0.0)

    def exceeded(self, needs: Needs) -> tuple[str, ...]:
        """Return the limits that are not kept."""
        return tuple(name for name, limit in self.limits.items() if needs.limited[name] > limit)

    def __str__(self) -> str:
        """Return it as on the command line.

        >>> str(Budget(ram=16384, cycles=4_000_000))
        '--ram 16384 --cycles 4000000 --target cortex-m4'
        """
        words = [f"--{name} {value}" for name, value in self.limits.items()]
        words.append(f"--target {self.target}")
        return " ".join(words + [f"--input {self.input_mode}"] * (self.input_mode != "const"))


@dataclass(frozen=True)
class Fit:
    """A network beside a budget, as planned with random weights."""

    budget: Budget
    needs: Needs
    options: str  # of `mnet codegen`, beside target and input, to get that plan

    @property
    def kept(self) -> bool:
        """Return whether the budget is kept."""
        return not self.budget.exceeded(self.needs)

    @property
    def codegen_options(self) -> str:
        """Return the options of `mnet codegen`, target and input included."""
        words = [f"--target {self.budget.target}"]
        words += [f"--input {self.budget.input_mode}"] * (self.budget.input_mode != "const")
        return " ".join([*words, self.options]).rstrip()

    def __str__(self) -> str:
        """Return what is needed of what there is."""
        needs, limits = self.needs, self.budget.limits

        def of(name: str) -> str:
            return f" of {limits[name]:,}" if name in limits else ""

        return (
            f"arena {needs.arena_bytes:,}{of('ram')} B, flash {needs.flash_bytes:,}{of('flash')} B, "
            f"{needs.cycles:,}{of('cycles')} cycles, stack {needs.stack_bytes:,} B beside"
        )
