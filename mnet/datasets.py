"""Image classification data sets as arrays of bytes: CIFAR-10, Fashion-MNIST, folders of images, .npz, the sample.

Every source becomes one `Dataset`. What cannot be read raises DataError before anything is trained.
"""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet import resources
from mnet.errors import DataError

Images = npt.NDArray[np.uint8]  # [images, height, width, channels]
Labels = npt.NDArray[np.int64]  # [images]

SOURCES = ("cifar10", "cifar10-jpeg", "fashion-mnist", "sample")
SAMPLE_TRAIN_PER_CLASS = 400
SAMPLE_TEST_PER_CLASS = 100

_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("~/.keras/datasets/fashion-mnist").expanduser())
_FASHION_LICENCE = "Expat (MIT), Copyright 2017 Zalando SE"
_CIFAR10_LICENCE = "none stated by its authors (Krizhevsky 2009); cite it, and do not ship its images"
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels; the test part is for the last figure only."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    class_names: tuple[str, ...]
    description: str  # what a figure's caption says, such as "CIFAR-10 (JPEG)"
    licence: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, height, width, channels = self.x_train.shape
        return height, width, channels

    def __str__(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"{self.description}: {len(self.x_train):,} training and {len(self.x_test):,} test images, "
            f"{height}x{width}x{channels}, {len(self.class_names)} classes"
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Training images without the ones kept back to choose by."""

    x_train: Images
    y_train: Labels
    x_validation: Images
    y_validation: Labels


def load(source: str, *, size: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        source: one of SOURCES, a folder with train/CLASS/*.jpg (or .png) and perhaps test/CLASS/*.jpg, or an .npz file
            with x_train, y_train, x_test, y_test. `cifar10` is what keras.datasets has cached or can download; else the
            JPEG archive in the shared folder, and the description says so.
        size: height and width to scale to (bilinear); None leaves them, but all images must then agree.
        channels: 1 or 3 to convert to; None leaves them.

    Raises:
        DataError: missing, damaged, or laid out otherwise.
    """
    match source:
        case "cifar10":
            dataset = _cifar10()
        case "cifar10-jpeg":
            dataset = _cifar10_jpeg()
        case "fashion-mnist":
            dataset = _fashion_mnist()
        case "sample":
            dataset = _sample()
        case _:
            dataset = _from_path(Path(source).expanduser(), size, channels)
    if size is not None and size != dataset.image_shape[:2]:
        dataset = _map_images(dataset, lambda x: _resized(x, size), f" scaled to {size[0]}x{size[1]}")
    if channels is not None and channels != dataset.image_shape[2]:
        dataset = _map_images(dataset, lambda x: _with_channels(x, channels), " in grey" if channels == 1 else "")
    return _checked(dataset, source)


def validation_split(dataset: Dataset, count: int, seed: int = 0) -> Split:
    """Keep back `count` training images, the same number of each class where possible; never test images.

    Raises:
        DataError: `count` leaves nothing to train on.
    """
    images = len(dataset.y_train)
    if not 0 <= count < images:
        raise DataError(f"{dataset.description} has {images} training images; {count} cannot be kept for validation.")
    kept = np.zeros(images, bool)
    kept[balanced_choice(dataset.y_train, count, seed)] = True
    return Split(dataset.x_train[~kept], dataset.y_train[~kept], dataset.x_train[kept], dataset.y_train[kept])


def balanced_choice(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` ascending indices, chosen by `seed`, with class counts as equal as the labels allow.

    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> labels[balanced_choice(labels, 4, seed=1)]
    array([0, 0, 1, 1])
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of an image among those of its class, in shuffled order
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = np.arange(len(of_class))
    return np.sort(shuffled[np.argsort(rank[shuffled], kind="stable")][:count])


def cache_folder() -> Path:
    """Return the user's cache folder; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnet"


# CIFAR-10


def _cifar10() -> Dataset:
    with contextlib.suppress(_KerasDownloadError):
        (x_train, y_train), (x_test, y_test) = _keras_dataset("cifar10")
        return Dataset(x_train, _flat(y_train), x_test, _flat(y_test), _CIFAR10_NAMES, "CIFAR-10", _CIFAR10_LICENCE)
    return _cifar10_jpeg()


def _cifar10_jpeg() -> Dataset:
    shared = resources.shared_folder()
    archive = shared / "data" / "cifar10-jpeg.tar.gz" if shared else None
    if archive is None or not archive.is_file():
        raise DataError(
            "CIFAR-10 is neither downloadable here nor is data/cifar10-jpeg.tar.gz in the folder $MNET_SHARED; "
            "try --data fashion-mnist or --data sample."
        )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    cached = cache_folder() / f"cifar10-jpeg-{digest}.npz"
    arrays = _read_cache(cached)
    if arrays is None:
        arrays = _read_tar(archive, _CIFAR10_NAMES)
        _write_cache(cached, arrays)
    return Dataset(**arrays, class_names=_CIFAR10_NAMES, description="CIFAR-10 (JPEG)", licence=_CIFAR10_LICENCE)


def _read_tar(archive: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    images: dict[str, list[Images]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # in the archive's order, which is part of the file and so the same everywhere
                part, _, rest = member.name.partition("/")
                name = rest.partition("/")[0]
                if not member.isfile() or part not in images or not rest.lower().endswith(_SUFFIXES):
                    continue
                if name not in class_names:
                    raise DataError(f"{archive}: {member.name} belongs to no class of CIFAR-10.")
                stream = tar.extractfile(member)
                assert stream is not None  # it is a file
                images[part].append(_decoded(stream.read(), f"{archive}: {member.name}", channels=3))
                labels[part].append(class_names.index(name))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}.") from error
    if not images["train"] or not images["test"]:
        raise DataError(f"{archive} holds no images under train/ and test/.")
    return {
        "x_train": _stacked(images["train"], str(archive)),
        "y_train": np.array(labels["train"], np.int64),
        "x_test": _stacked(images["test"], str(archive)),
        "y_test": np.array(labels["test"], np.int64),
    }


def _read_cache(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: it is made again


def _write_cache(path: Path, arrays: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError:  # a cache that cannot be written costs time only
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# Fashion-MNIST


def _fashion_mnist() -> Dataset:
    for folder in FASHION_FOLDERS:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            arrays = [
                _read_idx(folder / f"{stem}-ubyte.gz")
                for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
            ]
            break
    else:
        try:
            (x_train, y_train), (x_test, y_test) = _keras_dataset("fashion_mnist")
        except _KerasDownloadError as error:
            raise DataError(
                "Fashion-MNIST is not here and cannot be downloaded; install Debian's package dataset-fashion-mnist, "
                "or try --data sample."
            ) from error
        arrays = [x_train, y_train, x_test, y_test]
    return Dataset(
        arrays[0][..., None],
        _flat(arrays[1]),
        arrays[2][..., None],
        _flat(arrays[3]),
        _FASHION_NAMES,
        "Fashion-MNIST",
        _FASHION_LICENCE,
    )


def _read_idx(path: Path) -> Images:
    """Read a gzipped IDX file of bytes. Source: the format's description on the MNIST page."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no IDX file of bytes.")
    rank = content[3]
    header = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:header]) if len(content) >= header else ()
    if rank == 0 or len(content) != header + int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} is truncated: its header announces {'x'.join(map(str, shape)) or 'no'} bytes.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


# The bundled sample


def _sample() -> Dataset:
    parts = []
    for name, per_class in (("train.png", SAMPLE_TRAIN_PER_CLASS), ("test.png", SAMPLE_TEST_PER_CLASS)):
        path = resources.folder("data") / name
        try:
            sheet = _decoded(path.read_bytes(), str(path), channels=1)[..., 0]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; install mnet again.") from error
        images = sheet.reshape(sheet.shape[0] // 28, 28, -1, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28, 1)
        labels = np.repeat(np.arange(len(_FASHION_NAMES)), per_class)
        parts.append((np.ascontiguousarray(images), labels))
    (x_train, y_train), (x_test, y_test) = parts
    return Dataset(x_train, y_train, x_test, y_test, _FASHION_NAMES, "sample of Fashion-MNIST", _FASHION_LICENCE)


# Files of the user


def _from_path(path: Path, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    if path.is_dir():
        return _image_tree(path, size, channels)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    if path.is_file():
        raise DataError(f"{path} is no data set; expected a folder with train/CLASS/*.jpg or an .npz file.")
    raise DataError(f"{path} does not exist; --data takes {', '.join(SOURCES)}, a folder or an .npz file.")


def _image_tree(folder: Path, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    train = folder / "train"
    if not train.is_dir():
        raise DataError(f"{folder} has no folder train/; expected train/CLASS/*.jpg (or .png).")
    class_names = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir()))
    if len(class_names) < 2:
        raise DataError(f"{train} has {len(class_names)} class folders; expected at least two, train/CLASS/*.jpg.")
    x_train, y_train = _image_part(train, class_names, size, channels)
    test = folder / "test"
    if test.is_dir():
        unknown = sorted(entry.name for entry in test.iterdir() if entry.is_dir() and entry.name not in class_names)
        if unknown:
            raise DataError(f"{test} has a class {unknown[0]!r} that {train} lacks.")
        x_test, y_test = _image_part(test, class_names, size, channels)
        return Dataset(x_train, y_train, x_test, y_test, class_names, folder.name, "see the data's owner")
    chosen = np.zeros(len(y_train), bool)
    chosen[balanced_choice(y_train, max(1, len(y_train) // 10), seed=0)] = True
    return Dataset(
        x_train[~chosen],
        y_train[~chosen],
        x_train[chosen],
        y_train[chosen],
        class_names,
        f"{folder.name} (a tenth of train/ kept as test)",
        "see the data's owner",
    )


def _image_part(
    folder: Path, class_names: tuple[str, ...], size: tuple[int, int] | None, channels: int | None
) -> tuple[Images, Labels]:
    images: list[Images] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{folder / name} holds no .jpg or .png file.")
        for path in files:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}.") from error
            image = _decoded(content, str(path), channels or (images[0].shape[-1] if images else None))
            if size is not None and image.shape[:2] != size:
                image = _resized(image[None], size)[0]
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path} is {_by(image)} pixels, the images before it {_by(images[0])}; give --size to scale all."
                )
            images.append(image)
            labels.append(label)
    return np.stack(images), np.array(labels, np.int64)


def _npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}.") from error
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


# Common parts


class _KerasDownloadError(Exception):
    """keras.datasets neither has nor gets it."""


def _keras_dataset(name: str) -> Any:
    from mnet.architecture import import_keras

    module = getattr(import_keras().datasets, name)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return module.load_data()
        except Exception as error:  # no connection raises a bare Exception, a damaged cache many others
            raise _KerasDownloadError(str(error)) from error


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


def _decoded(content: bytes, name: str, channels: int | None) -> Images:
    """Return an image [height, width, channels]; None keeps grey as 1 channel and anything else as 3."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if channels is None:
                channels = 1 if image.mode in ("L", "1", "I;16") else 3
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no readable image: {error}.") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _stacked(images: list[Images], name: str) -> Images:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(f"{name}: images of different sizes, {sorted(shapes)[0]} and {sorted(shapes)[1]}.")
    return np.stack(images)


def _resized(x: Images, size: tuple[int, int]) -> Images:
    from PIL import Image

    def one(image: Images) -> Images:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        scaled = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        return scaled.reshape(*size, image.shape[-1])

    return np.stack([one(image) for image in x])


def _with_channels(x: Images, channels: int) -> Images:
    if channels == 3:
        return np.repeat(x, 3, axis=-1)
    luma = x @ np.array([299, 587, 114])  # ITU-R 601, the weights of Pillow's convert("L")
    grey: Images = ((luma + 500) // 1000).astype(np.uint8)[..., None]
    return grey


def _map_images(dataset: Dataset, function: Callable[[Images], Images], remark: str) -> Dataset:
    return replace(
        dataset,
        x_train=function(dataset.x_train),
        x_test=function(dataset.x_test),
        description=dataset.description + remark,
    )


def _flat(labels: npt.NDArray[Any]) -> Labels:
    return np.asarray(labels, np.int64).reshape(-1)


def _by(image: Images) -> str:
    return "x".join(map(str, image.shape))


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `count` items.

    >>> list(batches(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
