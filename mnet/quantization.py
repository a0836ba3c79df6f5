"""Float Keras model in, one int8 .tflite out: post-training quantization, and the accuracy of both.

The file is a standard one: int8 input and output, int8 weights with one scale per output channel (one per tensor for
fully connected layers, which older runtimes need), int32 bias. The same input gives the same bytes in every process.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import import_keras, quiet
from mnet.datasets import Images, Labels, balanced_choice, batches
from mnet.edges import from_quantized
from mnet.errors import MnetError, ModelError
from mnet.recipes import Normalization
from mnet.runs import MODEL_FILE, read_run, write_atomically
from mnet.sources import load
from mnet.tflite import parse_model
from mnet.training import TrainingOptions, load_split

Int8Array = npt.NDArray[np.int8]
_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class QuantizationOptions:
    """What to quantize and by which images."""

    model: Path  # the folder of a finished training, or a .keras file
    out: Path  # the .tflite
    data: str | None = None  # training images to calibrate by; None takes those that the model was trained on
    normalization: Normalization | None = None  # of the input; None takes what run.json beside the model says
    images: int = 500  # to calibrate by
    seed: int = 0  # chooses them


@dataclass(frozen=True)
class QuantizationResult:
    """What was written."""

    path: Path
    sha256: str
    file_bytes: int
    calibration_images: int
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int


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


def quantize(options: QuantizationOptions) -> QuantizationResult:
    """Quantize a model and write the .tflite file.

    Calibrates with training images only: the test part of the data is not touched. One more image with a black and a
    white pixel makes the input range exact, so that the int8 input is byte - 128; this is checked on the result.

    Raises:
        DataError: the data set is missing or damaged.
        ModelError: the model is damaged, or the converter refuses it.
        MnetError: what is needed to calibrate is not known.
    """
    path, run = _locate(options.model)
    if options.images < 1:
        raise MnetError(f"{options.images} images are too few to calibrate by; at least 1.")
    normalization = options.normalization or _normalization(options.model, run)
    if options.out.suffix != ".tflite":
        raise MnetError(f"{options.out}: the quantized model is a .tflite file; give it that suffix.")
    model = load_keras(path)
    _, height, width, channels = model.input_shape
    x, y = _calibration_data(options, run, (height, width), channels)
    chosen = balanced_choice(y, min(options.images, len(y)), options.seed)
    content = convert(model, x[chosen], normalization, name=str(path))
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, content)
    except OSError as error:
        raise MnetError(f"{options.out} cannot be written: {error.strerror}.") from error
    (input_scale, input_zero), (output_scale, output_zero) = _ends(content)
    return QuantizationResult(
        path=options.out,
        sha256=hashlib.sha256(content).hexdigest(),
        file_bytes=len(content),
        calibration_images=len(chosen),
        input_scale=input_scale,
        input_zero_point=input_zero,
        output_scale=output_scale,
        output_zero_point=output_zero,
    )


def convert(model: Any, x: Images, normalization: Normalization, name: str) -> bytes:
    """Return the .tflite file of a Keras model.

    Args:
        model: a Keras model of one image input.
        x: [images, height, width, channels], to calibrate by.
        normalization: how bytes become the model's real input.
        name: of the model, for messages.

    Raises:
        ModelError: the converter refuses the model, or the input is not byte - 128.
    """
    import tensorflow as tf

    def representative() -> Iterator[list[npt.NDArray[np.float32]]]:
        extremes = x[:1].copy()
        extremes.reshape(-1)[:2] = 0, 255
        for image in (extremes, *(x[i : i + 1] for i in range(len(x)))):
            real = (image.astype(np.float32) - (128 + normalization.zero_point)) * normalization.scale
            yield [real.astype(np.float32)]

    signature = [tf.TensorSpec([1, *model.input_shape[1:]], tf.float32, name="image")]
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            # One way of export only: others give other tensor names, and so other bytes.
            model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.int8
            converter.inference_output_type = tf.int8
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
            content = bytes(converter.convert())
    except Exception as error:  # the converter raises bare and private kinds
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        raise ModelError(f"{name} cannot be quantized; TensorFlow's converter says: {reason.rstrip('.')}.") from error
    (scale, zero_point), _ = _ends(content)
    if np.float32(scale) != np.float32(normalization.scale) or zero_point != normalization.zero_point:
        raise ModelError(
            f"{name}: the quantized input has scale {scale}, zero_point {zero_point}; expected "
            f"{np.float32(normalization.scale)}, {normalization.zero_point} for {normalization.value}."
        )
    return content


def load_keras(path: Path) -> Any:
    """Load a Keras model.

    Raises:
        ModelError: it is missing, damaged, or takes something else than one image.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist; `mnet train` writes a folder with {MODEL_FILE}.")
    keras = import_keras()
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever zip, JSON, HDF5 and Keras raise
        raise ModelError(f"{path} is no readable Keras model: {str(error).splitlines()[0].rstrip('.')}.") from error
    shape = getattr(model, "input_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]):
        raise ModelError(f"{path} takes {shape}; expected one image [height, width, channels] of fixed size.")
    return model


def evaluate_float(model: Path, x: Images, y: Labels, normalization: Normalization | None = None) -> Accuracy:
    """Return the accuracy of a trained folder or .keras file on byte images."""
    path, run = _locate(model)
    normalization = normalization or _normalization(model, run)
    keras_model = load_keras(path)
    _check_images(path, tuple(keras_model.input_shape[1:]), x, y)
    correct = 0
    for part in batches(len(x), _EVALUATION_BATCH):
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


def _ends(content: bytes) -> list[tuple[float, int]]:
    """Return scale and zero_point of the input and of the output of a file that the converter wrote."""
    from tflite.Model import Model

    graph = Model.GetRootAs(content).Subgraphs(0)
    parameters = [graph.Tensors(index).Quantization() for index in (graph.Inputs(0), graph.Outputs(0))]
    return [(float(each.Scale(0)), int(each.ZeroPoint(0))) for each in parameters]


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


def _locate(model: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the .keras file and what run.json beside it says."""
    if model.is_dir():
        return model / MODEL_FILE, read_run(model)
    return model, read_run(model.parent) if (model.parent / "run.json").is_file() else None


def _normalization(model: Path, run: dict[str, Any] | None) -> Normalization:
    if run is None:
        raise MnetError(
            f"{model} has no run.json beside it: say how its input is normalized: --normalization x/255 or 'x/128 - 1'."
        )
    return Normalization(run["recipe"]["normalization"])


def _calibration_data(
    options: QuantizationOptions, run: dict[str, Any] | None, size: tuple[int, int], channels: int
) -> tuple[Images, Labels]:
    if options.data is not None:
        dataset = load(options.data, size=size, channels=channels)
        return dataset.x_train, dataset.y_train
    if run is None:
        raise MnetError(f"{options.model} has no run.json beside it: say which --data to calibrate by.")
    values = run["options"]
    _, split = load_split(
        TrainingOptions(
            data=values["data"],
            out=options.out,
            size=size,
            channels=channels,
            seed=values["seed"],
            train_images=values["train_images"],
            validation_images=values["validation_images"],
        )
    )
    return split.x_train, split.y_train


def _check_images(path: Path, shape: tuple[int, ...], x: Images, y: Labels | None) -> None:
    if x.dtype != np.uint8 or x.shape[1:] != shape or not len(x):
        raise MnetError(f"{path} takes uint8 images {list(shape)}, not {x.dtype} {list(x.shape)}.")
    if y is not None and len(y) != len(x):
        raise MnetError(f"{len(x)} images and {len(y)} labels do not fit together.")
