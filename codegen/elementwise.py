"""Kernels of operators that work value by value: views, constants, what they cost."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from codegen.call import Call, Cost
from codegen.kernel import ANY, Kernel, only, wide_rows
from codegen.layout import BYTES8
from codegen.plain import Access, access, as_word, int8_words
from codegen.requantize import Form, RequantizationView, requantizer
from codegen.targets import Target
from mnet.graph import Binary, BinaryFunction, Constant, Graph, Op, Unary
from mnet.oracle import Requantization, Rounding
from mnet.pairs import BinaryArithmetic, binary, is_table, terms

_GROUP = 4  # as templates/kernels/runs.j2 has it


@dataclass(frozen=True)
class Runs:
    """How a kernel goes through a row: in runs of values that lie at one distance from each other, in each tensor."""

    count: int
    values: int  # of a run
    steps: tuple[tuple[int, int], ...]  # in each tensor: elements from value to value, and from run to run

    @property
    def groups(self) -> int:
        """Return the groups of a run: values whose operands are loaded before the first result is stored."""
        return self.values // _GROUP

    @property
    def rest(self) -> int:
        """Return the values of a run behind its groups."""
        return self.values % _GROUP

    @property
    def within(self) -> tuple[int, ...]:
        """Return by how many elements each pointer moves on from group to group."""
        return tuple(_GROUP * value for value, _ in self.steps)

    @property
    def between(self) -> tuple[int, ...]:
        """Return by how many elements each pointer moves on from the end of a run to the next one."""
        moved = _GROUP * self.groups if self.groups > 1 else 0
        return tuple(run - moved * value for value, run in self.steps)


def runs_of(width: int, channels: int, accesses: Sequence[Access]) -> Runs:
    """Return as few runs as there can be for a row of some tensors."""
    steps = [(a.channel, a.pixel) for a in accesses]
    if channels == 1:
        return Runs(1, width, tuple((pixel, 0) for _, pixel in steps))
    if width == 1 or all(pixel == channels * channel for channel, pixel in steps):
        return Runs(1, width * channels, tuple((channel, 0) for channel, _ in steps))
    return Runs(width, channels, tuple(steps))


@dataclass(frozen=True)
class LookupView:
    """A result for each of the 256 values: a table of bytes."""

    source: Access
    target: Access
    runs: Runs

    @property
    def quantized(self) -> bool:
        """Return whether the table holds quantized values, as int8; else they are quantized + 128, as uint8."""
        return self.target.c_type == "int8_t"


def lookup_view(call: Call) -> LookupView:
    """Return the view of a Unary, or of a Binary with one number."""
    source, target = access(call.inputs[0]), access(call.output)
    return LookupView(source, target, runs_of(target.width, target.channels, (source, target)))


def lookup_pack(call: Call, view: LookupView, phase: int) -> tuple[int, ...]:
    """Return the table: the result of quantized -128, ..., 127, four to a word."""
    table = call.arithmetic
    assert isinstance(table, np.ndarray)
    return tuple(int8_words(table if view.quantized else table ^ -128))


def lookup_cost(view: LookupView) -> Cost:
    """Return what one call takes, roughly: measured on what gcc 12 makes."""
    groups, rest = view.runs.groups, view.runs.rest
    several, loops = view.runs.count > 1, groups > 1
    group = (20 if view.target.c_type != "int16_t" else 23) if loops else 18
    between = (9 if loops else 3) if several else 0
    cycles = 10 + view.runs.count * (group * groups + 5 * rest + between)
    return Cost(cycles, 36 + 36 * (groups > 0) + 8 * rest + 24 * (loops and several))


@dataclass(frozen=True)
class BinaryView:
    """A function of two values.

    form       value; the constants before those of an operand
    factors    ADD, SUB: stored = usat8(first * constants[0] + second * constants[1] + constants[2] >> shift)
    terms      ADD, SUB, SQUARED_DIFFERENCE: what the 256 values of each operand contribute; words of `whole`
    product    MUL, PRELU: words of `whole`, then of `alone`
    choice     MAXIMUM, MINIMUM: none
    """

    function: str
    first: Access
    second: Access
    target: Access
    runs: Runs
    form: str
    shift: int  # of the form factors
    whole: RequantizationView | None  # of the sum, difference, square or product
    alone: RequantizationView | None  # of the first operand of PRELU where it is not negative
    zero_points: tuple[int, int]  # of the operands
    low: int
    high: int
    words: int  # constants before those of an operand
    constant: int  # which operand is a constant: 0, 1, or -1 for none

    @property
    def clamps(self) -> bool:
        """Return whether quantized results are limited further than to int8."""
        return (self.low, self.high) != (-128, 127)

    @property
    def limits_q(self) -> bool:
        """Return whether what comes out of the forms of `whole` and `alone` may lie outside the activation."""
        return any(form is not None and (form.clamps or form.own_steps) for form in (self.whole, self.alone))

    @property
    def squares(self) -> bool:
        """Return whether differences are squared."""
        return self.function == BinaryFunction.SQUARED_DIFFERENCE.value

    @property
    def whole_words(self) -> int:
        """Return how many words `whole` has."""
        return 0 if self.whole is None else self.whole.words + (self.whole.form == "fast")


@dataclass(frozen=True)
class _Method:
    """How the results of a Binary are made, with its constants."""

    name: str
    words: tuple[int, ...]
    shift: int = 0
    whole: RequantizationView | None = None
    alone: RequantizationView | None = None


@lru_cache(maxsize=64)
def solve_factors(how: BinaryArithmetic) -> tuple[int, int, int, int] | None:
    """Return factors, addend and shift that give the runtime's sum or difference of every pair of int8 values, or None.

    usat8((q1 + 128) * factor_1 + (q2 + 128) * factor_2 + addend >> shift) is its stored value, up to a clamp to the
    activation. Two factors leave an interval of addends for each of the 65,536 pairs; they do if all intersect.
    """
    quantized = np.arange(-128, 128, dtype=np.int64).astype(np.int8)
    wanted = binary(quantized[:, None], quantized[None, :], how).astype(np.int64) + 128
    low, high = how.activation[0] + 128, how.activation[1] + 128
    output = how.output_multiplier * 2.0 ** (how.output_shift - 31)
    signs = (1, -1 if how.function is BinaryFunction.SUB else 1)
    slopes = [
        sign * multiplier * 2.0 ** (shift - 31 + how.left_shift) * output
        for sign, multiplier, shift in zip(signs, how.input_multipliers, how.input_shifts, strict=True)
    ]
    if not min(map(abs, slopes)) > 0:
        return None
    shift = min(30 - math.ceil(math.log2(255 * sum(map(abs, slopes)) + 256)), 22)
    x = np.arange(256, dtype=np.int64)
    for tilt, skew in itertools.product((0, 1, -1, 2, -2, 4, -4, 8, -8, 16, 32), (0, 1, -1, 2, -2)):
        first, second = (round(slope * 2**shift) + sign * tilt for slope, sign in zip(slopes, signs, strict=True))
        second += skew
        sums = first * x[:, None] + second * x[None, :]
        least = ((wanted << shift) - sums)[wanted > low].max(initial=-(1 << 30))
        most = (((wanted + 1) << shift) - 1 - sums)[wanted < high].min(initial=1 << 30)
        addend = int(least + most) // 2
        if least <= most and abs(addend) + int(np.abs(sums).max()) < 1 << 31:
            return first, second, addend, shift
    return None


def _clamp(how: BinaryArithmetic) -> tuple[int, int]:
    return how.activation[0] + 128, how.activation[1] + 128


def _own_steps(how: BinaryArithmetic, multiplier: int, shift: int) -> tuple[RequantizationView, tuple[int, ...]]:
    """Return the runtime's own steps, which take any accumulator that the runtime takes."""
    form: Form = "double" if how.rounding is Rounding.DOUBLE else "single"
    return RequantizationView(form, 0, how.zero_point + 128, *_clamp(how)), (multiplier, shift)


def _of_terms(how: BinaryArithmetic) -> tuple[RequantizationView, tuple[int, ...]]:
    right = -how.output_shift
    # |sum| <= 2 * (255 << 20) / 2 < 2**28 and addend < 2**(right + 8): up to a shift of 21 all stays within int32.
    summed = how.function is not BinaryFunction.SQUARED_DIFFERENCE
    if summed and how.rounding is Rounding.DOUBLE and 1 <= right <= 21:
        addend = (1 << (right - 1)) + ((how.zero_point + 128) << right)
        return RequantizationView("shifts", 0, 0, *_clamp(how)), (how.output_multiplier, addend, right)
    return _own_steps(how, how.output_multiplier, how.output_shift)


def _of_product(
    how: BinaryArithmetic, low: int, high: int, multiplier: int, shift: int
) -> tuple[RequantizationView, tuple[int, ...]]:
    """Return the cheapest exact form for accumulators of low..high."""
    steps = Requantization(
        multiplier=np.array([multiplier], np.int32),
        shift=np.array([shift], np.int32),
        scale=np.array([multiplier * 2.0 ** (shift - 31)]),
        rounding=how.rounding,
        zero_point=how.zero_point,
        activation=how.activation,
    )
    made = requantizer(steps, np.array([low], np.int64), np.array([high], np.int64))
    if made.constant[0]:  # its constants are for an accumulator of its own
        return _own_steps(how, multiplier, shift)
    delta = (int(made.delta[0]),) if made.view.form == "fast" else ()
    return made.view, (*delta, *(int(word) for word in made.words[0]))


def _method(how: BinaryArithmetic) -> _Method:
    """Return how the results are made; remembered, as kernels ask twice."""
    match how.function:
        case BinaryFunction.MAXIMUM | BinaryFunction.MINIMUM:
            return _Method("choice", ())
        case BinaryFunction.MUL:
            ends = [(-128 - zero_point, 127 - zero_point) for zero_point in how.input_zero_points]
            products = [x * y for x, y in itertools.product(*ends)]
            whole, words = _of_product(how, min(products), max(products), how.output_multiplier, how.output_shift)
            return _Method("product", words, whole=whole)
        case BinaryFunction.PRELU:
            x, y = ((-128 - zero_point, 127 - zero_point) for zero_point in how.input_zero_points)
            products = [min(x[0], 0) * end for end in y] + [0]
            whole, words = _of_product(how, min(products), max(products), how.output_multiplier, how.output_shift)
            identity = how.input_multipliers[0], how.input_shifts[0]
            alone, others = _of_product(how, 0, max(x[1], 1), *identity)
            return _Method("product", (*words, *others), whole=whole, alone=alone)
        case BinaryFunction.ADD | BinaryFunction.SUB if solve_factors(how) is not None:
            solved = solve_factors(how)
            assert solved is not None
            return _Method("factors", solved[:3], shift=solved[3])
        case _:
            whole, words = _of_terms(how)
            quantized = np.arange(-128, 128, dtype=np.int64)
            tables = [int(value) for which in (0, 1) for value in terms(how, which, quantized)]
            return _Method("terms", (*tables, *words), whole=whole)


def _operand(constant: Constant) -> Access:
    """Return how to reach a row of a constant: as it lies in the network, int8."""
    _, width, channels = constant.values.shape
    return Access(BYTES8.c_type, 0, channels, 1, 0, 0, width, 1, channels)


def _broadcast(operand: Access, target: Access) -> Access:
    """Return the operand, with one value for all pixels or channels where it has one of them."""
    pixel = 0 if operand.width < target.width else operand.pixel
    return replace(operand, pixel=pixel, channel=0 if operand.channels < target.channels else operand.channel)


def binary_view(call: Call) -> BinaryView:
    """Return the view of a Binary."""
    op, how = call.op, call.arithmetic
    assert isinstance(op, Binary) and isinstance(how, BinaryArithmetic)
    target, form = access(call.output), _method(how)
    sources = [access(source) for source in call.inputs]
    constant = sources[0] if op.constant is None else _operand(op.constant)
    first, second = (_broadcast(operand, target) for operand in op.operands(sources, constant))
    return BinaryView(
        function="ADD or SUB" if form.name == "factors" else op.function.value,  # these share functions
        first=first,
        second=second,
        target=target,
        runs=runs_of(target.width, target.channels, (first, second, target)),
        form=form.name,
        shift=form.shift,
        whole=form.whole,
        alone=form.alone,
        zero_points=how.input_zero_points,
        low=how.activation[0],
        high=how.activation[1],
        words=len(form.words),
        constant=-1 if op.constant is None else 1 - op.constant_first,
    )


def binary_pack(call: Call, view: BinaryView, phase: int) -> tuple[int, ...]:
    """Return the words of the form, then row `phase` of the operand that is a constant."""
    op, how = call.op, call.arithmetic
    assert isinstance(op, Binary) and isinstance(how, BinaryArithmetic)
    words = list(_method(how).words)
    if view.form == "factors":  # they are for quantized + 128; a stored value is quantized - offset
        words[2] += words[0] * (view.first.offset + 128) + words[1] * (view.second.offset + 128)
    row = [] if op.constant is None else int8_words(op.constant.values[phase].reshape(-1))
    return (*map(as_word, words), *row)


def _row_of_constant(call: Call, number: int) -> int:
    """Return which row of its constant a call takes."""
    assert isinstance(call.op, Binary)
    constant = call.op.constant
    return number if constant is not None and constant.values.shape[0] > 1 else 0


# Cycles and bytes of code: to load two values, bring them together and store the result; and of a requantization.
_OF_A_VALUE = {"factors": (10.5, 26), "choice": (10.5, 22), "product": (7, 18), "terms": (11, 34)}
_OF_STEPS = {"fast": (6, 18), "shifts": (7, 20), "double": (24, 64), "single": (24, 64), "real": (60, 80)}


def binary_cost(view: BinaryView) -> Cost:
    """Return what one call takes, roughly: measured on what gcc 12 makes."""
    cycles, code = map(float, _OF_A_VALUE[view.form])
    if view.whole is not None:
        more, longer = _OF_STEPS[view.whole.form]
        cycles, code = cycles + more, code + longer
    if view.alone is not None:
        more, longer = _OF_STEPS[view.alone.form]  # one of the two is taken, behind a branch
        cycles, code = cycles + max(4, more - 4), code + 1.5 * longer
    if view.clamps:
        cycles, code = cycles + 6.5, code + 14
    if view.form == "choice" and view.first.c_type == view.second.c_type == view.target.c_type == "uint8_t":
        cycles, code = cycles - 2, code - 9  # bytes stay bytes
    if view.form == "product":  # what is stored as its difference from the zero_point needs no subtraction
        cycles -= sum(a.offset == z for a, z in zip((view.first, view.second), view.zero_points, strict=True))
    if any(value == 0 for value, _ in view.runs.steps):
        cycles -= 1  # one operand is loaded once
    runs = view.runs
    between = (14 if runs.groups > 1 else 2) if runs.count > 1 else 0
    unrolled = _GROUP * (runs.groups > 0) + runs.rest
    return Cost(
        round(10 + runs.count * (cycles * runs.values + between)),
        round(50 + 24 * (runs.groups > 1 and runs.count > 1) + code * unrolled),
    )


def _accepts(*functions: BinaryFunction) -> Callable[[Op, Graph, Target], str | None]:
    def accepts(op: Op, graph: Graph, target: Target) -> str | None:
        if isinstance(op, Binary) and op.function in functions and not is_table(op):
            return None
        return f"not {' or '.join(function.value for function in functions)}"

    return accepts


def _lookup(op: Op, graph: Graph, target: Target) -> str | None:
    return None if isinstance(op, Binary) and is_table(op) else only(Unary)(op, graph, target)


_FAMILIES = {
    "add": (BinaryFunction.ADD, BinaryFunction.SUB),
    "multiply": (BinaryFunction.MUL,),
    "extremum": (BinaryFunction.MAXIMUM, BinaryFunction.MINIMUM),
    "squared_difference": (BinaryFunction.SQUARED_DIFFERENCE,),
    "prelu": (BinaryFunction.PRELU,),
}

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        family="lookup",
        template="lookup.c.j2",
        accepts=_lookup,
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=lookup_view,
        pack=lookup_pack,
        cost=lambda call, view: lookup_cost(view),
    ),
    *(
        Kernel(
            family=family,
            template="binary.c.j2",
            accepts=_accepts(*functions),
            reads=ANY,
            writes=ANY,
            needs=wide_rows,
            view=binary_view,
            pack=binary_pack,
            phase=_row_of_constant,
            cost=lambda call, view: binary_cost(view),
        )
        for family, functions in _FAMILIES.items()
    ),
)
