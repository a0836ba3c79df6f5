"""Operators that work value by value: tables against both runtimes, on every int8; kernels against the tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.elementwise import lookup_cost, lookup_pack, lookup_view
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout
from codegen.simplify import simplify
from mnet import golden, tflm_worker
from mnet.elementwise import table
from mnet.errors import ModelError
from mnet.graph import Conv2D, Graph, Tensor, Unary, UnaryFunction
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, ORACLES, TFLM, Oracle
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
from tests.strategies import random_input
from tests.test_tflite import changed
from tests.writer import serialise

EVERY_VALUE = {"input": np.arange(-128, 128).astype(np.int8).reshape(1, 1, 1, 256)}
SCALES = st.one_of(st.sampled_from((1 / 128, 1 / 256, 0.0235, 0.1)), st.floats(-18, 6).map(lambda x: 2.0**x))
ZERO_POINTS = st.one_of(st.sampled_from((-128, 0, 127)), st.integers(-128, 127))
RATIOS = st.one_of(st.sampled_from((1.0, 0.5, 2.0, 2 / 3, 4 / 3, 0.4)), st.floats(-10, 10).map(lambda x: 2.0**x))
ALPHAS = st.one_of(st.sampled_from((0.0, 0.1, 0.3, 1.0, 1.5)), st.floats(-3, 3, width=32))


@st.composite
def functions(draw: st.DrawFn, oracle: Oracle) -> Graph:
    """Draw a network of one function of one value that `oracle` has, on 256 channels."""
    function = draw(st.sampled_from(sorted(oracle.functions, key=lambda function: function.value)))
    build = Builder(0, (1, 1, 256), scale=draw(SCALES), zero_point=draw(ZERO_POINTS), oracle=oracle)
    try:
        made = build.unary("input", function, alpha=draw(ALPHAS), zero_point=draw(ZERO_POINTS), ratio=draw(RATIOS))
    except ValueError:  # the runtimes' arithmetic does not take these scales
        made = build.unary("input", UnaryFunction.RELU)
    return build.graph(made)


@settings(max_examples=150, deadline=None)
@given(functions(LITERT))
def test_every_function_of_every_value_equals_litert(graph: Graph) -> None:
    data = serialise(graph)
    graph = parse_model(data, "drawn.tflite")
    found = run_litert(data, graph, EVERY_VALUE)[graph.outputs[0]].ravel()
    assert np.array_equal(table(graph.ops[0], graph, LITERT), found), graph  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(functions(TFLM))
def test_every_function_of_every_value_equals_tflm(graph: Graph) -> None:
    pytest.importorskip("tflite_micro")
    data = serialise(graph)
    graph = parse_model(data, "drawn.tflite")
    output = graph.tensors[graph.outputs[0]].index
    found = tflm_worker.run(data, list(EVERY_VALUE.values()), [output], arena_bytes(graph))[str(output)].ravel()
    assert np.array_equal(table(graph.ops[0], graph, TFLM), found), graph  # type: ignore[arg-type]


def test_logistic_differs_between_the_runtimes_for_one_scale_in_a_thousand() -> None:
    build = Builder(0, (1, 1, 256), scale=0.028582487255334854, zero_point=-60)
    graph = build.graph(build.unary("input", UnaryFunction.LOGISTIC))
    op = graph.ops[0]
    assert isinstance(op, Unary)
    float32, fixed = (table(op, graph, oracle).astype(int) for oracle in (LITERT, TFLM))
    assert np.abs(float32 - fixed).sum() == 1


def test_litert_divides_scales_in_single_precision_and_tflm_in_double() -> None:
    build = Builder(0, (1, 1, 256), scale=0.0235, zero_point=123)
    graph = build.graph(build.unary("input", UnaryFunction.LEAKY_RELU, alpha=1.5, zero_point=0))
    of_litert, of_tflm = (
        golden.run(graph, ORACLES[name], EVERY_VALUE)[graph.outputs[0]] for name in ("litert", "tflm")
    )
    assert (of_litert != of_tflm).sum() == 43  # a slope of 1.5 sends halves elsewhere than one of 1.50000012


def test_relu6_of_tflm_takes_both_scales_for_equal() -> None:
    build = Builder(0, (1, 1, 256), scale=0.1, zero_point=0)
    graph = build.graph(build.unary("input", UnaryFunction.RELU6, zero_point=0, ratio=2.0))
    of_litert, of_tflm = (
        golden.run(graph, ORACLES[name], EVERY_VALUE)[graph.outputs[0]] for name in ("litert", "tflm")
    )
    assert (of_litert.max(), of_tflm.max()) == (30, 60)


def test_what_a_runtime_lacks_is_refused_in_a_sentence() -> None:
    build = Builder(0, (1, 1, 4))
    graph = build.graph(build.unary("input", UnaryFunction.EXP))
    with pytest.raises(ModelError, match=r"exp_0: the runtime tflm has no EXP on int8; choose another with --oracle"):
        table(graph.ops[0], graph, TFLM)  # type: ignore[arg-type]


# --- reading ----------------------------------------------------------------------------------------------------------


def one_function(function: UnaryFunction, **options: Any) -> Graph:
    build = Builder(0, (2, 3, 4), scale=0.1)
    return build.graph(build.unary("input", function, **options))


def set_output_scale(scale: float) -> Any:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[-1].quantization.scale = [scale]

    return change


@pytest.mark.parametrize(
    ("function", "scale", "words"),
    [
        (UnaryFunction.LOGISTIC, 1 / 128, "must have an output of scale 1/256 and zero_point -128, not 0.0078125"),
        (UnaryFunction.TANH, 1 / 256, "must have an output of scale 1/128 and zero_point 0, not 0.00390625"),
        (UnaryFunction.EXP, 1e-12, "do not fit each other; quantize the model again."),
        (UnaryFunction.RELU, 1e-9, "do not fit each other; quantize the model again."),
        (UnaryFunction.HARD_SWISH, 1e-4, "do not fit each other; quantize the model again."),
    ],
)
def test_scales_without_defined_arithmetic_are_refused(function: UnaryFunction, scale: float, words: str) -> None:
    assert words in changed(one_function(function), set_output_scale(scale))


def test_a_function_that_changes_the_shape_is_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[-1].shape = [1, 2, 4, 3]

    assert "makes (2, 4, 3) of (2, 3, 4)" in changed(one_function(UnaryFunction.ABS), change)


def test_leaky_relu_without_options_is_refused() -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].operators[0].builtinOptions = None
        model.subgraphs[0].operators[0].builtinOptionsType = schema.BuiltinOptions.NONE

    assert "has no table of options" in changed(one_function(UnaryFunction.LEAKY_RELU), change)


# --- simplification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=lambda oracle: oracle.name)
def test_a_clamp_behind_a_convolution_becomes_its_activation(oracle: Oracle) -> None:
    build = Builder(3, (4, 4, 3))
    x = build.conv("input", 5, (3, 3), activation="none", zero_point=-20)
    x = build.unary(x, UnaryFunction.RELU6, zero_point=-20)
    graph = build.graph(build.conv(x, 2))
    smaller = simplify(graph)
    assert [type(op) for op in smaller.ops] == [Conv2D, Conv2D] and smaller.ops[0].output == x
    inputs = random_input(graph, 0, 3)
    before, after = golden.run(graph, oracle, inputs), golden.run(smaller, oracle, inputs)
    assert all(np.array_equal(values, before[name]) for name, values in after.items())


def test_a_clamp_that_rescales_or_is_not_alone_stays() -> None:
    build = Builder(3, (4, 4, 3))
    x = build.conv("input", 5, activation="none", zero_point=-20)
    rescaled = build.unary(x, UnaryFunction.RELU, zero_point=-20, ratio=0.5)
    assert len(simplify(build.graph(rescaled)).ops) == 2
    build = Builder(3, (4, 4, 3))
    x = build.conv("input", 5, activation="none", zero_point=-20)
    alone = build.unary(x, UnaryFunction.RELU, zero_point=-20)
    assert len(simplify(build.graph(build.add(x, alone))).ops) == 3


# --- kernels ----------------------------------------------------------------------------------------------------------


def lookup_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a row of a Unary with random results."""
    shape = choice.get("shape", (1, int(rng.integers(1, 9)), int(rng.integers(1, 13))))
    source_layout: Layout = choice.get("source") or (WIDE16, WIDE8, BYTES8, PLANAR16)[rng.integers(4)]
    target_layout: Layout = choice.get("target") or (WIDE16, WIDE8, BYTES8, PLANAR16)[rng.integers(4)]
    border = (0, 0, 0, 0) if target_layout.planar else (0, 0, int(rng.integers(2)), 1)
    results = rng.integers(-128, 128, 256).astype(np.int8)
    values = rng.integers(-128, 128, shape).astype(np.int8)
    source = storage(tensor("a", shape, int(rng.integers(-128, 128))), source_layout)
    target = storage(tensor("b", shape, int(rng.integers(-128, 128))), target_layout, border)
    call = Call(Unary("f", "a", "b", UnaryFunction.ELU), (source,), target, 1, None, results)
    view = lookup_view(call)
    memory = filled(source, values, 0, 1, rng)
    return Case(call, view, "lookup", lookup_pack(call, view, 0), memory, (0,), 0, results[values.astype(int) + 128])


@needs_gcc
@needs_arm
def test_lookups_in_every_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cases = [lookup_case(rng) for _ in range(40)]
    cases += [lookup_case(rng, shape=(1, 3, 4), source=a, target=b) for a in (WIDE8, WIDE16) for b in (WIDE8, BYTES8)]
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)


@needs_arm
def test_the_cost_of_a_lookup_is_what_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    # No two rows of one size: the compiler makes one function of two that are alike, and counts would go astray.
    shapes = [(1, 1, 64), (1, 12, 8), (1, 48, 16), (1, 5, 24), (1, 7, 3), (1, 1, 7), (1, 8, 4), (1, 5, 5)]
    layouts = [(WIDE16, WIDE16), (WIDE8, WIDE8), (WIDE16, WIDE8), (WIDE16, PLANAR16)]
    cases = [lookup_case(rng, shape=shape, source=a, target=b) for shape in shapes for a, b in layouts]
    for case, cost in zip(cases, measured(cases, tmp_path), strict=True):
        found = lookup_cost(case.view)  # type: ignore[arg-type]
        assert abs(found.cycles - cost.cycles) <= 0.2 * cost.cycles, (found, cost, case.view)
        assert abs(found.code_bytes - cost.code_bytes) <= 0.2 * cost.code_bytes, (found, cost, case.view)


def test_elu_is_an_exponential_less_one_in_float32() -> None:
    """TFLM takes no expm1: at -1/4096 the difference is -2**-12, half a step of an output of twice the scale."""
    tensors = {"x": Tensor("x", (1, 1, 1), 1 / 4096, 0), "y": Tensor("y", (1, 1, 1), 2 / 4096, 0)}
    op = Unary("elu", "x", "y", UnaryFunction.ELU)
    found = table(op, Graph("net", tensors, (op,), ("x",), ("y",), ""), TFLM)
    assert found[128 - 1] == -1 and found[128] == 0
