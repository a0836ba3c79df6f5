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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mnet
from mnet.architecture import build, import_keras
from mnet.augmentation import augment
from mnet.cost import cost
from mnet.curve import curve_svg
from mnet.datasets import balanced_order
from mnet.errors import MnetError
from mnet.evaluation import Evaluation, confusion
from mnet.optimizer import TrainingState, learning_rate
from mnet.progress import Progress
from mnet.recipes import Recipe
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
from mnet.teacher import teacher_of
from mnet.training_task import Task, TrainingOptions, command, task_of
from mnet.transfer import start_from


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training gave."""

    folder: Path
    model: Path
    description: str  # of the data
    test_accuracy: float
    balanced_accuracy: float  # of the same images: the mean over the classes
    test_images: int
    history: tuple[EpochRow, ...]
    seconds: float  # of all epochs, those before a resume included


def train(
    options: TrainingOptions,
    report: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a network and write its folder.

    Everything is written to `out`.partial, which is renamed to `out` at the end: a folder `out` is always whole.
    After each epoch there is a checkpoint; after a kill, `resume` goes on from it to the same end.

    Args:
        options: what to train.
        report: called after each step, see `progress_bar`.
        say: called with each sentence on what is left out of the data, before anything is trained.

    Raises:
        DataError: the data set is missing or damaged.
        MnetError: options that do not fit together, or a folder that is in the way or cannot be written.
    """
    partial = check_folders(options.out, resume=options.resume, overwrite=options.overwrite)
    task = task_of(options)
    if say is not None:
        for remark in task.dataset.remarks:
            say(remark)
    set_threads(options.threads)
    keep_memory()
    model, state = _begin(task)
    try:
        _clear(partial, options)
        history = _train_epochs(state, task, partial, report)
        state.copy_to(model)
        predicted = state.classes(task.dataset.x_test)
        tested = Evaluation("float", confusion(task.dataset.y_test, predicted, task.architecture.classes))
        write_model(model, partial / MODEL_FILE)
        run = _run_values(task, history, tested)
        write_atomically(partial / RUN_FILE, (json.dumps(run, indent=2) + "\n").encode())
        write_atomically(partial / CARD_FILE, model_card(run).encode())
        (partial / CHECKPOINT_FILE).unlink(missing_ok=True)
        move_into_place(partial, options.out, overwrite=options.overwrite)
    except OSError as error:
        raise MnetError(f"{options.out} cannot be written: {error.strerror or error}.") from error
    return TrainingResult(
        folder=options.out,
        model=options.out / MODEL_FILE,
        description=task.dataset.description,
        test_accuracy=tested.fraction,
        balanced_accuracy=tested.balanced,
        test_images=tested.images,
        history=tuple(history),
        seconds=_seconds(history),
    )


def _begin(task: Task) -> tuple[Any, TrainingState]:
    """Return the Keras model of a task, with the weights that it starts from, and what trains it."""
    chosen = task.recipe
    import_keras().utils.set_random_seed(task.options.seed)
    model = build(task.architecture, chosen.initializer)  # type: ignore[arg-type]
    if task.source is not None:
        start_from(task.source, model, task.dataset.class_names, task.architecture)
    teacher = None if task.teacher is None else teacher_of(task.teacher, chosen.normalization)
    return model, TrainingState(model, task.architecture, chosen, teacher=teacher, sparsity=task.options.sparsity)


def _clear(partial: Path, options: TrainingOptions) -> None:
    """Make the folder to work in, without what is not to be gone on with."""
    if options.overwrite and not options.resume and partial.is_dir():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.glob("*.tmp"):
        leftover.unlink()


def _train_epochs(
    state: TrainingState, task: Task, partial: Path, report: Callable[[Progress], None] | None
) -> list[EpochRow]:
    """Train to the end, or on to it from the checkpoint, and write one after each epoch; return all epochs."""
    identity = task.identity()
    resumed = task.options.resume
    history = read_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors) if resumed else []
    while not _is_over(task.recipe, task.steps, history):
        history.append(train_epoch(state, task, tuple(history), report))
        write_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors, history)
        write_atomically(partial / HISTORY_FILE, history_csv(history).encode())
        write_atomically(partial / CURVE_FILE, curve_svg(history, task.architecture.name).encode())
    return history


def train_epoch(
    state: TrainingState,
    task: Task,
    history: tuple[EpochRow, ...],
    report: Callable[[Progress], None] | None,
) -> EpochRow:
    """Take the steps of the epoch after `history`, and return how it went."""
    split, chosen, seed, steps = task.split, task.recipe, task.options.seed, task.steps
    epoch, began = len(history) + 1, time.monotonic()
    before = _seconds(history)
    random = np.random.default_rng([seed, epoch])
    order = balanced_order(split.y_train, random) if chosen.balanced else random.permutation(len(split.x_train))
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


def _is_over(chosen: Recipe, steps: int, history: Sequence[EpochRow]) -> bool:
    done = len(history) * steps
    return done >= chosen.steps(steps, done, _seconds(history))


def _seconds(history: Sequence[EpochRow]) -> float:
    return sum(row.seconds for row in history)


def set_threads(threads: int | None) -> None:
    """Make TensorFlow use so many threads; None leaves the choice to it."""
    if threads is None:
        return
    if threads < 1:
        raise MnetError(f"--threads {threads} is too few; at least 1.")
    import_keras()
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow already runs, and cannot change it any more
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def keep_memory() -> None:
    """Let malloc keep large blocks instead of handing each back to the system: 4 % faster steps (glibc only)."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)


def _run_values(task: Task, history: list[EpochRow], tested: Evaluation) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    options, architecture, dataset = task.options, task.architecture, task.dataset
    total = cost(architecture)
    others = {"source": task.source, "teacher": task.teacher}
    return {key: each.record() for key, each in others.items() if each is not None} | {
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
            "sparsity": options.sparsity,
            "train_images": options.train_images,
            "validation_images": len(task.split.x_validation),
        },
        "data": {
            "description": dataset.description,
            "licence": dataset.licence,
            "class_names": list(dataset.class_names),
            "train_images": len(task.split.x_train),
            "validation_images": len(task.split.x_validation),
            "test_images": len(dataset.x_test),
            "images_of_class": np.bincount(
                np.concatenate([dataset.y_train, dataset.y_test]), minlength=len(dataset.class_names)
            ).tolist(),
            "remarks": list(dataset.remarks),
        },
        "architecture": plain(architecture),
        "recipe": plain(task.recipe) | {"optimizer": plain(task.recipe.optimizer)},
        "parameters": total.parameters,
        "trainable_parameters": total.trainable,
        "multiply_adds": total.multiply_adds,
        "fit": plain(task.options.fit) | {"words": str(task.options.fit)} if task.options.fit else None,
        "epochs": len(history),
        "validation_accuracy": None if math.isnan(v := history[-1].validation_accuracy) else v,
        "test_accuracy": tested.fraction,
        "balanced_test_accuracy": tested.balanced,
        "seconds": round(_seconds(history), 1),
        "images_per_second": images_per_second(len(task.split.x_train), history),
    }
