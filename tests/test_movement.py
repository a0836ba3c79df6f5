"""Operators that move values: every kind of file against LiteRT, generated code against the golden model."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.call import Call
from codegen.dead_channels import drop_dead_channels
from codegen.layout import WIDE8, WIDE16
from codegen.loops import nests
from codegen.movement import moves, origins, rows_of
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.errors import ModelError, ToolError
from mnet.graph import Concat, Conv2D, DepthwiseConv2D, Gather, Graph, Pad, Rearrange, Reshape, check_graph
from mnet.movement import move, rearrange
from mnet.oracle import LITERT, TFLM
from mnet.tflite import parse_model
from mnet.tflm_runtime import run_tflm
from tests.kernel_harness import storage, tensor
from tests.models import Builder
from tests.one_operator import one_operator, operators_file
from tests.strategies import MOVES, random_input, small_graphs
from tests.test_generate import compare_on_host, described
from tests.test_golden import assert_equal, compare
from tests.test_tflite import damaged


def int32(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def int64(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def masks(**given: int) -> dict[str, int]:
    names = ("begin", "end", "ellipsis", "newAxis", "shrinkAxis")
    return {f"{name}Mask": given.get(name, 0) for name in names}


# Each: kind, operands, shapes of the outputs, options.
FILES: dict[str, tuple[Any, ...]] = {
    "pad of channels": ("PAD", [(1, 3, 4, 2), int32([0, 0], [1, 0], [0, 2], [3, 1])], [(1, 4, 6, 6)]),
    "pad of a matrix": ("PAD", [(3, 4), int64([1, 0], [0, 2])], [(4, 6)]),
    "pad with a value": (
        "PADV2",
        [(1, 3, 4, 2), int32([0, 0], [1, 0], [0, 2], [0, 1]), np.array([-90], np.int8)],
        [(1, 4, 6, 3)],
    ),
    "mirror, edge once": (
        "MIRROR_PAD",
        [(1, 3, 4, 2), int32([0, 0], [2, 1], [1, 2], [0, 1])],
        [(1, 6, 7, 3)],
        {"mode": 0},
    ),
    "mirror, edge twice": (
        "MIRROR_PAD",
        [(1, 3, 4, 2), int32([0, 0], [2, 3], [1, 2], [0, 1])],
        [(1, 8, 7, 3)],
        {"mode": 1},
    ),
    "concatenation of channels": (
        "CONCATENATION",
        [(1, 3, 4, 2), (1, 3, 4, 5), (1, 3, 4, 1)],
        [(1, 3, 4, 8)],
        {"axis": -1},
    ),
    "concatenation of columns": ("CONCATENATION", [(1, 3, 4, 2), (1, 3, 1, 2)], [(1, 3, 5, 2)], {"axis": 2}),
    "concatenation of rows": ("CONCATENATION", [(1, 3, 4, 2), (1, 1, 4, 2)], [(1, 4, 4, 2)], {"axis": 1}),
    "concatenation of vectors to a matrix": ("CONCATENATION", [(1, 4), (1, 4)], [(2, 4)], {"axis": 0}),
    "concatenation inside merged rows": (
        "CONCATENATION",
        [(1, 5, 1, 4, 3), (1, 5, 2, 4, 3)],
        [(1, 5, 3, 4, 3)],
        {"axis": 2},
    ),
    "concatenation outside merged rows": (
        "CONCATENATION",
        [(1, 2, 4, 3, 2), (1, 1, 4, 3, 2)],
        [(1, 3, 4, 3, 2)],
        {"axis": 1},
    ),
    "concatenation of 16": ("CONCATENATION", [(1, 2, 3, 2)] * 16, [(1, 2, 3, 32)], {"axis": 3}),
    "pack in front": ("PACK", [(3, 4), (3, 4)], [(2, 3, 4)], {"axis": 0, "valuesCount": 2}),
    "pack in the middle": ("PACK", [(3, 4), (3, 4)], [(3, 2, 4)], {"axis": 1, "valuesCount": 2}),
    "pack behind": ("PACK", [(3, 4), (3, 4), (3, 4)], [(3, 4, 3)], {"axis": -1, "valuesCount": 3}),
    "pack of images": ("PACK", [(1, 3, 4, 2), (1, 3, 4, 2)], [(1, 2, 3, 4, 2)], {"axis": 1, "valuesCount": 2}),
    "unpack of rows": ("UNPACK", [(1, 3, 4, 2)], [(1, 4, 2)] * 3, {"axis": 1, "num": 3}),
    "unpack of channels": ("UNPACK", [(1, 3, 4, 2)], [(1, 3, 4)] * 2, {"axis": -1, "num": 2}),
    "split of channels": ("SPLIT", [int32(3), (1, 3, 4, 6)], [(1, 3, 4, 2)] * 3, {"numSplits": 3}),
    "split of rows": ("SPLIT", [int32(-3), (1, 4, 4, 2)], [(1, 2, 4, 2)] * 2, {"numSplits": 2}),
    "split of any sizes": (
        "SPLIT_V",
        [(1, 3, 7, 2), int32(2, -1, 1), int32(2)],
        [(1, 3, 2, 2), (1, 3, 4, 2), (1, 3, 1, 2)],
        {"numSplits": 3},
    ),
    "slice": ("SLICE", [(1, 5, 4, 6), int32(0, 1, 2, 3), int32(1, 3, -1, 2)], [(1, 3, 2, 2)]),
    "strided slice": (
        "STRIDED_SLICE",
        [(1, 6, 5, 4), int32(0, 4, 0, 1), int32(1, 0, 5, 4), int32(1, -2, 2, 2)],
        [(1, 2, 3, 2)],
        masks(),
    ),
    "strided slice backwards": (
        "STRIDED_SLICE",
        [(1, 6, 5, 4), int32(0, 0, 0, 0), int32(0, 0, 0, 0), int32(1, -1, -2, -1)],
        [(1, 6, 3, 4)],
        masks(begin=15, end=15),
    ),
    "strided slice of one row": (
        "STRIDED_SLICE",
        [(1, 6, 5, 4), int32(0, -2), int32(1, 0), int32(1, 1)],
        [(1, 5, 4)],
        masks(shrinkAxis=2),
    ),
    "strided slice with an ellipsis": (
        "STRIDED_SLICE",
        [(1, 6, 5, 4), int32(0, 1), int32(0, 3), int32(1, 1)],
        [(1, 6, 5, 2)],
        masks(ellipsis=1),
    ),
    "strided slice with a new axis": (
        "STRIDED_SLICE",
        [(6, 4), int32(0, 0, 1), int32(0, 0, 4), int32(1, 1, 2)],
        [(1, 6, 2)],
        masks(newAxis=1, begin=2, end=2),
    ),
    "gather": ("GATHER", [(1, 6, 5, 4), int32(3, 3, 0)], [(1, 6, 3, 4)], {"axis": 2}),
    "gather of a matrix": ("GATHER", [(1, 6, 5), int32([3, 1], [0, 4])], [(1, 6, 2, 2)], {"axis": -1}),
    "gather of one": ("GATHER", [(1, 6, 5), np.array(2, np.int32)], [(1, 5)], {"axis": 1}),
    "reverse": ("REVERSE_V2", [(1, 6, 5, 4), int32(1, 2)], [(1, 6, 5, 4)]),
    "tile": ("TILE", [(1, 3, 2, 4), int32(1, 2, 3, 2)], [(1, 6, 6, 8)]),
    "transposition to channels first": ("TRANSPOSE", [(1, 3, 4, 5), int32(0, 3, 1, 2)], [(1, 5, 3, 4)]),
    "transposition of rows and columns": ("TRANSPOSE", [(1, 3, 4, 5), int32(0, 2, 1, -1)], [(1, 4, 3, 5)]),
    "transposition of five axes": ("TRANSPOSE", [(1, 3, 4, 5, 2), int32(0, 1, 2, 4, 3)], [(1, 3, 4, 2, 5)]),
    "transposition of a vector": ("TRANSPOSE", [(1, 7), int32(1, 0)], [(7, 1)]),
    "depth to space": ("DEPTH_TO_SPACE", [(1, 3, 2, 12)], [(1, 6, 4, 3)], {"blockSize": 2}),
    "space to depth": ("SPACE_TO_DEPTH", [(1, 6, 4, 3)], [(1, 3, 2, 12)], {"blockSize": 2}),
    "reshape": ("RESHAPE", [(1, 3, 4, 2), int32(1, 2, 2, 6)], [(1, 2, 2, 6)]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_operator_equals_litert(name: str) -> None:
    data = one_operator(*FILES[name])
    graph = parse_model(data, "net.tflite")
    compare(data, graph, random_input(graph, 0, 3))


# TFLM does not take what these have: amounts of int64, more than 10 inputs, fewer indices than axes, a mask, a negative
# axis; and it has no TILE.
REFUSED_BY_TFLM = (
    "pad of a matrix",
    "concatenation of 16",
    "strided slice of one row",
    "strided slice with an ellipsis",
    "strided slice with a new axis",
    "transposition of rows and columns",
    "tile",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_operator_equals_tflm_or_is_refused_there(name: str) -> None:
    pytest.importorskip("tflite_micro")
    data = one_operator(*FILES[name])
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 0, 2)
    if name in REFUSED_BY_TFLM:
        with pytest.raises(ToolError, match="TFLM refuses"):
            run_tflm(data, graph, inputs)
    else:
        assert_equal(golden.run(graph, TFLM, inputs), run_tflm(data, graph, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FILES)))
def test_every_operator_is_moved_by_generated_code(number: int, tmp_path: Path) -> None:
    graph = parse_model(one_operator(*list(FILES.values())[number]), "net.tflite")
    made = plan(simplify(graph), target(("cortex-m4", "cortex-m0", "cortex-m55")[number % 3]), LITERT)
    leg = compare_on_host(graph, made, tmp_path / graph.name, sanitizers=number % 2 == 0)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    (
        ("pad of channels", {1: int32([1, 0], [1, 0], [0, 2], [3, 1])}, "the batch must stay 1"),
        ("pad of channels", {1: int32([0, 0], [-1, 0], [0, 2], [3, 1])}, "paddings of shape"),
        ("concatenation of channels", {1: np.zeros((1, 3, 4, 5), np.int8)}, "a constant where an activation is needed"),
        ("concatenation of channels", {1: (1, 3, 5, 5)}, "the file is damaged"),
        ("pack in front", {1: (4, 3)}, "the file is damaged"),
        ("unpack of rows", {0: (1, 4, 4, 2)}, "splits"),
        ("split of channels", {0: int32(7)}, "along axis 7"),
        ("split of any sizes", {1: int32(2, 1, 1)}, "splits"),
        ("slice", {1: int32(0, 1, 9, 3)}, "the file is damaged"),
        ("strided slice", {3: int32(1, 0, 2, 2)}, "the file is damaged"),
        ("strided slice", {2: int32(1, 0, 5, 3)}, "makes [1, 2, 3, 1]"),
        ("strided slice of one row", {1: int32(0, 6)}, "does not have"),
        ("gather", {1: int32(3, 9, 0)}, "does not have"),
        ("tile", {1: int32(2, 1, 3, 2)}, "makes [2, 3, 6, 8]"),
        ("tile", {1: int32(1, 0, 3, 2)}, "known numbers of at least 1"),
        ("mirror, edge once", {1: int32([0, 0], [3, 0], [1, 2], [0, 1])}, "mirrors"),
        ("transposition to channels first", {1: int32(0, 3, 1, 1)}, "permutation"),
        ("depth to space", {0: (1, 3, 2, 11)}, "blocks of 2"),
        ("space to depth", {0: (1, 5, 4, 3)}, "blocks of 2"),
    ),
)
def test_what_cannot_be_moved_gets_a_sentence(name: str, change: dict[int, Any], words: str) -> None:
    kind, operands, *rest = FILES[name]
    changed = [change.get(number, operand) for number, operand in enumerate(operands)]
    with pytest.raises(ModelError) as caught:
        parse_model(one_operator(kind, changed, *rest), "net.tflite")
    assert words in str(caught.value) and str(caught.value).endswith(".")


CONVOLUTION = {"strideH": 1, "strideW": 1, "padding": 1, "dilationHFactor": 1, "dilationWFactor": 1}
WEIGHTS = np.random.default_rng(1).integers(-127, 128, (4, 3, 3, 2)).astype(np.int8)
BIAS = int32(300, -20, 0, 7)
DILATED: dict[str, list[tuple[Any, ...]]] = {
    "both axes": [
        ("SPACE_TO_BATCH_ND", [(1, 7, 9, 2), int32(2, 3), int32([2, 1], [3, 3])], [(6, 5, 5, 2)], {}),
        ("CONV_2D", ["output_0", WEIGHTS, BIAS], [(6, 3, 3, 4)], CONVOLUTION),
        ("BATCH_TO_SPACE_ND", ["output_1", int32(2, 3), int32([0, 0], [1, 2])], [(1, 6, 6, 4)], {}),
    ],
    "an open batch": [
        ("SPACE_TO_BATCH_ND", [(1, 8, 8, 2), int32(2, 2), int32([2, 2], [2, 2])], [(-1, 6, 6, 2)], {}),
        (
            "DEPTHWISE_CONV_2D",
            ["output_0", WEIGHTS[:1], BIAS[:2]],
            [(-1, 4, 4, 2)],
            {**CONVOLUTION, "depthMultiplier": 1},
        ),
        ("BATCH_TO_SPACE_ND", ["output_1", int32(2, 2), int32([0, 0], [0, 0])], [(-1, 8, 8, 2)], {}),
    ],
    "one dimension": [
        ("SPACE_TO_BATCH_ND", [(1, 12, 2), int32(2), int32([2, 2])], [(2, 8, 2)], {}),
        ("EXPAND_DIMS", ["output_0", int32(1)], [(2, 1, 8, 2)], {}),
        ("CONV_2D", ["output_1", WEIGHTS[:, :1], BIAS], [(2, 1, 6, 4)], CONVOLUTION),
        ("RESHAPE", ["output_2", int32(2, 6, 4)], [(2, 6, 4)], {"newShape": [2, 6, 4]}),
        ("BATCH_TO_SPACE_ND", ["output_3", int32(2), int32([0, 0])], [(1, 12, 4)], {}),
    ],
    "one dimension, of rows": [
        ("SPACE_TO_BATCH_ND", [(1, 12, 2), int32(3), int32([0, 3])], [(3, 5, 2)], {}),
        ("EXPAND_DIMS", ["output_0", int32(2)], [(3, 5, 1, 2)], {}),
        ("CONV_2D", ["output_1", WEIGHTS[:, :, :1], BIAS], [(3, 3, 1, 4)], CONVOLUTION),
        ("SQUEEZE", ["output_2"], [(3, 3, 4)], {"squeezeDims": [2]}),
        ("BATCH_TO_SPACE_ND", ["output_3", int32(3), int32([1, 0])], [(1, 8, 4)], {}),
    ],
}


@pytest.mark.parametrize("name", DILATED)
def test_a_convolution_of_a_batch_of_pieces_is_a_dilated_one(name: str) -> None:
    data = operators_file(*DILATED[name])
    graph = parse_model(data, "net.tflite")
    inputs = random_input(graph, 0, 3)
    compare(data, graph, inputs)
    convolutions = [op for op in graph.ops if isinstance(op, Conv2D | DepthwiseConv2D)]
    assert len(convolutions) == 1 and max(convolutions[0].dilation) > 1
    smaller = simplify(graph)
    expected, got = golden.run(graph, LITERT, inputs), golden.run(smaller, LITERT, inputs)
    assert np.array_equal(got[smaller.outputs[0]], expected[graph.outputs[0]])


@pytest.mark.parametrize("number", (0, 1, 2))
def test_pieces_of_other_forms_get_a_sentence(number: int) -> None:
    spread, convolution, gather = DILATED["both axes"]
    changed = {
        0: [spread],
        1: [spread, (*convolution[:3], {**CONVOLUTION, "strideH": 2}), gather],
        2: [spread, convolution, (gather[0], [*gather[1][:2], int32([0, 0], [1, 1])], *gather[2:])],
    }[number]
    with pytest.raises(ModelError, match=r"only around a convolution without stride or padding|the batch must be 1"):
        parse_model(operators_file(*changed), "net.tflite")


def test_damage_to_moves_is_told_or_harmless() -> None:
    chance = random.Random(1)
    files = [one_operator(*parts) for parts in FILES.values()] + [operators_file(*steps) for steps in DILATED.values()]
    for data in files:
        for _ in range(30):
            try:
                check_graph(parse_model(damaged(data, chance), "net.tflite"))
            except ModelError as error:
                assert str(error).endswith(".") and "\n" not in str(error)


def test_a_dense_layer_of_rows_that_the_file_leaves_open() -> None:
    weights = np.random.default_rng(1).integers(-127, 128, (8, 20)).astype(np.int8)
    data = operators_file(
        ("RESHAPE", [(1, 6, 20), int32(-1, 20)], [(-1, 20)], {"newShape": [-1, 20]}),
        ("FULLY_CONNECTED", ["output_0", weights], [(-1, 8)], {}),
        ("RESHAPE", ["output_1", int32(-1, 6, 8)], [(-1, 6, 8)], {"newShape": [-1, 6, 8]}),
    )
    graph = parse_model(data, "net.tflite")
    assert graph.tensors[graph.outputs[0]].shape == (1, 6, 8)
    compare(data, graph, random_input(graph, 0, 3))


def test_scales_are_kept() -> None:
    build = Builder(0, (3, 4, 2))
    graph = build.graph(build.concat(("input", build.conv("input", 2)), 2))
    from tests.writer import serialise

    with pytest.raises(ModelError, match="changes scale or zero_point"):
        parse_model(serialise(graph), "net.tflite")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_loops_make_every_place_once_and_in_order(places: list[tuple[int, int]]) -> None:
    source, to = (np.array(column, np.int64) for column in zip(*places, strict=True))
    made = []
    for begin, first, loops in nests(source, to):
        for turns in itertools.product(*(range(count) for count, *_ in loops)):
            steps = list(zip(turns, loops, strict=True))
            made.append((begin + sum(t * a for t, (_, a, _) in steps), first + sum(t * b for t, (_, _, b) in steps)))
    assert made == [(int(a), int(b)) for a, b in places]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_graphs(kinds=MOVES, most_ops=1))
def test_rows_are_read_that_the_values_come_from(graph: Graph) -> None:
    op = graph.ops[-1]
    assert isinstance(op, Pad | Concat | Gather | Reshape | Rearrange)
    names = op.inputs if isinstance(op, Concat) else (op.input,)
    shapes = tuple(graph.tensors[name].shape for name in names)
    known, rows = origins(op, shapes), rows_of(op, shapes)
    assert len({sum(map(len, parts)) for parts in rows}) == 1
    for y, parts in enumerate(rows):
        for which, part in enumerate(parts):
            assert set(known.row[y][known.which[y] == which].tolist()) <= set(part)
    x = tuple(np.random.default_rng(0).integers(-128, 128, (1, *shape)).astype(np.int8) for shape in shapes)
    expected = move(op, x)[0]
    picked = np.array([0] * expected.size, np.int8).reshape(expected.shape)
    for place in np.ndindex(expected.shape):
        which = known.which[place]
        picked[place] = (
            x[which][0, known.row[place], known.pixel[place], known.channel[place]]
            if which >= 0
            else (op.value if isinstance(op, Pad) else 0)
        )
    assert np.array_equal(picked, expected)


def test_inputs_that_lie_differently_have_loops_of_their_own() -> None:
    shape = (2, 3, 4)
    sources = tuple(storage(tensor(name, shape, 0), layout) for name, layout in (("a", WIDE16), ("b", WIDE8)))
    call = Call(Concat("concat", ("a", "b"), "c", 0), sources, storage(tensor("c", (4, 3, 4), 0), WIDE8), 1, None)
    found = moves(call)
    assert found.phases == (0, 0, 1, 1)
    assert [[piece.c_type for piece in pieces] for pieces in found.view.cases] == [["int16_t"], ["uint8_t"]]


@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_a_rearrangement_of_fewer_axes_is_the_same(order: list[int], view: list[int]) -> None:
    x = np.arange(np.prod(view)).reshape(1, 1, 1, -1)
    expected = x.reshape(view).transpose(order).reshape(-1)
    op = rearrange("op", "in", "out", tuple(view), tuple(order), (1, 1, x.size))
    assert np.array_equal(move(op, (x,)).reshape(-1), expected)


def test_moves_that_move_nothing_go() -> None:
    build = Builder(0, (4, 4, 6))
    x = build.conv("input", 6)
    y = build.concat((build.pad(x, (0, 0, 0, 0)),), 1)
    y = build.gather(y, range(4), range(4), range(6))
    y = build.transpose(y, (0, 1, 2))
    smaller = simplify(build.graph(build.conv(y, 3)))
    assert [type(op).__name__ for op in smaller.ops] == ["Conv2D", "Conv2D"]


def test_a_shuffle_of_channels_becomes_one_op() -> None:
    build = Builder(0, (4, 4, 6))
    x = build.reshape(build.conv("input", 6), (16, 2, 3))
    x = build.reshape(build.transpose(x, (0, 2, 1)), (4, 4, 6))
    smaller = simplify(build.graph(build.conv(x, 3)))
    assert [type(op).__name__ for op in smaller.ops] == ["Conv2D", "Rearrange", "Conv2D"]
    assert plan(smaller, target("cortex-m4"), LITERT).ops[1].calls == 4  # row by row


def test_dead_channels_are_left_out_of_what_moves_them() -> None:
    build = Builder(3, (5, 5, 3))
    parts = (build.conv("input", 8, dead=0.5), build.conv("input", 8, dead=0.5))
    same = build.tensors[parts[0]]
    build.tensors[parts[1]] = type(same)(parts[1], same.shape, same.scale, same.zero_point)
    x = build.concat(parts, 2)
    x = build.gather(x, range(5), range(1, 4), range(0, 16, 2))
    graph = build.graph(build.conv(x, 2, (3, 3)))
    fewer = drop_dead_channels(simplify(graph), LITERT)
    assert all(len(fewer.tensors[name].live) > 0 for name in (*parts, x))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    graph=small_graphs(kinds=(*MOVES, *MOVES, "conv", "residual"), most_ops=5),
    name=st.sampled_from(("cortex-m4", "cortex-m0", "cortex-m55")),
    mode=st.sampled_from(INPUT_MODES),
    sanitizers=st.booleans(),
)
@pytest.mark.slow
def test_random_moves_give_the_golden_bits(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph, name: str, mode: str, sanitizers: bool
) -> None:
    made = plan(drop_dead_channels(simplify(graph), LITERT), target(name), LITERT, mode)
    leg = compare_on_host(graph, made, tmp_path_factory.mktemp("moves") / graph.name, sanitizers, count=1)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)
