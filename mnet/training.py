"""Train a MobileNet: options in, a folder with model.keras, history.csv, run.json and README.md out.

The model is an ordinary Keras model; the loop is not Keras', see network.py and optimizer.py.

All random numbers are drawn from (seed, epoch) or (seed, step), so a run that was killed goes on as if nothing had
happened. The same machine with the same number of threads gives the same weights to the last bit; others do not.
"""

import contextlib
import ctypes
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import mnet
from mnet.architecture import Architecture, Head, Shape, build, check_architecture, import_keras, mobilenet
from mnet.augmentation import augment
from mnet.cost import cost
from mnet.curve import curve_svg
from mnet.datasets import Dataset, Split, balanced_choice, validation_split
from mnet.errors import MnetError
from mnet.optimizer import TrainingState, learning_rate
from mnet.progress import Progress
from mnet.recipes import Recipe, recipe
from mnet.runs import (
    CARD_FILE,
    CHECKPOINT_FILE,
    CURVE_FILE,
    HISTORY_FILE,
    MODEL_FILE,
    RUN_FILE,
    EpochRow,
    check_folders,
    history_csv,
    images_per_second,
    model_card,
    move_into_place,
    plain,
    read_checkpoint,
    write_atomically,
    write_checkpoint,
    write_model,
)
from mnet.sources import load

_LARGEST_VALIDATION = 5_000


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
    recipe: str = "default"
    epochs: int | None = None
    minutes: float | None = None  # in place of epochs: end then, whatever else the machine does
    seed: int = 0
    threads: int | None = None  # of TensorFlow; None leaves the choice to it
    train_images: int | None = None  # use only so many, the same number of each class
    validation_images: int | None = None  # kept back from training images; None keeps a tenth, at most 5,000
    resume: bool = False  # go on with the unfinished run in `out`.partial
    overwrite: bool = False  # replace a finished or unfinished run in `out`


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training gave."""

    folder: Path
    model: Path
    description: str  # of the data
    test_accuracy: float
    history: tuple[EpochRow, ...]
    seconds: float  # of all epochs, those before a resume included


def train(options: TrainingOptions, report: Callable[[Progress], None] | None = None) -> TrainingResult:
    """Train a network and write its folder.

    Everything is written to `out`.partial, which is renamed to `out` at the end: a folder `out` is always whole.
    After each epoch there is a checkpoint; after a kill, `resume` goes on from it to the same end.

    Args:
        options: what to train.
        report: called after each step, see `progress_bar`.

    Raises:
        DataError: the data set is missing or damaged.
        MnetError: options that do not fit together, or a folder that is in the way or cannot be written.
    """
    chosen = _with_length(recipe(options.recipe), options.epochs, options.minutes)
    partial = check_folders(options.out, resume=options.resume, overwrite=options.overwrite)
    dataset, split = load_split(options)
    architecture = options.architecture or _architecture(options, chosen, dataset)
    check_architecture(architecture)
    _check_fit(architecture, dataset, split, chosen)

    _set_threads(options.threads)
    _keep_memory()
    keras = import_keras()
    keras.utils.set_random_seed(options.seed)
    model = build(architecture, chosen.initializer)  # type: ignore[arg-type]
    steps = len(split.x_train) // chosen.batch
    state = TrainingState(model, architecture, chosen)
    history: list[EpochRow] = []
    identity = _identity(options, architecture, chosen, dataset, split)

    try:
        if options.overwrite and not options.resume and partial.is_dir():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for leftover in partial.glob("*.tmp"):
            leftover.unlink()
        if options.resume:
            history = read_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors)
        while not _is_over(chosen, steps, history):
            row = _train_epoch(state, split, chosen, options.seed, steps, tuple(history), report)
            history.append(row)
            write_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors, history)
            write_atomically(partial / HISTORY_FILE, history_csv(history).encode())
            write_atomically(partial / CURVE_FILE, curve_svg(history, architecture.name).encode())
        state.copy_to(model)
        test_accuracy = state.accuracy(dataset.x_test, dataset.y_test)
        write_model(model, partial / MODEL_FILE)
        seconds = _seconds(history)
        run = _run_values(options, architecture, chosen, dataset, split, history, test_accuracy)
        write_atomically(partial / RUN_FILE, (json.dumps(run, indent=2) + "\n").encode())
        write_atomically(partial / CARD_FILE, model_card(run).encode())
        (partial / CHECKPOINT_FILE).unlink(missing_ok=True)
        move_into_place(partial, options.out, overwrite=options.overwrite)
    except OSError as error:
        raise MnetError(f"{options.out} cannot be written: {error.strerror or error}.") from error
    return TrainingResult(
        folder=options.out,
        model=options.out / MODEL_FILE,
        description=dataset.description,
        test_accuracy=test_accuracy,
        history=tuple(history),
        seconds=seconds,
    )


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
    words.append(f"--recipe {options.recipe}")
    for flag, value in (
        ("--epochs", options.epochs),
        ("--minutes", options.minutes),
        ("--seed", options.seed or None),
        ("--threads", options.threads),
        ("--train-images", options.train_images),
        ("--validation-images", options.validation_images),
    ):
        if value is not None:
            words.append(f"{flag} {value}")
    return " ".join([*words, f"--out {options.out.name}"])


def _train_epoch(
    state: TrainingState,
    split: Split,
    chosen: Recipe,
    seed: int,
    steps: int,
    history: tuple[EpochRow, ...],
    report: Callable[[Progress], None] | None,
) -> EpochRow:
    epoch, began = len(history) + 1, time.monotonic()
    before = _seconds(history)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(split.x_train))  # the last, incomplete batch is left out; other images each time
    loss_sum, correct, rate, seen = 0.0, 0, 0.0, 0
    for index in range(steps):
        part = order[index * chosen.batch : (index + 1) * chosen.batch]
        x = augment(split.x_train[part], chosen.augmentation, random)
        step = (epoch - 1) * steps + index
        in_all = chosen.steps(steps, step, before + time.monotonic() - began)
        if seen and step >= in_all:
            break  # the minutes are over
        rate = learning_rate(chosen.optimizer, step, max(in_all, step + 1))
        loss, hits = state.step(x, split.y_train[part].astype(np.int32), np.float32(rate), step, seed)
        loss_sum += float(loss)
        correct += int(hits)
        if not math.isfinite(loss_sum):
            raise MnetError(f"the loss is no longer a number in epoch {epoch}, step {index + 1}: the rate is too high.")
        seen += chosen.batch
        if report is not None:
            epochs = max(epoch, math.ceil(in_all / steps))
            pace = seen / (time.monotonic() - began)
            report(Progress(epoch, epochs, index + 1, steps, loss_sum / (index + 1), correct / seen, pace, history))
    return EpochRow(
        epoch=epoch,
        learning_rate=rate,
        loss=loss_sum * chosen.batch / seen,
        train_accuracy=correct / seen,
        validation_accuracy=state.accuracy(split.x_validation, split.y_validation),
        seconds=time.monotonic() - began,
    )


def _architecture(options: TrainingOptions, chosen: Recipe, dataset: Dataset) -> Architecture:
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


def _check_fit(architecture: Architecture, dataset: Dataset, split: Split, chosen: Recipe) -> None:
    if architecture.classes != len(dataset.class_names):
        raise MnetError(f"{architecture.name} has {architecture.classes} classes, {dataset}.")
    if len(split.x_train) < chosen.batch:
        raise MnetError(
            f"{dataset.description}: {len(split.x_train)} training images make no batch of {chosen.batch}; "
            "keep back fewer for validation or use more data."
        )
    side = min(architecture.height, architecture.width)
    if chosen.augmentation.crop_padding >= side:
        raise MnetError(
            f"images of {architecture.height}x{architecture.width} are too small for recipe {chosen.name}, which "
            f"moves them by {chosen.augmentation.crop_padding} pixels."
        )


def _with_length(chosen: Recipe, epochs: int | None, minutes: float | None) -> Recipe:
    if epochs is not None and minutes is not None:
        raise MnetError("--epochs and --minutes both say how long to train; give one of them.")
    if epochs is not None and epochs < 1:
        raise MnetError(f"--epochs {epochs} trains nothing; at least 1.")
    if minutes is not None and not 0 < minutes < math.inf:
        raise MnetError(f"--minutes {minutes:g} trains nothing; more than 0.")
    return replace(chosen, epochs=chosen.epochs if epochs is None else epochs, minutes=minutes)


def _is_over(chosen: Recipe, steps: int, history: Sequence[EpochRow]) -> bool:
    done = len(history) * steps
    return done >= chosen.steps(steps, done, _seconds(history))


def _seconds(history: Sequence[EpochRow]) -> float:
    return sum(row.seconds for row in history)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise MnetError(f"--threads {threads} is too few; at least 1.")
    import_keras()
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow already runs, and cannot change it any more
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _keep_memory() -> None:
    """Let malloc keep large blocks instead of handing each back to the system: 4 % faster steps (glibc only)."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)


def _identity(
    options: TrainingOptions, architecture: Architecture, chosen: Recipe, dataset: Dataset, split: Split
) -> dict[str, Any]:
    """Return what must be the same for a resumed run to be the same run."""
    return {
        "architecture": plain(architecture),
        "recipe": plain(chosen),
        "data": dataset.description,
        "images": [len(split.x_train), len(split.x_validation)],
        "seed": options.seed,
    }


def _run_values(
    options: TrainingOptions,
    architecture: Architecture,
    chosen: Recipe,
    dataset: Dataset,
    split: Split,
    history: list[EpochRow],
    test_accuracy: float,
) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    total = cost(architecture)
    return {
        "mnet": mnet.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "command": command(options),
        "options": {
            "data": options.data,
            "size": [architecture.height, architecture.width],
            "channels": architecture.channels,
            "seed": options.seed,
            "threads": tf.config.threading.get_intra_op_parallelism_threads() or None,
            "train_images": options.train_images,
            "validation_images": len(split.x_validation),
        },
        "data": {
            "description": dataset.description,
            "licence": dataset.licence,
            "class_names": list(dataset.class_names),
            "train_images": len(split.x_train),
            "validation_images": len(split.x_validation),
            "test_images": len(dataset.x_test),
        },
        "architecture": plain(architecture),
        "recipe": plain(chosen) | {"optimizer": plain(chosen.optimizer)},
        "parameters": total.parameters,
        "trainable_parameters": total.trainable,
        "multiply_adds": total.multiply_adds,
        "epochs": len(history),
        "validation_accuracy": None if math.isnan(v := history[-1].validation_accuracy) else v,
        "test_accuracy": test_accuracy,
        "seconds": round(_seconds(history), 1),
        "images_per_second": images_per_second(len(split.x_train), history),
    }
