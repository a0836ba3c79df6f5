"""Where images come from: a published data set, a folder of images, an .npz file.

Every source becomes one `Dataset`. What cannot be read raises DataError before anything is trained.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet import published
from mnet.datasets import Dataset, Images, LabelledImages, Labels
from mnet.errors import DataError
from mnet.folders import load_folder
from mnet.images import resized, with_channels

SOURCES = ("cifar10", "cifar10-jpeg", "fashion-mnist", "sample")


def load(source: str, *, size: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        source: one of SOURCES, a folder of pictures (see `mnet.folders`), or an .npz file with x_train, y_train,
            x_test, y_test. `cifar10` is what keras.datasets has cached or can download; else the
            JPEG archive in the shared folder, and the description says so.
        size: height and width to scale to (bilinear; of pictures in a folder, what is too long is cut off on both
            sides); None leaves them, but all images must then agree.
        channels: 1 or 3 to convert to; None leaves them.

    Raises:
        DataError: missing, damaged, or laid out otherwise.
    """
    match source:
        case "cifar10":
            dataset = published.cifar10()
        case "cifar10-jpeg":
            dataset = published.cifar10_jpeg()
        case "fashion-mnist":
            dataset = published.fashion_mnist()
        case "sample":
            dataset = published.sample()
        case _:
            dataset = _from_path(Path(source).expanduser(), size, channels)
    if size is not None and size != dataset.image_shape[:2]:
        dataset = _map_images(dataset, lambda x: resized(x, size), f" scaled to {size[0]}x{size[1]}")
    if channels is not None and channels != dataset.image_shape[2]:
        dataset = _map_images(dataset, lambda x: with_channels(x, channels), " in grey" if channels == 1 else "")
    return _checked(dataset, source)


def load_labelled(source: str, split: str, *, size: tuple[int, int], channels: int) -> LabelledImages:
    """Load the images of one part of a data set, or an .npz file that holds just x and y, perhaps class_names.

    Args:
        source: as for `load`, or that file, whose images are taken as they are.
        split: "test" or "train".
        size: height and width to scale to.
        channels: to convert to.

    Raises:
        DataError: missing, damaged, or laid out otherwise.
    """
    path = Path(source).expanduser()
    if path.suffix == ".npz" and path.is_file():
        arrays = _arrays(path)
        if {"x", "y"} <= arrays.keys():
            return _plain_npz(path, arrays)
    dataset = load(source, size=size, channels=channels)
    x, y = (dataset.x_test, dataset.y_test) if split == "test" else (dataset.x_train, dataset.y_train)
    return LabelledImages(x, y, dataset.class_names, f"{dataset.description}, {split} images", np.arange(len(y)))


def _map_images(dataset: Dataset, function: Callable[[Images], Images], remark: str) -> Dataset:
    return replace(
        dataset,
        x_train=function(dataset.x_train),
        x_test=function(dataset.x_test),
        description=dataset.description + remark,
    )


def _checked(dataset: Dataset, source: str) -> Dataset:
    """Raise DataError unless arrays fit together; return them read-only."""
    if len(dataset.class_names) < 2:
        raise DataError(f"{source} has {len(dataset.class_names)} classes; a classifier needs at least 2.")
    if dataset.image_shape[2] not in (1, 3):
        raise DataError(f"{source}: images of {dataset.image_shape[2]} channels are neither grey (1) nor colour (3).")
    if dataset.x_test.shape[1:] != dataset.image_shape:
        raise DataError(f"{source}: training images are {dataset.image_shape}, test images {dataset.x_test.shape[1:]}.")
    for part, x, y in (
        ("training", dataset.x_train, dataset.y_train),
        ("test", dataset.x_test, dataset.y_test),
    ):
        if len(x) == 0:
            raise DataError(f"{source} has no {part} images.")
        if len(x) != len(y):
            raise DataError(f"{source} has {len(x)} {part} images and {len(y)} labels.")
        if y.min() < 0 or y.max() >= len(dataset.class_names):
            raise DataError(
                f"{source}: {part} labels reach from {y.min()} to {y.max()}; expected 0 to "
                f"{len(dataset.class_names) - 1}."
            )
        x.flags.writeable = False
        y.flags.writeable = False
    return dataset


def _from_path(path: Path, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    if path.is_dir():
        return load_folder(path, size, channels)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    if path.is_file():
        raise DataError(f"{path} is no data set; expected a folder with CLASS/*.jpg or an .npz file.")
    raise DataError(f"{path} does not exist; --data takes {', '.join(SOURCES)}, a folder or an .npz file.")


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}.") from error


def _plain_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> LabelledImages:
    x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or not len(x):
        raise DataError(f"{path}: x is {x.dtype} {list(x.shape)}; expected uint8 [n, height, width, channels].")
    if y.ndim != 1 or len(y) != len(x) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: y is {y.dtype} {list(y.shape)}; expected {len(x)} whole numbers.")
    names = tuple(map(str, arrays.get("class_names", ())))
    if names and not 0 <= y.min() <= y.max() < len(names):
        raise DataError(f"{path}: y reaches from {y.min()} to {y.max()}; expected 0 to {len(names) - 1}.")
    return LabelledImages(x, y.astype(np.int64), names, path.stem, np.arange(len(y)))


def _npz(path: Path) -> Dataset:
    arrays = _arrays(path)
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; expected x_train, y_train, x_test, y_test.")
    parts: list[tuple[Images, Labels]] = []
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.dtype != np.uint8:
            raise DataError(
                f"{path}: x_{part} is {x.dtype} {list(x.shape)}; expected uint8 [n, height, width, channels]."
            )
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise DataError(f"{path}: y_{part} is {y.dtype} {list(y.shape)}; expected whole numbers [n].")
        parts.append((x, y.astype(np.int64)))
    names = arrays.get("class_names")
    (x_train, y_train), (x_test, y_test) = parts
    count = max((int(y.max()) for y in (y_train, y_test) if len(y)), default=-1) + 1
    class_names = tuple(str(n) for n in names) if names is not None else tuple(str(n) for n in range(count))
    return Dataset(x_train, y_train, x_test, y_test, class_names, path.stem, "see the data's owner")
