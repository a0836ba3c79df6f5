"""Float Keras model in, one int8 .tflite out: as the converter makes it, with better ranges, or trained on in int8."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnet.calibration import Calibration, Float32Array, Grid, moved_to
from mnet.conversion import convert, ends
from mnet.datasets import Dataset, Images, Split, balanced_choice
from mnet.errors import MnetError
from mnet.fake_quantization import baked_model, logits_of
from mnet.fidelity import Fidelity, fidelity, int8_logits
from mnet.improvement import Folded, Improvements, folded_network, improve
from mnet.labels import with_labels
from mnet.progress import Progress
from mnet.qat import QuantizedTraining, forget, qat_recipe, train_quantized
from mnet.recipes import Normalization
from mnet.runs import EpochRow, plain, write_atomically
from mnet.trained import load_keras, locate, normalization_of
from mnet.training import keep_memory, set_threads
from mnet.training_task import Task, TrainingOptions, check_fit, load_split

_FIDELITY_IMAGES = 1_000


@dataclass(frozen=True)
class QuantizationOptions:
    """What to quantize, by which images, and how."""

    model: Path  # the folder of a finished training, or a .keras file
    out: Path  # the .tflite
    data: str | None = None  # training images to calibrate by; None takes those that the model was trained on
    normalization: Normalization | None = None  # of the input; None takes what run.json beside the model says
    images: int = 500  # to calibrate by
    seed: int = 0  # chooses them
    calibration: Calibration | None = None  # None leaves the ranges to the converter: all that the images give
    equalize: bool = False
    bias_correction: bool = False
    improve: bool | None = None  # the three together; None: for a MobileNet of `mnet train`, if none is chosen
    qat: bool = False  # train on from there; from all three, unless some are chosen
    epochs: int | None = None  # of that; None takes the recipe's
    threads: int | None = None  # of TensorFlow; None leaves the choice to it
    resume: bool = False  # go on with the unfinished training in `out`.partial

    def decided(self, *, is_ours: bool) -> "QuantizationOptions":
        """Return these options for a model of `mnet train`, or for another one."""
        chosen = self.calibration is not None or self.equalize or self.bias_correction or self.qat
        return replace(self, improve=is_ours and not chosen) if self.improve is None else self

    @property
    def method(self) -> str:
        """What this is, in a word."""
        improved = self.improve or self.calibration is not None or self.equalize or self.bias_correction
        return "QAT" if self.qat else "PTQ+" if improved else "PTQ"

    def improvements(self, *, linear_depthwise: bool) -> Improvements:
        """Return what is done before, or instead of, training; all of it moves nothing where nothing can move."""
        chosen = self.calibration is not None or self.equalize or self.bias_correction
        if self.improve or (self.qat and not chosen):
            return Improvements(self.calibration or Calibration.MSE, linear_depthwise, True)
        return Improvements(self.calibration or Calibration.MINMAX, self.equalize, self.bias_correction)


@dataclass(frozen=True)
class QuantizationResult:
    """What was written."""

    path: Path
    method: str
    sha256: str
    file_bytes: int
    calibration_images: int
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int
    near_float: Fidelity | None = None  # to the trained network; not looked at after plain PTQ
    near_fake_quantized: Fidelity | None = None  # to the same in float, with rounded weights and activations
    history: tuple[EpochRow, ...] = ()  # of QAT; its validation accuracies are those of int8 files


@dataclass(frozen=True, eq=False)
class _Material:
    """A model and its images."""

    path: Path
    run: dict[str, Any] | None
    model: Any
    normalization: Normalization
    dataset: Dataset
    split: Split
    calibration: Images  # some of the split's training images

    def real(self, x: Images) -> Float32Array:
        """Return normalized images."""
        offset, scale = np.float32(128 + self.normalization.zero_point), np.float32(self.normalization.scale)
        return (x.astype(np.float32) - offset) * scale


@dataclass(frozen=True)
class _Made:
    content: bytes
    near_float: Fidelity | None = None
    near_fake_quantized: Fidelity | None = None
    history: tuple[EpochRow, ...] = ()


def quantize(options: QuantizationOptions, report: Callable[[Progress], None] | None = None) -> QuantizationResult:
    """Quantize a model and write the .tflite file.

    Calibrates with training images only: the test part of the data is not touched. One more image with a black and a
    white pixel makes the input range exact, so that the int8 input is byte - 128; this is checked on the result.

    Args:
        options: what, and how.
        report: called after each step of quantization-aware training.

    Raises:
        DataError: the data set is missing or damaged.
        ModelError: the model is damaged, the converter refuses it, or it is no MobileNet where it must be one.
        MnetError: what is needed to calibrate is not known, or options do not fit together.
    """
    _check_options(options)
    material = _material(options)
    options = options.decided(is_ours=material.run is not None)
    try:
        return _written(options, material, _make(options, material, report))
    except OSError as error:
        raise MnetError(f"{options.out} cannot be written: {error.strerror or error}.") from error


def _make(options: QuantizationOptions, material: _Material, report: Callable[[Progress], None] | None) -> _Made:
    if options.method == "PTQ":
        made = _Made(convert(material.model, material.calibration, material.normalization, name=str(material.path)))
    else:
        made = _improved(options, material, report)
    names = tuple(map(str, material.run["data"].get("class_names", ()))) if material.run else ()
    if len(names) == material.model.output_shape[-1]:
        made = replace(made, content=with_labels(made.content, names))
    return made


def _written(options: QuantizationOptions, material: _Material, made: _Made) -> QuantizationResult:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, made.content)
    if options.qat:
        forget(options.out)
    (input_scale, input_zero), (output_scale, output_zero) = ends(made.content)
    return QuantizationResult(
        path=options.out,
        method=options.method,
        sha256=hashlib.sha256(made.content).hexdigest(),
        file_bytes=len(made.content),
        calibration_images=len(material.calibration),
        input_scale=input_scale,
        input_zero_point=input_zero,
        output_scale=output_scale,
        output_zero_point=output_zero,
        near_float=made.near_float,
        near_fake_quantized=made.near_fake_quantized,
        history=made.history,
    )


def _check_options(options: QuantizationOptions) -> None:
    if options.images < 1:
        raise MnetError(f"{options.images} images are too few to calibrate by; at least 1.")
    if options.out.suffix != ".tflite":
        raise MnetError(f"{options.out}: the quantized model is a .tflite file; give it that suffix.")
    if options.epochs is not None and options.epochs < 1:
        raise MnetError(f"--epochs {options.epochs} trains nothing; at least 1.")
    if not options.qat and (options.epochs is not None or options.resume):
        raise MnetError("--epochs and --resume belong to --qat; without it nothing is trained.")


def _material(options: QuantizationOptions) -> _Material:
    path, run = locate(options.model)
    normalization = options.normalization or normalization_of(options.model, run)
    set_threads(options.threads)
    keep_memory()
    model = load_keras(path)
    _, height, width, channels = model.input_shape
    dataset, split = _training_images(options, run, (height, width), channels)
    chosen = balanced_choice(split.y_train, min(options.images, len(split.y_train)), options.seed)
    return _Material(path, run, model, normalization, dataset, split, split.x_train[chosen])


def _training_images(
    options: QuantizationOptions, run: dict[str, Any] | None, size: tuple[int, int], channels: int
) -> tuple[Dataset, Split]:
    """Return the images that the run was trained on and chosen by; of --data all, unless --qat needs some to choose."""
    if options.data is not None:
        wanted = TrainingOptions(options.data, options.out, validation_images=None if options.qat else 0)
    elif run is not None:
        values = run["options"]
        wanted = TrainingOptions(
            data=values["data"],
            out=options.out,
            seed=values["seed"],
            train_images=values["train_images"],
            validation_images=values["validation_images"],
        )
    else:
        raise MnetError(f"{options.model} has no run.json beside it: say which --data to calibrate by.")
    return load_split(replace(wanted, size=size, channels=channels))


def _improved(options: QuantizationOptions, material: _Material, report: Callable[[Progress], None] | None) -> _Made:
    """Return a file whose weights and grids are made here; the converter only writes them down."""
    x = material.real(material.calibration)
    without = "--qat" if options.qat else "--improve, --calibration, --equalize or --bias-correction"
    folded = folded_network(material.path, material.run, material.model, x[:20], without)
    architecture = folded.architecture
    if options.equalize and not architecture.linear_depthwise:
        raise MnetError(
            f"{options.model}: a ReLU6 follows each depthwise, so no channel can be scaled without another result; "
            "quantize without --equalize."
        )
    how = options.improvements(linear_depthwise=architecture.linear_depthwise)
    weights, grids = improve(folded, x, material.normalization, how)
    history: list[EpochRow] = []
    if options.qat:
        weights, grids = moved_to(0, architecture, weights, grids)
        training = _training(options, material, folded, replace(folded, weights=weights), grids, how)
        weights, history = train_quantized(training, report)
    content = convert(
        baked_model(architecture, weights, grids), material.calibration, material.normalization, str(material.path)
    )
    kept = material.split.x_validation if len(material.split.x_validation) else material.split.x_train
    logits, tensor = int8_logits(content, kept[:_FIDELITY_IMAGES], str(options.out))
    real = material.real(kept[:_FIDELITY_IMAGES])
    return _Made(
        content,
        fidelity(logits, tensor, logits_of(architecture, folded.weights, None, real)),
        fidelity(logits, tensor, logits_of(architecture, weights, grids, real)),
        tuple(history),
    )


def _training(
    options: QuantizationOptions,
    material: _Material,
    teacher: Folded,
    start: Folded,
    grids: Mapping[str, Grid],
    how: Improvements,
) -> QuantizedTraining:
    assert material.run is not None  # folded_network has used it
    chosen = qat_recipe(material.run["recipe"], options.epochs, material.normalization)
    check_fit(start.architecture, material.dataset, material.split, chosen)
    wanted = TrainingOptions(
        options.data or material.run["options"]["data"], options.out, seed=options.seed, resume=options.resume
    )
    return QuantizedTraining(
        Task(wanted, chosen, start.architecture, material.dataset, material.split, source=None),
        teacher.weights,
        start.weights,
        grids,
        material.calibration,
        {
            "model": hashlib.sha256(material.path.read_bytes()).hexdigest(),
            "improvements": plain(how),
            "calibration images": options.images,
        },
    )
