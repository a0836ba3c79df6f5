"""The shape of a MobileNet as pure data, and the Keras model that it stands for.

`Architecture` says what to build, `layers()` spells it out layer by layer; the Keras model, the training loop and the
cost tables all walk that one list. Names, order and shapes are those of keras.applications.MobileNet.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, assert_never

from mnet.errors import MnetError

BATCH_NORMALIZATION_EPSILON = 1e-3  # Keras' default, which keras.applications uses
BATCH_NORMALIZATION_MOMENTUM = 0.99
HEAD_LAYER = "conv_preds"  # the classifier: its outputs are the classes


class Head(Enum):
    """What the network ends with."""

    SOFTMAX = "softmax"  # probabilities
    ARGMAX = "argmax"  # the logits themselves; the largest one is the answer, and no softmax runs on the board


@dataclass(frozen=True)
class Block:
    """A separable block: depthwise 3x3 with `stride`, then pointwise 1x1 to `width` channels."""

    stride: int
    width: int


@dataclass(frozen=True)
class Shape:
    """Strides and widths of a network at alpha = 1; images, classes and head make an `Architecture` of it."""

    stem: Block
    blocks: tuple[Block, ...]
    linear_depthwise: bool = True

    def __str__(self) -> str:
        """Return it as `shape_of` reads it.

        >>> str(shape_of("16s2,24,48s2"))
        '16s2,24,48s2'
        """
        return ",".join(f"{b.width}s{b.stride}" if b.stride > 1 else str(b.width) for b in (self.stem, *self.blocks))


def shape_of(text: str, *, linear_depthwise: bool = True) -> Shape:
    """Return the shape written as widths, the stem's first, each with its stride where that is not 1.

    Raises:
        MnetError: it is written otherwise.

    >>> shape_of("16s2,24,48s2").blocks
    (Block(stride=1, width=24), Block(stride=2, width=48))
    """
    pieces = [re.fullmatch(r"(\d{1,5})(?:s(\d))?", piece.strip()) for piece in text.split(",")]
    blocks = [Block(int(piece[2] or 1), int(piece[1])) for piece in pieces if piece]
    if len(blocks) < len(pieces):
        raise MnetError(f"--blocks {text} is no list of widths; write the stem and each block as in 16s2,24,48s2,48.")
    return Shape(blocks[0], tuple(blocks[1:]), linear_depthwise)


@dataclass(frozen=True)
class Architecture:
    """A chain: stem 3x3, separable blocks, average over all pixels, classifier."""

    name: str
    height: int
    width: int
    channels: int
    classes: int
    stem_stride: int
    stem_width: int
    blocks: tuple[Block, ...]
    linear_depthwise: bool = False  # no ReLU6 between depthwise and pointwise
    head: Head = Head.SOFTMAX
    dropout: float = 1e-3


class Kind(Enum):
    """Kinds of layers; the value is the name of the Keras class."""

    INPUT = "InputLayer"
    CONVOLUTION = "Conv2D"
    DEPTHWISE = "DepthwiseConv2D"
    NORMALIZATION = "BatchNormalization"
    RELU6 = "ReLU"
    ZERO_PADDING = "ZeroPadding2D"
    POOLING = "GlobalAveragePooling2D"
    DROPOUT = "Dropout"
    RESHAPE = "Reshape"
    SOFTMAX = "Activation"


@dataclass(frozen=True)
class Layer:
    """One layer of the chain with all that its cost depends on."""

    name: str
    kind: Kind
    output_shape: tuple[int, ...]  # [height, width, channels], or [classes] after the reshape
    kernel: int = 0  # 3 or 1; 0 where there is none
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels: top, bottom, left, right; of ZERO_PADDING
    parameters: int = 0
    trainable: int = 0  # of these parameters
    multiply_adds: int = 0


# MobileNet V1. Source: Howard et al. 2017, table 1.
STANDARD = shape_of("32s2,64,128s2,128,256s2,256,512s2,512,512,512,512,512,1024s2,1024", linear_depthwise=False)


def mobilenet(
    alpha: float,
    size: tuple[int, int] = (224, 224),
    channels: int = 3,
    classes: int = 1000,
    *,
    shape: Shape = STANDARD,
    stem_stride: int | None = None,
    head: Head = Head.SOFTMAX,
) -> Architecture:
    """Return a chain of separable blocks with all widths multiplied by `alpha`, as keras.applications builds them.

    Args:
        alpha: width multiplier; each width is rounded down as keras.applications does.
        size: height and width of the image.
        shape: strides and widths.
        stem_stride: in place of the shape's.

    Raises:
        MnetError: no network has such a shape.

    >>> mobilenet(0.25, (32, 32), classes=10).blocks[:2]
    (Block(stride=1, width=16), Block(stride=2, width=32))
    """
    architecture = Architecture(
        name=f"mobilenet_{alpha:0.2f}_{size[0]}",
        height=size[0],
        width=size[1],
        channels=channels,
        classes=classes,
        stem_stride=stem_stride or shape.stem.stride,
        stem_width=int(shape.stem.width * alpha),
        blocks=tuple(Block(block.stride, int(block.width * alpha)) for block in shape.blocks),
        linear_depthwise=shape.linear_depthwise,
        head=head,
    )
    narrowest = min(block.width for block in (shape.stem, *shape.blocks))
    if narrowest < 1:
        raise MnetError(f"--blocks {shape} has a layer without channels.")
    if int(narrowest * alpha) < 1:
        raise MnetError(f"--alpha {alpha} leaves a layer no channel; the smallest alpha is {1 / narrowest:g}.")
    check_architecture(architecture)
    return architecture


def check_architecture(architecture: Architecture) -> None:
    """Raise MnetError, with a finished sentence, unless the architecture can be built."""
    a = architecture
    if a.height < 1 or a.width < 1:
        raise MnetError(f"--size {a.height}x{a.width} is no image; both sides must be at least 1.")
    if a.channels not in (1, 3):
        raise MnetError(f"an image of {a.channels} channels is neither grey (1) nor colour (3).")
    if a.classes < 2:
        raise MnetError(f"a classifier needs at least 2 classes, got {a.classes}.")
    if a.stem_stride not in (1, 2):
        raise MnetError(f"--stem-stride {a.stem_stride} is not 1 or 2.")
    if any(block.stride not in (1, 2) for block in a.blocks):
        raise MnetError(f"{a.name}: the stride of a block is 1 or 2.")
    if a.stem_width < 1 or any(block.width < 1 for block in a.blocks):
        raise MnetError(f"{a.name}: every layer needs at least one channel.")
    if not 0 <= a.dropout < 1:
        raise MnetError(f"{a.name}: dropout {a.dropout} is not between 0 and 1.")


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """Return the layers in order, named as in keras.applications.

    A block of stride 2 pads below and to the right, as keras.applications does, where its input's side is even; where
    it is odd, on both sides. Both are what "SAME" means, so 28 becomes 14, 7, 4, 2, 1 (keras.applications, which pads
    one side always, would lose the last row: 7 becomes 3).

    Parameters count what Keras counts; multiply-adds count one per weight and output, those on padding included,
    without bias and activation: the convention of the MobileNet paper.
    """
    a = architecture
    table = [Layer("input_layer", Kind.INPUT, (a.height, a.width, a.channels))]
    height, width = _strided(a.height, a.stem_stride), _strided(a.width, a.stem_stride)
    channels = a.stem_width
    weights = 9 * a.channels * channels
    table.append(
        Layer(
            "conv1",
            Kind.CONVOLUTION,
            (height, width, channels),
            kernel=3,
            stride=a.stem_stride,
            parameters=weights,
            trainable=weights,
            multiply_adds=height * width * weights,
        )
    )
    table += _normalized("conv1", (height, width, channels))
    for index, block in enumerate(a.blocks, 1):
        if block.stride == 2:
            top, left = height % 2, width % 2
            padded = (height + top + 1, width + left + 1, channels)
            table.append(Layer(f"conv_pad_{index}", Kind.ZERO_PADDING, padded, padding=(top, 1, left, 1)))
        height, width = _strided(height, block.stride), _strided(width, block.stride)
        weights = 9 * channels
        table.append(
            Layer(
                f"conv_dw_{index}",
                Kind.DEPTHWISE,
                (height, width, channels),
                kernel=3,
                stride=block.stride,
                parameters=weights,
                trainable=weights,
                multiply_adds=height * width * weights,
            )
        )
        table += _normalized(f"conv_dw_{index}", (height, width, channels), relu=not a.linear_depthwise)
        weights = channels * block.width
        channels = block.width
        table.append(
            Layer(
                f"conv_pw_{index}",
                Kind.CONVOLUTION,
                (height, width, channels),
                kernel=1,
                parameters=weights,
                trainable=weights,
                multiply_adds=height * width * weights,
            )
        )
        table += _normalized(f"conv_pw_{index}", (height, width, channels))
    table.append(Layer("global_average_pooling2d", Kind.POOLING, (1, 1, channels)))
    table.append(Layer("dropout", Kind.DROPOUT, (1, 1, channels)))
    weights = channels * a.classes
    table.append(
        Layer(
            HEAD_LAYER,
            Kind.CONVOLUTION,
            (1, 1, a.classes),
            kernel=1,
            parameters=weights + a.classes,
            trainable=weights + a.classes,
            multiply_adds=weights,
        )
    )
    table.append(Layer("reshape_2", Kind.RESHAPE, (a.classes,)))
    if a.head is Head.SOFTMAX:
        table.append(Layer("predictions", Kind.SOFTMAX, (a.classes,)))
    return tuple(table)


def build(architecture: Architecture, initializer: Literal["glorot_uniform", "he_normal"] = "glorot_uniform") -> Any:
    """Return an untrained Keras model; `keras.utils.set_random_seed` before it fixes the weights."""
    keras = import_keras()
    check_architecture(architecture)
    inputs = x = None
    for layer in layers(architecture):
        match layer.kind:
            case Kind.INPUT:
                inputs = x = keras.Input(layer.output_shape, name=layer.name)
            case Kind.CONVOLUTION:
                x = keras.layers.Conv2D(
                    layer.output_shape[-1],
                    layer.kernel,
                    strides=layer.stride,
                    padding="same",
                    use_bias=layer.name == HEAD_LAYER,
                    kernel_initializer=initializer,
                    name=layer.name,
                )(x)
            case Kind.DEPTHWISE:
                x = keras.layers.DepthwiseConv2D(
                    layer.kernel,
                    strides=layer.stride,
                    padding="same" if layer.stride == 1 else "valid",
                    use_bias=False,
                    depthwise_initializer=initializer,
                    name=layer.name,
                )(x)
            case Kind.NORMALIZATION:
                x = keras.layers.BatchNormalization(
                    momentum=BATCH_NORMALIZATION_MOMENTUM, epsilon=BATCH_NORMALIZATION_EPSILON, name=layer.name
                )(x)
            case Kind.RELU6:
                x = keras.layers.ReLU(6.0, name=layer.name)(x)
            case Kind.ZERO_PADDING:
                top, bottom, left, right = layer.padding
                x = keras.layers.ZeroPadding2D(((top, bottom), (left, right)), name=layer.name)(x)
            case Kind.POOLING:
                x = keras.layers.GlobalAveragePooling2D(keepdims=True, name=layer.name)(x)
            case Kind.DROPOUT:
                x = keras.layers.Dropout(architecture.dropout, name=layer.name)(x)
            case Kind.RESHAPE:
                x = keras.layers.Reshape(layer.output_shape, name=layer.name)(x)
            case Kind.SOFTMAX:
                x = keras.layers.Activation("softmax", name=layer.name)(x)
            case _:
                assert_never(layer.kind)
    return keras.Model(inputs, x, name=architecture.name)


def import_keras() -> Any:
    """Import Keras on TensorFlow without the lines that TensorFlow prints; takes seconds the first time."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(
        "TF_ENABLE_ONEDNN_OPTS", "1"
    )  # not the default on every CPU; without it all takes thrice as long
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with quiet():
        import keras
        import tensorflow  # noqa: F401
    return keras


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what native code prints to stdout and stderr off the terminal; after an error, print it after all."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    with tempfile.TemporaryFile() as heard:
        failed = True
        try:
            for number, _ in saved:
                os.dup2(heard.fileno(), number)
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            if failed:
                heard.seek(0)
                sys.stderr.write(heard.read().decode(errors="replace"))


def _strided(side: int, stride: int) -> int:
    return -(-side // stride)


def _normalized(name: str, shape: tuple[int, int, int], *, relu: bool = True) -> list[Layer]:
    channels = shape[-1]
    table = [Layer(f"{name}_bn", Kind.NORMALIZATION, shape, parameters=4 * channels, trainable=2 * channels)]
    return [*table, Layer(f"{name}_relu", Kind.RELU6, shape)] if relu else table
