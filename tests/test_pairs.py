"""Functions of two values: golden model against both runtimes on all pairs of int8, kernels against that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.dead_channels import drop_dead_channels, intervals
from codegen.elementwise import binary_cost, binary_pack, binary_view, solve_factors
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, tflm_worker
from mnet.graph import Binary, BinaryFunction, Constant, Graph, Int8Array, Tensor, UnaryFunction
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, TFLM
from mnet.pairs import BinaryArithmetic, binary, binary_arithmetic, reason_to_refuse
from mnet.tflite import parse_model
from mnet.tflm_runtime import arena_bytes
from tests.kernel_harness import (
    Case,
    filled,
    measured,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
    tensor,
)
from tests.models import Builder
from tests.strategies import random_input, small_graphs
from tests.test_tflite import changed, message
from tests.writer import edited, serialise

EVERY = np.arange(-128, 128).astype(np.int8)
ZERO_POINTS = st.one_of(st.sampled_from((-128, 0, 127)), st.integers(-128, 127))
EXPONENTS = st.floats(-10, 0, width=32)
RATIOS = st.one_of(st.sampled_from((1.0, 2.0, 0.5, 2 / 3, 4 / 3)), st.floats(-3, 10).map(lambda x: 2.0**x))


@st.composite
def all_pairs(draw: st.DrawFn) -> Graph:
    """Draw a network of one function: the 256 values of the input's columns, with those of a constant's channels."""
    function = draw(st.sampled_from(tuple(BinaryFunction)))
    first, second = (float(np.float32(2.0 ** draw(EXPONENTS))) for _ in range(2))
    if draw(st.booleans()):
        second = first
    natural = {
        BinaryFunction.MUL: first * second,
        BinaryFunction.PRELU: first * second,
        BinaryFunction.SQUARED_DIFFERENCE: max(first, second) ** 2,
    }.get(function, max(first, second))
    scale = float(np.float32(natural * draw(RATIOS)))
    zero_points = [draw(ZERO_POINTS) for _ in range(3)]
    constant = Constant(EVERY.reshape(1, 1, 256), second, zero_points[1])
    width = 256 if function is BinaryFunction.PRELU else 1
    tensors = {
        "input": Tensor("input", (1, 256, width), first, zero_points[0]),
        "out": Tensor("out", (1, 256, 256), scale, zero_points[2]),
    }
    swapped = function is not BinaryFunction.PRELU and draw(st.booleans())
    op = Binary("op", ("input",), "out", function, (-128, 127), constant, swapped)
    graph = Graph("net", tensors, (op,), ("input",), ("out",), "0" * 16)
    assume(reason_to_refuse(op, graph) is None)
    return graph


def columns(graph: Graph) -> Int8Array:
    return np.broadcast_to(EVERY.reshape(1, 1, 256, 1), (1, *graph.tensors["input"].shape)).copy()


@settings(max_examples=60, deadline=None)
@given(all_pairs())
def test_every_pair_of_values_equals_litert(graph: Graph) -> None:
    data, inputs = serialise(graph), {"input": columns(graph)}
    graph = parse_model(data, "drawn.tflite")
    found = run_litert(data, graph, inputs)["out"]
    assert np.array_equal(golden.run(graph, LITERT, inputs)["out"], found), graph


@settings(max_examples=60, deadline=None)
@given(all_pairs())
def test_every_pair_of_values_equals_tflm(graph: Graph) -> None:
    pytest.importorskip("tflite_micro")
    data, inputs = serialise(graph), {"input": columns(graph)}
    graph = parse_model(data, "drawn.tflite")
    index = graph.tensors["out"].index
    found = tflm_worker.run(data, [inputs["input"]], [index], arena_bytes(graph))[str(index)]
    assert np.array_equal(golden.run(graph, TFLM, inputs)["out"].ravel(), found.ravel()), graph


# --- reading ----------------------------------------------------------------------------------------------------------


def one_binary(function: BinaryFunction, shape: tuple[int, int, int] = (1, 1, 4)) -> Graph:
    build = Builder(0, (2, 3, 4), scale=0.1)
    return build.graph(build.binary(function, "input", build.constant(shape)))


def test_an_output_scale_that_is_too_fine_is_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[-1].quantization.scale = [1e-12]

    for function in (BinaryFunction.SUB, BinaryFunction.MUL, BinaryFunction.SQUARED_DIFFERENCE, BinaryFunction.PRELU):
        assert "too fine for input scales of 0.1" in changed(one_binary(function), change)


def test_operands_that_do_not_pair_are_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[1].shape = [2, 2]

    assert "operands must have equal sizes, or size 1" in changed(one_binary(BinaryFunction.ADD), change)


def test_a_batch_of_constants_is_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[1].shape = [2, 3, 1, 4]  # its rows would be the batch of the output

    assert "operands must have equal sizes" in changed(one_binary(BinaryFunction.ADD, (2, 3, 4)), change)


def test_two_constants_are_refused() -> None:
    def change(model: Any) -> None:
        operator = model.subgraphs[0].operators[0]
        operator.inputs = [operator.inputs[1]] * 2

    assert "takes two constants" in message(edited(serialise(one_binary(BinaryFunction.MUL)), change))


def test_a_constant_with_many_scales_is_refused() -> None:
    def change(model: Any) -> None:
        quantization = model.subgraphs[0].tensors[1].quantization
        quantization.scale, quantization.zeroPoint = [0.1] * 4, [0] * 4

    assert "has 4 scales; one is needed" in changed(one_binary(BinaryFunction.MUL), change)


def test_slopes_in_front_of_their_input_are_refused() -> None:
    def change(model: Any) -> None:
        operator = model.subgraphs[0].operators[0]
        operator.inputs = operator.inputs[::-1].copy()

    assert "slopes of a larger shape" in changed(one_binary(BinaryFunction.PRELU), change)


# --- analysis ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(small_graphs(kinds=("binary", "conv"), most_ops=3), st.integers(0, 100))
def test_every_value_lies_in_its_interval(graph: Graph, seed: int) -> None:
    known = intervals(graph, LITERT)
    for name, values in golden.run(graph, LITERT, random_input(graph, seed, 4)).items():
        assert (values.min(axis=(0, 1, 2)) >= known[name].low).all()
        assert (values.max(axis=(0, 1, 2)) <= known[name].high).all()


@settings(max_examples=60, deadline=None)
@given(small_graphs(kinds=("binary", "conv", "mean"), most_ops=4), st.integers(0, 100))
def test_dropping_dead_channels_changes_no_output(graph: Graph, seed: int) -> None:
    inputs = random_input(graph, seed, 2)
    smaller = drop_dead_channels(simplify(graph), LITERT)
    before, after = golden.run(graph, LITERT, inputs), golden.run(smaller, LITERT, inputs)
    for name in smaller.outputs:
        assert np.array_equal(after[name], before[name])


def squeeze_and_excitation(size: int = 12, channels: int = 16) -> Graph:
    build = Builder(0, (size, size, 3))
    x = build.conv("input", channels, (3, 3))
    y = build.mean(x)
    y = build.conv(y, 4)
    y = build.unary(build.conv(y, channels, activation="none", zero_point=5), UnaryFunction.LOGISTIC)
    return build.graph(build.conv(build.binary(BinaryFunction.MUL, x, y, zero_point=-128), 4))


def test_squeeze_and_excitation_keeps_its_tensor_once_and_its_vector_in_one_row() -> None:
    graph = squeeze_and_excitation()
    made = plan(graph, target("cortex-m4"), LITERT, "rows")
    multiply = next(op for op in made.ops if op.kernel.family == "multiply")
    tensor, vector = (made.storage[name] for name in multiply.call.op.inputs)  # type: ignore[union-attr]
    assert vector.slots == 1 and tensor.virtual_rows == 12
    calls = [op.kernel.family for op in made.ops]
    assert calls.count("multiply") == 1
    assert made.arena_bytes < 12 * 12 * 16 * 1.3  # the tensor in bytes, the output, and a few rows


# --- kernels ----------------------------------------------------------------------------------------------------------


def arithmetic(
    function: BinaryFunction, scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> BinaryArithmetic:
    tensors = {
        name: Tensor(name, (1, 1, 1), float(np.float32(scale)), zero_point)
        for name, scale, zero_point in zip("abc", scales, zero_points, strict=True)
    }
    op = Binary("op", ("a", "b"), "c", function, (-128, 127))
    return binary_arithmetic(op, Graph("net", tensors, (op,), ("a", "b"), ("c",), "0" * 16), LITERT)


def binary_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a row of a Binary whose inputs lie in one buffer, one behind the other."""
    function = choice.get("function") or tuple(BinaryFunction)[rng.integers(len(BinaryFunction))]
    a, b, c = rng.uniform(0.02, 0.1, 3)
    if function in (BinaryFunction.MUL, BinaryFunction.SQUARED_DIFFERENCE):
        c *= a * choice.get("spread", rng.uniform(1, 200))
    x, y, z = (int(z) for z in rng.integers(-128, 128, 3))
    how = arithmetic(function, (a, b, c), (x, y, z))
    if rng.random() < 0.3:
        how = replace(how, activation=tuple(int(end) for end in sorted(rng.choice(EVERY, 2, replace=False))))
    shape = choice.get("shape", (1, int(rng.integers(1, 9)), int(rng.integers(1, 13))))
    sizes = [tuple(size if rng.random() < 0.7 else 1 for size in shape) for _ in range(2)]
    sizes[int(rng.integers(2))] = shape
    sizes = choice.get("sizes", sizes)
    constant = choice.get("constant", int(rng.integers(-1, 2)))
    if function is BinaryFunction.PRELU:
        sizes[0], constant = shape, 1 if constant == 0 else constant
    layouts = choice.get("layouts") or [(WIDE16, WIDE8, BYTES8, PLANAR16)[i] for i in rng.integers(0, 4, 2)]
    goal: Layout = choice.get("target") or (WIDE16, WIDE8, BYTES8, PLANAR16)[rng.integers(4)]
    border = (0, 0, 0, 0) if goal.planar else (0, 0, int(rng.integers(2)), 1)
    values = [rng.integers(-128, 128, size).astype(np.int8) for size in sizes]
    operand = None if constant < 0 else Constant(values[constant], 0.1, how.input_zero_points[constant])
    kept = [which for which in (0, 1) if which != constant]
    sources = tuple(storage(tensor("ab"[w], sizes[w], how.input_zero_points[w]), layouts[w]) for w in kept)
    buffers = [filled(s, values[w], 0, 1, rng) for s, w in zip(sources, kept, strict=True)]
    op = Binary("op", tuple("ab"[w] for w in kept), "c", function, how.activation, operand, constant == 0)
    made = np.broadcast_shapes(*sizes)
    assert made == shape
    call = Call(op, sources, storage(tensor("c", shape, how.zero_point), goal, border), 1, None, how)
    view = binary_view(call)
    pointers = (0, len(buffers[0]))[: len(kept)]
    expected = binary(values[0], values[1], how)
    return Case(call, view, "binary", binary_pack(call, view, 0), b"".join(buffers), pointers, 0, expected)


@needs_gcc
@needs_arm
def test_functions_of_two_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cases = [binary_case(rng) for _ in range(120)]
    assert {"factors", "product", "terms", "choice"} <= {case.view.form for case in cases}  # type: ignore[attr-defined]
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_sums_without_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen.elementwise.solve_factors", lambda how: None)
    rng = np.random.default_rng(2)
    functions = (BinaryFunction.ADD, BinaryFunction.SUB)
    cases = [binary_case(rng, function=functions[i % 2]) for i in range(30)]
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path, "M0", ("-O2",))


@needs_arm
def test_the_cost_of_a_function_of_two_rows_is_what_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shapes = [(1, 1, 64), (1, 12, 8), (1, 48, 16), (1, 8, 5)]  # none twice for one function: gcc merges what is alike
    functions = (BinaryFunction.ADD, BinaryFunction.MUL, BinaryFunction.MAXIMUM)
    cases = [
        binary_case(
            rng,
            function=function,
            shape=shape,
            sizes=[shape, second],
            constant=-1,
            layouts=[a, a],
            target=b,
            spread=100,
        )
        for function in functions
        for shape, (a, b) in zip(
            shapes, ((WIDE16, WIDE16), (WIDE8, WIDE8), (WIDE8, WIDE16), (WIDE16, WIDE8)), strict=True
        )
        for second in (shape, (1, 1, shape[2]))[: 1 + (shape[1] > 1)]
    ]
    for case, cost in zip(cases, measured(cases, tmp_path), strict=True):
        found = binary_cost(case.view)  # type: ignore[arg-type]
        assert abs(found.cycles - cost.cycles) <= 0.25 * cost.cycles, (found, cost, case.view)
        assert abs(found.code_bytes - cost.code_bytes) <= 0.3 * cost.code_bytes, (found, cost, case.view)


@pytest.mark.parametrize("function", [BinaryFunction.ADD, BinaryFunction.SUB])
@pytest.mark.parametrize("scales", [(0.05, 0.05, 0.1), (0.05, 0.05, 0.05), (0.1, 0.05, 0.15), (0.03, 0.07, 0.09)])
@pytest.mark.parametrize("zero_points", [(-128, -128, -128), (3, -5, 10), (127, -128, 0)])
def test_two_factors_stand_for_the_runtimes_roundings(
    function: BinaryFunction, scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> None:
    how = arithmetic(function, scales, zero_points)
    solved = solve_factors(how)
    assert solved is not None
    first, second, addend, shift = solved
    q = np.arange(-128, 128)
    sums = (q[:, None] + 128) * first + (q[None, :] + 128) * second + addend
    assert np.abs(sums).max() < 1 << 31
    stored = np.clip(sums >> shift, 0, 255)
    wanted = binary(q.astype(np.int8)[:, None], q.astype(np.int8)[None, :], how)
    assert (np.clip(stored - 128, *how.activation) == wanted).all()
