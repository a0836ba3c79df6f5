"""Dilated convolutions that a file spells as SPACE_TO_BATCH_ND, a convolution and BATCH_TO_SPACE_ND.

Every so many-th pixel becomes an image of its own in the batch, which a convolution without stride or dilation takes;
then the images are put together again. The same values come from one convolution of that dilation, on the padded
input: that is what the tensors in between become. Converters do this for dilations that they do not fold themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import tflite as schema

from mnet.edges import readers_of
from mnet.flatbuffer import RawModel, RawOperator
from mnet.shape_values import values_of

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """A tensor between the two operators."""

    index: int
    sizes: Sizes  # with a batch of 1: what it holds if all images are one
    blocks: Mapping[int, int]  # axis -> images along it


def fold_dilation(model: RawModel) -> RawModel:
    """Return the model with dilations where it has batches; what is not of this form stays, for readers to refuse."""
    for operator in model.operators:
        if operator.kind == "SPACE_TO_BATCH_ND":
            model = _folded(model, operator)
    return model


def _folded(model: RawModel, begin: RawOperator) -> RawModel:
    place = _spread(model, begin)
    places: list[_Place] = []
    convolution = None
    while place is not None:
        places.append(place)
        readers = readers_of(model, place.index)
        if len(readers) != 1 or place.index in model.outputs or len(readers[0].outputs) != 1:
            return model
        reader = readers[0]
        if reader.kind == "BATCH_TO_SPACE_ND":
            return _rewritten(model, places, convolution) if convolution and _gathers(model, reader, place) else model
        if reader.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and convolution is None:
            place = _convolved(model, reader, place)
            convolution = place and _dilated(reader, places[-1])
        else:
            place = _reshaped(model, reader, place)
    return model


def _spread(model: RawModel, begin: RawOperator) -> _Place | None:
    """Return what a SPACE_TO_BATCH_ND makes."""
    if len(begin.inputs) != 3 or len(begin.outputs) != 1 or not _known(model, (begin.inputs[0], begin.outputs[0])):
        return None
    blocks, pads = (values_of(model, index) for index in begin.inputs[1:])
    source = model.tensors[begin.inputs[0]].shape
    if blocks is None or pads is None or blocks.ndim != 1 or pads.shape != (len(blocks), 2):
        return None
    if len(source) != len(blocks) + 2 or source[0] != 1 or min(blocks.min(), pads.min() + 1) < 1:
        return None
    inner = [size + int(pair.sum()) for size, pair in zip(source[1:-1], pads, strict=True)]
    if any(size % block for size, block in zip(inner, blocks, strict=True)):
        return None
    return _Place(begin.outputs[0], (1, *inner, source[-1]), {1 + axis: int(n) for axis, n in enumerate(blocks)})


def _known(model: RawModel, indices: tuple[int, ...]) -> bool:
    return all(0 <= index < len(model.tensors) for index in indices)


def _reshaped(model: RawModel, reader: RawOperator, place: _Place) -> _Place | None:
    """Return what an operator makes that adds or drops one axis of size one."""
    if reader.kind not in ("EXPAND_DIMS", "RESHAPE", "SQUEEZE") or not _known(model, reader.outputs):
        return None
    before, after = (model.tensors[index].shape[1:] for index in (place.index, reader.outputs[0]))
    for axis, size in enumerate(after):
        if size == 1 and after[:axis] + after[axis + 1 :] == before:
            sizes = (*place.sizes[: axis + 1], 1, *place.sizes[axis + 1 :])
            return _Place(reader.outputs[0], sizes, {a + (a > axis): n for a, n in place.blocks.items()})
    for axis, size in enumerate(before):
        if size == 1 and before[:axis] + before[axis + 1 :] == after and axis + 1 not in place.blocks:
            sizes = place.sizes[: axis + 1] + place.sizes[axis + 2 :]
            return _Place(reader.outputs[0], sizes, {a - (a > axis): n for a, n in place.blocks.items()})
    return None


def _dilated(reader: RawOperator, place: _Place) -> RawOperator:
    factors = {"DilationHFactor": place.blocks.get(1, 1), "DilationWFactor": place.blocks.get(2, 1)}
    return replace(reader, options={**reader.options, **factors})


def _convolved(model: RawModel, reader: RawOperator, place: _Place) -> _Place | None:
    """Return what a convolution makes, without stride, dilation or padding of its own."""
    ones = ("StrideH", "StrideW", "DilationHFactor", "DilationWFactor")
    plain = reader.options.get("Padding") == schema.Padding.VALID and all(reader.options.get(key) == 1 for key in ones)
    if not plain or len(place.sizes) != 4 or len(reader.inputs) < 2 or not set(place.blocks) <= {1, 2}:
        return None
    if not _known(model, (reader.inputs[1], *reader.outputs)) or len(model.tensors[reader.inputs[1]].shape) != 4:
        return None
    kernel, made = model.tensors[reader.inputs[1]].shape[1:3], model.tensors[reader.outputs[0]].shape
    height, width = (place.sizes[axis] - (kernel[axis - 1] - 1) * place.blocks.get(axis, 1) for axis in (1, 2))
    return _Place(reader.outputs[0], (1, height, width, made[-1] if made else 0), place.blocks)


def _gathers(model: RawModel, end: RawOperator, place: _Place) -> bool:
    """Return whether a BATCH_TO_SPACE_ND puts together what lies in pieces, and crops it to its output."""
    if len(end.inputs) != 3 or not _known(model, end.outputs):
        return False
    blocks, crops = (values_of(model, index) for index in end.inputs[1:])
    made = model.tensors[end.outputs[0]].shape
    if blocks is None or crops is None or blocks.ndim != 1 or crops.shape != (len(blocks), 2):
        return False
    if len(blocks) + 2 != len(place.sizes) or len(made) != len(place.sizes):
        return False
    inner = [size - int(pair.sum()) for size, pair in zip(place.sizes[1:-1], crops, strict=True)]
    same = {1 + axis: int(block) for axis, block in enumerate(blocks)} == dict(place.blocks)
    return same and crops.min() >= 0 and made == (1, *inner, place.sizes[-1])


def _rewritten(model: RawModel, places: list[_Place], convolution: RawOperator) -> RawModel:
    tensors = list(model.tensors)
    for place in places:
        tensors[place.index] = replace(tensors[place.index], shape=place.sizes, is_whole=True)
    operators = tuple(convolution if other.index == convolution.index else other for other in model.operators)
    return replace(model, tensors=tuple(tensors), operators=operators)
