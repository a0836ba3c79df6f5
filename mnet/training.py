"""Train a MobileNet: options in, a folder with model.keras, history.csv, run.json and README.md out.

The model is an ordinary Keras model; the loop is not Keras'. Keras' `fit` runs BatchNormalization as a dozen small
operators and takes 1.7 times as long on a CPU. Here all weights lie in one vector, all moving statistics in another;
`forward` walks the layer list with fused operators, the optimizer is a few operators on whole vectors, and a
checkpoint is these vectors. At the end they go back into the Keras model.

All random numbers are drawn from (seed, epoch) or (seed, step), so a run that was killed goes on as if nothing had
happened. The same machine with the same number of threads gives the same weights to the last bit; others do not.
"""

import contextlib
import csv
import ctypes
import io
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

import mnet
from mnet.architecture import (
    BATCH_NORMALIZATION_EPSILON,
    Architecture,
    Head,
    Kind,
    build,
    check_architecture,
    import_keras,
    layers,
    mobilenet,
)
from mnet.cost import cost
from mnet.datasets import Dataset, Images, Labels, Split, balanced_choice, batches, load, validation_split
from mnet.errors import MnetError
from mnet.recipes import Augmentation, Nadam, NesterovSgd, Optimizer, Recipe, recipe

MODEL_FILE = "model.keras"
RUN_FILE = "run.json"
HISTORY_FILE = "history.csv"
CARD_FILE = "README.md"
CHECKPOINT_FILE = "checkpoint.npz"

_EVALUATION_BATCH = 500
_LARGEST_VALIDATION = 5_000
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainingOptions:
    """What to train on what; None takes what data or recipe say."""

    data: str
    out: Path
    alpha: float = 0.25
    size: tuple[int, int] | None = None  # height, width; images are scaled to it
    channels: int | None = None  # 1 turns images grey, 3 makes them three equal colours
    stem_stride: int = 2
    head: Head = Head.SOFTMAX
    architecture: Architecture | None = None  # in place of alpha, size, channels, stem_stride and head
    recipe: str = "default"
    epochs: int | None = None
    seed: int = 0
    threads: int | None = None  # of TensorFlow; None leaves the choice to it
    train_images: int | None = None  # use only so many, the same number of each class
    validation_images: int | None = None  # kept back from training images; None keeps a tenth, at most 5,000
    resume: bool = False  # go on with the unfinished run in `out`.partial
    overwrite: bool = False  # replace a finished or unfinished run in `out`


@dataclass(frozen=True)
class EpochRow:
    """One line of history.csv. Accuracies are fractions; `train_accuracy` is on augmented images, as they passed."""

    epoch: int  # from 1
    learning_rate: float  # of the epoch's last step
    loss: float
    train_accuracy: float
    validation_accuracy: float  # nan where no images were kept back
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step."""

    epoch: int  # from 1
    epochs: int
    step: int  # within the epoch, from 1
    steps: int
    loss: float  # mean of this epoch so far
    train_accuracy: float
    history: tuple[EpochRow, ...]  # finished epochs

    @property
    def fraction(self) -> float:
        """How much of all work is done."""
        return ((self.epoch - 1) * self.steps + self.step) / (self.epochs * self.steps)


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
    chosen = _with_epochs(recipe(options.recipe), options.epochs)
    partial = _check_folders(options)
    dataset, split = load_split(options)
    architecture = options.architecture or _architecture(options, dataset)
    check_architecture(architecture)
    _check_fit(architecture, dataset, split, chosen)

    _set_threads(options.threads)
    _keep_memory()
    keras = import_keras()
    keras.utils.set_random_seed(options.seed)
    model = build(architecture, chosen.initializer)  # type: ignore[arg-type]
    steps = len(split.x_train) // chosen.batch
    state = _State(model, architecture, chosen)
    history: list[EpochRow] = []
    identity = _identity(options, architecture, chosen, dataset, split)

    try:
        if options.overwrite and not options.resume and partial.is_dir():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for leftover in partial.glob("*.tmp"):
            leftover.unlink()
        if options.resume:
            history = _read_checkpoint(partial / CHECKPOINT_FILE, identity, state)
        for epoch in range(len(history) + 1, chosen.epochs + 1):
            row = _train_epoch(state, split, chosen, options.seed, epoch, steps, tuple(history), report)
            history.append(row)
            _write_checkpoint(partial / CHECKPOINT_FILE, identity, state, history)
            write_atomically(partial / HISTORY_FILE, history_csv(history).encode())
        state.copy_to(model)
        test_accuracy = state.accuracy(dataset.x_test, dataset.y_test)
        _write_model(model, partial / MODEL_FILE)
        seconds = sum(row.seconds for row in history)
        run = _run_values(options, architecture, chosen, dataset, split, history, test_accuracy)
        write_atomically(partial / RUN_FILE, (json.dumps(run, indent=2) + "\n").encode())
        write_atomically(partial / CARD_FILE, _model_card(run).encode())
        (partial / CHECKPOINT_FILE).unlink(missing_ok=True)
        _move_into_place(partial, options)
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


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Yield a `report` for `train` that draws a bar; without a terminal it prints one line in ten epochs."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_some_epochs
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("train", total=1.0)

        def report(progress: Progress) -> None:
            validation = (
                f"  validation {progress.history[-1].validation_accuracy:6.2%}"
                if progress.history and not math.isnan(progress.history[-1].validation_accuracy)
                else ""
            )
            text = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}{validation}"
            bar.update(task, completed=progress.fraction, description=text)

        yield report


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


def read_run(folder: Path) -> dict[str, Any]:
    """Return what run.json of a finished training says.

    Raises:
        MnetError: there is none, or it is damaged.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text())
    except OSError as error:
        raise MnetError(f"{path} cannot be read: {error.strerror}; `mnet train` writes it.") from error
    except ValueError as error:
        raise MnetError(f"{path} is damaged: {error}.") from error
    if not isinstance(run, dict) or not {"data", "options", "recipe"} <= run.keys():
        raise MnetError(f"{path} is no run of `mnet train`.")
    return run


def history_csv(history: list[EpochRow]) -> str:
    """Return history.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(EpochRow))
    for row in history:
        writer.writerow(
            [
                row.epoch,
                f"{row.learning_rate:.6g}",
                f"{row.loss:.6f}",
                f"{row.train_accuracy:.6f}",
                f"{row.validation_accuracy:.6f}",
                f"{row.seconds:.2f}",
            ]
        )
    return text.getvalue()


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Return the rate of `step` (from 0) of `steps`.

    >>> [round(learning_rate(NesterovSgd(1.0, warm_up=0.2), step, 10), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    match optimizer:
        case Nadam():
            return optimizer.learning_rate
        case NesterovSgd():
            warm_up = round(optimizer.warm_up * steps)
            if step < warm_up:
                return optimizer.learning_rate * (step + 1) / warm_up
            return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
        case _:
            assert_never(optimizer)


def augment(x: Images, augmentation: Augmentation, random: np.random.Generator) -> Float32Array:
    """Return the images, each displaced and perhaps flipped, as real numbers 0 to 255.

    Args:
        x: [images, height, width, channels].
    """
    images, height, width, _ = x.shape
    flipped = random.random(images) < 0.5 if augmentation.flip else np.zeros(images, bool)
    result = np.array(x)
    result[flipped] = x[flipped, :, ::-1]
    if augmentation.crop_padding:
        pad = augmentation.crop_padding
        padded = np.pad(result, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        for i, (top, left) in enumerate(random.integers(0, 2 * pad + 1, (images, 2))):
            result[i] = padded[i, top : top + height, left : left + width]
    real = result.astype(np.float32)
    if augmentation.shift_fraction:
        largest = augmentation.shift_fraction * np.array([height, width])
        shifts = random.uniform(-largest, largest, (images, 2))
        real = _shifted(_shifted(real, shifts[:, 0], axis=1), shifts[:, 1], axis=2)
    return real


def forward(
    architecture: Architecture,
    weights: Mapping[str, Any],
    x: Any,
    *,
    training: bool,
    dropout_seed: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """Run the network with fused operators; the same mathematics as the Keras model.

    Args:
        architecture: the layers.
        weights: tensors by Keras path, such as "conv1/kernel".
        x: [batch, height, width, channels], normalized.
        training: normalize by the batch's own statistics, and return these.
        dropout_seed: two int32; None drops nothing.

    Returns:
        Logits [batch, classes], and the batch's mean and variance by Keras path.
    """
    import tensorflow as tf

    statistics: dict[str, Any] = {}
    for layer in layers(architecture):
        match layer.kind:
            case Kind.CONVOLUTION if layer.kernel == 1:
                kernel = weights[f"{layer.name}/kernel"]
                channels_in, channels_out = kernel.shape[2:]
                _, height, width, _ = x.shape
                # A product of two matrices is 3 % faster than a 1x1 convolution.
                x = tf.reshape(x, [-1, channels_in]) @ tf.reshape(kernel, [channels_in, channels_out])
                x = tf.reshape(x, [-1, height, width, channels_out])
                if f"{layer.name}/bias" in weights:
                    x = x + weights[f"{layer.name}/bias"]
            case Kind.CONVOLUTION:
                x = tf.nn.conv2d(x, weights[f"{layer.name}/kernel"], layer.stride, "SAME")
            case Kind.DEPTHWISE:
                x = _depthwise(x, weights[f"{layer.name}/kernel"], layer.stride)
            case Kind.NORMALIZATION:
                x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                    x,
                    weights[f"{layer.name}/gamma"],
                    weights[f"{layer.name}/beta"],
                    mean=None if training else weights[f"{layer.name}/moving_mean"],
                    variance=None if training else weights[f"{layer.name}/moving_variance"],
                    epsilon=BATCH_NORMALIZATION_EPSILON,
                    is_training=training,
                )
                statistics[f"{layer.name}/moving_mean"] = mean
                statistics[f"{layer.name}/moving_variance"] = variance
            case Kind.RELU6:
                x = tf.nn.relu6(x)
            case Kind.POOLING:
                x = tf.reduce_mean(x, [1, 2], keepdims=True)
            case Kind.DROPOUT:
                if training and dropout_seed is not None and architecture.dropout:
                    x = tf.nn.experimental.stateless_dropout(x, architecture.dropout, dropout_seed)
            case Kind.RESHAPE:
                x = tf.reshape(x, [-1, *layer.output_shape])
            case Kind.INPUT | Kind.ZERO_PADDING | Kind.SOFTMAX:
                pass  # "SAME" pads by itself; the loss takes logits
            case _:
                assert_never(layer.kind)
    return x, statistics


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it holds either what it held before or all of `content`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _State:
    """Weights, optimizer slots, moving statistics and averages, each one vector; the compiled step."""

    def __init__(self, model: Any, architecture: Architecture, chosen: Recipe) -> None:
        import tensorflow as tf

        self._tf = tf
        self._architecture = architecture
        self._recipe = chosen
        self._trained = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
        self._moving = [
            (v.path, tuple(v.shape))
            for v in model.non_trainable_variables
            if v.path.endswith(("/moving_mean", "/moving_variance"))
        ]
        start = {v.path: np.asarray(v.numpy(), np.float32) for v in model.variables}
        weights = np.concatenate([start[path].ravel() for path, _ in self._trained])
        moving = np.concatenate([start[path].ravel() for path, _ in self._moving])
        self._decays = np.concatenate(
            [np.full(start[path].size, _is_decayed(path), np.float32) for path, _ in self._trained]
        )
        self.vectors = {
            "weights": tf.Variable(weights),
            "moving": tf.Variable(moving),
            "average_weights": tf.Variable(weights),
            "average_moving": tf.Variable(moving),
            "slot_1": tf.Variable(np.zeros_like(weights)),
            "slot_2": tf.Variable(np.zeros_like(weights)),
            "product": tf.Variable(1.0),  # of Nadam's momentum schedule
        }
        image = tf.TensorSpec([None, architecture.height, architecture.width, architecture.channels], tf.float32)
        scalar = tf.TensorSpec([], tf.float32)
        labels = tf.TensorSpec([None], tf.int32)
        number = tf.TensorSpec([], tf.int32)
        self.step = tf.function(self._step, input_signature=[image, labels, scalar, number, number], autograph=False)
        self._correct = tf.function(self._count_correct, input_signature=[image, labels], autograph=False)

    def accuracy(self, x: Images, y: Labels) -> float:
        """Return the fraction of images whose largest logit, by the averaged weights, is the label's."""
        if not len(x):
            return math.nan
        correct = 0
        for part in batches(len(x), _EVALUATION_BATCH):
            correct += int(self._correct(x[part].astype(np.float32), y[part].astype(np.int32)))
        return correct / len(x)

    def copy_to(self, model: Any) -> None:
        """Put the averaged weights (or the weights, where the recipe averages none) into the Keras model."""
        arrays = {
            path: tensor.numpy()
            for vector, table in (("average_weights", self._trained), ("average_moving", self._moving))
            for path, tensor in self._split(self.vectors[vector], table).items()
        }
        for variable in model.variables:
            if variable.path in arrays:
                variable.assign(arrays[variable.path])

    def _split(self, vector: Any, table: list[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        parts = self._tf.split(vector, [math.prod(shape) for _, shape in table])
        return {path: self._tf.reshape(part, shape) for part, (path, shape) in zip(parts, table, strict=True)}

    def _normalized(self, x: Any) -> Any:
        normalization = self._recipe.normalization
        return (x - (128.0 + normalization.zero_point)) * normalization.scale

    def _count_correct(self, x: Any, y: Any) -> Any:
        tf = self._tf
        weights = self._split(self.vectors["average_weights"], self._trained)
        weights |= self._split(self.vectors["average_moving"], self._moving)
        logits, _ = forward(self._architecture, weights, self._normalized(x), training=False)
        return tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == y, tf.int32))

    def _step(self, x: Any, y: Any, rate: Any, step: Any, seed: Any) -> tuple[Any, Any]:
        tf, chosen, vectors = self._tf, self._recipe, self.vectors
        classes = self._architecture.classes
        with tf.GradientTape() as tape:
            weights = self._split(vectors["weights"], self._trained)
            logits, statistics = forward(
                self._architecture, weights, self._normalized(x), training=True, dropout_seed=tf.stack([seed, step])
            )
            target = tf.one_hot(y, classes) * (1 - chosen.label_smoothing) + chosen.label_smoothing / classes
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits))
        gradient = tape.gradient(loss, vectors["weights"])
        self._update(gradient, rate, tf.cast(step, tf.float32))
        batch = tf.concat([statistics[path] for path, _ in self._moving], 0)
        vectors["moving"].assign_add((1 - chosen.normalization_momentum) * (batch - vectors["moving"]))
        number = tf.cast(step, tf.float32)
        # The first averages reach back a few steps only, or they would remember the untrained weights for long.
        decay = tf.minimum(chosen.average_decay, (1 + number) / (10 + number))
        for name in ("weights", "moving"):
            average = vectors[f"average_{name}"]
            average.assign(vectors[name] + decay * (average - vectors[name]))
        return loss, tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == y, tf.int32))

    def _update(self, gradient: Any, rate: Any, number: Any) -> None:
        tf, vectors = self._tf, self.vectors
        weights, first, second = vectors["weights"], vectors["slot_1"], vectors["slot_2"]
        match self._recipe.optimizer:
            case NesterovSgd(momentum=momentum, weight_decay=weight_decay):
                # Source: keras.optimizers.SGD(nesterov=True), with the decay as part of the gradient.
                gradient = gradient + weight_decay * self._decays * weights
                first.assign(momentum * first - rate * gradient)
                weights.assign_add(momentum * first - rate * gradient)
            case Nadam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon):
                # Source: keras.optimizers.Nadam.
                now = beta_1 * (1 - 0.5 * tf.pow(0.96, number + 1))
                following = beta_1 * (1 - 0.5 * tf.pow(0.96, number + 2))
                product = vectors["product"].assign(vectors["product"] * now)
                first.assign_add((gradient - first) * (1 - beta_1))
                second.assign_add((gradient * gradient - second) * (1 - beta_2))
                mean = following * first / (1 - product * following) + (1 - now) * gradient / (1 - product)
                deviation = tf.sqrt(second / (1 - tf.pow(beta_2, number + 1)))
                weights.assign_sub(rate * mean / (deviation + epsilon))
            case _:
                assert_never(self._recipe.optimizer)


def _train_epoch(
    state: _State,
    split: Split,
    chosen: Recipe,
    seed: int,
    epoch: int,
    steps: int,
    history: tuple[EpochRow, ...],
    report: Callable[[Progress], None] | None,
) -> EpochRow:
    began = time.monotonic()
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(split.x_train))  # the last, incomplete batch is left out; other images each time
    loss_sum, correct, rate = 0.0, 0, 0.0
    for index in range(steps):
        part = order[index * chosen.batch : (index + 1) * chosen.batch]
        x = augment(split.x_train[part], chosen.augmentation, random)
        step = (epoch - 1) * steps + index
        rate = learning_rate(chosen.optimizer, step, chosen.epochs * steps)
        loss, hits = state.step(x, split.y_train[part].astype(np.int32), np.float32(rate), step, seed)
        loss_sum += float(loss)
        correct += int(hits)
        if not math.isfinite(loss_sum):
            raise MnetError(f"the loss is no longer a number in epoch {epoch}, step {index + 1}: the rate is too high.")
        if report is not None:
            seen = (index + 1) * chosen.batch
            report(Progress(epoch, chosen.epochs, index + 1, steps, loss_sum / (index + 1), correct / seen, history))
    return EpochRow(
        epoch=epoch,
        learning_rate=rate,
        loss=loss_sum / steps,
        train_accuracy=correct / (steps * chosen.batch),
        validation_accuracy=state.accuracy(split.x_validation, split.y_validation),
        seconds=time.monotonic() - began,
    )


def _shifted(x: Float32Array, shifts: npt.NDArray[np.float64], axis: int) -> Float32Array:
    """Move each image by its own number of pixels along `axis`, interpolated; the edge pixel is repeated."""
    side = x.shape[axis]
    place = np.clip(np.arange(side) + shifts[:, None], 0, side - 1)  # [images, side]
    before = np.minimum(place.astype(np.int64), side - 2) if side > 1 else np.zeros(place.shape, np.int64)
    share = (place - before).astype(np.float32)
    form = (len(x), side, 1, 1) if axis == 1 else (len(x), 1, side, 1)
    low = np.take_along_axis(x, before.reshape(form), axis)
    high = np.take_along_axis(x, np.minimum(before + 1, side - 1).reshape(form), axis)
    result: Float32Array = low + share.reshape(form) * (high - low)
    return result


def _depthwise(x: Any, kernel: Any, stride: int) -> Any:
    """Depthwise 3x3 convolution, "SAME".

    TensorFlow's gradient for the kernel takes longest where there is least to do: 9 ms for 64 images of 1x1 pixels and
    256 channels. So on maps of at most 2x2 pixels it is written as one product of all inputs with all outputs, summed
    per tap: a step of the standard shape at 28x28 then takes 21 ms instead of 55. The sums are equal up to rounding.
    """
    import tensorflow as tf

    strides = [1, stride, stride, 1]
    _, height, width, channels = x.shape
    if height * width > 4:
        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME")
    taps = _taps(height, width, stride)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolve(x: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            for_x = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=upstream, strides=strides, padding="SAME"
            )
            inputs = tf.reshape(x, [-1, height * width, 1, channels])
            outputs = tf.reshape(upstream, [-1, 1, upstream.shape[1] * upstream.shape[2], channels])
            products = tf.reshape(tf.reduce_sum(inputs * outputs, 0), [-1, channels])
            return for_x, tf.reshape(taps @ products, kernel.shape)

        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME"), gradient

    return convolve(x, kernel)


def _taps(height: int, width: int, stride: int) -> Float32Array:
    """Return [9, inputs * outputs]: 1 where a tap of a 3x3 kernel, "SAME", joins an input pixel to an output pixel."""

    def along(side: int) -> npt.NDArray[np.int64]:  # [inputs, outputs]: which of the three taps, or something else
        outputs = -(-side // stride)
        before = max((outputs - 1) * stride + 3 - side, 0) // 2
        return np.arange(side)[:, None] - stride * np.arange(outputs) + before

    rows, columns = along(height)[:, None, :, None], along(width)[None, :, None, :]
    joined = [(rows == row) & (columns == column) for row in range(3) for column in range(3)]
    return np.stack(joined).reshape(9, -1).astype(np.float32)


def _is_decayed(path: str) -> bool:
    """Weight decay acts on ordinary convolutions; it harms depthwise kernels, which have 9 weights each."""
    return path.endswith("/kernel") and not path.startswith("conv_dw_")


def _architecture(options: TrainingOptions, dataset: Dataset) -> Architecture:
    height, width, channels = dataset.image_shape
    return mobilenet(
        options.alpha,
        (height, width),
        channels,
        len(dataset.class_names),
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


def _with_epochs(chosen: Recipe, epochs: int | None) -> Recipe:
    if epochs is None:
        return chosen
    if epochs < 1:
        raise MnetError(f"--epochs {epochs} trains nothing; at least 1.")
    return replace(chosen, epochs=epochs)


def _check_folders(options: TrainingOptions) -> Path:
    """Return the folder to work in, or raise MnetError when something is in the way."""
    out = options.out
    partial = out.with_name(out.name + ".partial")
    if options.resume:
        if not partial.is_dir():
            state = "is finished" if (out / RUN_FILE).is_file() else "does not exist"
            raise MnetError(f"there is no unfinished training in {partial} to resume: {out} {state}.")
        return partial
    if options.overwrite:
        if out.exists() and not (out / RUN_FILE).is_file():
            raise MnetError(f"{out} exists and is no training run; it is left alone. Choose another --out.")
        return partial
    if out.exists():
        raise MnetError(f"{out} exists already; choose another --out or delete it.")
    if partial.exists():
        raise MnetError(f"{partial} holds an unfinished training; go on with --resume, or delete it.")
    return partial


def _move_into_place(partial: Path, options: TrainingOptions) -> None:
    if options.overwrite and options.out.exists():
        old = options.out.with_name(options.out.name + ".old")
        if old.exists():
            shutil.rmtree(old)
        options.out.rename(old)
        partial.rename(options.out)
        shutil.rmtree(old)
    else:
        partial.rename(options.out)


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
        "architecture": _plain(architecture),
        "recipe": _plain(chosen),
        "data": dataset.description,
        "images": [len(split.x_train), len(split.x_validation)],
        "seed": options.seed,
    }


def _write_checkpoint(path: Path, identity: dict[str, Any], state: _State, history: list[EpochRow]) -> None:
    text = json.dumps({"identity": identity, "history": [asdict(row) for row in history]})
    content = io.BytesIO()
    np.savez(content, about=np.array(text), **{name: v.numpy() for name, v in state.vectors.items()})
    write_atomically(path, content.getvalue())


def _read_checkpoint(path: Path, identity: dict[str, Any], state: _State) -> list[EpochRow]:
    if not path.is_file():
        return []  # killed within the first epoch
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in state.vectors}
    except Exception as error:
        raise MnetError(f"{path} is damaged ({error}); delete {path.parent} and train again.") from error
    for key, value in identity.items():
        if about["identity"].get(key) != value:
            raise MnetError(
                f"{path.parent} was trained with another {key}: {about['identity'].get(key)}, now {value}; "
                "resume with the same options."
            )
    for name, array in arrays.items():
        state.vectors[name].assign(array)
    return [EpochRow(**row) for row in about["history"]]


def _write_model(model: Any, path: Path) -> None:
    temporary = path.with_name("unfinished.keras")  # Keras insists on the suffix
    model.save(temporary)
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """Return a dataclass as JSON has it: enums by value, tuples as lists, plus the class where it says which kind."""
    return json.loads(json.dumps(asdict(value), default=lambda item: getattr(item, "value", str(item)))) | {
        "class": type(value).__name__
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
        "architecture": _plain(architecture),
        "recipe": _plain(chosen) | {"optimizer": _plain(chosen.optimizer)},
        "parameters": total.parameters,
        "trainable_parameters": total.trainable,
        "multiply_adds": total.multiply_adds,
        "validation_accuracy": None if math.isnan(v := history[-1].validation_accuracy) else v,
        "test_accuracy": test_accuracy,
        "seconds": round(sum(row.seconds for row in history), 1),
    }


def command(options: TrainingOptions) -> str:
    """Return the command line that trains this again.

    >>> command(TrainingOptions(data="sample", out=Path("run"), recipe="sample"))
    'mnet train --data sample --alpha 0.25 --recipe sample --out run'
    """
    words = ["mnet train", f"--data {options.data}", f"--alpha {options.alpha:g}"]
    if options.size is not None:
        height, width = options.size
        words.append(f"--size {height}" if height == width else f"--size {height}x{width}")
    if options.channels is not None:
        words.append(f"--channels {options.channels}")
    if options.stem_stride != 2:
        words.append(f"--stem-stride {options.stem_stride}")
    if options.head is not Head.SOFTMAX:
        words.append(f"--head {options.head.value}")
    words.append(f"--recipe {options.recipe}")
    for flag, value in (
        ("--epochs", options.epochs),
        ("--seed", options.seed or None),
        ("--threads", options.threads),
        ("--train-images", options.train_images),
        ("--validation-images", options.validation_images),
    ):
        if value is not None:
            words.append(f"{flag} {value}")
    return " ".join([*words, f"--out {options.out.name}"])


def _model_card(run: dict[str, Any]) -> str:
    data, net, chosen, options = run["data"], run["architecture"], run["recipe"], run["options"]
    validation = run["validation_accuracy"]
    blocks = ", ".join(f"({block['stride']}, {block['width']})" for block in net["blocks"])
    rates = ", ".join(f"{key} {value}" for key, value in chosen["optimizer"].items() if key != "class")
    rows = {
        f"accuracy, {data['test_images']:,} test images": f"{run['test_accuracy']:.2%} (float)",
        f"accuracy, {data['validation_images']:,} validation images": (
            "none kept back" if validation is None else f"{validation:.2%}"
        ),
        "parameters": f"{run['parameters']:,}, of which trained {run['trainable_parameters']:,}",
        "multiply-adds": f"{run['multiply_adds']:,}",
        "data": f"{data['description']}, {data['train_images']:,} training images",
        "licence of the data": data["licence"],
        "classes": ", ".join(data["class_names"]),
        "input": f"{chosen['normalization']} of each byte x; as int8: byte - 128",
        "output": "probabilities" if net["head"] == "softmax" else "logits; the largest is the answer",
        "network": f"MobileNet V1: stem {net['stem_width']} stride {net['stem_stride']}; "
        f"blocks (stride, width) {blocks}" + ("; linear depthwise" if net["linear_depthwise"] else ""),
        "recipe": f"{chosen['name']}: {chosen['what']}",
        "epochs, batch, seed": f"{chosen['epochs']}, {chosen['batch']}, {options['seed']}",
        "optimizer": f"{chosen['optimizer']['class']}: {rates}",
        "time": f"{run['seconds']:,.0f} s, TensorFlow {run['tensorflow']}, {options['threads'] or 'default'} threads",
    }
    return "\n".join(
        [
            f"# {net['name']}",
            "",
            f"An image classifier for {net['height']}x{net['width']}x{net['channels']} images, {net['classes']} "
            f"classes, trained by mnet {run['mnet']}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items()),
            "",
            f"Made with `{run['command']}`. The curve is in {HISTORY_FILE}, all settings in {RUN_FILE}.",
            "The validation images were kept back from the training images; the test images were looked at once,",
            "for the figure above.",
            "",
        ]
    )


def _print_some_epochs(progress: Progress) -> None:
    if progress.step == progress.steps and (progress.epoch % max(1, progress.epochs // 10) == 0):
        print(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
            f"accuracy on augmented training images {progress.train_accuracy:.2%}",
            file=sys.stderr,
        )
