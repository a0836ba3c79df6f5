"""Multiply-adds and parameters of a MobileNet, computed from its layers; the two classic tables.

The article that this project started from gives 529 million multiply-adds for all four resolutions of its second
table. Multiply-adds grow with the number of pixels: at alpha = 1 and 1,000 classes they are 569, 418, 291 and 186
million at 224, 192, 160 and 128. Only the parameters (4.2 million) stay the same. `resolution_table()` computes them.
"""

from dataclasses import dataclass

from mnet.architecture import Architecture, Kind, Layer, layers, mobilenet

# ImageNet top-1 accuracy in percent. Source: Howard et al., "MobileNets", 2017, tables 6 and 7.
_ACCURACY_BY_ALPHA = {1.0: 70.6, 0.75: 68.4, 0.5: 63.7, 0.25: 50.6}
_ACCURACY_BY_SIZE = {224: 70.6, 192: 69.1, 160: 67.2, 128: 64.4}


@dataclass(frozen=True)
class Cost:
    """What one network takes."""

    multiply_adds: int
    parameters: int
    trainable: int  # of these parameters
    weights: int  # what a quantized model stores as int8: kernels, without normalisation and bias


@dataclass(frozen=True)
class ClassicRow:
    """One row of a classic table: a MobileNet V1 for ImageNet (3 channels, 1,000 classes)."""

    alpha: float
    size: int
    published_accuracy_percent: float
    cost: Cost


@dataclass(frozen=True)
class LayerRow:
    """One row of a layer table."""

    name: str
    kind: str  # the Keras class
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def cost(architecture: Architecture) -> Cost:
    """Return the cost of the whole network.

    >>> cost(mobilenet(0.5, (32, 32), classes=10))
    Cost(multiply_adds=3045632, parameters=834666, trainable=823722, weights=812768)
    """
    table = layers(architecture)
    return Cost(
        multiply_adds=sum(layer.multiply_adds for layer in table),
        parameters=sum(layer.parameters for layer in table),
        trainable=sum(layer.trainable for layer in table),
        weights=sum(_weights(layer) for layer in table),
    )


def alpha_table() -> tuple[ClassicRow, ...]:
    """Return the four widths at 224x224."""
    return tuple(_classic(alpha, 224, accuracy) for alpha, accuracy in _ACCURACY_BY_ALPHA.items())


def resolution_table() -> tuple[ClassicRow, ...]:
    """Return the four resolutions at alpha = 1."""
    return tuple(_classic(1.0, size, accuracy) for size, accuracy in _ACCURACY_BY_SIZE.items())


def layer_table(architecture: Architecture) -> tuple[LayerRow, ...]:
    """Return the layers as `keras.Model.summary` would list them."""
    return tuple(
        LayerRow(layer.name, layer.kind.value, layer.output_shape, layer.parameters, layer.multiply_adds)
        for layer in layers(architecture)
    )


def _classic(alpha: float, size: int, accuracy: float) -> ClassicRow:
    return ClassicRow(alpha, size, accuracy, cost(mobilenet(alpha, (size, size))))


def _weights(layer: Layer) -> int:
    match layer.kind:
        case Kind.CONVOLUTION if layer.name == "conv_preds":
            return layer.parameters - layer.output_shape[-1]
        case Kind.CONVOLUTION | Kind.DEPTHWISE:
            return layer.parameters
        case _:
            return 0
