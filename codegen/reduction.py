"""Kernels that make one value of many: averages over whole channels, MEAN, SUM, REDUCE_MAX and REDUCE_MIN; softmax.

What is reduced over rows takes two stages, so that it can consume rows as they come: the first adds a row to sums of 32
bits (or keeps the largest value), the second makes the output of them. All else is done row by row.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from codegen import row_sum
from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, Needs, only, wide, wide_rows
from codegen.layout import INDICES32, SUMS32, WIDE16
from codegen.plain import Access, access, as_word, no_constants
from codegen.plain_cost import softmax_cost
from codegen.targets import Target
from mnet.fixed_point import exp_on_negative_values, saturating_rounding_doubling_high_multiply
from mnet.graph import ArgMax, AveragePool2D, Graph, L2Normalization, Op, Reduce, Reduction, Softmax
from mnet.reductions import SoftmaxArithmetic, SumArithmetic

_ROWS, _COLUMNS, _CHANNELS = 0, 1, 2
_KIND = {Reduction.MEAN: "sum", Reduction.SUM: "sum", Reduction.MAX: "max", Reduction.MIN: "min"}


def is_global(op: AveragePool2D | Reduce, graph: Graph) -> bool:
    """Return whether `op` averages or adds up whole channels."""
    if isinstance(op, Reduce):
        return op.axes == (_ROWS, _COLUMNS) and _KIND[op.function] == "sum"
    height, width, _ = graph.tensors[op.input].shape
    return op.kernel == (height, width) and op.padding == (0, 0, 0, 0)


def stages(op: Op, graph: Graph, target: Target) -> tuple[Kernel, Kernel] | None:
    """Return the kernels of the two stages of an op that consumes rows as they come, or None if `op` does not."""
    if not isinstance(op, AveragePool2D | Reduce):
        return None
    if is_global(op, graph):
        return ROW_SUM_DSP if wide(target) is WIDE16 else ROW_SUM, REDUCED
    if isinstance(op, Reduce) and _ROWS in op.axes and graph.tensors[op.input].shape[0] > 1:
        return ACCUMULATE, REDUCED
    return None


@dataclass(frozen=True)
class Result:
    """How an accumulated value becomes the output: a sum, or the largest or smallest value, of stored values."""

    form: str  # divided: sum / count; scaled: by a multiplier; same: no scale; mirrored: of 127 - quantized
    addend: int  # makes a sum of quantized values, less their zero_points where it is scaled, of the accumulated value
    count: int
    multiplier: int
    shift: int
    rounding: str
    zero_point: int
    low: int
    high: int


def _result(call: Call, offset: int) -> Result:
    """Return how what was accumulated of `quantized - offset` becomes the output."""
    op, how = call.op, call.arithmetic
    if isinstance(op, AveragePool2D):
        return Result("divided", call.pooled * offset, call.pooled, 0, 0, "", 0, *op.activation)
    if isinstance(how, SumArithmetic):
        addend = how.count * (offset - how.input_zero_point)
        rounding = how.rounding.name.lower()
        return Result("scaled", addend, how.count, how.multiplier, how.shift, rounding, how.zero_point, -128, 127)
    return Result("same", offset, 1, 0, 0, "", 0, -128, 127)


@dataclass(frozen=True)
class AccumulateView:
    """Add one row to sums, or keep the largest value: of quantized + 128, or of 127 - quantized for the smallest."""

    source: Access
    sums: Access
    kind: str  # sum, max, min
    over_columns: bool
    over_channels: bool


def accumulate_view(call: Call) -> AccumulateView:
    """Return the view of the first stage of a Reduce over rows."""
    op = call.op
    assert isinstance(op, Reduce)
    source, sums = access(call.inputs[0]), access(call.output)
    return AccumulateView(source, sums, _KIND[op.function], _COLUMNS in op.axes, _CHANNELS in op.axes)


def accumulate_cost(view: AccumulateView) -> Cost:
    """Return what compiled C takes, roughly."""
    values = view.source.width * view.source.channels
    each = {"sum": 9, "max": 11, "min": 12}[view.kind] - 2 * view.over_channels
    return Cost(20 + 10 * view.source.width + each * values, 55)


@dataclass(frozen=True)
class ReducedView:
    """From the sums, or the largest values, to the output."""

    target: Access
    result: Result


def reduced_view(call: Call) -> ReducedView:
    """Return the view of the second stage of what consumes rows."""
    result = _result(call, -128)
    if isinstance(call.op, Reduce) and _KIND[call.op.function] == "min":
        result = replace(result, form="mirrored")
    return ReducedView(access(call.output), result)


def _result_cycles(result: Result) -> int:
    """Return the cycles from an accumulated value to the stored one, roughly."""
    return {"divided": 12, "scaled": 24}.get(result.form, 2)


def reduced_cost(view: ReducedView) -> Cost:
    """Return what compiled C takes, roughly."""
    cycles = _result_cycles(view.result)
    return Cost(20 + view.target.width * view.target.channels * (6 + cycles), 30 + 3 * cycles)


@dataclass(frozen=True)
class Run:
    """Values at equal distances, one behind the other."""

    count: int
    step: int  # elements

    @property
    def unrolled(self) -> int:
        """Return how many a round of the loop takes."""
        return 4 if self.count % 4 == 0 else 1


@dataclass(frozen=True)
class ReduceView:
    """Reduce one row over its columns, its channels or both."""

    source: Access
    target: Access
    kind: str  # sum, max, min
    outer: Run  # what is reduced: runs of runs
    inner: Run
    pixel: int  # elements from one output pixel's values to the next one's
    channel: int
    result: Result


def reduce_view(call: Call) -> ReduceView:
    """Return the view of a Reduce of single rows."""
    op, source = call.op, access(call.inputs[0])
    assert isinstance(op, Reduce)
    columns = Run(source.width, source.pixel) if _COLUMNS in op.axes else Run(1, 0)
    channels = Run(source.channels, source.channel) if _CHANNELS in op.axes else Run(1, 0)
    outer, inner = columns, channels
    if channels.count == 1:
        outer, inner = channels, columns
    elif columns.count > 1 and columns.step == channels.count * channels.step:
        outer, inner = Run(1, 0), Run(columns.count * channels.count, channels.step)
    return ReduceView(
        source=source,
        target=access(call.output),
        kind=_KIND[op.function],
        outer=outer,
        inner=inner,
        pixel=0 if _COLUMNS in op.axes else source.pixel,
        channel=0 if _CHANNELS in op.axes else source.channel,
        result=_result(call, source.offset),
    )


def reduce_cost(view: ReduceView) -> Cost:
    """Return what compiled C takes, roughly."""
    outputs, count = view.target.width * view.target.channels, view.outer.count * view.inner.count
    kind, loop, after = "sum" if view.kind == "sum" else "max", 0.0, _result_cycles(view.result)
    if count > 1:
        each = {("sum", 1): 7, ("sum", 4): 3.5, ("max", 1): 9, ("max", 4): 5.5}[kind, view.inner.unrolled]
        loop = 7 + each * count
    cycles = 25 + 8 * view.target.width + outputs * (5 + after + loop)
    return Cost(round(cycles), 40 + 14 * view.inner.unrolled + 3 * after)


@dataclass(frozen=True)
class ArgMaxView:
    """The index of the largest channel of each pixel of a row."""

    source: Access
    target: Access


def arg_max_view(call: Call) -> ArgMaxView:
    """Return the view of an ArgMax."""
    assert isinstance(call.op, ArgMax)
    return ArgMaxView(access(call.inputs[0]), access(call.output))


def arg_max_cost(view: ArgMaxView) -> Cost:
    """Return what compiled C takes, roughly."""
    return Cost(20 + view.source.width * (15 + 8 * view.source.channels), 70)


@dataclass(frozen=True)
class L2View:
    """The channels of each pixel of a row divided by their length."""

    source: Access
    target: Access
    zero: int  # stored value that stands for 0


def l2_view(call: Call) -> L2View:
    """Return the view of an L2Normalization."""
    source = access(call.inputs[0])
    return L2View(source, access(call.output), call.inputs[0].tensor.zero_point - source.offset)


def l2_cost(view: L2View) -> Cost:
    """Return what compiled C takes, roughly."""
    return Cost(20 + view.source.width * (330 + 38 * view.source.channels), 420)


@dataclass(frozen=True)
class SoftmaxView:
    """Softmax over the channels of each pixel of a row."""

    source: Access
    target: Access
    accumulation_bits: int


def softmax_view(call: Call) -> SoftmaxView:
    """Return the view of a Softmax."""
    assert isinstance(call.op, Softmax)
    return SoftmaxView(access(call.inputs[0]), access(call.output), 12)


def softmax_pack(call: Call, view: SoftmaxView, phase: int) -> tuple[int, ...]:
    """Return exp(-d * scale * beta) as Q0.31 for every difference d = 0..255 from the largest input."""
    how = call.arithmetic
    assert isinstance(how, SoftmaxArithmetic)
    difference = -np.arange(256, dtype=np.int64)
    scaled = saturating_rounding_doubling_high_multiply(
        np.maximum(difference, how.difference_min) << how.left_shift, how.multiplier
    )
    exponentials = np.where(difference >= how.difference_min, exp_on_negative_values(scaled), 0)
    return tuple(as_word(int(value)) for value in exponentials)


def _reduces(op: Op, graph: Graph, target: Target) -> str | None:
    return None if isinstance(op, AveragePool2D | Reduce) and stages(op, graph, target) else "does not consume rows"


_first = partial(
    Kernel,
    accepts=_reduces,
    reads=ANY,
    writes=frozenset({SUMS32.name}),
    needs=wide_rows,
    pack=no_constants,
    consumes_rows=True,
)
ROW_SUM = _first(
    family="row_sum",
    template="row_sum.c.j2",
    view=row_sum.row_sum_view,
    timed=lambda call, view, timing: row_sum.row_sum_cost(view, timing),
)
ROW_SUM_DSP = replace(ROW_SUM, view=partial(row_sum.row_sum_view, dsp=True))
ACCUMULATE = _first(
    family="accumulate",
    template="accumulate.c.j2",
    view=accumulate_view,
    cost=lambda call, view: accumulate_cost(view),
)
REDUCED = Kernel(
    family="reduced",
    template="reduced.c.j2",
    accepts=_reduces,
    reads=frozenset({SUMS32.name}),
    writes=ANY,
    needs=lambda op, graph, target: Needs(SUMS32, whole=True),
    view=reduced_view,
    pack=no_constants,
    cost=lambda call, view: reduced_cost(view),
)
KERNELS = (
    Kernel(
        family="reduce",
        template="reduce.c.j2",
        accepts=only(Reduce),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=reduce_view,
        pack=no_constants,
        cost=lambda call, view: reduce_cost(view),
    ),
    Kernel(
        family="arg_max",
        template="arg_max.c.j2",
        accepts=only(ArgMax),
        reads=ANY,
        writes=frozenset({INDICES32.name}),
        needs=wide_rows,
        view=arg_max_view,
        pack=no_constants,
        cost=lambda call, view: arg_max_cost(view),
    ),
    Kernel(
        family="l2_normalization",
        template="l2_normalization.c.j2",
        accepts=only(L2Normalization),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=l2_view,
        pack=no_constants,
        cost=lambda call, view: l2_cost(view),
    ),
    Kernel(
        family="softmax",
        template="softmax.c.j2",
        accepts=only(Softmax),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=softmax_view,
        pack=softmax_pack,
        timed=lambda call, view, timing: softmax_cost(view.source, timing),
    ),
)
