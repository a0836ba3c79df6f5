"""Quantization-aware training and PTQ+: what lies in the file, what a kill costs, and what bad input gets."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mnet import golden
from mnet.architecture import Architecture, Block, Head, build, import_keras
from mnet.calibration import Calibration, calibrate, moved_to, rounded_weights, weight_scales, weighted
from mnet.cli import main
from mnet.comparison import compare
from mnet.conversion import convert
from mnet.errors import MnetError, ModelError
from mnet.evaluation import evaluate_float, evaluate_int8, run_int8
from mnet.fake_quantization import baked_model, fake_quantized_forward
from mnet.folding import exact_logits, fold, folded_model, stages
from mnet.graph import Conv2D, DepthwiseConv2D
from mnet.improvement import Improvements, folded_network, improve
from mnet.optimizer import TrainingState
from mnet.oracle import LITERT
from mnet.progress import Progress
from mnet.quantization import QuantizationOptions, quantize
from mnet.recipes import QAT, Normalization
from mnet.runs import partial_folder, read_run
from mnet.sources import load
from mnet.tflite import read_model
from mnet.trained import load_keras
from mnet.training import TrainingOptions, train

_NET = Architecture("net", 28, 28, 1, 10, 2, 8, (Block(1, 8), Block(2, 16)), linear_depthwise=True)
_EVERYTHING = Improvements(Calibration.MSE, equalize=True, bias_correction=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny net trained for a few seconds."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(TrainingOptions("sample", out, architecture=_NET, recipe="sample", epochs=4, threads=1))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("normalization", Normalization)
def test_the_file_holds_the_scales_and_weights_that_were_chosen(
    run: Path, tmp_path: Path, normalization: Normalization
) -> None:
    model, x = load_keras(run / "model.keras"), load("sample").x_train[:100]
    real = ((x.astype(np.float32) - (128 + normalization.zero_point)) * normalization.scale).astype(np.float32)
    folded = folded_network(run, read_run(run), model, real[:10], "--qat")
    weights, grids = improve(folded, real, normalization, _EVERYTHING)
    path = tmp_path / "net.tflite"
    path.write_bytes(convert(baked_model(_NET, weights, grids), x[:10], normalization, "net"))
    graph = read_model(path)

    source = graph.tensors[graph.inputs[0]]
    assert (source.scale, source.zero_point) == (np.float32(normalization.scale), normalization.zero_point)
    _, written = moved_to(-128, _NET, weights, grids)
    for stage, op in zip(stages(_NET), graph.ops, strict=False):
        made, chosen = graph.tensors[op.output], written[stage.name]
        assert made.zero_point == chosen.zero_point, stage.name
        np.testing.assert_allclose(made.scale, chosen.scale, rtol=1e-6)
    convolutions = [op for op in graph.ops if isinstance(op, Conv2D | DepthwiseConv2D)]
    rounded = rounded_weights(_NET, weights)
    for stage, op in zip(weighted(_NET), convolutions, strict=True):
        kernel = rounded[f"{stage.name}/kernel"]
        scales = weight_scales(kernel, stage.kind)
        np.testing.assert_allclose(op.weight_scales, scales.reshape(-1), rtol=1e-6)
        steps = np.round(kernel / scales).astype(int)
        steps = steps[..., 0] if isinstance(op, DepthwiseConv2D) else steps.transpose(3, 0, 1, 2)
        np.testing.assert_array_equal(op.weights, steps)


@pytest.mark.slow
def test_improved_files_are_nearer_to_float(run: Path, tmp_path: Path) -> None:
    plain = quantize(QuantizationOptions(run, tmp_path / "a.tflite", calibration=Calibration.MINMAX))
    better = quantize(QuantizationOptions(run, tmp_path / "b.tflite", improve=True))
    assert plain.method == better.method == "PTQ+"
    for made in (plain, better):
        assert made.near_float is not None and made.near_fake_quantized is not None
        assert made.near_float.images == 400 and made.near_float.same_answer > 0.9
        assert made.near_fake_quantized.mean_steps < made.near_float.mean_steps
    assert better.near_float.mean_steps * better.near_float.step < plain.near_float.mean_steps * plain.near_float.step


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_file_and_its_bits_are_golden(run: Path, tmp_path: Path) -> None:
    options = QuantizationOptions(run, tmp_path / "whole.tflite", images=50, qat=True, epochs=2, threads=1)
    whole = quantize(options)
    assert [row.epoch for row in whole.history] == [1, 2]
    data = load("sample")
    trained = evaluate_int8(whole.path, data.x_test, data.y_test).fraction
    assert trained > evaluate_float(run, data.x_test, data.y_test).fraction - 0.03
    best = max(row.validation_accuracy for row in whole.history)
    assert best > 0.6

    def kill(progress: Progress) -> None:
        if progress.epoch == 2 and progress.step == 3:
            raise KeyboardInterrupt

    cut = replace(options, out=tmp_path / "cut.tflite")
    with pytest.raises(KeyboardInterrupt):
        quantize(cut, kill)
    assert not cut.out.exists() and partial_folder(cut.out).is_dir()
    with pytest.raises(MnetError, match="holds an unfinished training; go on with --resume"):
        quantize(cut)
    with pytest.raises(MnetError, match="was trained with another"):
        quantize(replace(cut, resume=True, images=51))
    again = quantize(replace(cut, resume=True))
    assert again.sha256 == whole.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tflite", "whole.tflite"]
    with pytest.raises(MnetError, match=r"no unfinished training in .* is finished"):
        quantize(replace(cut, resume=True))

    graph = read_model(whole.path)
    x = data.x_test[:20]
    made = golden.run(graph, LITERT, {graph.inputs[0]: (x ^ 0x80).view(np.int8)})[graph.outputs[0]]
    np.testing.assert_array_equal(made.reshape(20, -1), run_int8(whole.path, x))


@pytest.mark.slow
def test_a_net_with_relu6_after_its_depthwise_is_improved_but_not_equalized(tmp_path: Path) -> None:
    net = replace(_NET, linear_depthwise=False, head=Head.ARGMAX)
    folder = tmp_path / "run"
    train(TrainingOptions("sample", folder, architecture=net, recipe="sample", epochs=1, train_images=640, threads=1))
    assert quantize(QuantizationOptions(folder, tmp_path / "a.tflite", images=50, improve=True)).method == "PTQ+"
    with pytest.raises(MnetError, match="a ReLU6 follows each depthwise"):
        quantize(QuantizationOptions(folder, tmp_path / "b.tflite", images=50, equalize=True))


@pytest.mark.slow
def test_a_comparison_counts_image_by_image_and_goes_on_after_a_kill(run: Path, tmp_path: Path) -> None:
    options = QuantizationOptions(run, tmp_path / "ways", images=50, epochs=1, threads=1)

    def kill(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(options, kill)
    assert (options.out / "ptq_plus.tflite").is_file() and not (options.out / "qat.tflite").exists()
    done = compare(options)
    assert [row.method for row in done.rows] == ["float", "PTQ", "PTQ+", "QAT"]
    exact = done.rows[0]
    assert exact.accuracy == evaluate_float(run, load("sample").x_test, load("sample").y_test).fraction
    for row in done.rows:
        assert row.correct - exact.correct == row.won - row.lost
        assert abs(row.points - 100 * (row.accuracy - exact.accuracy)) < 1e-9
        assert 1 - (row.won + row.lost) / row.images >= row.same_answer
    other = tmp_path / "other.keras"
    import_keras().models.clone_model(load_keras(run / "model.keras")).save(other)
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    with pytest.raises(MnetError, match="holds files of another model"):
        compare(replace(options, model=other))
    with pytest.raises(MnetError, match="name a folder"):
        compare(replace(options, out=tmp_path / "a.tflite"))


def test_a_student_of_a_teacher_sees_no_labels() -> None:
    net = replace(_NET, height=8, width=8)
    weights = fold(net, {variable.path: variable.numpy() for variable in build(net).variables})
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.float32)
    grids = calibrate(net, weights, x / 128 - 1, Normalization.SYMMETRIC, Calibration.MINMAX)
    teacher = functools.partial(exact_logits, net, weights)

    def after_a_step(labels: list[int], teacher: Any) -> Any:
        state = TrainingState(folded_model(net, weights), net, QAT, fake_quantized_forward(grids), teacher)
        state.step(x, np.array(labels, np.int32), np.float32(0.1), 0, 0)
        return state.vectors["weights"].numpy()

    first, second = [0, 1, 2, 3], [3, 2, 1, 0]
    np.testing.assert_array_equal(after_a_step(first, teacher), after_a_step(second, teacher))
    assert not np.array_equal(after_a_step(first, None), after_a_step(second, None))


# What bad input gets


def _strange(folder: Path) -> Path:
    keras = import_keras()
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10, name="dense")(keras.layers.GlobalAveragePooling2D()(x)))
    path = folder / "strange.keras"
    model.save(path)
    return path


@pytest.mark.slow
def test_a_model_that_is_none_of_ours_is_quantized_plainly_and_no_better(run: Path, tmp_path: Path) -> None:
    path, out = _strange(tmp_path), tmp_path / "net.tflite"
    options = QuantizationOptions(path, out, "sample", Normalization.SYMMETRIC, images=20)
    assert quantize(options).method == "PTQ"
    with pytest.raises(MnetError, match=r"no run\.json beside it.*--qat needs a MobileNet of `mnet train`"):
        quantize(replace(options, qat=True))
    with pytest.raises(MnetError, match=r"--improve.* needs a MobileNet of `mnet train`"):
        quantize(replace(options, improve=True))
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    with pytest.raises(ModelError, match=r"is not the MobileNet that run\.json beside it describes"):
        quantize(replace(options, qat=True))


@pytest.mark.slow
def test_the_same_variables_in_another_network_are_noticed(run: Path, tmp_path: Path) -> None:
    keras = import_keras()
    model = load_keras(run / "model.keras")
    other = keras.Model(model.inputs, keras.layers.Softmax()(model.output * 10.0))
    other.save(tmp_path / "other.keras")
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    options = QuantizationOptions(tmp_path / "other.keras", tmp_path / "net.tflite", images=20, improve=True)
    with pytest.raises(ModelError, match="computes something else than the MobileNet"):
        quantize(options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "3"], "--epochs and --resume belong to --qat"),
        (["--resume"], "--epochs and --resume belong to --qat"),
        (["--qat", "--epochs", "0"], "--epochs 0 trains nothing"),
    ],
)
def test_options_that_do_not_go_together_get_a_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    done: Any = CliRunner().invoke(main, ["quantize", str(tmp_path), "-o", str(tmp_path / "a.tflite"), *words])
    assert done.exit_code == 2 and sentence in done.output
