"""One input for a model, or one for each of its inputs: random by a seed, or from a file."""

import itertools
import math
from pathlib import Path

import numpy as np

from mnet.errors import DataError
from mnet.graph import Graph, Int8Array
from mnet.images import SUFFIXES, decoded
from mnet.verify import random_inputs


def random_input(graph: Graph, seed: int) -> dict[str, Int8Array]:
    """Return the first of what `mnet verify --seed` takes: int8 [1, height, width, channels] of each input, by name."""
    return random_inputs(graph, 1, seed)


def read_input(path: Path, graph: Graph) -> dict[str, Int8Array]:
    """Return what a file holds of each input, by name: int8 [1, height, width, channels].

    Args:
        path: .npy of int8 values, .bin of as many bytes, or a picture, which is scaled, its middle cut out, and of
            which each byte b becomes b - 128, as `mnet eval` does. For several inputs .bin with all their bytes, one
            input after the other.
        graph: the model.

    Raises:
        DataError: the file is not read, or does not fit.
    """
    shapes = [graph.tensors[name].shape for name in graph.inputs]
    if len(shapes) > 1 and path.suffix != ".bin":
        raise DataError(
            f"{path}: {graph.name} has {len(shapes)} inputs: write the bytes of all, in order, to a .bin file."
        )
    sizes = [math.prod(shape) for shape in shapes]
    wanted = " and ".join(str(list(shape)) for shape in shapes)
    values = _values(path, shapes[0], sum(sizes), f"{graph.name} takes int8 {wanted}, {sum(sizes):,} values")
    parts = np.split(values.reshape(-1), list(itertools.accumulate(sizes))[:-1])
    return {name: part.reshape(1, *shape) for name, part, shape in zip(graph.inputs, parts, shapes, strict=True)}


def _values(path: Path, shape: tuple[int, int, int], count: int, expected: str) -> Int8Array:
    """Return the int8 values of a file, `count` of them; `shape` is that of a picture."""
    if path.suffix not in (".npy", ".bin", *SUFFIXES):
        raise DataError(
            f"{path}: an input is an .npy or .bin file of int8 values, or a picture ({', '.join(SUFFIXES)})."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix == ".bin":
        values = np.frombuffer(content, np.int8)
    elif path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read as .npy: {error}.") from None
        if values.dtype != np.int8:
            raise DataError(f"{path} holds {values.dtype}; {expected}.")
    else:
        values = _picture(content, path, shape, expected)
    if values.size != count:
        raise DataError(f"{path} holds {values.size:,} values {list(values.shape)}; {expected}.")
    return values


def _picture(content: bytes, path: Path, shape: tuple[int, int, int], expected: str) -> Int8Array:
    if shape[2] not in (1, 3):
        raise DataError(f"{path} is a picture; {expected}, which is none.")
    pixels: Int8Array = (decoded(content, str(path), shape[2], shape[:2]) ^ 0x80).view(np.int8)  # byte - 128
    return pixels
