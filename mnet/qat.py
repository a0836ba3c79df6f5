"""Quantization-aware training: a folded network trained on with int8 weights and activations to answer as in float.

The epochs are those of `mnet train`; after each, the network is converted and judged as the int8 file that it would
become, by LiteRT on the validation images. A killed training goes on from the last epoch.
"""

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnet.calibration import Grid
from mnet.conversion import convert
from mnet.datasets import Images
from mnet.evaluation import evaluate_int8
from mnet.fake_quantization import baked_model, fake_quantized_forward
from mnet.folding import Weights, exact_logits, folded_model
from mnet.optimizer import TrainingState
from mnet.progress import Progress
from mnet.recipes import QAT, Augmentation, Normalization, Recipe
from mnet.runs import (
    CHECKPOINT_FILE,
    HISTORY_FILE,
    EpochRow,
    check_partial,
    history_csv,
    partial_folder,
    read_checkpoint,
    write_atomically,
    write_checkpoint,
)
from mnet.training import train_epoch
from mnet.training_task import Task

_CANDIDATE_FILE = "candidate.tflite"


@dataclass(frozen=True)
class QuantizedTraining:
    """What is trained: the chain that `mnet.folding` made of a trained network, and its grids."""

    task: Task  # images, recipe and architecture; where the result goes; whether to resume
    teacher: Weights  # of the network in float, whose logits are learned
    weights: Weights  # to start from
    grids: Mapping[str, Grid]
    calibration: Images  # for the converter, which takes no range from them
    identity: Mapping[str, Any]  # of the network and its options, for a resumed training to agree with


def qat_recipe(values: Mapping[str, Any], epochs: int | None, normalization: Normalization) -> Recipe:
    """Return how to train on a network that was trained by the recipe in a run.json; None takes our epochs."""
    return replace(
        QAT,
        epochs=epochs or QAT.epochs,
        batch=int(values["batch"]),
        augmentation=Augmentation(**values["augmentation"]),
        normalization=normalization,
    )


def train_quantized(
    training: QuantizedTraining, report: Callable[[Progress], None] | None = None
) -> tuple[Weights, list[EpochRow]]:
    """Train, and return the weights of the epoch that is best in int8, and all epochs.

    `validation_accuracy` of an epoch is that of its int8 file. It works in `out`.partial, which the caller removes
    with `forget` when the file is written.

    Raises:
        MnetError: the folder is in the way, missing, or of another training.
    """
    import tensorflow as tf

    task, out = training.task, training.task.options.out
    partial = partial_folder(out)
    check_partial(partial, out, resume=task.options.resume)
    model = folded_model(task.architecture, training.weights)
    teacher = functools.partial(exact_logits, task.architecture, training.teacher)
    state = TrainingState(model, task.architecture, task.recipe, fake_quantized_forward(training.grids), teacher)
    state.vectors["best_weights"] = tf.Variable(state.vectors["weights"])
    identity = task.identity() | dict(training.identity)
    partial.mkdir(parents=True, exist_ok=True)
    history = read_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors) if task.options.resume else []
    while len(history) < task.recipe.epochs:
        row = train_epoch(state, task, tuple(history), report)
        row = replace(row, validation_accuracy=_int8_accuracy(training, state, partial / _CANDIDATE_FILE))
        if not any(row.validation_accuracy < before.validation_accuracy for before in history):
            state.vectors["best_weights"].assign(state.vectors["average_weights"])
        history.append(row)
        write_checkpoint(partial / CHECKPOINT_FILE, identity, state.vectors, history)
        write_atomically(partial / HISTORY_FILE, history_csv(history).encode())
    return state.arrays("best_weights"), history


def forget(out: Path) -> None:
    """Remove what a training needed to be resumed."""
    shutil.rmtree(partial_folder(out))


def _int8_accuracy(training: QuantizedTraining, state: TrainingState, path: Path) -> float:
    split = training.task.split
    if not len(split.x_validation):
        return float("nan")
    task = training.task
    baked = baked_model(task.architecture, state.arrays("average_weights"), training.grids)
    write_atomically(path, convert(baked, training.calibration, task.recipe.normalization, str(task.options.out)))
    return evaluate_int8(path, split.x_validation, split.y_validation).fraction
