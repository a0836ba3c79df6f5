"""The integers that a file computes from shapes, as the SHAPE, STRIDED_SLICE and PACK before a RESHAPE."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from mnet.flatbuffer import RawModel, RawOperator

Values = npt.NDArray[np.int64]  # of one dimension, or of none
_DEEPEST = 32  # operators one behind the other


def values_of(model: RawModel, index: int, depth: int = _DEEPEST) -> Values | None:
    """Return the integers of a tensor: a constant's, or what operators make of shapes and constants.

    Args:
        model: the file; the shapes of its activations are those that they have, see `Operands.makes`.
        index: of the tensor.
        depth: operators to go back at most.

    Returns:
        None where they depend on anything else, or the file is damaged.
    """
    if not 0 <= index < len(model.tensors) or depth == 0:
        return None
    tensor = model.tensors[index]
    if tensor.type not in ("int32", "int64"):
        return None
    if tensor.data is not None:
        size = 4 if tensor.type == "int32" else 8
        whole = math.prod(tensor.shape) * size == len(tensor.data)
        return tensor.data.view(f"<i{size}").astype(np.int64).reshape(tensor.shape) if whole else None
    maker = next((operator for operator in model.operators if index in operator.outputs), None)
    if maker is None or not maker.inputs:
        return None
    if maker.kind == "SHAPE":
        source = maker.inputs[0]
        return np.array(model.tensors[source].shape, np.int64) if 0 <= source < len(model.tensors) else None
    if maker.kind not in _RULES:
        return None
    inputs = [values_of(model, source, depth - 1) for source in maker.inputs]
    known = [values for values in inputs if values is not None]
    if len(known) != len(inputs):
        return None
    try:
        return np.asarray(_RULES[maker.kind](maker, *known), np.int64)
    except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
        return None


def _strided_slice(operator: RawOperator, x: Values, begin: Values, end: Values, step: Values) -> Values:
    masks = operator.options
    if x.ndim != 1 or masks["EllipsisMask"] or masks["NewAxisMask"]:
        raise ValueError("of one dimension only")
    first = None if masks["BeginMask"] & 1 else int(begin[0])
    if masks["ShrinkAxisMask"] & 1:
        return np.asarray(x[int(begin[0])])
    return x[first : None if masks["EndMask"] & 1 else int(end[0]) : int(step[0])]


def _slice(operator: RawOperator, x: Values, begin: Values, size: Values) -> Values:
    first, count = int(begin[0]), int(size[0])
    return x[first : len(x) if count < 0 else first + count]


def _concatenation(operator: RawOperator, *parts: Values) -> Values:
    return np.concatenate([part.reshape(-1) for part in parts])


_RULES: Mapping[str, Callable[..., Values]] = {
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "PACK": lambda operator, *parts: np.stack(parts),
    "CONCATENATION": _concatenation,
    "GATHER": lambda operator, x, indices: x[indices],
    "ADD": lambda operator, a, b: a + b,
    "SUB": lambda operator, a, b: a - b,
    "MUL": lambda operator, a, b: a * b,
    "REDUCE_PROD": lambda operator, x, axes: np.asarray(np.prod(x)),
    "CAST": lambda operator, x: x,
    "SQUEEZE": lambda operator, x: np.squeeze(x),
    "EXPAND_DIMS": lambda operator, x, axis: x.reshape(-1),
    "RESHAPE": lambda operator, x, shape: x.reshape(-1),
}
