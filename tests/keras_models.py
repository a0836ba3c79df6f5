"""Networks as people build them with Keras, quantized to int8 by the ordinary converter: other layers, other operators.

Weights are random, with batch normalization that moves and scales, so that every layer has values to get wrong. Run as
a program, it writes the .tflite files into a folder:

    python -m tests.keras_models build/models [name ...]
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import import_keras, quiet

Layers = Any  # keras.layers


def _conv(k: Layers, x: Any, channels: int, kernel: Any = 3, stride: Any = 1, activation: str | None = "relu") -> Any:
    x = k.Conv2D(channels, kernel, stride, padding="same", use_bias=False)(x)
    x = k.BatchNormalization()(x)
    return k.Activation(activation)(x) if activation else x


def _depthwise(k: Layers, x: Any, kernel: Any = 3, stride: Any = 1, activation: str | None = "relu") -> Any:
    x = k.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False)(x)
    x = k.BatchNormalization()(x)
    return k.Activation(activation)(x) if activation else x


def _classes(k: Layers, x: Any, count: int) -> Any:
    return k.Softmax()(k.Dense(count)(k.GlobalAveragePooling2D()(x)))


def mobilenet_v2(keras: Any) -> Any:
    """MobileNetV2 of keras.applications, alpha 0.35, 96x96: inverted residuals."""
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def mobilenet_v3(keras: Any) -> Any:
    """MobileNetV3-Small in small: hard-swish, 5x5 depthwise, squeeze-and-excitation."""
    k = keras.layers
    image = keras.Input((96, 96, 3))
    x = _conv(k, image, 16, 3, 2, "hard_swish")
    blocks = (  # expanded channels, channels, kernel, stride, squeeze, activation
        (16, 16, 3, 2, True, "relu"),
        (40, 24, 3, 2, False, "relu"),
        (56, 24, 3, 1, False, "relu"),
        (64, 32, 5, 2, True, "hard_swish"),
        (96, 32, 5, 1, True, "hard_swish"),
        (96, 48, 5, 2, True, "hard_swish"),
    )
    for expanded, channels, kernel, stride, squeeze, activation in blocks:
        y = _conv(k, x, expanded, 1, 1, activation)
        y = _depthwise(k, y, kernel, stride, activation)
        if squeeze:
            gate = k.GlobalAveragePooling2D(keepdims=True)(y)
            gate = k.Conv2D(max(8, expanded // 4), 1, activation="relu")(gate)
            gate = k.Conv2D(expanded, 1, activation="hard_sigmoid")(gate)
            y = k.Multiply()([y, gate])
        y = _conv(k, y, channels, 1, 1, None)
        x = k.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y
    x = _conv(k, x, 96, 1, 1, "hard_swish")
    return keras.Model(image, _classes(k, x, 10))


def ds_cnn(keras: Any) -> Any:
    """DS-CNN for keywords in 49 spectra of 10 coefficients, a first kernel of 10x4."""
    k = keras.layers
    spectrum = keras.Input((49, 10, 1))
    x = _conv(k, spectrum, 48, (10, 4), (2, 2))
    for _ in range(4):
        x = _conv(k, _depthwise(k, x), 48, 1)
    x = k.AveragePooling2D((25, 5))(x)
    return keras.Model(spectrum, k.Softmax()(k.Dense(12)(k.Flatten()(x))))


def efficientnet_lite(keras: Any) -> Any:
    """EfficientNet-Lite in small: ReLU6, 3x3 and 5x5 depthwise, residual adds, no squeeze-and-excitation."""
    k = keras.layers
    image = keras.Input((80, 80, 3))
    x = _conv(k, image, 16, 3, 2, "relu6")
    for expansion, channels, kernel, stride, repeats in (
        (1, 8, 3, 1, 1),
        (6, 16, 3, 2, 2),
        (6, 24, 5, 2, 2),
        (6, 40, 3, 2, 2),
        (6, 56, 5, 1, 1),
    ):
        for number in range(repeats):
            y = _conv(k, x, expansion * x.shape[-1], 1, 1, "relu6") if expansion > 1 else x
            y = _depthwise(k, y, kernel, stride if number == 0 else 1, "relu6")
            y = _conv(k, y, channels, 1, 1, None)
            x = k.Add()([x, y]) if number else y
    x = _conv(k, x, 160, 1, 1, "relu6")
    return keras.Model(image, _classes(k, x, 10))


def resnet20(keras: Any) -> Any:
    """ResNet20 for 32x32 images: three stages of three blocks."""
    k = keras.layers
    image = keras.Input((32, 32, 3))
    x = _conv(k, image, 16)
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            y = _conv(k, _conv(k, x, channels, 3, stride), channels, 3, 1, None)
            shortcut = x if stride == 1 else _conv(k, x, channels, 1, 2, None)
            x = k.ReLU()(k.Add()([shortcut, y]))
    return keras.Model(image, _classes(k, x, 10))


def inception(keras: Any) -> Any:
    """An Inception in small: branches of 1x1, 3x3, 5x5 and a maximum, joined by concatenation."""
    k = keras.layers
    image = keras.Input((48, 48, 3))
    x = _conv(k, image, 16, 5, 2)
    x = k.MaxPooling2D(3, 2, padding="same")(x)
    for width in (8, 12):
        x = k.Concatenate()(
            [
                _conv(k, x, width, 1),
                _conv(k, _conv(k, x, width, 1), 2 * width),
                _conv(k, _conv(k, x, width // 2, 1), width, 5),
                _conv(k, k.MaxPooling2D(3, 1, padding="same")(x), width, 1),
            ]
        )
        x = k.MaxPooling2D(2)(x)
    return keras.Model(image, _classes(k, x, 10))


def autoencoder(keras: Any) -> Any:
    """A convolutional autoencoder whose decoder resizes: nearest, then bilinear, a sigmoid at the end."""
    k = keras.layers
    image = keras.Input((32, 32, 1))
    x = _conv(k, image, 8, 3, 2)
    x = _conv(k, x, 16, 3, 2)
    x = _conv(k, x, 4, 1, 1)
    x = k.UpSampling2D(2)(_conv(k, x, 16))
    x = k.UpSampling2D(2, interpolation="bilinear")(_conv(k, x, 8))
    return keras.Model(image, k.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


def transposed_autoencoder(keras: Any) -> Any:
    """A convolutional autoencoder whose decoder is made of transposed convolutions, a tanh at the end."""
    k = keras.layers
    image = keras.Input((32, 32, 1))
    x = _conv(k, image, 8, 3, 2)
    x = _conv(k, x, 12, 3, 2)
    x = k.Conv2DTranspose(8, 3, 2, padding="same", activation="relu")(x)
    x = k.Conv2DTranspose(1, 4, 2, padding="same", activation="tanh")(x)
    return keras.Model(image, x)


def sensor(keras: Any) -> Any:
    """A 1-D network for six channels of acceleration, written as 2-D: rows are time; leaky ReLU, maxima."""
    k = keras.layers
    signal = keras.Input((128, 1, 6))
    x = k.LeakyReLU(negative_slope=0.1)(_conv(k, signal, 16, (7, 1), (2, 1), None))
    x = k.MaxPooling2D((2, 1))(x)
    x = k.LeakyReLU(negative_slope=0.1)(_conv(k, x, 24, (5, 1), (1, 1), None))
    x = k.MaxPooling2D((2, 1))(x)
    x = k.PReLU(shared_axes=[1, 2])(_conv(k, x, 32, (3, 1), (1, 1), None))
    x = k.Flatten()(k.AveragePooling2D((4, 1))(x))
    return keras.Model(signal, k.Softmax()(k.Dense(6)(k.Dense(16, activation="relu")(x))))


def shuffle(keras: Any) -> Any:
    """ShuffleNetV2-like units: channels split, one half convolved, joined and shuffled by reshape and transpose."""
    k = keras.layers
    image = keras.Input((48, 48, 3))
    x = _conv(k, image, 16, 3, 2)
    for _ in range(2):
        half = x.shape[-1] // 2
        left, right = x[..., :half], x[..., half:]
        right = _conv(k, _depthwise(k, _conv(k, right, half, 1), 3, 1, None), half, 1)
        x = k.Concatenate()([left, right])
        _, height, width, channels = x.shape
        x = k.Reshape((height, width, 2, channels // 2))(x)
        x = k.Reshape((height, width, channels))(k.Permute((1, 2, 4, 3))(x))
    x = _conv(k, x, 32, 3, 2)
    return keras.Model(image, _classes(k, x, 10))


def two_heads(keras: Any) -> Any:
    """Two inputs, an image and a vector of measurements, and two outputs: classes and a map."""
    k = keras.layers
    image, measured = keras.Input((32, 32, 3)), keras.Input((8,))
    x = _conv(k, image, 12, 3, 2)
    x = _conv(k, _depthwise(k, x), 16, 1)
    places = k.Conv2D(1, 1, activation="sigmoid", name="places")(x)
    x = k.Concatenate()([k.GlobalAveragePooling2D()(x), k.Dense(8, activation="relu")(measured)])
    return keras.Model([image, measured], [k.Dense(4, name="classes")(x), places])


MODELS: Mapping[str, Callable[[Any], Any]] = {
    make.__name__: make
    for make in (
        mobilenet_v2,
        mobilenet_v3,
        ds_cnn,
        efficientnet_lite,
        resnet20,
        inception,
        autoencoder,
        transposed_autoencoder,
        sensor,
        shuffle,
        two_heads,
    )
}


def _disturb(model: Any, random: np.random.Generator) -> None:
    """Give batch normalization and biases values as training leaves them, so that no constant is 0 or 1."""
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(random.uniform(0.6, 1.6, shape))
            elif weight.name in ("beta", "moving_mean", "bias"):
                weight.assign(random.normal(0, 0.3, shape))
            elif weight.name == "alpha":
                weight.assign(random.uniform(0.05, 0.4, shape))


def _samples(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return one input: noise over a slope, within -1..1."""
    slope = np.linspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1)) * random.uniform(-1, 1)
    values = slope + random.normal(0, 0.4, shape)
    return np.clip(values, -1, 1).astype(np.float32)[None]


def build(name: str, seed: int = 0) -> bytes:
    """Return the int8 .tflite file of one of MODELS; the same seed gives the same network."""
    quiet()
    keras = import_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    model = MODELS[name](keras)
    random = np.random.default_rng(seed)
    _disturb(model, random)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([_samples(shape, random) for shape in shapes] for _ in range(16))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def main(arguments: list[str]) -> None:
    """Write the models named, or all."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or MODELS:
        data = build(name)
        (folder / f"{name}.tflite").write_bytes(data)
        print(f"{name}: {len(data):,} B")


if __name__ == "__main__":
    main(sys.argv[1:])
