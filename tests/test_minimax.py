"""The search for the order of fewest live bytes: the optimum of all orders, and bounds that none is below."""

import heapq
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.arrangement import least_storages
from codegen.assemble import arranger_of
from codegen.certificate import least
from codegen.elimination import lower_bound
from codegen.lifetimes import Holding, problem_of
from codegen.minimax import Problem, Unit, peak, search
from codegen.schedule import Work, row_lives, steps_of
from codegen.simplify import simplify
from codegen.targets import target
from mnet import resources
from mnet.graph import AveragePool2D, Conv2D, DepthwiseConv2D, Graph, Reduce, inputs_of
from mnet.oracle import LITERT
from mnet.pipeline import Options, requested
from tests.large_models import mobilenet_v1, mobilenet_v2
from tests.models import tiny_autoencoder, tiny_mobilenet, tiny_residual

Network = tuple[list[Work], dict[str, int], dict[str, Holding]]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draw a few works: chains and branches, windows with strides, padding rows, sums, whole layers, idle rows."""
    works: list[Work] = []
    tops: dict[str, int] = {}
    rows: dict[str, int] = {}  # virtual ones, with padding
    ends: dict[str, int] = {}
    for number in range(draw(st.integers(2, 5))):
        name = f"t{number}"
        height, top, bottom = draw(st.integers(1, 4)), draw(st.integers(0, 1)), draw(st.integers(0, 1))
        kind = draw(st.sampled_from(("row", "row", "row", "sums", "whole"))) if number else "row"
        sources = draw(st.lists(st.sampled_from(sorted(rows)), min_size=1, max_size=2, unique=True)) if number else []
        if kind == "sums":
            sources, height, top, bottom = sources[:1], 1, 0, 0
        calls = {"row": height, "whole": 1, "sums": max((rows[source] for source in sources), default=1)}[kind]
        windows = []
        for source in sources:
            stride, size, first = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(-1, 1))
            last = rows[source] - 1
            spans = [(first + call * stride, first + call * stride + size - 1) for call in range(calls)]
            if kind != "row":
                spans = [(call, call) for call in range(calls)] if kind == "sums" else [(0, last)]
            windows.append(tuple((min(max(a, 0), last), min(max(b, 0), last)) for a, b in spans))
        made = {"row": 1, "whole": height, "sums": 0}[kind]
        works.append(Work(tuple(sources), name, calls, tuple(windows), top, made))
        tops[name], rows[name], ends[name] = top, top + height + bottom, top + height
    sizes = st.integers(1, 9)
    last = works[-1].output
    holdings = {work.output: Holding(draw(sizes), work.rows != 1, stays=work.output == last) for work in works}
    return works, ends, holdings


def optimum(problem: Problem) -> int:
    """Return the fewest live bytes by all states, from the definition: no order is left out."""

    def live(state: tuple[int, ...], running: int | None) -> int:
        def begun(unit: Unit) -> bool:
            first = [state[op] + (op == running) > number for op, number in unit.born]
            return any(first) or not first

        def over(unit: Unit) -> bool:
            return bool(unit.dies) and all(state[op] > number for op, number in unit.dies)

        return sum(unit.size for unit in problem.units if begun(unit) and not over(unit))

    start = (0,) * len(problem.calls)
    heap, seen = [(live(start, None), start)], set()
    while heap:
        most, state = heapq.heappop(heap)
        if state == problem.calls:
            return most
        if state in seen:
            continue
        seen.add(state)
        for op, done in enumerate(state):
            if done < problem.calls[op] and all(state[other] >= n for other, n in problem.needs[op][done]):
                after = (*state[:op], done + 1, *state[op + 1 :])
                heapq.heappush(heap, (max(most, live(state, op), live(after, None)), after))
    raise AssertionError("no order")


@settings(max_examples=300, deadline=None)
@given(networks())
def test_the_order_found_is_the_best_of_all(network: Network) -> None:
    problem = problem_of(*network)
    best = optimum(problem)
    found = search(problem, 0, sys.maxsize, sys.maxsize)
    assert found.order is not None and found.level == best == peak(problem, found.order)
    assert optimum(problem.backwards()) == best
    bound = lower_bound(problem)
    assert bound <= best
    assert search(problem, bound, best - 1, sys.maxsize).order is None
    stopped = search(problem, bound, sys.maxsize, 3)
    assert stopped.level <= best
    granted = search(problem, best + 2, best + 2, sys.maxsize).order
    assert granted is not None and peak(problem, granted) <= best + 2


@settings(max_examples=100, deadline=None)
@given(networks())
def test_an_order_has_the_live_bytes_it_says(network: Network) -> None:
    """As `row_lives` counts them, by which rows are placed."""
    works, ends, holdings = network
    problem = problem_of(works, ends, holdings)
    found = search(problem, 0, sys.maxsize, sys.maxsize)
    assert found.order is not None
    steps = steps_of(found.order)
    live = np.zeros(len(steps), np.int64)
    for name, rows in row_lives(works, ends, steps).items():
        holding = holdings[name]
        spans = list(rows.values())
        if holding.together:
            spans = [(min(first for first, _ in spans), max(last for _, last in spans))]
        for first, last in spans:
            live[first : len(steps) if holding.stays else last + 1] += holding.size
    # padding above a buffer is set when its first row is made, or where nobody makes rows: when it is read
    assert live.max() == found.level


def test_bytes_that_are_there_at_first_live_until_they_are_taken() -> None:
    works = [Work((), "x", 3, (), 0, 1), Work(("x",), "y", 3, (((0, 0), (1, 1), (2, 2)),), 0, 1)]
    holdings = {"x": Holding(10), "y": Holding(1, stays=True)}
    problem = problem_of(works, {"x": 3, "y": 3}, holdings, [(8, (0, row)) for row in range(3)])
    assert search(problem, 0, sys.maxsize, sys.maxsize).level == 3 * 8 + 10 == lower_bound(problem)
    given = problem_of(works, {"x": 3, "y": 3}, holdings | {"x": Holding(10, given=True)})
    assert search(given, 0, sys.maxsize, sys.maxsize).level == 31


def test_an_order_that_is_none_is_refused() -> None:
    works = [Work((), "x", 1, (), 0, 1), Work(("x",), "y", 1, (((0, 0),),), 0, 1)]
    problem = problem_of(works, {"x": 1, "y": 1}, {"x": Holding(1), "y": Holding(1)})
    assert peak(problem, (0, 1)) == 2
    for wrong in ((1, 0), (0,), (0, 1, 1)):
        with pytest.raises(ValueError, match="call"):
            peak(problem, wrong)


@pytest.mark.parametrize("graph", (tiny_mobilenet(size=24), tiny_residual(), tiny_autoencoder()), ids=lambda g: g.name)
@pytest.mark.parametrize("mode", ("rows", "arena"))
def test_the_planner_gets_what_the_search_promises(graph: Graph, mode: str) -> None:
    arranger = arranger_of(simplify(graph), target("cortex-m4"), LITERT, mode, 0)
    picked = least_storages(arranger)
    found = least(arranger.problem(picked))
    assert found.order is not None
    arrangement = arranger.arrange(steps_of(found.order))
    keys = {name: (storage.layout.name, storage.apart) for name, storage in picked.items()}
    forms = [next(form for form in found if form.key == keys[name]) for name, found in arrangement.forms.items()]
    live = np.sum([form.live for form in forms], axis=0) + arrangement.image_live
    assert int(live.max()) == found.level


def plain_rows(graph: Graph, image: bool) -> Problem:
    """Return the problem at a byte a value without padding; the input's rows are pushed, or all there at first."""
    shapes = {name: tensor.shape for name, tensor in graph.tensors.items()}
    works = [Work((), name, shapes[name][0], (), 0, 1) for name in graph.inputs]
    holdings = {}
    for op in graph.ops:
        height, source = shapes[op.output][0], shapes[inputs_of(op)[0]]
        if isinstance(op, AveragePool2D | Reduce):  # of whole maps: each row is added to sums of 32 bits
            sums = f"{op.output}/sums"
            works.append(Work(inputs_of(op), sums, source[0], (tuple((y, y) for y in range(source[0])),), 0, 0))
            works.append(Work((sums,), op.output, 1, (((0, 0),),), 0, 1))
            holdings[sums], shapes[sums] = Holding(4 * source[2], together=True), (1, 1, source[2])
            continue
        windows = []
        for name in inputs_of(op):
            last = shapes[name][0] - 1
            match op:
                case Conv2D() | DepthwiseConv2D():
                    kernel = op.weights.shape[isinstance(op, Conv2D)]
                    firsts = [y * op.stride[0] - op.padding[0] for y in range(height)]
                    windows.append(tuple((max(y, 0), min(y + kernel - 1, last)) for y in firsts))
                case _:
                    windows.append(tuple((y, y) if height == last + 1 else (0, last) for y in range(height)))
        works.append(Work(inputs_of(op), op.output, height, tuple(windows), 0, 1))
    for name in [work.output for work in works if work.output not in holdings]:
        given = image and name in graph.inputs
        holdings[name] = Holding(shapes[name][1] * shapes[name][2], stays=name in graph.outputs, given=given)
    return problem_of(works, {work.output: shapes[work.output][0] for work in works}, holdings)


def _file(name: str) -> Graph:
    bundled, shared = Path(__file__).parent / "models" / f"{name}.tflite", resources.shared_folder()
    if not bundled.is_file() and shared is None:
        pytest.skip("no $MNET_SHARED")
    file = bundled if bundled.is_file() else shared / "models" / f"{name}.tflite"
    return requested(file, Options(simplify=False))[1].graph


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pushed", "whole"),
    (
        ("vww_96_int8", 9_888, 28_032),
        ("kws_ref_model", 3_536, 3_866),
        ("pretrainedResnet_quant", 9_152, 10_304),
        ("ad01_int8", 768, 768),
        ("cifar10_a25", 2_048, 3_200),
        ("V1 0.25, 224x224", 31_136, 151_424),
        ("V2 0.35, 96x96", 13_728, 29_376),
    ),
)
def test_known_optima_of_whole_rows_are_found(name: str, pushed: int, whole: int) -> None:
    """An independent search in C++ proved them."""
    match name.split()[0]:
        case "V1":
            graph = mobilenet_v1(0.25, 224, 1000)
        case "V2":
            graph = mobilenet_v2(0.35, 96, 2)
        case _:
            graph = _file(name)
    for image, known in ((False, pushed), (True, whole)):
        problem = plain_rows(graph, image)
        found = least(problem)
        assert found.order is not None, f"stopped after {found.states} states at {found.level} B"
        assert found.level == known == peak(problem, found.order)
