"""How well a model classifies: labels and predictions become counts, counts become figures with their uncertainty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.datasets import Images, Labels, batches
from mnet.errors import MnetError, ModelError
from mnet.graph import ArgMax, Graph, Int8Array
from mnet.litert_runtime import run_litert
from mnet.recipes import Normalization
from mnet.tflite import read_model
from mnet.trained import load_keras, locate, normalization_of

Confusion = npt.NDArray[np.int64]  # [classes, classes]: images of class (row) that were taken for class (column)
Progress = Callable[[int, int], None]  # images done, images in all
_FLOAT_BATCH = 500  # images of a float model at once
_AT_ONCE, _TENSOR_BYTES = 1000, 64 << 20  # images of an int8 model, and what all their tensors may take
_QUANTILE = 1.959964  # of the normal distribution, for 95 % between -q and q


def no_progress(done: int, total: int) -> None:
    """Take no notice."""


@dataclass(frozen=True)
class ClassFigures:
    """How one class fared. A share of nothing is None."""

    name: str
    images: int  # that are of this class
    correct: int  # of them
    predicted: int  # images that were taken for this class
    confused_with: str  # the class for which most of its other images were taken; "" where there are none
    confused: int  # how many

    @property
    def recall(self) -> float | None:
        """Correct ones among the images of the class."""
        return self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Correct ones among the images that were taken for the class."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of recall and precision."""
        total = self.images + self.predicted
        return 2 * self.correct / total if total else None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How many images of each class were taken for which, and by whom."""

    runtime: str
    confusion: Confusion

    @property
    def images(self) -> int:
        """All of them."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Images whose class was told."""
        return int(self.confusion.trace())

    @property
    def fraction(self) -> float:
        """Correct ones among all."""
        return self.correct / self.images

    @property
    def balanced(self) -> float:
        """Mean over the classes of the share of their images that were told: what accuracy is where all are equal."""
        totals = self.confusion.sum(axis=1)
        return float(np.mean(self.confusion.diagonal()[totals > 0] / totals[totals > 0]))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy on all images of this kind lies, with 95 % confidence."""
        return wilson(self.correct, self.images)

    def classes(self, names: Sequence[str]) -> tuple[ClassFigures, ...]:
        """Return the figures of each class."""
        found = []
        for number, (name, row) in enumerate(zip(names, self.confusion, strict=True)):
            wrong = row.copy()
            wrong[number] = 0
            most = int(wrong.argmax())
            found.append(
                ClassFigures(
                    name=name,
                    images=int(row.sum()),
                    correct=int(row[number]),
                    predicted=int(self.confusion[:, number].sum()),
                    confused_with=names[most] if wrong[most] else "",
                    confused=int(wrong[most]),
                )
            )
        return tuple(found)


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share; it lies within 0 to 1 even where the share is 0 or 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212.

    >>> tuple(round(end, 4) for end in wilson(8298, 10000))
    (0.8223, 0.837)
    """
    share, spread = correct / images, _QUANTILE**2 / images
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    # At both ends the difference is 0 or 1 exactly, but for rounding.
    low = 0.0 if correct == 0 else (middle - half) / (1 + spread)
    high = 1.0 if correct == images else (middle + half) / (1 + spread)
    return low, high


def confusion(labels: Labels, predicted: Labels, classes: int) -> Confusion:
    """Return how many images of each class (row) were taken for each class (column).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def check_labels(name: str, classes: int, labels: Labels, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return names of the model's classes: those of the data set, or where it has none their numbers.

    Raises:
        MnetError: the data set has other classes than the model.
    """
    if class_names and len(class_names) != classes:
        found = f"the data set has {len(class_names)}"
    elif labels.min() < 0 or labels.max() >= classes:
        found = f"the labels reach from {labels.min()} to {labels.max()}"
    else:
        return tuple(class_names) or tuple(map(str, range(classes)))
    raise MnetError(
        f"{name} tells {classes} classes apart, {found}: take images of the classes that it was trained on."
    )


# --- int8 -------------------------------------------------------------------------------------------------------------


def read_classifier(path: Path) -> Graph:
    """Read an int8 model of one input and one output.

    Raises:
        ModelError: the file is damaged, not supported, or has more of them.
    """
    graph = read_model(path)
    if len(graph.inputs) > 1 or len(graph.outputs) > 1:
        raise ModelError(
            f"{path} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: `mnet eval` needs one of each."
        )
    return graph


def classes_of(graph: Graph) -> int:
    """Return how many classes a model tells apart: values of its output, or of what an ARG_MAX chooses from."""
    last = _arg_max(graph)
    return math.prod(graph.tensors[last.input if last else graph.outputs[0]].shape)


def predictions(graph: Graph, outputs: npt.NDArray[Any]) -> Labels:
    """Return the class of each image: the first of the largest scores, or what an ARG_MAX answered.

    Args:
        graph: the model.
        outputs: [images, values].
    """
    return outputs[:, 0].astype(np.int64) if _arg_max(graph) else outputs.argmax(axis=1)


def _arg_max(graph: Graph) -> ArgMax | None:
    return next((op for op in graph.ops if isinstance(op, ArgMax)), None)


def images_at_once(graph: Graph, most: int = _AT_ONCE) -> int:
    """Return how many images to run together, for a progress bar that moves and tensors that fit."""
    return max(1, min(most, _TENSOR_BYTES // sum(math.prod(tensor.shape) for tensor in graph.tensors.values())))


def quantized(name: str, graph: Graph, x: Images) -> Int8Array:
    """Return what an int8 model gets for byte images: byte - 128.

    Raises:
        MnetError: they are of another shape or type.
    """
    _check_images(name, graph.tensors[graph.inputs[0]].shape, x)
    return (x ^ 0x80).view(np.int8)


def run_int8(path: Path, x: Images, progress: Progress = no_progress) -> npt.NDArray[Any]:
    """Return the outputs [images, values] of an int8 .tflite for byte images, by LiteRT's reference kernels."""
    graph = read_classifier(path)
    content, given = path.read_bytes(), quantized(str(path), graph, x)
    outputs = []
    for part in batches(len(given), images_at_once(graph)):
        tensors = run_litert(content, graph, {graph.inputs[0]: given[part]})
        outputs.append(tensors[graph.outputs[0]].reshape(part.stop - part.start, -1))
        progress(part.stop, len(given))
    return np.concatenate(outputs)


def evaluate_int8(path: Path, x: Images, y: Labels, progress: Progress = no_progress) -> Evaluation:
    """Return how an int8 .tflite classifies byte images, by LiteRT's reference kernels, the default oracle.

    Args:
        path: the model. Its input may be float32 or uint8 up to a QUANTIZE; its output scores, or the class itself.
        x: [images, height, width, channels]; the model gets byte - 128.
        y: labels.
        progress: called as images are done.

    Raises:
        ModelError: the file is no int8 model of one image.
        MnetError: images or labels do not fit it.
    """
    graph = read_classifier(path)
    _check_count(x, y)
    check_labels(str(path), classes_of(graph), y, ())
    predicted = predictions(graph, run_int8(path, x, progress))
    return Evaluation("LiteRT reference kernels", confusion(y, predicted, classes_of(graph)))


# --- float ------------------------------------------------------------------------------------------------------------


def evaluate_float(model: Path, x: Images, y: Labels, normalization: Normalization | None = None) -> Evaluation:
    """Return how a trained folder or .keras file classifies byte images.

    Raises:
        ModelError: there is no readable model.
        MnetError: images or labels do not fit it, or how its input is normalized is not known.
    """
    path, run = locate(model)
    normalization = normalization or normalization_of(model, run)
    return evaluate_keras(load_keras(path), normalization, x, y)


def evaluate_keras(
    model: Any, normalization: Normalization, x: Images, y: Labels, progress: Progress = no_progress
) -> Evaluation:
    """Return how a Keras model of one image classifies byte images.

    Raises:
        MnetError: images or labels do not fit it.
    """
    _check_count(x, y)
    classes = math.prod(model.output_shape[1:])
    check_labels(model.name, classes, y, ())
    predicted = predict_keras(model, normalization, x, progress)
    return Evaluation("Keras, float32", confusion(y, predicted, classes))


def predict_keras(model: Any, normalization: Normalization, x: Images, progress: Progress = no_progress) -> Labels:
    """Return the class of each byte image by a Keras model.

    Raises:
        MnetError: the images do not fit it.
    """
    _check_images(model.name, tuple(model.input_shape[1:]), x)
    predicted = np.empty(len(x), np.int64)
    for part in batches(len(x), _FLOAT_BATCH):
        real = (x[part].astype(np.float32) - (128 + normalization.zero_point)) * np.float32(normalization.scale)
        predicted[part] = np.asarray(model(real, training=False)).reshape(len(real), -1).argmax(axis=1)
        progress(part.stop, len(x))
    return predicted


def _check_images(name: str, shape: tuple[int, ...], x: Images) -> None:
    if x.dtype != np.uint8 or x.shape[1:] != shape or not len(x):
        raise MnetError(f"{name} takes uint8 images {list(shape)}, not {x.dtype} {list(x.shape)}.")


def _check_count(x: Images, y: Labels) -> None:
    if len(y) != len(x):
        raise MnetError(f"{len(x)} images and {len(y)} labels do not fit together.")
