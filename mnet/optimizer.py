"""One step of training: loss, gradient, update, averages.

All weights lie in one vector, all moving statistics in another, so an optimizer is a few operators on whole vectors
and a checkpoint is these vectors. At the end they go back into the Keras model.
"""

import math
from collections.abc import Callable
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from mnet import network
from mnet.architecture import HEAD_LAYER, Architecture
from mnet.datasets import Images, Labels, batches
from mnet.pruning import is_sparse
from mnet.recipes import Distillation, Nadam, NesterovSgd, Optimizer, Recipe

_EVALUATION_BATCH = 500


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


class TrainingState:
    """Weights, optimizer slots, moving statistics and averages, each one vector; the compiled step."""

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        chosen: Recipe,
        forward: Callable[..., Any] = network.forward,
        teacher: Callable[[Any], Any] | None = None,
        sparsity: float = 0.0,
    ) -> None:
        """Prepare the first step.

        Args:
            model: whose weights to start from.
            architecture: of it.
            chosen: how to train.
            forward: runs the network that the weights belong to.
            teacher: gives, for normalized images, the logits to learn besides the labels, or in their place.
            sparsity: that times |scale| is added to the loss for scales that count: see `mnet.pruning`.
        """
        import tensorflow as tf

        self._tf = tf
        self._architecture = architecture
        self._recipe = chosen
        self._forward = forward
        self._teacher = teacher
        self._trained = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
        self._moving = [
            (v.path, tuple(v.shape))
            for v in model.non_trainable_variables
            if v.path.endswith(("/moving_mean", "/moving_variance"))
        ]
        start = {v.path: np.asarray(v.numpy(), np.float32) for v in model.variables}
        weights = np.concatenate([start[path].ravel() for path, _ in self._trained])
        nothing = np.zeros(0, np.float32)  # where batch normalization is folded away, nothing moves
        moving = np.concatenate([nothing, *(start[path].ravel() for path, _ in self._moving)])
        self._decays = np.concatenate(
            [np.full(start[path].size, is_decayed(path), np.float32) for path, _ in self._trained]
        )
        self._sparsity = sparsity * np.concatenate(
            [np.full(start[path].size, is_sparse(path, architecture), np.float32) for path, _ in self._trained]
        )
        shares = [1.0 if path.startswith(f"{HEAD_LAYER}/") else chosen.body_rate for path, _ in self._trained]
        self._shares = np.concatenate(  # of the learning rate
            [
                np.full(start[path].size, share, np.float32)
                for (path, _), share in zip(self._trained, shares, strict=True)
            ]
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
        self._classes = tf.function(self._predict, input_signature=[image], autograph=False)

    def classes(self, x: Images) -> Labels:
        """Return the class of the largest logit of each image, by the averaged weights."""
        found = [self._classes(x[part].astype(np.float32)).numpy() for part in batches(len(x), _EVALUATION_BATCH)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def accuracy(self, x: Images, y: Labels) -> float:
        """Return the fraction of images whose class is the label; nan of no images."""
        return float(np.mean(self.classes(x) == y)) if len(x) else math.nan

    def arrays(self, vector: str) -> dict[str, npt.NDArray[np.float32]]:
        """Return one of the `vectors` of the weights, or of the moving statistics, by Keras path."""
        table = self._moving if vector.endswith("moving") else self._trained
        return {path: tensor.numpy() for path, tensor in self._split(self.vectors[vector], table).items()}

    def copy_to(self, model: Any) -> None:
        """Put the averaged weights (or the weights, where the recipe averages none) into the Keras model."""
        arrays = self.arrays("average_weights") | self.arrays("average_moving")
        for variable in model.variables:
            if variable.path in arrays:
                variable.assign(arrays[variable.path])

    def _split(self, vector: Any, table: list[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        if not table:
            return {}
        parts = self._tf.split(vector, [math.prod(shape) for _, shape in table])
        return {path: self._tf.reshape(part, shape) for part, (path, shape) in zip(parts, table, strict=True)}

    def _normalized(self, x: Any) -> Any:
        normalization = self._recipe.normalization
        return (x - (128.0 + normalization.zero_point)) * normalization.scale

    def _predict(self, x: Any) -> Any:
        tf = self._tf
        weights = self._split(self.vectors["average_weights"], self._trained)
        weights |= self._split(self.vectors["average_moving"], self._moving)
        logits, _ = self._forward(self._architecture, weights, self._normalized(x), training=False)
        return tf.argmax(logits, 1)

    def _step(self, x: Any, y: Any, rate: Any, step: Any, seed: Any) -> tuple[Any, Any]:
        tf, chosen, vectors = self._tf, self._recipe, self.vectors
        classes = self._architecture.classes
        with tf.GradientTape() as tape:
            weights, real = self._split(vectors["weights"], self._trained), self._normalized(x)
            logits, statistics = self._forward(
                self._architecture, weights, real, training=True, dropout_seed=tf.stack([seed, step])
            )
            target = tf.one_hot(y, classes) * (1 - chosen.label_smoothing) + chosen.label_smoothing / classes
            losses = tf.nn.softmax_cross_entropy_with_logits(target, logits)
            if self._teacher is not None:
                share = chosen.distillation.share
                losses = (1 - share) * losses + share * distance(self._teacher(real), logits, chosen.distillation)
            loss = tf.reduce_mean(losses)
        gradient = tape.gradient(loss, vectors["weights"])
        self._update(gradient, rate * self._shares, tf.cast(step, tf.float32))
        if self._moving:
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
        if self._sparsity.any():  # the gradient of sparsity * |scale|
            gradient = gradient + self._sparsity * tf.sign(weights)
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


def distance(wanted: Any, logits: Any, how: Distillation) -> Any:
    """Return how far a student's answers are from its teacher's: a cross entropy for each image.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network". The gradient of softened
    answers is smaller by the square of the temperature, which the factor undoes.

    Args:
        wanted: logits of the teacher, [images, classes].
        logits: of the student.
        how: the temperature.
    """
    import tensorflow as tf

    softened = tf.stop_gradient(tf.nn.softmax(wanted / how.temperature))
    losses = tf.nn.softmax_cross_entropy_with_logits(softened, logits / how.temperature)
    return losses * how.temperature**2


def is_decayed(path: str) -> bool:
    """Weight decay acts on ordinary convolutions; it harms depthwise kernels, which have 9 weights each."""
    return path.endswith("/kernel") and not path.startswith("conv_dw_")
