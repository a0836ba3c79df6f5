"""The edges of a file: inputs that are float32 or uint8 until a QUANTIZE, outputs that are behind the last operator.

A converter puts a QUANTIZE behind each input, and a DEQUANTIZE (float32) or a QUANTIZE (uint8) before each output,
unless it is told that the interface is int8. The graph begins behind and ends before them: the caller converts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.flatbuffer import RawModel, RawOperator, RawTensor
from mnet.graph import Int8Array, Tensor

_TYPES = ("float32", "uint8")


def readers_of(model: RawModel, tensor: int) -> list[RawOperator]:
    """Return the operators that take a tensor, by its index."""
    return [operator for operator in model.operators if tensor in operator.inputs]


def maker_of(model: RawModel, tensor: int) -> RawOperator | None:
    """Return the operator that makes a tensor, by its index."""
    return next((operator for operator in model.operators if tensor in operator.outputs), None)


def cut_edges(model: RawModel) -> tuple[RawModel, Mapping[int, str]]:
    """Return the model from int8 to int8, and the type that each new input and output has in the file, by its index.

    What is not of this form stays, for others to refuse.
    """
    outside: dict[int, str] = {}
    gone: set[int] = set()
    ends = []
    for indices, is_input in ((model.inputs, True), (model.outputs, False)):
        found = []
        for index in indices:
            operator = _edge(model, index, is_input)
            inner = index
            if operator:
                inner = operator.outputs[0] if is_input else operator.inputs[0]
                outside[inner] = model.tensors[index].type
                gone.add(operator.index)
            found.append(inner)
        ends.append(tuple(found))
    operators = tuple(operator for operator in model.operators if operator.index not in gone)
    return replace(model, operators=operators, inputs=ends[0], outputs=ends[1]), outside


def _edge(model: RawModel, index: int, is_input: bool) -> RawOperator | None:
    """Return the operator between the file's input or output and int8, if it stands alone there."""
    if not 0 <= index < len(model.tensors) or model.tensors[index].type not in _TYPES:
        return None
    outer, readers = model.tensors[index], readers_of(model, index)
    operator = maker_of(model, index)
    if is_input:
        operator = readers[0] if len(readers) == 1 and operator is None else None
    elif readers:
        return None
    kind = "QUANTIZE" if is_input or outer.type == "uint8" else "DEQUANTIZE"
    if operator is None or operator.kind != kind or (len(operator.inputs), len(operator.outputs)) != (1, 1):
        return None
    inner = operator.outputs[0] if is_input else operator.inputs[0]
    if not 0 <= inner < len(model.tensors) or model.tensors[inner].type != "int8":
        return None
    return operator if outer.type == "float32" or _differ_by_128(outer, model.tensors[inner]) else None


def _differ_by_128(outer: RawTensor, inner: RawTensor) -> bool:
    """Return whether a uint8 tensor is an int8 one plus 128, so that a QUANTIZE between them only shifts."""
    same = outer.scales.tolist() == inner.scales.tolist() and len(outer.scales) == 1
    return same and (outer.zero_points - 128).tolist() == inner.zero_points.tolist()


def float_islands(model: RawModel, names: Sequence[str]) -> dict[int, str]:
    """Return for each operator of a stretch of float32 amid int8 a sentence, "" for all but its DEQUANTIZE.

    Args:
        model: without its edges.
        names: of its tensors.
    """
    islands: dict[int, list[RawOperator]] = {}  # operators of each, by the index of its DEQUANTIZE
    inside: dict[int, int] = {}  # the island of a tensor
    for operator in model.operators:
        found = [inside[tensor] for tensor in operator.inputs if tensor in inside]
        if operator.kind != "DEQUANTIZE" and not found:
            continue
        start = found[0] if found else operator.index
        islands.setdefault(start, []).append(operator)
        floats = (t for t in operator.outputs if 0 <= t < len(model.tensors) and model.tensors[t].type == "float32")
        inside |= dict.fromkeys(floats, start)
    sentences = {operator.index: "" for island in islands.values() for operator in island}
    return sentences | {start: _about_island(island, names) for start, island in islands.items()}


def _about_island(island: Sequence[RawOperator], names: Sequence[str]) -> str:
    inner = [operator for operator in island if operator.kind not in ("QUANTIZE", "DEQUANTIZE")]
    words = []
    for operator in inner[:3]:
        made = operator.outputs[0] if operator.outputs else -1
        words.append(f'"{names[made][:80]}" ({operator.kind})' if 0 <= made < len(names) else operator.kind)
    more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
    what = f"behind it {', '.join(words)}{more} computes" if inner else "behind it the model goes on"
    return f"{what} in float32: replace that by what the converter quantizes, or end the model before."


def from_quantized(tensor: Tensor, values: Int8Array) -> npt.NDArray[Any]:
    """Return what an input of the file, of type `tensor.outside`, has to be for its QUANTIZE to make `values` of it.

    (q - zero_point) * scale in float32, divided by scale, is off by less than 2**-14: it rounds to q - zero_point.
    """
    if tensor.outside == "uint8":
        return values.view(np.uint8) ^ np.uint8(128)
    if tensor.outside == "float32":
        return (values.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)
    return values
