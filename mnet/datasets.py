"""A data set as arrays of bytes, and which of its images to take."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mnet.errors import DataError

Images = npt.NDArray[np.uint8]  # [images, height, width, channels]
Labels = npt.NDArray[np.int64]  # [images]


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
    remarks: tuple[str, ...] = ()  # sentences on what was left out

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
class LabelledImages:
    """Images to measure a model by."""

    x: Images
    y: Labels
    class_names: tuple[str, ...]  # () where they are not known
    description: str
    numbers: npt.NDArray[np.int64]  # [images], ascending: which of the data these are

    def some(self, count: int) -> "LabelledImages":
        """Return `count` of them, or all if there are fewer; as many of each class where possible."""
        chosen = balanced_choice(self.y, min(count, len(self.y)), seed=0)
        return replace(self, x=self.x[chosen], y=self.y[chosen], numbers=self.numbers[chosen])

    def labelled_by(self, names: tuple[str, ...]) -> "LabelledImages":
        """Return them with labels that are places in `names`, where these hold all of their classes; else unchanged."""
        if not self.class_names or len(set(names)) < len(names) or not set(self.class_names) <= set(names):
            return self
        places = np.array([names.index(name) for name in self.class_names], np.int64)
        return replace(self, y=places[self.y], class_names=names)


@dataclass(frozen=True, eq=False)
class Split:
    """Training images without the ones kept back to choose by."""

    x_train: Images
    y_train: Labels
    x_validation: Images
    y_validation: Labels


def validation_split(dataset: Dataset, count: int, seed: int = 0) -> Split:
    """Keep back `count` training images, of each class in proportion to its images; never test images.

    Raises:
        DataError: `count` leaves nothing to train on.
    """
    images = len(dataset.y_train)
    if not 0 <= count < images:
        raise DataError(f"{dataset.description} has {images} training images; {count} cannot be kept for validation.")
    kept = np.zeros(images, bool)
    kept[stratified_choice(dataset.y_train, count, seed)] = True
    return Split(dataset.x_train[~kept], dataset.y_train[~kept], dataset.x_train[kept], dataset.y_train[kept])


def balanced_choice(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` ascending indices, chosen by `seed`, with class counts as equal as the labels allow.

    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> labels[balanced_choice(labels, 4, seed=1)]
    array([0, 0, 1, 1])
    """
    shuffled, rank = _ranked(labels, seed)
    return np.sort(shuffled[np.argsort(rank[shuffled], kind="stable")][:count])


def stratified_choice(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` ascending indices, chosen by `seed`, with shares of the classes as the labels have them.

    For classes of equal size that is `balanced_choice`.

    >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    >>> labels[stratified_choice(labels, 3, seed=1)]
    array([0, 0, 1])
    """
    shuffled, rank = _ranked(labels, seed)
    place = (rank + 0.5) / np.bincount(labels)[labels]  # where in its class an image stands, from 0 to 1
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")][:count])


def _ranked(labels: Labels, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return indices shuffled by `seed`, and the rank of each image among those of its class in that order."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = np.arange(len(of_class))
    return shuffled, rank


def balanced_order(labels: Labels, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return as many indices as there are labels, shuffled: each class as often as any other, whatever its size.

    Images of a class take turns: none comes again before all others did.

    >>> labels = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    >>> np.bincount(labels[balanced_order(labels, np.random.default_rng(0))])
    array([4, 4])
    """
    classes = np.unique(labels)
    times = -(-len(labels) // len(classes))
    drawn = []
    for label in classes:
        of_class = np.flatnonzero(labels == label)
        rounds = [random.permutation(of_class) for _ in range(-(-times // len(of_class)))]
        drawn.append(np.concatenate(rounds)[:times])
    return random.permutation(np.stack(drawn, axis=1).ravel()[: len(labels)])


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `count` items.

    >>> list(batches(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
