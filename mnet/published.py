"""Published data sets: CIFAR-10, Fashion-MNIST, and the sample of the latter that comes with mnet."""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet import resources
from mnet.datasets import Dataset, Images, Labels
from mnet.errors import DataError
from mnet.images import SUFFIXES, decoded, stacked

SAMPLE_TRAIN_PER_CLASS = 400
SAMPLE_TEST_PER_CLASS = 100
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("~/.keras/datasets/fashion-mnist").expanduser())

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_LICENCE = "none stated by its authors (Krizhevsky 2009); cite it, and do not ship its images"
_FASHION_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
_FASHION_LICENCE = "Expat (MIT), Copyright 2017 Zalando SE"


# CIFAR-10


def cifar10() -> Dataset:
    """Return what keras.datasets has cached or can download, else the JPEG archive."""
    with contextlib.suppress(_KerasDownloadError):
        (x_train, y_train), (x_test, y_test) = _keras_dataset("cifar10")
        return Dataset(x_train, _flat(y_train), x_test, _flat(y_test), CIFAR10_NAMES, "CIFAR-10", _CIFAR10_LICENCE)
    return cifar10_jpeg()


def cifar10_jpeg() -> Dataset:
    """Return the images of the JPEG archive in the shared folder; decoded once, then cached."""
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
        arrays = _read_tar(archive, CIFAR10_NAMES)
        _write_cache(cached, arrays)
    return Dataset(**arrays, class_names=CIFAR10_NAMES, description="CIFAR-10 (JPEG)", licence=_CIFAR10_LICENCE)


def _read_tar(archive: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    images: dict[str, list[Images]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # in the archive's order, which is part of the file and so the same everywhere
                part, _, rest = member.name.partition("/")
                name = rest.partition("/")[0]
                if not member.isfile() or part not in images or not rest.lower().endswith(SUFFIXES):
                    continue
                if name not in class_names:
                    raise DataError(f"{archive}: {member.name} belongs to no class of CIFAR-10.")
                stream = tar.extractfile(member)
                assert stream is not None  # it is a file
                images[part].append(decoded(stream.read(), f"{archive}: {member.name}", channels=3))
                labels[part].append(class_names.index(name))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive} is damaged: {error}.") from error
    if not images["train"] or not images["test"]:
        raise DataError(f"{archive} holds no images under train/ and test/.")
    return {
        "x_train": stacked(images["train"], str(archive)),
        "y_train": np.array(labels["train"], np.int64),
        "x_test": stacked(images["test"], str(archive)),
        "y_test": np.array(labels["test"], np.int64),
    }


def cache_folder() -> Path:
    """Return the user's cache folder; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnet"


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


def fashion_mnist() -> Dataset:
    """Return the files of Debian's package, else what keras.datasets has cached or can download."""
    for folder in FASHION_FOLDERS:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            arrays = [
                read_idx(folder / f"{stem}-ubyte.gz")
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


def read_idx(path: Path) -> Images:
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


def sample() -> Dataset:
    """Return the bundled sheets, cut into images; data/make_sample.py lays them out."""
    parts = []
    for name, per_class in (("train.png", SAMPLE_TRAIN_PER_CLASS), ("test.png", SAMPLE_TEST_PER_CLASS)):
        path = resources.folder("data") / name
        try:
            sheet = decoded(path.read_bytes(), str(path), channels=1)[..., 0]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; install mnet again.") from error
        images = sheet.reshape(sheet.shape[0] // 28, 28, -1, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28, 1)
        labels = np.repeat(np.arange(len(_FASHION_NAMES)), per_class)
        parts.append((np.ascontiguousarray(images), labels))
    (x_train, y_train), (x_test, y_test) = parts
    return Dataset(x_train, y_train, x_test, y_test, _FASHION_NAMES, "sample of Fashion-MNIST", _FASHION_LICENCE)


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


def _flat(labels: npt.NDArray[Any]) -> Labels:
    return np.asarray(labels, np.int64).reshape(-1)
