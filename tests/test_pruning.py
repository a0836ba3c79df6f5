"""Fewer channels: removed exactly where their scale is 0, the least important first, by the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.dead_channels import drop_dead_channels
from codegen.simplify import simplify
from mnet.architecture import Architecture, Head, Kind, build, layers, mobilenet, shape_of
from mnet.cli import main
from mnet.cost import cost
from mnet.errors import MnetError
from mnet.graph import Conv2D
from mnet.oracle import LITERT
from mnet.pruning import Weights, importance, narrowed, narrower, nested_shapes, shape_of_network
from mnet.quantization import convert
from mnet.recipes import Normalization
from mnet.tflite import parse_model

_GROUPS = ("conv_dw_1_bn", "conv_dw_2_bn", "conv_pw_2_bn")  # whose scales count, of stem and two blocks


def _net(linear: bool = True, shape: str = "8s2,12,16s2") -> Architecture:
    form = shape_of(shape, linear_depthwise=linear)
    return mobilenet(1.0, (12, 12), 1, 4, shape=form, head=Head.ARGMAX)


def _weights(net: Architecture, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return weights as training leaves them, under the names that Keras gives."""
    random = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    channels = net.channels
    for layer in layers(net):
        match layer.kind:
            case Kind.CONVOLUTION:
                made[f"{layer.name}/kernel"] = random.normal(
                    0, 0.5, (layer.kernel, layer.kernel, channels, layer.output_shape[-1])
                )
                channels = layer.output_shape[-1]
            case Kind.DEPTHWISE:
                made[f"{layer.name}/kernel"] = random.normal(0, 0.5, (3, 3, channels, 1))
            case Kind.NORMALIZATION:
                made[f"{layer.name}/gamma"] = random.uniform(0.5, 2, channels)
                made[f"{layer.name}/beta"] = random.normal(0, 1, channels)
                made[f"{layer.name}/moving_mean"] = random.normal(0, 1, channels)
                made[f"{layer.name}/moving_variance"] = random.uniform(0.5, 2, channels)
    made["conv_preds/bias"] = random.normal(0, 1, net.classes)
    return {path: value.astype(np.float32) for path, value in made.items()}


def _silenced(weights: Weights, seed: int, share: float) -> tuple[dict[str, Any], list[int]]:
    """Return the weights with some scales 0, and how many channels of each group are left."""
    random, made, left = np.random.default_rng(seed), dict(weights), []
    for name in _GROUPS:
        gamma = np.array(made[f"{name}/gamma"])
        gamma[1:][random.random(len(gamma) - 1) < share] = 0
        made[f"{name}/gamma"] = gamma
        left.append(int((gamma != 0).sum()))
    return made, left


def _model(net: Architecture, weights: Weights) -> Any:
    model = build(net)
    for variable in model.variables:
        if variable.path in weights:
            variable.assign(weights[variable.path])
    return model


def _with(net: Architecture, widths: list[int]) -> Architecture:
    blocks = tuple(replace(block, width=width) for block, width in zip(net.blocks, widths[1:], strict=True))
    return replace(net, stem_width=widths[0], blocks=blocks)


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False])
def test_channels_of_scale_0_are_removed_exactly(linear: bool) -> None:
    net = _net(linear)
    weights, left = _silenced(_weights(net, 1), 2, 0.5)
    assert left != [8, 12, 16]
    small = _with(net, left)
    images = np.random.default_rng(3).uniform(-1, 1, (20, 12, 12, 1)).astype(np.float32)
    whole = np.asarray(_model(net, weights)(images, training=False))
    pruned = np.asarray(_model(small, narrowed(weights, net, small))(images, training=False))
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(pruned, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_channels_of_scale_0_left_in_place_are_removed_by_the_code_generator() -> None:
    """The depthwise output is constant there, at the borders, too: its kernel is 0 once the scale is folded in."""
    net = _net()
    weights, left = _silenced(_weights(net, 1), 2, 0.5)
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), np.uint8)
    content = convert(_model(net, weights), images, Normalization.SYMMETRIC, "net")
    graph = drop_dead_channels(simplify(parse_model(content, Path("net.tflite"))), LITERT)
    makers = [op for op in graph.ops if isinstance(op, Conv2D)]  # stem, pointwise convolutions, classifier
    for op, name, count in zip(makers, _GROUPS, left, strict=False):
        silent = set(np.flatnonzero(weights[f"{name}/gamma"] == 0))
        live = graph.tensors[op.output].live
        assert silent and not silent & set(live)
        assert 0 < len(op.bias) <= count  # others may be constant for other reasons, such as a ReLU6 that never opens


@given(st.integers(0, 100), st.floats(0.1, 0.7))
@settings(deadline=None)
def test_channels_of_scale_0_are_the_least_important(seed: int, share: float) -> None:
    net = _net()
    weights, left = _silenced(_weights(net, seed), seed + 1, share)
    for shares, count in zip(importance(weights, net), left, strict=True):
        assert (shares > 0).sum() == count and np.isclose(shares.sum(), 1)


@given(st.integers(0, 100))
@settings(deadline=None)
def test_shapes_are_nested_and_end_with_the_network_itself(seed: int) -> None:
    net = _net(shape="8s2,12,18s2")
    shapes = nested_shapes(_weights(net, seed), net)
    assert shapes[-1] == shape_of_network(net)
    sizes = [cost(narrower(net, shape, "run")).multiply_adds for shape in shapes]
    assert sizes == sorted(set(sizes))
    for shape in shapes:
        assert all(block.width % 4 == 0 or block.width == 18 for block in (shape.stem, *shape.blocks))


@given(st.integers(0, 100), st.data())
@settings(deadline=None)
def test_what_is_kept_keeps_its_weights(seed: int, data: st.DataObject) -> None:
    net = _net()
    widths = [data.draw(st.integers(1, most)) for most in (8, 12, 16)]
    small, weights = _with(net, widths), _weights(net, seed)
    made = narrowed(weights, net, small)
    expected = _weights(small, 0)
    assert {path: array.shape for path, array in made.items()} == {p: a.shape for p, a in expected.items()}
    assert set(made["conv_dw_2/kernel"].ravel()) <= set(weights["conv_dw_2/kernel"].ravel())


@pytest.mark.parametrize("text", ["8s2,12", "8s2,12,20s2", "8,12,16s2", "8s2,12,16"])
def test_a_shape_that_is_not_narrower_gets_a_sentence(text: str) -> None:
    with pytest.raises(MnetError, match=r"is no narrower form of --from run: that has 8s2,12,16s2"):
        narrower(_net(), shape_of(text), "run")


def _cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune", "0.5"], "give it with --from"),
        (["--sparsity", "-1"], "--sparsity -1 is no strength"),
    ],
)
def test_bad_options_get_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = _cli("train", "--data", "sample", "--out", tmp_path / "run", *arguments)
    assert code == 2 and message in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train_sparsely_then_prune_then_train_on(tmp_path: Path) -> None:
    common = ["--data", "sample", "--recipe", "sample", "--train-images", 640, "--threads", 1, "--epochs"]
    first = [*common, 3, "--blocks", "16s2,24s2,32s2", "--sparsity", "3e-3"]
    code, output = _cli("train", *first, "--out", tmp_path / "wide")
    assert code == 0, output
    pruning = [*common, 1, "--from", tmp_path / "wide", "--prune"]
    code, output = _cli("train", *pruning, "0.5", "--out", tmp_path / "slim")
    assert code == 0, output
    wide, slim = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("wide", "slim"))
    assert 0.25 * wide["multiply_adds"] < slim["multiply_adds"] <= 0.5 * wide["multiply_adds"]
    assert "--sparsity 0.003" in wide["command"] and "--blocks" in slim["command"] and "--from" in slim["command"]
    within = [*common, 1, "--from", tmp_path / "wide", "--cycles", "150k"]
    code, output = _cli("train", *within, "--out", tmp_path / "fits")
    assert code == 0, output
    fits = json.loads((tmp_path / "fits" / "run.json").read_text())
    assert 0.7 * 150_000 < fits["fit"]["needs"]["cycles"] <= 150_000
    assert "--cycles 150000 --target cortex-m4" in fits["command"] and "--blocks" in fits["command"]
    for arguments, message in (
        ([*pruning, "0"], "--prune 0 is no share"),
        ([*pruning, "0.001"], "leaves too little"),
        ([*common, 1, "--from", tmp_path / "wide", "--blocks", "16s2,40s2,32s2"], "is no narrower form"),
    ):
        code, output = _cli("train", *arguments, "--out", tmp_path / "never")
        assert code == 2 and message in output
