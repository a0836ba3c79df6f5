"""How many images a model classifies rightly: a float Keras model, or an int8 .tflite."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import quiet
from mnet.datasets import Images, Labels, batches
from mnet.edges import from_quantized
from mnet.errors import MnetError, ModelError
from mnet.recipes import Normalization
from mnet.tflite import parse_model
from mnet.trained import load_keras, locate, normalization_of

_BATCH = 500  # images of a float model at once


@dataclass(frozen=True)
class Accuracy:
    """How many images were classified rightly, and by what."""

    correct: int
    images: int
    runtime: str

    @property
    def fraction(self) -> float:
        """Correct ones among all."""
        return self.correct / self.images


def evaluate_float(model: Path, x: Images, y: Labels, normalization: Normalization | None = None) -> Accuracy:
    """Return the accuracy of a trained folder or .keras file on byte images."""
    path, run = locate(model)
    normalization = normalization or normalization_of(model, run)
    keras_model = load_keras(path)
    _check_images(path, tuple(keras_model.input_shape[1:]), x, y)
    correct = 0
    for part in batches(len(x), _BATCH):
        real = (x[part].astype(np.float32) - (128 + normalization.zero_point)) * np.float32(normalization.scale)
        scores = np.asarray(keras_model(real, training=False))
        correct += int(np.sum(scores.argmax(axis=1) == y[part]))
    return Accuracy(correct, len(x), "Keras, float32")


def evaluate_int8(path: Path, x: Images, y: Labels) -> Accuracy:
    """Return the accuracy of an int8 .tflite on byte images, by LiteRT's reference kernels, the default oracle.

    Args:
        path: the model. Its input may be float32 or uint8 up to a QUANTIZE; its output scores, or the class itself.
        x: [images, height, width, channels]; the model gets byte - 128.
        y: labels.

    Raises:
        ModelError: the file is no int8 model of one image.
    """
    if len(y) != len(x):
        raise MnetError(f"{len(x)} images and {len(y)} labels do not fit together.")
    made = run_int8(path, x)
    classes = made[:, 0] if made.dtype in (np.int32, np.int64) else made.argmax(axis=1)
    return Accuracy(int(np.sum(classes == y)), len(x), "LiteRT, reference kernels")


def run_int8(path: Path, x: Images) -> npt.NDArray[Any]:
    """Return the outputs [images, values] of an int8 .tflite for byte images, by LiteRT's reference kernels."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    interpreter = _interpreter(content, str(path))
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    _check_images(path, tuple(int(n) for n in source["shape"][1:]), x, None)
    given: npt.NDArray[Any] = (x ^ 0x80).view(np.int8)  # byte - 128
    if source["dtype"] != np.int8:
        graph = parse_model(content, path)
        given = from_quantized(graph.tensors[graph.inputs[0]], given)
    outputs = []
    for image in given:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"]).reshape(-1))
    return np.array(outputs, target["dtype"])


def _interpreter(content: bytes, name: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    reference = OpResolverType.BUILTIN_REF
    try:
        with quiet():
            interpreter = Interpreter(model_content=content, experimental_op_resolver_type=reference)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: LiteRT cannot run it: {str(error).splitlines()[0].rstrip('.')}.") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1 or {inputs[0]["dtype"], outputs[0]["dtype"]} != {np.int8}:
        raise ModelError(f"{name}: expected one int8 input and one int8 output.")
    return interpreter


def _check_images(path: Path, shape: tuple[int, ...], x: Images, y: Labels | None) -> None:
    if x.dtype != np.uint8 or x.shape[1:] != shape or not len(x):
        raise MnetError(f"{path} takes uint8 images {list(shape)}, not {x.dtype} {list(x.shape)}.")
    if y is not None and len(y) != len(x):
        raise MnetError(f"{len(x)} images and {len(y)} labels do not fit together.")
