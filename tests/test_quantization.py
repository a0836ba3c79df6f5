"""Quantization: form, determinism and accuracy of the .tflite file, and what bad input gets."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet.architecture import Architecture, Block, Head, build, import_keras, mobilenet
from mnet.errors import MnetError, ModelError
from mnet.evaluation import evaluate_float, evaluate_int8, run_int8
from mnet.quantization import (
    QuantizationOptions,
    convert,
    quantize,
)
from mnet.recipes import Normalization
from mnet.sources import load
from mnet.trained import load_keras
from mnet.training import train
from mnet.training_task import TrainingOptions

_TINY = Architecture("tiny", 28, 28, 1, 10, 2, 8, (Block(1, 8), Block(2, 16), Block(2, 16)))
_MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny net trained for a few seconds."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(TrainingOptions("sample", out, architecture=_TINY, recipe="sample", epochs=4, threads=1))
    return out


def _untrained(architecture: Architecture) -> Any:
    """A net that was not trained but has activations of ordinary size in every layer; else LiteRT aborts."""
    import_keras().utils.set_random_seed(0)
    model = build(architecture)
    for variable in model.trainable_variables:
        if variable.path.endswith("/beta"):
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    return model


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    return interpreter


def _operators(path: Path) -> list[str]:
    names = [op["op_name"] for op in _interpreter(path)._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]


@pytest.mark.slow
def test_a_trained_run_keeps_its_accuracy(run_folder: Path, tmp_path: Path) -> None:
    result = quantize(QuantizationOptions(run_folder, tmp_path / "net.tflite", images=200))
    data = load("sample")
    whole = evaluate_float(run_folder, data.x_test, data.y_test)
    quantized = evaluate_int8(result.path, data.x_test, data.y_test)
    assert "MEAN" in _operators(result.path)
    assert whole.fraction > 0.6 and abs(whole.fraction - quantized.fraction) < 0.02
    assert quantized.images == 1000 and quantized.runtime == "LiteRT reference kernels"
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert (result.input_scale, result.input_zero_point) == (1 / 128, 0)
    assert (result.output_scale, result.output_zero_point) == (1 / 256, -128)
    assert [p.name for p in tmp_path.iterdir()] == ["net.tflite"]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mnet.quantization import *;"
        "quantize(QuantizationOptions(Path(sys.argv[1]), Path(sys.argv[2]), images=50))"
    )
    written = []
    for name in ("a.tflite", "b.tflite"):
        command = [sys.executable, "-c", program, str(run_folder), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, check=True)
        assert done.stdout == b"" and done.stderr == b""  # TensorFlow's and the converter's noise is hidden
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("normalization", "head"), [(Normalization.UNIT, Head.SOFTMAX), (Normalization.SYMMETRIC, Head.ARGMAX)]
)
def test_standard_shape_becomes_clean_int8(tmp_path: Path, normalization: Normalization, head: Head) -> None:
    model = _untrained(mobilenet(0.25, (28, 28), 1, 10, head=head))
    path = tmp_path / "net.tflite"
    path.write_bytes(convert(model, load("sample").x_train[:20], normalization, "net"))
    softmax = ["SOFTMAX"] if head is Head.SOFTMAX else []
    separable = ["DEPTHWISE_CONV_2D", "CONV_2D"] * 13
    # The mean of one pixel is the pixel: the converter drops it.
    assert _operators(path) == ["CONV_2D", *separable, "CONV_2D", "RESHAPE", *softmax]
    interpreter = _interpreter(path)
    details = interpreter.get_input_details()[0]
    assert details["quantization"] == (np.float32(normalization.scale), normalization.zero_point)
    assert details["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.int8
    kernels = [t for t in interpreter.get_tensor_details() if t["dtype"] == np.int8 and len(t["shape"]) == 4]
    per_channel = [t for t in kernels if len(t["quantization_parameters"]["scales"]) > 1]
    assert len(per_channel) == 28  # stem, 13 + 13, classifier


@pytest.mark.slow
def test_fully_connected_weights_have_one_scale(tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10, name="dense")(keras.layers.GlobalAveragePooling2D()(x)))
    path = tmp_path / "net.tflite"
    path.write_bytes(convert(model, load("sample").x_train[:20], Normalization.SYMMETRIC, "net"))
    dense = [t for t in _interpreter(path).get_tensor_details() if tuple(t["shape"]) == (10, 8)]
    assert [len(t["quantization_parameters"]["scales"]) for t in dense] == [1]


@pytest.mark.slow
def test_bare_model_needs_normalization_and_data(tmp_path: Path) -> None:
    path, out = tmp_path / "net.keras", tmp_path / "net.tflite"
    _untrained(_TINY).save(path)
    with pytest.raises(MnetError, match="say how its input is normalized"):
        quantize(QuantizationOptions(path, out, data="sample"))
    with pytest.raises(MnetError, match="say which --data"):
        quantize(QuantizationOptions(path, out, normalization=Normalization.UNIT))
    result = quantize(QuantizationOptions(path, out, data="sample", normalization=Normalization.UNIT, images=10))
    assert result.calibration_images == 10 and result.input_zero_point == -128


@pytest.mark.slow
def test_converter_errors_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keras = import_keras()
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Lambda(lambda t: keras.ops.erfinv(t))(inputs))
    with pytest.raises(ModelError, match=r"net cannot be quantized; TensorFlow's converter says: [^\n]+\.$"):
        convert(keras.Model(inputs, x), load("sample").x_train[:2], Normalization.SYMMETRIC, "net")


@pytest.mark.parametrize("name", sorted(p.stem for p in _MODELS.glob("*_a25.tflite")))
def test_shipped_models_run(name: str) -> None:
    path = _MODELS / f"{name}.tflite"
    interpreter = _interpreter(path)
    shape = interpreter.get_input_details()[0]["shape"][1:]
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    assert run_int8(path, x).shape == (3, 10)
    assert path.stat().st_size < 400_000


def test_shipped_sample_model_is_as_good_as_its_readme_says() -> None:
    data = load("sample")
    accuracy = evaluate_int8(_MODELS / "sample_a25.tflite", data.x_test, data.y_test)
    assert accuracy.fraction > 0.85
    assert f"{accuracy.fraction:.1%}" in (_MODELS / "README.md").read_text()


# What bad input gets


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    out = tmp_path / "net.tflite"
    with pytest.raises(MnetError, match=r"run\.json cannot be read"):
        quantize(QuantizationOptions(tmp_path, out))
    with pytest.raises(ModelError, match=r"none\.keras does not exist"):
        quantize(QuantizationOptions(tmp_path / "none.keras", out, "sample", Normalization.UNIT))
    (tmp_path / "bad.keras").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ModelError, match=r"bad\.keras is no readable Keras model"):
        load_keras(tmp_path / "bad.keras")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(MnetError, match=r"run\.json is damaged"):
        quantize(QuantizationOptions(tmp_path, out))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MnetError, match="is no run of"):
        quantize(QuantizationOptions(tmp_path, out))
    assert not out.exists()


def test_wrong_suffix_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(MnetError, match="give it that suffix"):
        quantize(QuantizationOptions(tmp_path / "a.keras", tmp_path / "a.bin", "sample", Normalization.UNIT))
    with pytest.raises(MnetError, match="0 images are too few"):
        quantize(QuantizationOptions(tmp_path / "a.keras", tmp_path / "a.tflite", images=0))


def test_evaluation_refuses_what_is_no_int8_model(tmp_path: Path) -> None:
    path = tmp_path / "bad.tflite"
    with pytest.raises(ModelError, match="cannot be read"):
        run_int8(path, np.zeros((1, 28, 28, 1), np.uint8))
    path.write_bytes(b"TFL3 nothing at all")
    with pytest.raises(ModelError, match=r"bad\.tflite"):
        run_int8(path, np.zeros((1, 28, 28, 1), np.uint8))
    with pytest.raises(MnetError, match="2 images and 3 labels"):
        evaluate_int8(_MODELS / "sample_a25.tflite", np.zeros((2, 28, 28, 1), np.uint8), np.zeros(3, np.int64))


def test_evaluation_refuses_images_of_another_shape() -> None:
    with pytest.raises(MnetError, match=r"takes uint8 images \[28, 28, 1\], not uint8 \[1, 32, 32, 3\]"):
        run_int8(_MODELS / "sample_a25.tflite", np.zeros((1, 32, 32, 3), np.uint8))
