"""What a row of the table of kernels says, and what a kernel asks of its tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from codegen.call import Call, Cost
from codegen.layout import BYTES8, WIDE8, WIDE16, Layout
from codegen.targets import Target, Timing
from mnet.graph import ArgMax, Binary, Conv2D, DepthwiseConv2D, Graph, L2Normalization, Op, Reduce, Softmax, Unary

Padding = tuple[int, int, int, int]  # top, bottom, left, right
NO_PADDING: Padding = (0, 0, 0, 0)
ANY = frozenset({"wide16", "wide8", "bytes8", "planar16"})  # what plain C reads and writes


@dataclass(frozen=True)
class Needs:
    """What a kernel asks of the storage of its inputs."""

    layout: Layout
    padding: Padding = NO_PADDING  # that must be present in memory
    slack_bytes: int = 0
    whole: bool = False  # reads the whole tensor in one call


@dataclass(frozen=True)
class Kernel:
    """One row of the table."""

    family: str
    template: str  # of templates/kernels
    accepts: Callable[[Op, Graph, Target], str | None]  # None, or why not
    reads: frozenset[str]  # names of layouts
    writes: frozenset[str]
    needs: Callable[[Op, Graph, Target], Needs]
    view: Callable[[Call], Any]
    pack: Callable[[Call, Any, int], tuple[int, ...]]
    only_whole: bool = False  # makes all rows in one call
    consumes_rows: bool = False  # one call per input row; the output is complete after the last
    ring_of_window: bool = False  # one pointer: the input is a ring of exactly the window's height, or stored whole
    pointers: Callable[[Call], int] = lambda call: 1  # row pointers for each input
    can_be_whole: Callable[[Op, Graph], bool] = lambda op, graph: False  # can make all rows in one call
    makes: Callable[[Call], bool] = lambda call: True  # with these rows a call
    cost: Callable[[Call, Any], Cost] | None = None  # on a Cortex-M4; kernels of several cores have `timed` instead
    timed: Callable[[Call, Any, Timing], Cost] | None = None  # by what instructions take on a core
    stack: Callable[[Call, Any], int] = lambda call, view: 40  # bytes that a call takes
    one_copy: bool = False  # of the constants, for all phases of a ring: phase p begins at word p
    # Where calls read other rows than a window that slides by the stride: the rows of input `which` that call `number`
    # gets pointers to, none of them padding; of all inputs together as many at every call.
    rows_read: Callable[[Call, int, int], Sequence[int]] | None = None
    phase: Callable[[Call, int], int] = lambda call, number: 0  # which constants call `number` gets

    def price(self, call: Call, view: Any, timing: Timing) -> Cost | None:
        """Return what one call takes on a core; None where there is no formula."""
        if self.timed:
            return self.timed(call, view, timing)
        return self.cost(call, view) if self.cost else None

    def pointers_of_all(self, call: Call) -> int:
        """Return the row pointers of one call, to all inputs."""
        if self.rows_read:
            return sum(len(self.rows_read(call, which, 0)) for which in range(len(call.inputs)))
        return max(self.pointers(call), len(call.inputs))

    def window(self, call: Call, which: int, number: int) -> tuple[int, int]:
        """Return the first and last row of input `which` that call `number` reads; rows outside are padding.

        Where it reads none of them, (0, -1).
        """
        op, source = call.op, call.inputs[which]
        if self.consumes_rows:
            return number, number
        if self.rows_read:
            rows = self.rows_read(call, which, number)
            return min(rows, default=0), max(rows, default=-1)
        first_out, last_out = number * call.rows, number * call.rows + call.rows - 1
        match op:
            case Conv2D() | DepthwiseConv2D():
                height = op.weights.shape[1] if isinstance(op, Conv2D) else op.weights.shape[0]
                first = first_out * op.stride[0] - op.padding[0]
                last = last_out * op.stride[0] - op.padding[0] + (height - 1) * op.dilation[0]
                if call.rows == call.output.height and call.rows > 1:  # a whole layer knows its edges
                    return max(first, 0), min(last, source.height - 1)
                return first, last
            case Binary():
                return (first_out, last_out) if source.height == call.output.height else (0, 0)
            case Softmax() | L2Normalization() | Reduce() | ArgMax() | Unary():
                return first_out, last_out
            case _:
                return 0, source.height - 1


def wide(target: Target) -> Layout:
    """Return the interleaved layout of a target: int8 for vectors, 16 bits where SMLAD reads pairs, bytes elsewhere."""
    if target.mve:
        return BYTES8
    return WIDE16 if target.dsp else WIDE8


def only(*kinds: type) -> Callable[[Op, Graph, Target], str | None]:
    """Return what accepts ops of some classes, and nothing else."""

    def accepts(op: Op, graph: Graph, target: Target) -> str | None:
        return None if isinstance(op, kinds) else f"not {' or '.join(kind.__name__ for kind in kinds)}"

    return accepts


def padding_of(op: Op) -> Padding:
    """Return the padding that an op wants to find in memory."""
    return op.padding if isinstance(op, Conv2D | DepthwiseConv2D) else NO_PADDING


def wide_rows(op: Op, graph: Graph, target: Target) -> Needs:
    """Return interleaved rows, padding included."""
    return Needs(wide(target), padding_of(op))


def wide_whole(op: Op, graph: Graph, target: Target) -> Needs:
    """Return the whole tensor, interleaved."""
    return Needs(wide(target), whole=True)
