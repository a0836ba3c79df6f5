"""MEAN, SUM, REDUCE_MAX, REDUCE_MIN and SOFTMAX: golden against both runtimes, C against golden, and what they cost."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, SUMS32, WIDE8, WIDE16, Layout
from codegen.plain import no_constants
from codegen.planner import INPUT_MODES, plan
from codegen.reduction import ACCUMULATE, KERNELS, REDUCED, stages
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.errors import PlanError
from mnet.graph import Graph, Reduce, Reduction
from mnet.litert_runtime import run_litert
from mnet.oracle import LITERT, ORACLES, TFLM
from mnet.pipeline import Options, prepare
from mnet.reductions import l2_normalize, reduce, sum_arithmetic
from mnet.tflite import parse_model
from tests.kernel_harness import (
    A_BATCH,
    SEEDS,
    Case,
    filled,
    measured,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
)
from tests.models import Builder
from tests.strategies import random_input, small_graphs
from tests.test_generate import compare_on_host, described
from tests.writer import edited, serialise

AXES = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2), ())
LAYOUTS = (WIDE16, WIDE8, BYTES8, PLANAR16)
KINDS = ("reduce", "reduce", "sum", "mean", "l2_normalization", "softmax", "pointwise", "residual", "reshape")


def without_kept_dimensions(graph: Graph) -> bytes:
    """Return the file of a graph whose only op reduces, with keep_dims = false."""
    op = graph.ops[0]
    assert isinstance(op, Reduce)

    def change(model: Any) -> None:
        (subgraph,) = model.subgraphs
        subgraph.operators[0].builtinOptions.keepDims = False
        shape = [1, *graph.tensors[op.input].shape]
        subgraph.tensors[subgraph.outputs[0]].shape = [n for a, n in enumerate(shape) if a - 1 not in op.axes]

    return edited(serialise(graph), change)


@pytest.mark.parametrize("function", [f for f in Reduction if f is not Reduction.SUM])
@pytest.mark.parametrize("axes", AXES[:-1])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 6, 2), (5, 1, 1)])
def test_reductions_without_kept_dimensions_equal_litert(
    function: Reduction, axes: tuple[int, ...], shape: tuple[int, int, int]
) -> None:
    build = Builder(0, shape, scale=0.1, zero_point=5)
    data = without_kept_dimensions(build.graph(build.reduce("input", function, axes, zero_point=-20, ratio=0.7)))
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 1, 8)
    ours, theirs = golden.run(graph, LITERT, inputs), run_litert(data, graph, inputs)
    assert np.array_equal(ours[graph.outputs[0]], theirs[graph.outputs[0]])


@pytest.mark.parametrize("axes", AXES[:-1])
@pytest.mark.parametrize("ratio", [0.01, 0.4, 1.0, 3.0, 30.0])
def test_sums_equal_tflm(axes: tuple[int, ...], ratio: float) -> None:
    worker = pytest.importorskip("tests.test_runtimes")
    build = Builder(3, (4, 6, 3), scale=0.1, zero_point=-7)
    data = serialise(build.graph(build.reduce("input", Reduction.SUM, axes, zero_point=4, ratio=ratio)))
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 1, 8)
    worker.assert_golden_is_tflm(graph, inputs, worker.run_here(data, graph, inputs))


def test_litert_takes_int8_for_uint8_in_sum() -> None:
    """Holds what the oracle says of its reference kernel: bytes are read as 0 to 255, and clamped to that range."""
    build = Builder(3, (4, 6, 3), scale=0.1, zero_point=-7)
    data = serialise(build.graph(build.reduce("input", Reduction.SUM, zero_point=4, ratio=3.0)))
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 1, 8)
    (op,) = graph.ops
    assert isinstance(op, Reduce)
    how = sum_arithmetic(op, graph, LITERT)
    offset = inputs[op.input].view(np.uint8).astype(np.int64).sum(axis=(1, 2)) - how.count * how.input_zero_point
    as_unsigned = np.clip(np.rint(offset / 3.0) + how.zero_point, 0, 255).astype(np.uint8).view(np.int8)
    theirs = run_litert(data, graph, inputs)[graph.outputs[0]][:, 0, 0]
    difference = np.abs(theirs.view(np.uint8).astype(int) - as_unsigned.view(np.uint8))
    assert difference.max() <= 1  # np.rint does not round as the kernel does
    assert not LITERT.sum_is_signed and TFLM.sum_is_signed


def test_a_sum_is_refused_for_litert(tmp_path: Path) -> None:
    build = Builder(3, (4, 6, 3))
    path = tmp_path / "sum.tflite"
    path.write_bytes(serialise(build.graph(build.reduce("input", Reduction.SUM))))
    with pytest.raises(PlanError, match=r"sum_0.*SUM.*--oracle tflm"):
        prepare(path, Options())
    assert prepare(path, Options(oracle="tflm")).plan.ops


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_graphs(kinds=KINDS, most_ops=4), st.integers(0, 1000))
def test_random_reductions_equal_tflm(graph: Graph, seed: int) -> None:
    worker = pytest.importorskip("tests.test_runtimes")
    data = serialise(graph)
    graph = parse_model(data, "drawn.tflite")
    inputs = random_input(graph, seed, 3)
    worker.assert_golden_is_tflm(graph, inputs, worker.run_here(data, graph, inputs))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=small_graphs(kinds=KINDS, most_ops=4),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    oracle=st.sampled_from(sorted(ORACLES)),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_reductions_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, oracle: str, mode: str, sanitizers: bool
) -> None:
    made = plan(simplify(graph), target(name), ORACLES[oracle], mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("generated") / graph.name, sanitizers)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


# --- single kernels ---------------------------------------------------------------------------------------------------


def graph_of(shape: tuple[int, int, int], function: Reduction, axes: tuple[int, ...], ratio: float) -> Graph:
    build = Builder(1, shape, scale=0.1, zero_point=11)
    return build.graph(build.reduce("input", function, axes, zero_point=-30, ratio=ratio))


def cases_of(rng: np.random.Generator, shape: tuple[int, int, int], function: Reduction, layout: Layout) -> list[Case]:
    """Return a call of each kernel that reduces rows of this shape over random axes."""
    axes = AXES[rng.integers(len(AXES))]
    ratio = float(rng.choice([0.3, 1.0, 2.5]))
    ratio *= 1 if function is Reduction.MEAN else math.prod(shape[a] for a in axes)
    graph = graph_of(shape, function, axes, ratio)
    (op,) = graph.ops
    assert isinstance(op, Reduce)
    how = sum_arithmetic(op, graph, LITERT) if function in (Reduction.MEAN, Reduction.SUM) else None
    target_layout = LAYOUTS[rng.integers(4)]
    values = rng.integers(-128, 128, shape).astype(np.int8)
    row = replace(graph.tensors["input"], shape=(1, *shape[1:]))
    source = storage(row, layout, (0, 0, 0 if layout.planar else int(rng.integers(2)), 0))
    out = storage(graph.tensors[op.output], target_layout)
    expected = reduce(op, graph, LITERT, values[None])[0]
    if 0 not in op.axes or shape[0] == 1:
        call = Call(op, (source,), out, 1, None, how)
        view = KERNELS[0].view(call)
        return [Case(call, view, "reduce", (), filled(source, values[:1], 0, 1, rng), (0,), 0, expected[:1])]
    kept_tensor = replace(graph.tensors[op.output], scale=1.0, zero_point=0)
    sums = storage(kept_tensor, SUMS32, stored_channels=expected.shape[2])
    first = Call(op, (source,), sums, 0, None, how)
    second = Call(op, (sums,), out, 1, None, how)
    # what rows were reduced to, as the first stage keeps it
    axes_of_all = tuple(op.axes)
    match function:
        case Reduction.MEAN | Reduction.SUM:
            kept = (values.astype(np.int64) + 128).sum(axes_of_all, keepdims=True)
        case Reduction.MAX:
            kept = (values.astype(np.int64) + 128).max(axes_of_all, keepdims=True)
        case _:
            kept = (127 - values.astype(np.int64)).max(axes_of_all, keepdims=True)
    memory = kept.astype("<i4").tobytes()
    return [
        Case(second, REDUCED.view(second), "reduced", no_constants(second, None, 0), memory, (0,), 0, expected),
        # sums that are -1515870811, as poison makes them: a row is added, and any value is larger
        Case(
            replace(first, rows=1),
            ACCUMULATE.view(first),
            "accumulate",
            (),
            filled(source, values[:1], 0, 1, rng),
            (0,),
            0,
            _after_one_row(values[:1], op) + sums.offset,
        ),
    ]


def _after_one_row(row: np.ndarray, op: Reduce) -> np.ndarray:
    before = int(np.array([0xA5A5A5A5], np.uint32).view(np.int32)[0])
    axes = tuple(op.axes)
    wide = row.astype(np.int64)
    if op.function in (Reduction.MEAN, Reduction.SUM):
        return np.asarray(before + (wide + 128).sum(axes, keepdims=True))
    return np.asarray((wide + 128 if op.function is Reduction.MAX else 127 - wide).max(axes, keepdims=True))


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    while len(cases) < count:
        shape = (int(rng.integers(1, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 14)))
        cases += cases_of(rng, shape, list(Reduction)[rng.integers(4)], LAYOUTS[rng.integers(4)])
    return cases


@needs_gcc
@needs_arm
def test_every_kernel_of_a_reduction(tmp_path: Path) -> None:
    cases = batch(1, 120)
    assert {case.template for case in cases} == {"reduce", "reduced", "accumulate"}
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)
    run_emulated(cases, tmp_path, "M0")


@needs_gcc
@pytest.mark.slow
@A_BATCH
@given(SEEDS)
def test_random_reductions_of_rows(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 150), tmp_path_factory.mktemp("rows"))


@needs_arm
def test_costs_of_reductions(tmp_path: Path) -> None:
    """Rough formulas: within 35 % of what is counted, or 80 cycles, over the rows that networks have.

    Multipliers that are powers of two, or tiny loops that the compiler unrolls, take less.
    """
    rng = np.random.default_rng(4)
    cases = [
        case
        for function in Reduction
        for shape in ((2, 10, 16), (2, 5, 64), (1, 20, 32), (3, 7, 13))
        for layout in (WIDE16, WIDE8)
        for case in cases_of(rng, shape, function, layout)
    ]
    kernels = {"reduce": KERNELS[0], "reduced": REDUCED, "accumulate": ACCUMULATE}
    for case, counted in zip(cases, measured(cases, tmp_path), strict=True):
        price = kernels[case.template].cost
        assert price
        assert price(case.call, case.view).cycles == pytest.approx(counted.cycles, rel=0.35, abs=80), case.view


@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 3, 5), (1, 4, 300)])
@pytest.mark.parametrize("zero_point", [-128, 3, 127])
def test_lengths_of_every_size_equal_litert(shape: tuple[int, int, int], zero_point: int) -> None:
    """Among them 0 and 1, where the root is not computed, and the largest."""
    build = Builder(1, shape, scale=0.1, zero_point=zero_point)
    data = serialise(build.graph(build.l2_normalization("input")))
    graph = parse_model(data, "net.tflite")
    random = np.random.default_rng(0)
    spread = np.array([0, 1, 2, 5, 30, 300])[:, None, None, None]
    inputs = np.clip(zero_point + random.integers(-1, 2, (6, *shape)) * spread, -128, 127).astype(np.int8)
    inputs[0] = zero_point
    ours, theirs = golden.run(graph, LITERT, {"input": inputs}), run_litert(data, graph, {"input": inputs})
    assert np.array_equal(ours[graph.outputs[0]], theirs[graph.outputs[0]])


@needs_gcc
@needs_arm
def test_normalized_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    cases, sizes = [], []
    for layout in LAYOUTS:
        for width, channels, most in ((1, 1, 1), (5, 3, 2), (3, 16, 255), (1, 64, 20), (2, 300, 255)):
            build = Builder(1, (1, width, channels), zero_point=int(rng.integers(-128, 128)))
            graph = build.graph(build.l2_normalization("input"))
            zero_point = graph.tensors["input"].zero_point
            drawn = zero_point + rng.integers(-most, most + 1, (1, width, channels))
            values = np.clip(drawn, -128, 127).astype(np.int8)
            source = storage(graph.tensors["input"], layout)
            out = storage(graph.tensors[graph.outputs[0]], LAYOUTS[rng.integers(4)])
            call = Call(graph.ops[0], (source,), out, 1, None)
            kernel = next(kernel for kernel in KERNELS if kernel.family == "l2_normalization")
            expected = l2_normalize(values, zero_point)
            cases.append(
                Case(call, kernel.view(call), kernel.family, (), filled(source, values, 0, 1, rng), (0,), 0, expected)
            )
            sizes.append(most)
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path, "M0")
    for case, counted, most in zip(cases, measured(cases, tmp_path), sizes, strict=True):
        assert kernel.cost
        if most > 2:
            assert kernel.cost(case.call, case.view).cycles == pytest.approx(counted.cycles, rel=0.3, abs=80), case.view


def test_rows_are_consumed_as_they_come() -> None:
    for axes, two in (((0,), True), ((0, 2), True), ((1,), False), ((2,), False), ((1, 2), False)):
        graph = graph_of((4, 3, 2), Reduction.MAX, axes, 1.0)
        assert bool(stages(graph.ops[0], graph, target("cortex-m4"))) == two
