"""Shapes that a file leaves open, and the integers that it computes for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from codegen.simplify import simplify
from mnet import golden
from mnet.errors import ModelError
from mnet.flatbuffer import RawModel, RawOperator, RawTensor
from mnet.graph import Gather, Graph, Reshape
from mnet.litert_runtime import run_litert
from mnet.movement import gather_of
from mnet.oracle import LITERT
from mnet.shape_values import values_of
from mnet.tflite import parse_model
from tests.models import Builder
from tests.strategies import random_input
from tests.writer import edited, serialise


def _tensor(index: int, shape: tuple[int, ...], type_: str, values: npt.ArrayLike | None = None) -> RawTensor:
    data = None if values is None else np.frombuffer(np.asarray(values, type_).tobytes(), np.uint8)
    empty = np.empty(0, np.float32), np.empty(0, np.int64)
    return RawTensor(index, f"t{index}", shape, (), type_, data, *empty, 0, False)


def _chain(kind: str, options: dict[str, Any], *constants: npt.ArrayLike) -> RawModel:
    """Return a model that computes a number from the shape [1, 6, 5, 4] of its input."""
    tensors = [_tensor(0, (1, 6, 5, 4), "int8"), _tensor(1, (4,), "int32"), _tensor(2, (), "int32")]
    for values in constants:
        tensors.append(_tensor(len(tensors), np.shape(values), "int32", values))
    shape = RawOperator(0, "SHAPE", (0,), (1,), {})
    inputs = (1, *range(3, len(tensors)))
    return RawModel(tuple(tensors), (shape, RawOperator(1, kind, inputs, (2,), options)), (0,), (2,))


_NO_MASKS = {f"{word}Mask": 0 for word in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")}


@pytest.mark.parametrize(
    ("kind", "options", "constants", "expected"),
    [
        ("STRIDED_SLICE", _NO_MASKS, ([1], [3], [1]), [6, 5]),
        ("STRIDED_SLICE", _NO_MASKS | {"ShrinkAxisMask": 1}, ([-1], [0], [1]), 4),
        ("STRIDED_SLICE", _NO_MASKS | {"BeginMask": 1, "EndMask": 1}, ([2], [3], [2]), [1, 5]),
        ("SLICE", {}, ([1], [-1]), [6, 5, 4]),
        ("CONCATENATION", {"Axis": 0}, ([7], [8, 9]), [1, 6, 5, 4, 7, 8, 9]),
        ("GATHER", {}, ([3, 1],), [4, 6]),
        ("MUL", {}, ([1, 2, 3, 4],), [1, 12, 15, 16]),
        ("REDUCE_PROD", {}, ([0],), 120),
    ],
)
def test_what_is_computed_from_a_shape_is_known(
    kind: str, options: dict[str, Any], constants: tuple[list[int], ...], expected: npt.ArrayLike
) -> None:
    found = values_of(_chain(kind, options, *constants), 2)
    assert found is not None and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "constants"), [("STRIDED_SLICE", ([1],)), ("GATHER", ([9],)), ("CONV_2D", ()), ("MUL", ([1, 2, 3],))]
)
def test_what_is_not_known_is_said_to_be_so(kind: str, constants: tuple[list[int], ...]) -> None:
    assert values_of(_chain(kind, _NO_MASKS, *constants), 2) is None


def test_a_circle_of_operators_ends() -> None:
    tensors = tuple(_tensor(index, (2,), "int32") for index in range(2))
    model = RawModel(tensors, (RawOperator(0, "CAST", (1,), (0,), {}), RawOperator(1, "CAST", (0,), (1,), {})), (), ())
    assert values_of(model, 0) is None


def _open(width: int) -> bytes:
    """Return a model whose RESHAPE and what follows have sizes that the file leaves open, and wrong ones there."""
    build = Builder(3, (4, 6, 5))
    x = build.reshape(build.conv("input", 4), (6, 4, 4))
    data = serialise(build.graph(build.conv(x, 3, (3, 3), (1, 1))))

    def leave_open(model: Any) -> None:
        graph = model.subgraphs[0]
        for operator in graph.operators[1:]:
            tensor = graph.tensors[operator.outputs[0]]
            shape = list(tensor.shape)
            tensor.shapeSignature = np.array([-1, -1, *shape[2:]], np.int32)
            tensor.shape = np.array([1, width, *shape[2:]], np.int32)

    return edited(data, leave_open)


def test_sizes_that_a_file_leaves_open_follow_from_its_operators() -> None:
    graph = parse_model(_open(1), "open.tflite")
    assert graph.tensors[graph.outputs[0]].shape == (6, 4, 3)
    inputs = random_input(graph, 1, 3)
    found, expected = golden.run(graph, LITERT, inputs), run_litert(_open(1), graph, inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_shape_that_depends_on_the_input_is_refused() -> None:
    def forget(model: Any) -> None:
        graph = model.subgraphs[0]
        reshape = graph.operators[1]
        graph.tensors[reshape.inputs[1]].buffer = 0

    with pytest.raises(ModelError, match="depends on the input: convert the model with a fixed input shape"):
        parse_model(edited(_open(1), forget), Path("open.tflite"))


def test_a_repetition_among_reshapes_is_one_gather() -> None:
    build = Builder(5, (3, 4, 5))
    graph = build.graph(build.conv("input", 6))
    source, target = graph.tensors[graph.outputs[0]], "y"
    shapes = {"a": (12, 1, 6), "b": (12, 2, 6), target: (3, 8, 6)}
    tensors = {name: replace(source, name=name, shape=shape) for name, shape in shapes.items()}
    ops = (
        Reshape("r1", source.name, "a", (12, 1, 6)),
        Gather("g", "a", "b", tuple(range(12)), (0, 0), tuple(range(6))),
        Reshape("r2", "b", target, (3, 8, 6)),
    )
    whole = Graph("net", {**graph.tensors, **tensors}, (*graph.ops, *ops), graph.inputs, (target,), "0" * 16)
    smaller = simplify(whole)
    (found,) = [op for op in smaller.ops if isinstance(op, Gather | Reshape)]
    assert isinstance(found, Gather) and found.columns == (0, 0, 1, 1, 2, 2, 3, 3) and found.rows == (0, 1, 2)
    x = random_input(whole, 2, 2)
    np.testing.assert_array_equal(golden.run(smaller, LITERT, x)[target], golden.run(whole, LITERT, x)[target])


def test_a_transposition_is_no_gather() -> None:
    chain = (Reshape("a", "in", "x", (4, 3, 1)), Reshape("b", "x", "out", (2, 6, 1)))
    assert gather_of(chain, "c", (3, 4, 1)) is None
