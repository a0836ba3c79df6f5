"""A better network to learn from: which it is, and what it says of each image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mnet.architecture import Architecture
from mnet.datasets import Dataset
from mnet.errors import MnetError
from mnet.network import forward
from mnet.recipes import Normalization
from mnet.trained import load_keras
from mnet.transfer import Source, find_source


def find_teacher(name: str, student: Architecture, dataset: Dataset) -> Source:
    """Return the network that `--teacher` names, after a look at whether it can teach this student.

    Raises:
        MnetError: there is none, or it knows other images or classes.
    """
    source = find_source(name, "--teacher")
    theirs, ours = source.architecture, student
    if (theirs.height, theirs.width, theirs.channels) != (ours.height, ours.width, ours.channels):
        raise MnetError(
            f"--teacher {name} takes images of {theirs.height}x{theirs.width}x{theirs.channels}, the network to train "
            f"{ours.height}x{ours.width}x{ours.channels}: choose a teacher of the same images."
        )
    if source.class_names != tuple(dataset.class_names):
        raise MnetError(
            f"--teacher {name} knows {', '.join(source.class_names[:3])} ... ({len(source.class_names)} classes), not "
            f"those of {dataset.description}, in their order: choose a teacher of the same classes."
        )
    return source


def teacher_of(source: Source, student: Normalization) -> Callable[[Any], Any]:
    """Return a function that gives the logits of `source` for images that are normalized as its student takes them.

    Raises:
        ModelError: its file is damaged.
    """
    weights = {v.path: np.asarray(v.numpy(), np.float32) for v in load_keras(source.model).variables}
    scale = source.normalization.scale / student.scale
    offset = (student.zero_point - source.normalization.zero_point) * source.normalization.scale
    return lambda x: forward(source.architecture, weights, x * scale + offset, training=False)[0]
