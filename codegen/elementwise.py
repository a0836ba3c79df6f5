"""Kernels of operators that work value by value: views, constants, what they cost."""

from dataclasses import dataclass

import numpy as np

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, only, wide_rows
from codegen.plain import Access, access, int8_words
from mnet.graph import Unary

_GROUP = 4  # values that are loaded before the first is stored


@dataclass(frozen=True)
class LookupView:
    """A result for each of the 256 values: a table of bytes."""

    source: Access
    target: Access

    @property
    def flat(self) -> bool:
        """Return whether the values of a row follow each other in both tensors."""
        return all(a.channel == 1 and a.pixel == a.channels for a in (self.source, self.target))

    @property
    def runs(self) -> int:
        """Return how many runs of values a row has: its pixels, or one."""
        return 1 if self.flat else self.target.width

    @property
    def values(self) -> int:
        """Return the values of a run."""
        return self.target.channels * (self.target.width if self.flat else 1)

    @property
    def quantized(self) -> bool:
        """Return whether the table holds quantized values, as int8; else they are quantized + 128, as uint8."""
        return self.target.c_type == "int8_t"


def lookup_view(call: Call) -> LookupView:
    """Return the view of a Unary."""
    return LookupView(access(call.inputs[0]), access(call.output))


def lookup_pack(call: Call, view: LookupView, phase: int) -> tuple[int, ...]:
    """Return the table: the result of quantized -128, ..., 127, four to a word."""
    table = call.arithmetic
    assert isinstance(table, np.ndarray)
    return tuple(int8_words(table if view.quantized else table ^ -128))


def lookup_cost(view: LookupView) -> Cost:
    """Return what one call takes, roughly: measured on what gcc 12 makes."""
    groups, rest = divmod(view.values, _GROUP)
    loops = groups > 1
    group = (20 if view.target.c_type != "int16_t" else 23) if loops else 18
    between = (9 if loops else 3) if view.runs > 1 else 0
    cycles = 10 + view.runs * (group * groups + 5 * rest + between)
    return Cost(cycles, 36 + 36 * (groups > 0) + 8 * rest + 24 * (loops and view.runs > 1))


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        family="lookup",
        template="lookup.c.j2",
        accepts=only(Unary),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=lookup_view,
        pack=lookup_pack,
        cost=lambda call, view: lookup_cost(view),
    ),
)
