"""The layer list against keras.applications, and odd sizes."""

import subprocess
import sys
from typing import Any

import pytest

from mnet.architecture import Architecture, Block, Head, Kind, build, import_keras, layers, mobilenet, shape_of
from mnet.errors import MnetError


def test_importing_the_module_loads_no_tensorflow() -> None:
    program = (
        "import sys, mnet.architecture, mnet.cost, mnet.sources, mnet.recipes, mnet.training, mnet.quantization;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _theirs(alpha: float, size: int) -> Any:
    keras = import_keras()
    keras.backend.clear_session()  # else the names that Keras chooses by itself are numbered on
    return keras.applications.MobileNet(input_shape=(size, size, 3), alpha=alpha, classes=10, weights=None)


@pytest.mark.parametrize(("alpha", "size"), [(0.5, 32), (0.25, 96)])
def test_table_equals_keras_applications(alpha: float, size: int) -> None:
    theirs = _theirs(alpha, size)
    table = layers(mobilenet(alpha, (size, size), classes=10))
    assert [layer.name for layer in table] == [layer.name for layer in theirs.layers]
    assert [layer.kind.value for layer in table] == [type(layer).__name__ for layer in theirs.layers]
    assert [layer.output_shape for layer in table] == [tuple(layer.output.shape[1:]) for layer in theirs.layers]
    assert [layer.parameters for layer in table] == [layer.count_params() for layer in theirs.layers]


def test_keras_model_is_the_one_of_keras_applications() -> None:
    theirs = _theirs(0.5, 32)
    ours = build(mobilenet(0.5, (32, 32), classes=10))
    assert ours.name == theirs.name
    assert ours.count_params() == 834_666
    assert sum(w.numpy().size for w in ours.trainable_variables) == 823_722
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]
    for mine, other in zip(ours.layers[1:], theirs.layers[1:], strict=True):
        different = {k for k, v in mine.get_config().items() if k != "dtype" and str(v) != str(other.get_config()[k])}
        assert not different, mine.name


@pytest.mark.parametrize(("size", "channels", "stem_stride"), [((28, 28), 1, 2), ((33, 20), 3, 1)])
def test_keras_model_has_the_shapes_of_the_table(size: tuple[int, int], channels: int, stem_stride: int) -> None:
    architecture = mobilenet(0.25, size, channels, 7, stem_stride=stem_stride, head=Head.ARGMAX)
    model = build(architecture)
    assert [tuple(layer.output.shape[1:]) for layer in model.layers] == [x.output_shape for x in layers(architecture)]
    assert model.layers[-1].name == "reshape_2"  # no softmax


@pytest.mark.parametrize("text", ["", "16s2,,24", "16,a", "16s2;24", "-3", "16s", "1234567"])
def test_a_list_of_widths_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MnetError, match="is no list of widths"):
        shape_of(text)


def test_a_layer_without_channels_is_refused() -> None:
    with pytest.raises(MnetError, match="has a layer without channels"):
        mobilenet(1.0, (32, 32), 3, 10, shape=shape_of("16,0"))
    with pytest.raises(MnetError, match=r"smallest alpha is 0\.125"):
        mobilenet(0.1, (32, 32), 3, 10, shape=shape_of("16,8"))


def test_odd_sides_are_halved_upwards() -> None:
    depthwise = [x.output_shape[0] for x in layers(mobilenet(0.25, (28, 28), 1, 10)) if x.kind is Kind.DEPTHWISE]
    assert depthwise == [14, 7, 7, 4, 4, 2, 2, 2, 2, 2, 2, 1, 1]


def test_linear_depthwise_has_no_relu_between_depthwise_and_pointwise() -> None:
    net = Architecture("tiny", 16, 16, 3, 4, 2, 8, (Block(1, 16), Block(2, 24)), linear_depthwise=True)
    names = [layer.name for layer in layers(net)]
    assert "conv_dw_1_bn" in names and "conv_dw_1_relu" not in names and "conv_pw_1_relu" in names
    assert [layer.name for layer in build(net).layers] == names


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha": 0.01}, "alpha"),
        ({"size": (0, 32)}, "size"),
        ({"channels": 2}, "channels"),
        ({"classes": 1}, "classes"),
        ({"stem_stride": 3}, "stem-stride"),
    ],
)
def test_impossible_networks_are_refused_in_one_sentence(change: dict[str, object], word: str) -> None:
    options: dict[str, object] = {"alpha": 0.25, "size": (32, 32), "channels": 3, "classes": 10}
    with pytest.raises(MnetError, match=word):
        mobilenet(**(options | change))  # type: ignore[arg-type]
