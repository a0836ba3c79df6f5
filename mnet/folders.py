"""A folder of pictures as a data set: the names of the folders in it are the classes.

Either CLASS/*.jpg, of which a fifth of each class becomes the test part, or train/CLASS/*.jpg with perhaps
test/CLASS/*.jpg. Pictures of any size and kind; those in folders within a class count, too; hidden files and files that
are no pictures do not.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnet.datasets import Dataset, Images, Labels
from mnet.errors import DataError
from mnet.images import SUFFIXES, decoded, with_channels

_LEAST = 3  # pictures of a class: one to test, and more than one to train
_MOST_UNREADABLE = 0.1  # of all pictures: beyond that something is wrong with the folder
_MOST_NAMED = 3  # files that a remark names


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that could be read."""

    path: Path
    label: int
    digest: bytes  # SHA-256 of the file
    pixels: Images  # [height, width, channels]


def load_folder(folder: Path, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    """Load a folder of pictures.

    Pictures that cannot be read are left out, and so are copies: the same bytes again in a class, or in the training
    part of a test picture; a picture that is in two classes is in none. The data set's remarks say so.

    Args:
        folder: CLASS/*.jpg, or train/CLASS/*.jpg with perhaps test/CLASS/*.jpg.
        size: height and width of the images; None takes that of the pictures, which must then agree.
        channels: 1 or 3; None takes 1 where all pictures are grey.

    Raises:
        DataError: it is laid out otherwise, has too few pictures of a class or too many that cannot be read.
    """
    train, test = folder / "train", folder / "test"
    in_parts = bool(_classes(train))
    root = train if in_parts else folder
    class_names = _classes(root)
    if len(class_names) < 2:
        raise DataError(
            f"{root} has {len(class_names)} class folders; expected at least two, CLASS/*.jpg or train/CLASS/*.jpg."
        )
    reader = _Reader(size, channels)
    has_test = in_parts and bool(_classes(test))
    unknown = sorted(set(_classes(test)) - set(class_names)) if has_test else []
    if unknown:
        raise DataError(f"{test} has a class {unknown[0]!r} that {train} lacks.")
    tested = reader.read(test, class_names) if has_test else []
    trained = reader.read(root, class_names)
    reader.check(folder)
    trained, tested = reader.unambiguous(trained), reader.unambiguous(tested)
    _check_counts(root, trained, class_names, 1 if has_test else _LEAST)
    what = ""
    if has_test:
        _check_counts(test, tested, class_names, 1)
    else:
        chosen = test_choice([picture.label for picture in trained], [picture.digest for picture in trained])
        tested = [picture for picture, is_test in zip(trained, chosen, strict=True) if is_test]
        trained = [picture for picture, is_test in zip(trained, chosen, strict=True) if not is_test]
        what = ", a fifth of them kept as test"
    depth = max(picture.pixels.shape[2] for picture in (*trained, *tested))
    return Dataset(
        *_arrays(trained, depth),
        *_arrays(tested, depth),
        class_names,
        f"{folder.resolve().name} ({len(trained) + len(tested):,} pictures{what})",
        "see the data's owner",
        reader.remarks(),
    )


def test_choice(labels: Sequence[int], digests: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Return which pictures are test pictures: a fifth of each class, at least one.

    They are those of the smallest digests: their names do not matter, and few change sides when pictures are added.
    """
    chosen = np.zeros(len(labels), bool)
    for label in set(labels):
        of_class = sorted((digests[index], index) for index, other in enumerate(labels) if other == label)
        for _, index in of_class[: max(1, round(len(of_class) / 5))]:
            chosen[index] = True
    return chosen


class _Reader:
    """Reads the pictures of both parts, and remembers what it left out and why."""

    def __init__(self, size: tuple[int, int] | None, channels: int | None) -> None:
        self.size = size
        self.channels = channels
        self.first: tuple[Path, Images] | None = None  # the picture whose size all others must have
        self.seen: dict[bytes, tuple[Path, int]] = {}  # the first file of each content, and its class
        self.files = 0
        self.unreadable: list[str] = []
        self.copies: list[str] = []
        self.ambiguous: dict[bytes, str] = {}

    def read(self, root: Path, class_names: Sequence[str]) -> list[Picture]:
        """Return the pictures below the folders of the classes in `root`, without those that are left out."""
        found: list[Picture] = []
        for label, name in enumerate(class_names):
            for path in _files(root / name):
                self.files += 1
                picture = self._picture(path, label)
                if picture is not None:
                    found.append(picture)
        return found

    def unambiguous(self, pictures: list[Picture]) -> list[Picture]:
        """Return the pictures without those that are in another class, too."""
        return [picture for picture in pictures if picture.digest not in self.ambiguous]

    def _picture(self, path: Path, label: int) -> Picture | None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self.unreadable.append(f"{path} ({error.strerror})")
            return None
        digest = hashlib.sha256(content).digest()
        if digest in self.seen:
            earlier, other = self.seen[digest]
            if other == label:
                self.copies.append(str(path))
            else:
                self.ambiguous[digest] = f"{earlier} and {path}"
            return None
        try:
            pixels = decoded(content, str(path), self.channels, self.size)
        except DataError as error:
            self.unreadable.append(str(error).removesuffix("."))
            return None
        self.seen[digest] = path, label
        if self.first is None:
            self.first = path, pixels
        elif pixels.shape[:2] != self.first[1].shape[:2]:
            first, image = self.first
            raise DataError(f"{path} is {_by(pixels)} pixels, {first} {_by(image)}; give --size to scale all.")
        return Picture(path, label, digest, pixels)

    def check(self, folder: Path) -> None:
        """Raise DataError where too many files cannot be read."""
        if len(self.unreadable) > _MOST_UNREADABLE * self.files:
            raise DataError(
                f"{len(self.unreadable)} of {self.files} pictures in {folder} cannot be read, among them "
                f"{self.unreadable[0]}: more than one in ten; mend or remove them."
            )

    def remarks(self) -> tuple[str, ...]:
        """Return sentences on what was left out."""
        said = (
            ("cannot be read", self.unreadable),
            ("are copies of others", self.copies),
            ("are in two classes", list(self.ambiguous.values())),
        )
        return tuple(f"left out, because they {why}: {_some(names)}." for why, names in said if names)


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `folder`, without hidden ones; () where it does not exist."""
    if not folder.is_dir():
        return ()
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from error


def _files(folder: Path) -> list[Path]:
    """Return the files in `folder`, and in folders within it, whose names are those of pictures; no hidden ones."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(place, name) for name in files if name[0] != "." and Path(name).suffix.lower() in SUFFIXES]
    return sorted(found)


def _check_counts(root: Path, pictures: Sequence[Picture], class_names: Sequence[str], least: int) -> None:
    counts = Counter(picture.label for picture in pictures)
    for label, name in enumerate(class_names):
        if counts[label] < least:
            others = Counter(path.suffix.lower() for path in (root / name).rglob("*") if path.is_file())
            strange = sorted(suffix for suffix in others if suffix and suffix not in SUFFIXES)
            there = f" (and files that are not read: {', '.join(strange)})" if strange else ""
            number = {0: "no picture", 1: "1 picture"}.get(counts[label], f"{counts[label]} different pictures")
            raise DataError(f"{root / name} has {number}{there}; at least {least} needed: {', '.join(SUFFIXES)}.")


def _arrays(pictures: Sequence[Picture], channels: int) -> tuple[Images, Labels]:
    images = [picture.pixels for picture in pictures]
    alike = [image if image.shape[2] == channels else with_channels(image, channels) for image in images]
    return np.stack(alike), np.array([picture.label for picture in pictures], np.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{len(names)} ({'; '.join(names[:_MOST_NAMED])}{more})"


def _by(image: Images) -> str:
    return "x".join(map(str, image.shape[:2]))
