"""A trained MobileNet without batch normalization: a chain of stages, each a sum of products and an activation.

Quantization thinks in these: one stage is one operator of the .tflite file, its output one int8 tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import BATCH_NORMALIZATION_EPSILON, Architecture, Head, Kind, import_keras, layers
from mnet.network import depthwise, pointwise

Weights = dict[str, npt.NDArray[np.float32]]  # by Keras path: "conv1/kernel", "conv1/bias"


@dataclass(frozen=True)
class Stage:
    """A layer with weights, or the average over all pixels, with the activation that follows."""

    name: str  # of the layer, see architecture.layers
    kind: Kind  # CONVOLUTION, DEPTHWISE or POOLING
    kernel: int  # 3 or 1; 0 of POOLING
    stride: int
    relu6: bool
    channels: int  # of the output


def stages(architecture: Architecture) -> tuple[Stage, ...]:
    """Return the stages in order; a softmax at the end is none, for its int8 output has one scale always."""
    chain: list[Stage] = []
    for layer in layers(architecture):
        if layer.kind in (Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.POOLING):
            chain.append(Stage(layer.name, layer.kind, layer.kernel, layer.stride, False, layer.output_shape[-1]))
        elif layer.kind is Kind.RELU6:
            chain[-1] = replace(chain[-1], relu6=True)
    return tuple(chain)


def fold(architecture: Architecture, weights: Mapping[str, npt.NDArray[np.float32]]) -> Weights:
    """Return kernels and biases that give, without batch normalization, what `weights` give with it.

    Per channel: kernel * g and beta - mean * g, where g = gamma / sqrt(variance + epsilon). Computed in float64.

    Args:
        architecture: the network.
        weights: all variables of the Keras model, by path.
    """
    folded: Weights = {}
    for stage in stages(architecture):
        if stage.kind is Kind.POOLING:
            continue
        kernel = weights[f"{stage.name}/kernel"].astype(np.float64)
        if f"{stage.name}_bn/gamma" not in weights:  # the classifier
            bias = weights[f"{stage.name}/bias"].astype(np.float64)
        else:
            gamma, beta, mean, variance = (
                weights[f"{stage.name}_bn/{part}"].astype(np.float64)
                for part in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            gain = gamma / np.sqrt(variance + BATCH_NORMALIZATION_EPSILON)
            kernel = kernel * (gain[:, None] if stage.kind is Kind.DEPTHWISE else gain)
            bias = beta - mean * gain
        folded[f"{stage.name}/kernel"] = kernel.astype(np.float32)
        folded[f"{stage.name}/bias"] = bias.astype(np.float32)
    return folded


def sums(stage: Stage, weights: Mapping[str, Any], x: Any) -> Any:
    """Return what a stage computes before its activation, [images, height, width, channels] of float32."""
    import tensorflow as tf

    if stage.kind is Kind.POOLING:
        return tf.reduce_mean(x, [1, 2], keepdims=True)
    kernel = weights[f"{stage.name}/kernel"]
    if stage.kind is Kind.DEPTHWISE:
        made = depthwise(x, kernel, stage.stride)
    elif stage.kernel == 1:
        made = pointwise(x, kernel)
    else:
        made = tf.nn.conv2d(x, kernel, stage.stride, "SAME")
    return made + weights[f"{stage.name}/bias"]


def activated(stage: Stage, x: Any) -> Any:
    """Return a stage's output for its sums."""
    import tensorflow as tf

    return tf.nn.relu6(x) if stage.relu6 else x


def exact_logits(architecture: Architecture, weights: Mapping[str, Any], x: Any) -> Any:
    """Return the logits [images, classes] of folded weights for normalized images."""
    for stage in stages(architecture):
        x = activated(stage, sums(stage, weights, x))
    return x[:, 0, 0]


def folded_model(architecture: Architecture, weights: Weights, quantizer: Callable[[str], Any] | None = None) -> Any:
    """Return the Keras model of folded weights.

    Args:
        architecture: the network.
        weights: of `fold`.
        quantizer: makes the layer that follows the tensor called so ("image", or a stage); None puts nothing there.
    """
    keras = import_keras()
    follow = quantizer or (lambda name: lambda x: x)
    inputs = keras.Input((architecture.height, architecture.width, architecture.channels), name="input_layer")
    x = follow("image")(inputs)
    for stage in stages(architecture):
        # "SAME" pads as the layers of the Keras model of `mnet train` do, see architecture.layers.
        if stage.kind is Kind.POOLING:
            layer = keras.layers.GlobalAveragePooling2D(keepdims=True, name=stage.name)
        elif stage.kind is Kind.DEPTHWISE:
            layer = keras.layers.DepthwiseConv2D(3, strides=stage.stride, padding="same", name=stage.name)
        else:
            layer = keras.layers.Conv2D(
                stage.channels, stage.kernel, strides=stage.stride, padding="same", name=stage.name
            )
        x = layer(x)
        if stage.relu6:
            x = keras.layers.ReLU(6.0, name=f"{stage.name}_relu")(x)
        x = follow(stage.name)(x)
    x = keras.layers.Reshape((architecture.classes,), name="reshape_2")(x)
    if architecture.head is Head.SOFTMAX:
        x = keras.layers.Activation("softmax", name="predictions")(x)
    model = keras.Model(inputs, x, name=architecture.name)
    for variable in model.variables:
        variable.assign(weights[variable.path])
    return model
