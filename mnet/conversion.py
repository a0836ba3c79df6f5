"""One way through TensorFlow's converter: a Keras model in, the bytes of an int8 .tflite out.

The file is a standard one: int8 input and output, int8 weights with one scale per output channel (one per tensor for
fully connected layers, which older runtimes need), int32 bias. The same input gives the same bytes in every process.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import quiet
from mnet.datasets import Images
from mnet.errors import ModelError
from mnet.recipes import Normalization


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
    (scale, zero_point), _ = ends(content)
    if np.float32(scale) != np.float32(normalization.scale) or zero_point != normalization.zero_point:
        raise ModelError(
            f"{name}: the quantized input has scale {scale}, zero_point {zero_point}; expected "
            f"{np.float32(normalization.scale)}, {normalization.zero_point} for {normalization.value}."
        )
    return content


def ends(content: bytes) -> list[tuple[float, int]]:
    """Return scale and zero_point of the input and of the output of a file that the converter wrote."""
    from tflite.Model import Model

    graph = Model.GetRootAs(content).Subgraphs(0)
    parameters = [graph.Tensors(index).Quantization() for index in (graph.Inputs(0), graph.Outputs(0))]
    return [(float(each.Scale(0)), int(each.ZeroPoint(0))) for each in parameters]
