"""What a training is about: options in, one frozen `Task` out, checked before a single step is taken."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnet.architecture import Architecture, Head, Shape, check_architecture, mobilenet
from mnet.budget import Fit
from mnet.datasets import Dataset, Split, balanced_choice, validation_split
from mnet.errors import MnetError
from mnet.pruning import narrower
from mnet.recipes import NesterovSgd, Recipe, recipe
from mnet.runs import plain
from mnet.sources import load
from mnet.teacher import find_teacher
from mnet.transfer import Source, find_source

_LARGEST_VALIDATION = 5_000
_SMALLEST_BATCH = 2  # images: BatchNormalization needs others to compare with
_FEWEST_EPOCHS = 10  # where a recipe counts in images


@dataclass(frozen=True)
class TrainingOptions:
    """What to train on what; None takes what data or recipe say."""

    data: str
    out: Path
    alpha: float | None = None
    shape: Shape | None = None
    size: tuple[int, int] | None = None  # height, width; images are scaled to it
    channels: int | None = None  # 1 turns images grey, 3 makes them three equal colours
    stem_stride: int | None = None
    head: Head = Head.SOFTMAX
    architecture: Architecture | None = None  # in place of alpha, shape, size, channels, stem_stride and head
    source: str | None = None  # a trained network to start from, see `mnet.transfer`; `shape` then only narrows it
    teacher: str | None = None  # a better network to learn from: see `mnet.teacher`
    fit: Fit | None = None  # why this shape and size: the budget that they keep; it is only recorded
    recipe: str = "default"
    flip: bool = True  # as the recipe says; False mirrors no image, as text and arrows want it
    epochs: int | None = None
    minutes: float | None = None  # in place of epochs: end then, whatever else the machine does
    sparsity: float = 0.0  # how strongly the scales of channels are drawn to 0, see `mnet.pruning`
    seed: int = 0
    threads: int | None = None  # of TensorFlow; None leaves the choice to it
    train_images: int | None = None  # use only so many, the same number of each class
    validation_images: int | None = None  # kept back from training images; None keeps a tenth, at most 5,000
    resume: bool = False  # go on with the unfinished run in `out`.partial
    overwrite: bool = False  # replace a finished or unfinished run in `out`


def command(options: TrainingOptions) -> str:
    """Return the command line that trains this again.

    >>> command(TrainingOptions(data="sample", out=Path("run"), recipe="sample"))
    'mnet train --data sample --recipe sample --out run'
    """
    words = ["mnet train", f"--data {options.data}"]
    if options.alpha is not None:
        words.append(f"--alpha {options.alpha:g}")
    if options.shape is not None:
        words.append(f"--blocks {options.shape}")
        words += ["--depthwise relu6"] * (not options.shape.linear_depthwise)
    if options.size is not None:
        height, width = options.size
        words.append(f"--size {height}" if height == width else f"--size {height}x{width}")
    if options.channels is not None:
        words.append(f"--channels {options.channels}")
    if options.stem_stride is not None:
        words.append(f"--stem-stride {options.stem_stride}")
    if options.head is not Head.SOFTMAX:
        words.append(f"--head {options.head.value}")
    if options.source is not None:
        words.append(f"--from {options.source}")
    if options.teacher is not None:
        words.append(f"--teacher {options.teacher}")
    if options.fit is not None:
        words.append(str(options.fit.budget))
    words += [f"--recipe {options.recipe}", *["--no-flip"] * (not options.flip)]
    for flag, value in (
        ("--epochs", options.epochs),
        ("--minutes", options.minutes),
        ("--sparsity", options.sparsity or None),
        ("--seed", options.seed or None),
        ("--threads", options.threads),
        ("--train-images", options.train_images),
        ("--validation-images", options.validation_images),
    ):
        if value is not None:
            words.append(f"{flag} {value}")
    return " ".join([*words, f"--out {options.out.name}"])


@dataclass(frozen=True, eq=False)
class Task:
    """A training, ready to begin."""

    options: TrainingOptions
    recipe: Recipe  # as the options, the images and the network to start from change it
    architecture: Architecture
    dataset: Dataset
    split: Split
    source: Source | None  # the trained network to start from
    teacher: Source | None = None  # the one to learn from

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last, incomplete batch is left out, other images each time."""
        return len(self.split.x_train) // self.recipe.batch

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a resumed run to be the same run."""
        started: dict[str, Any] = {} if self.source is None else {"source": self.source.sha256}
        started |= {"sparsity": self.options.sparsity} if self.options.sparsity else {}
        started |= {} if self.teacher is None else {"teacher": self.teacher.sha256}
        return started | {
            "architecture": plain(self.architecture),
            "recipe": plain(self.recipe),
            "data": self.dataset.description,
            "images": [len(self.split.x_train), len(self.split.x_validation)],
            "seed": self.options.seed,
        }


def task_of(options: TrainingOptions) -> Task:
    """Load and check all that a training needs.

    Raises:
        DataError: the data set is missing or damaged.
        MnetError: options that do not fit together.
    """
    if not 0 <= options.sparsity < math.inf:
        raise MnetError(f"--sparsity {options.sparsity:g} is no strength; 0 or more, such as 1e-4.")
    chosen = _with_length(recipe(options.recipe), options.epochs, options.minutes)
    source = _source(options)
    if source is not None:
        chosen = going_on(chosen, source)
    if not options.flip:
        chosen = replace(chosen, augmentation=replace(chosen.augmentation, flip=False))
    dataset, split = load_split(options if source is None else _fed_as(source, options))
    chosen = fitted(chosen, len(split.x_train), fixed_epochs=options.epochs is not None)
    architecture = options.architecture or _architecture(options, chosen, dataset, source)
    check_architecture(architecture)
    check_fit(architecture, dataset, split, chosen)
    teacher = None if options.teacher is None else find_teacher(options.teacher, architecture, dataset)
    return Task(options, chosen, architecture, dataset, split, source, teacher)


def load_split(options: TrainingOptions) -> tuple[Dataset, Split]:
    """Load the data of a run and keep back its validation images: the same ones each time."""
    channels = options.architecture.channels if options.architecture else options.channels
    size = (options.architecture.height, options.architecture.width) if options.architecture else options.size
    dataset = load(options.data, size=size, channels=channels)
    if options.train_images is not None:
        if not 1 <= options.train_images <= len(dataset.x_train):
            raise MnetError(
                f"{dataset.description} has {len(dataset.x_train)} training images, not {options.train_images}."
            )
        some = balanced_choice(dataset.y_train, options.train_images, options.seed)
        dataset = replace(dataset, x_train=dataset.x_train[some], y_train=dataset.y_train[some])
    count = options.validation_images
    if count is None:
        count = min(len(dataset.x_train) // 10, _LARGEST_VALIDATION)
    return dataset, validation_split(dataset, count, options.seed)


def _source(options: TrainingOptions) -> Source | None:
    """Return the network to start from, after a look at options that it leaves nothing to."""
    if options.source is None:
        return None
    for flag, value in (
        ("--alpha", options.alpha),
        ("--size", options.size),
        ("--channels", options.channels),
        ("--stem-stride", options.stem_stride),
        ("an architecture", options.architecture),
    ):
        if value is not None:
            raise MnetError(f"{flag} contradicts --from {options.source}: the network is the one it starts from.")
    return find_source(options.source)


def _fed_as(source: Source, options: TrainingOptions) -> TrainingOptions:
    """Return the options with the images' form that the network to start from takes."""
    net = source.architecture
    return replace(options, size=(net.height, net.width), channels=net.channels)


def _architecture(
    options: TrainingOptions, chosen: Recipe, dataset: Dataset, source: Source | None = None
) -> Architecture:
    if source is not None:
        head = source.architecture.head if options.head is Head.SOFTMAX else options.head
        net = replace(source.architecture, classes=len(dataset.class_names), head=head)
        return net if options.shape is None else narrower(net, options.shape, source.name)
    height, width, channels = dataset.image_shape
    alpha = 1.0 if options.shape else chosen.alpha
    return mobilenet(
        alpha if options.alpha is None else options.alpha,
        (height, width),
        channels,
        len(dataset.class_names),
        shape=options.shape or chosen.shape,
        stem_stride=options.stem_stride,
        head=options.head,
    )


def check_fit(architecture: Architecture, dataset: Dataset, split: Split, chosen: Recipe) -> None:
    """Raise MnetError unless network, images and recipe go together."""
    if architecture.classes != len(dataset.class_names):
        raise MnetError(f"{architecture.name} has {architecture.classes} classes, {dataset}.")
    if len(split.x_train) < _SMALLEST_BATCH:
        raise MnetError(
            f"{dataset.description}: {len(split.x_train)} training images are too few; keep back fewer for validation "
            "or use more data."
        )
    side = min(architecture.height, architecture.width)
    if chosen.augmentation.crop_padding >= side:
        raise MnetError(
            f"images of {architecture.height}x{architecture.width} are too small for recipe {chosen.name}, which "
            f"moves them by {chosen.augmentation.crop_padding} pixels."
        )


def going_on(chosen: Recipe, source: Source) -> Recipe:
    """Return the recipe for a network to start from: fed as it was, and shown images as before if that is meant."""
    chosen = replace(chosen, normalization=source.normalization)
    if not chosen.goes_on:
        return chosen
    return replace(chosen, augmentation=source.augmentation, label_smoothing=source.label_smoothing)


def fitted(chosen: Recipe, images: int, *, fixed_epochs: bool) -> Recipe:
    """Return the recipe for so many training images: fewer epochs of many, smaller batches of few.

    The rate of SGD goes with the batch. Source: Goyal et al. 2017, the linear scaling rule.
    """
    if chosen.images is not None and not fixed_epochs:
        chosen = replace(chosen, epochs=min(chosen.epochs, max(_FEWEST_EPOCHS, chosen.images // max(images, 1))))
    if _SMALLEST_BATCH <= images < chosen.batch:
        optimizer = chosen.optimizer
        if isinstance(optimizer, NesterovSgd):
            optimizer = replace(optimizer, learning_rate=optimizer.learning_rate * images / chosen.batch)
        chosen = replace(chosen, batch=images, optimizer=optimizer)
    return chosen


def _with_length(chosen: Recipe, epochs: int | None, minutes: float | None) -> Recipe:
    if epochs is not None and minutes is not None:
        raise MnetError("--epochs and --minutes both say how long to train; give one of them.")
    if epochs is not None and epochs < 1:
        raise MnetError(f"--epochs {epochs} trains nothing; at least 1.")
    if minutes is not None and not 0 < minutes < math.inf:
        raise MnetError(f"--minutes {minutes:g} trains nothing; more than 0.")
    return replace(chosen, epochs=chosen.epochs if epochs is None else epochs, minutes=minutes)
