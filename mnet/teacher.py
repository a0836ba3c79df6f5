"""Learning from a better network: what a student is told about each image besides its label.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import Architecture
from mnet.datasets import Dataset
from mnet.errors import MnetError
from mnet.network import forward
from mnet.recipes import Distillation, Normalization
from mnet.trained import load_keras
from mnet.transfer import Source, find_source


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, and how much its answers count."""

    architecture: Architecture
    normalization: Normalization
    weights: dict[str, npt.NDArray[np.float32]]  # by Keras path
    how: Distillation

    def loss(self, logits: Any, x: Any) -> Any:
        """Return how far a student's answers are from the teacher's: a cross entropy for each image.

        Args:
            logits: of the student, [images, classes].
            x: the images, 0 to 255.
        """
        import tensorflow as tf

        # The gradient of softened answers is smaller by the temperature's square, which the factor undoes.
        softened = tf.nn.softmax(self._logits(x) / self.how.temperature)
        cross_entropy = tf.nn.softmax_cross_entropy_with_logits(softened, logits / self.how.temperature)
        return cross_entropy * self.how.temperature**2

    def _logits(self, x: Any) -> Any:
        normalized = (x - (128.0 + self.normalization.zero_point)) * self.normalization.scale
        return forward(self.architecture, self.weights, normalized, training=False)[0]


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


def teacher_of(source: Source, how: Distillation) -> Teacher:
    """Load a teacher.

    Raises:
        ModelError: its file is damaged.
    """
    weights = {v.path: np.asarray(v.numpy(), np.float32) for v in load_keras(source.model).variables}
    return Teacher(source.architecture, source.normalization, weights, how)
