"""Float Keras model in, one int8 .tflite out: post-training quantization.

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

from mnet.architecture import quiet
from mnet.datasets import Images, Labels, balanced_choice
from mnet.errors import MnetError, ModelError
from mnet.recipes import Normalization
from mnet.runs import write_atomically
from mnet.sources import load
from mnet.trained import load_keras, locate, normalization_of
from mnet.training_task import TrainingOptions, load_split


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


def quantize(options: QuantizationOptions) -> QuantizationResult:
    """Quantize a model and write the .tflite file.

    Calibrates with training images only: the test part of the data is not touched. One more image with a black and a
    white pixel makes the input range exact, so that the int8 input is byte - 128; this is checked on the result.

    Raises:
        DataError: the data set is missing or damaged.
        ModelError: the model is damaged, or the converter refuses it.
        MnetError: what is needed to calibrate is not known.
    """
    path, run = locate(options.model)
    if options.images < 1:
        raise MnetError(f"{options.images} images are too few to calibrate by; at least 1.")
    normalization = options.normalization or normalization_of(options.model, run)
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
