"""The training loop: its mathematics against Keras, learning, resuming, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mnet.architecture import Architecture, Block, Head, build, import_keras, layers, mobilenet, shape_of
from mnet.augmentation import augment, shifted
from mnet.cli import main
from mnet.cost import cost
from mnet.errors import MnetError
from mnet.network import forward
from mnet.optimizer import TrainingState, is_decayed, learning_rate
from mnet.progress import Progress, progress_bar
from mnet.quantization import QuantizationOptions, quantize
from mnet.recipes import RECIPES, Augmentation, Nadam, NesterovSgd, Normalization, recipe
from mnet.resources import shared_folder
from mnet.runs import read_history
from mnet.sources import load
from mnet.training import train
from mnet.training_task import TrainingOptions, command

# 32, 16, 8, 4, 2, 1 pixels: all ways in which a depthwise kernel's gradient is computed.
_SMALL = Architecture(
    "small", 32, 32, 3, 10, 2, 8, (Block(2, 8), Block(2, 16), Block(2, 16), Block(1, 16), Block(2, 24), Block(1, 24)),
    dropout=0.0,
)  # fmt: skip

_TINY = Architecture("tiny", 28, 28, 1, 10, 2, 8, (Block(2, 16), Block(2, 24)))


def _options(folder: Path, **changes: Any) -> TrainingOptions:
    options = TrainingOptions(
        data="sample", out=folder / "run", recipe="sample", epochs=3, train_images=640, validation_images=64, threads=1
    )
    return replace(options, **changes)


# Pieces


def test_rate_of_keras_like_schedules() -> None:
    sgd = NesterovSgd(learning_rate=0.2, warm_up=0.1)
    rates = [learning_rate(sgd, step, 100) for step in range(100)]
    assert rates[9] == rates[10] == 0.2 and rates[0] == 0.02 and rates[-1] < 1e-3
    assert learning_rate(Nadam(), 5, 10) == 0.001


def test_seed_recipe_is_the_articles() -> None:
    seed = recipe("seed")
    assert (seed.batch, seed.epochs, seed.optimizer, seed.normalization) == (32, 200, Nadam(0.001), Normalization.UNIT)
    assert seed.augmentation == Augmentation(flip=True, shift_fraction=0.1) and seed.label_smoothing == 0
    with pytest.raises(
        MnetError, match="--recipe fast does not exist; choose from seed, default, sample, transfer, polish, tiny"
    ):
        recipe("fast")


@pytest.mark.parametrize("normalization", list(Normalization))
def test_normalization_is_byte_minus_128(normalization: Normalization) -> None:
    byte = np.arange(256)
    quantized = byte - 128
    real = normalization.scale * (quantized - normalization.zero_point)
    expected = byte / 255 if normalization is Normalization.UNIT else byte / 128 - 1
    assert np.allclose(real, expected, atol=1e-12)


def test_shift_interpolates_and_repeats_the_edge() -> None:
    x = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1) * 10
    moved = shifted(x, np.array([1.25]), axis=1)
    assert moved.ravel().tolist() == [12.5, 22.5, 32.5, 40.0, 40.0]
    assert shifted(x, np.array([-0.5]), axis=1).ravel().tolist() == [0.0, 5.0, 15.0, 25.0, 35.0]
    assert np.array_equal(shifted(x, np.array([0.7]), axis=2), x)  # one column has no neighbour


def test_augmentation_is_repeatable_and_keeps_form() -> None:
    x = load("sample").x_train[:32]
    for chosen in RECIPES.values():
        first, again = (augment(x, chosen.augmentation, np.random.default_rng(7)) for _ in range(2))
        assert first.shape == x.shape and first.dtype == np.float32 and np.array_equal(first, again)
        assert first.min() >= 0 and first.max() <= 255
        assert not np.array_equal(first, x)
    assert np.array_equal(augment(x, Augmentation(), np.random.default_rng(0)), x)
    flips = augment(x, Augmentation(flip=True), np.random.default_rng(0))
    kinds = [(np.array_equal(a, b), np.array_equal(a, b[:, ::-1])) for a, b in zip(flips, x, strict=True)]
    assert all(same or flipped for same, flipped in kinds) and 4 < sum(same for same, _ in kinds) < 28


def test_crop_moves_by_at_most_the_padding() -> None:
    x = np.zeros((200, 9, 9, 1), np.uint8)
    x[:, 4, 4] = 255
    rows, columns = np.nonzero(augment(x, Augmentation(crop_padding=2), np.random.default_rng(0))[..., 0])[1:]
    assert set(rows) == set(columns) == {2, 3, 4, 5, 6}


# The mathematics, against Keras


@pytest.fixture(scope="module")
def keras_model() -> Any:
    keras = import_keras()
    keras.utils.set_random_seed(3)
    model = build(_SMALL)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "beta", "moving_mean", "moving_variance")):
            variable.assign(np.random.default_rng(1).uniform(0.5, 1.5, variable.shape))
    return model


@pytest.mark.parametrize("is_training", [False, True])
def test_forward_and_gradient_equal_keras(keras_model: Any, is_training: bool) -> None:
    import tensorflow as tf

    x = np.random.default_rng(2).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)
    pull = np.random.default_rng(3).normal(size=(16, 10)).astype(np.float32)
    theirs = {v.path: v.value for v in keras_model.trainable_variables}
    before = {v.path: v.numpy() for v in keras_model.variables}
    logits_model = import_keras().Model(keras_model.input, keras_model.get_layer("reshape_2").output)
    with tf.GradientTape() as tape:
        expected = logits_model(x, training=is_training)
        loss = tf.reduce_sum(expected * pull)
    expected_gradients = dict(zip(theirs, tape.gradient(loss, list(theirs.values())), strict=True))
    for variable in keras_model.variables:  # the pass moved its statistics
        variable.assign(before[variable.path])

    ours = {path: tf.constant(value) for path, value in before.items()}
    with tf.GradientTape() as tape:
        tape.watch(ours)
        logits, _ = forward(_SMALL, ours, tf.constant(x), training=is_training)
        loss = tf.reduce_sum(logits * pull)
    gradients = tape.gradient(loss, {path: ours[path] for path in theirs})
    assert np.allclose(logits, expected, atol=2e-4)
    for path, gradient in gradients.items():
        scale = float(np.abs(expected_gradients[path]).max())
        assert np.allclose(gradient, expected_gradients[path], atol=2e-4 * max(scale, 1)), path


@pytest.mark.parametrize("name", ["seed", "default"])
def test_optimizers_equal_keras(keras_model: Any, name: str) -> None:
    import tensorflow as tf

    keras = import_keras()
    chosen = recipe(name)
    state = TrainingState(keras_model, _SMALL, chosen)
    start = state.vectors["weights"].numpy()
    if isinstance(chosen.optimizer, Nadam):
        theirs, decay = keras.optimizers.Nadam(), 0.0
    else:
        theirs = keras.optimizers.SGD(learning_rate=0.25, momentum=0.9, nesterov=True)
        decay = chosen.optimizer.weight_decay
    weights = keras.Variable(start)
    theirs.build([weights])
    random = np.random.default_rng(5)
    for step in range(5):
        gradient = random.normal(size=start.shape).astype(np.float32)
        theirs.apply([tf.constant(gradient + decay * state._decays * weights.numpy())], [weights])
        state._update(tf.constant(gradient), np.float32(chosen.optimizer.learning_rate), tf.constant(float(step)))
    assert np.allclose(state.vectors["weights"].numpy(), weights.numpy(), atol=1e-5)
    assert not np.allclose(weights.numpy(), start, atol=1e-3)


def test_weight_decay_spares_depthwise_kernels_and_normalization(keras_model: Any) -> None:
    decayed = {v.path for v in keras_model.trainable_variables if is_decayed(v.path)}
    assert {"conv1/kernel", "conv_pw_1/kernel", "conv_preds/kernel"} <= decayed
    assert not {p for p in decayed if "dw" in p or "bn" in p or "bias" in p}


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "seed"])
def test_a_short_training_learns(tmp_path: Path, name: str) -> None:
    """`seed` moves its statistics by 1 % a step, so its test accuracy follows only after thousands of steps."""
    seen: list[Progress] = []
    result = train(_options(tmp_path, recipe=name, alpha=0.25, train_images=2000, epochs=6, threads=None), seen.append)
    assert result.test_accuracy > 0.55 or name == "seed"
    assert result.history[-1].train_accuracy > (0.5 if name == "sample" else 0.25)
    assert len(result.history) == 6 and result.history[-1].loss < result.history[0].loss
    assert seen[-1].fraction == 1.0 and [p.step for p in seen[: seen[0].steps]] == list(range(1, seen[0].steps + 1))
    files = ["README.md", "curve.svg", "history.csv", "model.keras", "run.json"]
    assert sorted(p.name for p in result.folder.iterdir()) == files
    written = read_history(result.folder / "history.csv")
    assert [row.epoch for row in written] == [row.epoch for row in result.history]
    assert written[-1].validation_accuracy == pytest.approx(result.history[-1].validation_accuracy, abs=1e-6)
    assert not (tmp_path / "run.partial").exists()

    run = json.loads((result.folder / "run.json").read_text())
    assert run["test_accuracy"] == result.test_accuracy and run["parameters"] == 220_970
    card = (result.folder / "README.md").read_text()
    assert f"{result.test_accuracy:.2%}" in card and "Zalando" in card and f"--recipe {name}" in card
    assert (result.folder / "history.csv").read_text().count("\n") == 7

    model = import_keras().models.load_model(result.model, compile=False)
    data = load("sample")
    real = data.x_test / np.float32(255) if name == "seed" else data.x_test / np.float32(128) - 1
    correct = np.mean(np.argmax(model(real.astype(np.float32)), axis=1) == data.y_test)
    assert correct == pytest.approx(result.test_accuracy, abs=0.002)  # the Keras model is the net that was trained


@pytest.mark.slow
def test_interrupted_and_resumed_is_the_same_as_in_one_go(tmp_path: Path) -> None:
    whole = train(_options(tmp_path / "a", architecture=_TINY))

    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2 and progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_options(tmp_path / "b", architecture=_TINY), interrupt)
    assert not (tmp_path / "b" / "run").exists()
    with pytest.raises(MnetError, match=r"run\.partial holds an unfinished training; go on with --resume"):
        train(_options(tmp_path / "b"))
    with pytest.raises(MnetError, match="another seed: 0, now 1"):
        train(_options(tmp_path / "b", seed=1, resume=True, architecture=_TINY))
    resumed = train(_options(tmp_path / "b", resume=True, architecture=_TINY))
    assert [replace(row, seconds=0) for row in resumed.history] == [replace(row, seconds=0) for row in whole.history]
    assert resumed.test_accuracy == whole.test_accuracy
    models = [import_keras().models.load_model(r.model, compile=False) for r in (whole, resumed)]
    for mine, other in zip(models[0].weights, models[1].weights, strict=True):
        assert np.array_equal(mine.numpy(), other.numpy()), mine.path


@pytest.mark.slow
def test_minutes_end_the_training_in_time_and_at_a_small_rate(tmp_path: Path) -> None:
    result = train(_options(tmp_path, architecture=_TINY, epochs=None, minutes=0.1))
    spent = sum(row.seconds for row in result.history)
    assert spent == pytest.approx(6, abs=1)
    peak = recipe("sample").optimizer.learning_rate
    assert result.history[-1].learning_rate < 0.05 * peak < max(row.learning_rate for row in result.history)
    run = json.loads((result.folder / "run.json").read_text())
    assert run["epochs"] == len(result.history) and run["recipe"]["minutes"] == 0.1
    assert "--minutes 0.1" in run["command"]


@given(st.integers(1, 400), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_minutes_move_the_end_of_the_schedule_with_the_pace(done: int, seconds: float, minutes: float) -> None:
    steps = replace(recipe("tiny"), minutes=minutes).steps(350, done, seconds)
    assert (steps <= done) == (seconds >= minutes * 60) or steps == pytest.approx(done, abs=1)
    assert replace(recipe("tiny"), minutes=minutes).steps(350, 0, 0.0) == recipe("tiny").epochs * 350


@pytest.mark.slow
@pytest.mark.skipif(shared_folder() is None, reason="no shared folder with CIFAR-10")
def test_recipe_tiny_learns_cifar10(tmp_path: Path) -> None:
    """Four of the 200 epochs, with the schedule of four: 68 % where this was measured."""
    result = train(TrainingOptions("cifar10-jpeg", tmp_path / "run", recipe="tiny", epochs=4, threads=1))
    assert result.test_accuracy > 0.64


_PROGRAM = """
import sys
from pathlib import Path
from mnet.architecture import Architecture, Block
from mnet.training import train
from mnet.training_task import TrainingOptions
tiny = Architecture("tiny", 28, 28, 1, 10, 2, 8, (Block(2, 16), Block(2, 24)))
train(TrainingOptions(architecture=tiny,
                      data="sample", out=Path(sys.argv[1]), recipe="sample", epochs=4, train_images=640,
                      validation_images=64, threads=1, resume="resume" in sys.argv))
"""


@pytest.mark.slow
def test_resume_after_kill_9_ends_at_the_same_schedule(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path / "run")]
    process = subprocess.Popen(program)
    history = tmp_path / "run.partial" / "history.csv"
    deadline = time.monotonic() + 120
    while not (history.is_file() and history.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = history.read_text().splitlines()
    subprocess.run([*program, "resume"], check=True)
    after = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 5
    rates = [float(line.split(",")[1]) for line in after[1:]]
    steps = 576 // 64 * 4
    sgd = recipe("sample").optimizer
    assert rates == pytest.approx([learning_rate(sgd, steps // 4 * e - 1, steps) for e in (1, 2, 3, 4)], rel=1e-4)


# What bad input gets


def test_folders_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MnetError, match=r"run exists already; choose another --out or delete it\."):
        train(_options(tmp_path))
    with pytest.raises(MnetError, match="is no training run; it is left alone"):
        train(_options(tmp_path, overwrite=True))
    (tmp_path / "run").rmdir()
    with pytest.raises(MnetError, match="there is no unfinished training in"):
        train(_options(tmp_path, resume=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs 0 trains nothing"),
        ({"epochs": None, "minutes": 0.0}, "--minutes 0 trains nothing"),
        ({"epochs": 3, "minutes": 1.0}, "--epochs and --minutes both say how long"),
        ({"recipe": "none"}, "--recipe none does not exist"),
        ({"alpha": 0.001}, "--alpha 0.001 leaves a layer no channel"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"train_images": 5000}, "has 4000 training images, not 5000"),
        ({"train_images": 1, "validation_images": 0}, "1 training images are too few"),
        ({"architecture": mobilenet(0.25, (28, 28), 1, 7)}, "7 classes"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_bad_options_leave_nothing_behind(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        train(_options(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MnetError, match="cannot be written: Not a directory"):
        train(_options(tmp_path / "file", architecture=_TINY))


def test_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "checkpoint.npz").write_bytes(b"PK")
    with pytest.raises(MnetError, match=r"checkpoint\.npz is damaged"):
        train(_options(tmp_path, resume=True, architecture=_TINY))


def test_command_line_of_an_unusual_run() -> None:
    options = TrainingOptions(
        "cifar10", Path("x/run"), alpha=0.5, size=(32, 24), stem_stride=1, head=Head.ARGMAX, seed=2
    )
    assert command(options) == (
        "mnet train --data cifar10 --alpha 0.5 --size 32x24 --stem-stride 1 --head argmax "
        "--recipe default --seed 2 --out run"
    )


def test_command_line_of_a_shape_of_ones_own() -> None:
    shape = shape_of("16s2,24,48s2", linear_depthwise=False)
    assert command(TrainingOptions("cifar10", Path("run"), shape=shape)) == (
        "mnet train --data cifar10 --blocks 16s2,24,48s2 --depthwise relu6 --recipe default --out run"
    )


@pytest.mark.parametrize(("name", "multiply_adds"), [("tiny", 1_200_000), ("small", 5_000_000), ("large", 12_500_000)])
def test_recipes_of_the_shipped_sizes_keep_their_budgets(name: str, multiply_adds: int) -> None:
    chosen = recipe(name)
    net = mobilenet(chosen.alpha, (32, 32), 3, 10, shape=chosen.shape)
    assert 0.9 * multiply_adds < cost(net).multiply_adds <= multiply_adds
    assert net.linear_depthwise and min(layer.output_shape[0] for layer in layers(net)[:-6]) >= 4


def test_cutout_makes_one_square_grey() -> None:
    x = np.full((40, 12, 10, 3), 7, np.uint8)
    made = augment(x, Augmentation(cutout=6), np.random.default_rng(3))
    grey = (made == 128).all(axis=3)
    assert (grey.sum(axis=(1, 2)) >= 9).all() and (grey.sum(axis=(1, 2)) <= 36).all()
    assert ((made == 128) | (made == 7)).all() and len({tuple(np.argwhere(one)[0]) for one in grey}) > 20
    for one in grey:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_without_out_a_run_goes_to_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = []
    monkeypatch.setattr("mnet.commands.train.train", lambda options, *rest: places.append(options.out))
    for words in (["--data", "cifar10", "--recipe", "tiny"], ["--data", "my/photos", "--from", "zoo:fashion-tiny"]):
        assert CliRunner().invoke(main, ["train", *words]).exit_code == 0
    runs = tmp_path / "mnet" / "runs"
    assert places == [runs / "cifar10-tiny", runs / "photos-transfer"]


def test_progress_without_a_terminal_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for epoch in range(1, 31):
            report(Progress(epoch, 30, 10, 10, 1.0, 0.5, 1000.0, ()))
            report(Progress(epoch, 30, 5, 10, 1.0, 0.5, 1000.0, ()))
    assert capfd.readouterr().err.count("\n") == 10


@pytest.mark.slow
def test_grey_images_may_be_trained_in_three_channels_and_calibrated_likewise(tmp_path: Path) -> None:
    result = train(_options(tmp_path, channels=3, architecture=replace(_TINY, channels=3), epochs=1))
    quantized = quantize(QuantizationOptions(result.folder, tmp_path / "net.tflite", images=5))
    assert (quantized.input_scale, quantized.input_zero_point) == (1 / 128, 0)
