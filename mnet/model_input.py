"""One input for a model: random by a seed, or from a file."""

from pathlib import Path

import numpy as np

from mnet.errors import DataError
from mnet.graph import Graph, Int8Array
from mnet.images import SUFFIXES, decoded, resized
from mnet.verify import random_inputs


def random_input(graph: Graph, seed: int) -> Int8Array:
    """Return the first of the inputs that `mnet verify --seed` takes: int8 [height, width, channels]."""
    one: Int8Array = random_inputs(graph, 1, seed)[0]
    return one


def read_input(path: Path, graph: Graph) -> Int8Array:
    """Return the input that a file holds: int8 [height, width, channels].

    Args:
        path: .npy of int8 values, .bin of as many bytes, or a picture, which is scaled and of which each byte b becomes
            b - 128, as `mnet eval` does.
        graph: the model.

    Raises:
        DataError: the file is not read, or does not fit.
    """
    shape = graph.tensors[graph.input].shape
    expected = f"{graph.name} takes int8 {list(shape)}, {int(np.prod(shape)):,} values"
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
    if values.size != np.prod(shape):
        raise DataError(f"{path} holds {values.size:,} values {list(values.shape)}; {expected}.")
    return values.reshape(shape)


def _picture(content: bytes, path: Path, shape: tuple[int, int, int], expected: str) -> Int8Array:
    if shape[2] not in (1, 3):
        raise DataError(f"{path} is a picture; {expected}, which is none.")
    image = decoded(content, str(path), shape[2])[None]
    if image.shape[1:3] != shape[:2]:
        image = resized(image, shape[:2])
    pixels: Int8Array = (image[0] ^ 0x80).view(np.int8)  # byte - 128
    return pixels
