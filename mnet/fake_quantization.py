"""A float network that behaves nearly as its int8 file: weights and activations rounded, gradients through both.

Nearly: sums are float, and the file rounds once more where it rescales them. Only integer arithmetic equals it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mnet.architecture import Architecture, Kind, import_keras
from mnet.calibration import LARGEST_WEIGHT, SMALLEST_SCALE, Float32Array, Grid, moved_to, rounded_weights
from mnet.datasets import batches
from mnet.folding import Weights, activated, exact_logits, folded_model, stages, sums

_BATCH = 500  # images at once
_LARGEST_BIAS = 2.0**30


def fake_quantized_parameters(kernel: Any, bias: Any, kind: Kind, input_scale: float) -> tuple[Any, Any]:
    """Return kernel and bias as the int8 file holds them; the gradients pass as if nothing was done.

    The kernel is that of `mnet.calibration.rounded_weights` (TensorFlow's own operator wants the channels last, which
    those of a depthwise kernel are not). The bias is int32 in steps of input scale * weight scale; where a dead channel
    makes these too small, the converter takes larger ones.

    Args:
        kernel: as Keras has it.
        bias: [channels].
        kind: of the convolution.
        input_scale: of the grid that the stage reads.
    """
    import tensorflow as tf

    axes = [0, 1] if kind is Kind.DEPTHWISE else [0, 1, 2]
    scales = tf.reduce_max(tf.abs(kernel), axes, keepdims=True) / LARGEST_WEIGHT
    scales = tf.where(scales >= SMALLEST_SCALE, scales, 1.0)
    steps = tf.maximum(tf.reshape(scales, [-1]) * input_scale, tf.abs(bias) / _LARGEST_BIAS)
    steps = tf.where(steps > 0, steps, 1.0)
    return (
        kernel + tf.stop_gradient(tf.round(kernel / scales) * scales - kernel),
        bias + tf.stop_gradient(tf.round(bias / steps) * steps - bias),
    )


def fake_quantized(x: Any, grid: Grid) -> Any:
    """Return an activation on its grid; the gradient passes where `x` lies within, and is 0 where it was cut off."""
    import tensorflow as tf

    return tf.quantization.fake_quant_with_min_max_args(x, grid.low, grid.high)


def fake_quantized_forward(grids: Mapping[str, Grid]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Return a function as `mnet.network.forward`, for folded weights and int8 everywhere.

    Args:
        grids: of the image and of each stage's output.
    """

    def forward(
        architecture: Architecture, weights: Mapping[str, Any], x: Any, *, training: bool, dropout_seed: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        rounded = dict(weights)
        grid = grids["image"]
        x = fake_quantized(x, grid)
        for stage in stages(architecture):
            if stage.kind is not Kind.POOLING:
                kernel, bias = f"{stage.name}/kernel", f"{stage.name}/bias"
                rounded[kernel], rounded[bias] = fake_quantized_parameters(
                    weights[kernel], weights[bias], stage.kind, grid.scale
                )
            grid = grids[stage.name]
            x = fake_quantized(activated(stage, sums(stage, rounded, x)), grid)
        return x[:, 0, 0], {}

    return forward


def logits_of(
    architecture: Architecture, weights: Weights, grids: Mapping[str, Grid] | None, x: Float32Array
) -> Float32Array:
    """Return the logits [images, classes] of folded weights for normalized images, in float.

    Args:
        architecture: the network.
        weights: not rounded.
        grids: None leaves weights and activations as they are; else both are rounded.
        x: [images, height, width, channels].
    """
    parts = []
    for part in batches(len(x), _BATCH):
        if grids is None:
            made = exact_logits(architecture, weights, x[part])
        else:
            made, _ = fake_quantized_forward(grids)(architecture, weights, x[part], training=False)
        parts.append(np.asarray(made))
    return np.concatenate(parts)


def baked_model(architecture: Architecture, weights: Weights, grids: Mapping[str, Grid]) -> Any:
    """Return the Keras model to convert: weights on their int8 grids, of which the converter finds the scales again;
    activations with nodes that tell it theirs. Linear depthwise outputs begin at 0, see `moved_to`.
    """
    import tensorflow as tf

    weights, grids = moved_to(-128, architecture, weights, grids)
    base: Any = import_keras().layers.Layer

    class FakeQuantization(base):  # type: ignore[misc]
        """Keras has no layer of this name that the converter knows."""

        def __init__(self, name: str, grid: Grid) -> None:
            super().__init__(name=name)
            self._low, self._high = grid.low, grid.high

        def call(self, x: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_args(x, self._low, self._high)

    return folded_model(
        architecture,
        rounded_weights(architecture, weights),
        lambda name: FakeQuantization(f"{name}_grid", grids[name]),
    )
