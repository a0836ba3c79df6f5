"""Training that starts from a trained network: what gets across, and what is said where it cannot."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from mnet.architecture import Architecture, Block, Head, build, import_keras, shape_of
from mnet.augmentation import augment, shifted
from mnet.cli import main
from mnet.errors import MnetError
from mnet.evaluation import Evaluation, evaluate_float
from mnet.optimizer import TrainingState
from mnet.progress import Progress
from mnet.quantization import QuantizationOptions, quantize
from mnet.recipes import Augmentation, NesterovSgd, Normalization, recipe
from mnet.runs import plain
from mnet.sources import load
from mnet.training import train
from mnet.training_task import TrainingOptions, command, fitted, going_on, task_of
from mnet.transfer import architecture_of, augmentation_of, find_source, start_from

_NET = Architecture("net", 28, 28, 1, 3, 2, 8, (Block(2, 16), Block(2, 24)), linear_depthwise=True)
_NAMES = ("bag", "coat", "sandal")
_SHOWN = Augmentation(flip=True, cutout=5)


def _run_values(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": plain(_NET),
        "recipe": {"normalization": "x/128 - 1", "augmentation": plain(_SHOWN), "label_smoothing": 0.03},
        "options": {},
        "data": {"description": "old pictures", "licence": "Expat", "class_names": list(_NAMES)},
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as far as others look at it; all of its variables are other numbers than a new network has."""
    folder = tmp_path_factory.mktemp("source") / "old"
    folder.mkdir()
    model = build(_NET)
    for number, variable in enumerate(model.variables):
        variable.assign(np.random.default_rng(number).uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    model.save(folder / "model.keras")
    (folder / "run.json").write_text(json.dumps(_run_values()))
    return folder


def test_a_source_is_what_its_run_says(run: Path) -> None:
    source = find_source(str(run))
    assert source.architecture == _NET and source.normalization is Normalization.SYMMETRIC
    assert source.class_names == _NAMES and source.data == ("old pictures: Expat",)
    assert replace(find_source(str(run / "model.keras")), name=str(run)) == source


def test_the_data_of_all_ancestors_are_remembered(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes((run / "model.keras").read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(_run_values(source={"data": ["older pictures: CC0"]})))
    assert find_source(str(tmp_path)).data == ("older pictures: CC0", "old pictures: Expat")


def test_polish_shows_images_as_the_training_before_did_and_transfer_as_its_own_recipe_says(run: Path) -> None:
    source = find_source(str(run))
    polish, transfer = (going_on(recipe(name), source) for name in ("polish", "transfer"))
    assert (polish.augmentation, polish.label_smoothing) == (_SHOWN, 0.03)
    assert polish.optimizer == recipe("polish").optimizer
    assert transfer == recipe("transfer")


def test_an_older_run_json_names_fewer_augmentations() -> None:
    assert augmentation_of({"flip": True, "crop_padding": 4, "class": "Augmentation"}) == Augmentation(True, 4)


@pytest.mark.parametrize("head", list(Head))
def test_architectures_survive_their_json(head: Head) -> None:
    net = replace(_NET, head=head, dropout=0.25, linear_depthwise=False)
    assert architecture_of(json.loads(json.dumps(plain(net)))) == net


def test_weights_get_across_and_known_classes_keep_their_part_of_the_head(run: Path) -> None:
    names = ("sandal", "hat", "bag", "scarf")
    import_keras().utils.set_random_seed(1)
    new = build(replace(_NET, classes=4))
    drawn = {variable.path: variable.numpy() for variable in new.variables}
    assert start_from(find_source(str(run)), new, names) == ("sandal", "bag")
    old = {v.path: v.numpy() for v in import_keras().models.load_model(run / "model.keras", compile=False).variables}
    for variable in new.variables:
        if variable.path.startswith("conv_preds/"):
            for place, name in enumerate(names):
                expected = old[variable.path][..., _NAMES.index(name)] if name in _NAMES else None
                expected = drawn[variable.path][..., place] if expected is None else expected
                assert np.array_equal(variable.numpy()[..., place], expected), (variable.path, name)
        elif "seed_generator" not in variable.path:
            assert np.array_equal(variable.numpy(), old[variable.path]), variable.path


def test_what_contradicts_from_is_one_sentence(run: Path, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [{"alpha": 0.5}, {"size": (32, 32)}, {"channels": 3}]
    for changes in given:
        with pytest.raises(MnetError, match=r"^--\w+ contradicts --from .*: the network is the one it starts from\.$"):
            train(TrainingOptions("sample", tmp_path / "run", source=str(run), **changes))


def test_sources_that_are_none(run: Path, tmp_path: Path) -> None:
    def sentence(name: object) -> str:
        with pytest.raises(MnetError) as caught:
            find_source(str(name))
        return str(caught.value)

    assert "does not exist" in sentence(tmp_path / "absent")
    (tmp_path / "net.tflite").write_bytes(b"TFL3")
    assert "only a float model can be trained on" in sentence(tmp_path / "net.tflite")
    lone = tmp_path / "lone.keras"
    lone.write_bytes((run / "model.keras").read_bytes())
    assert "has no run.json" in sentence(lone)
    (tmp_path / "run.json").write_text(json.dumps(_run_values(architecture={"blocks": [{"width": 3}]})))
    assert "run.json is damaged" in sentence(lone)
    (tmp_path / "run.json").write_text(json.dumps(_run_values()))
    assert find_source(str(lone)).architecture == _NET
    assert "model.keras cannot be read" in sentence(tmp_path)


def test_a_run_json_of_another_network(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes((run / "model.keras").read_bytes())
    other = replace(_NET, blocks=(Block(2, 16), Block(2, 32)))
    (tmp_path / "run.json").write_text(json.dumps(_run_values(architecture=plain(other))))
    with pytest.raises(MnetError, match=r"conv_pw_2/kernel is \[1, 1, 16, 24\]; its run.json says \[1, 1, 16, 32\]"):
        start_from(find_source(str(tmp_path)), build(other), _NAMES)


def test_the_command_names_the_source() -> None:
    assert command(TrainingOptions("photos", Path("x/run"), source="old")) == (
        "mnet train --data photos --from old --recipe default --out run"
    )


# Fine-tuning


def test_no_flip_mirrors_nothing(run: Path, tmp_path: Path) -> None:
    options = TrainingOptions("sample", tmp_path / "run", source=str(run), recipe="transfer", flip=False)
    assert "--recipe transfer --no-flip" in command(options)
    task = task_of(options)
    assert task.recipe.augmentation == replace(recipe("transfer").augmentation, flip=False)
    assert task.identity()["recipe"] != task_of(replace(options, flip=True)).identity()["recipe"]


def test_few_images_shrink_the_batch_and_many_the_epochs() -> None:
    sgd = NesterovSgd(learning_rate=0.4)
    chosen = replace(recipe("transfer"), batch=32, epochs=100, images=6000, optimizer=sgd)
    few = fitted(chosen, 24, fixed_epochs=False)
    assert (few.batch, few.epochs, few.optimizer) == (24, 100, replace(sgd, learning_rate=0.4 * 24 / 32))
    many = fitted(chosen, 300, fixed_epochs=False)
    assert (many.batch, many.epochs, many.optimizer) == (32, 20, sgd)
    assert fitted(chosen, 300, fixed_epochs=True).epochs == 100
    assert fitted(chosen, 10**6, fixed_epochs=False).epochs == 10
    assert fitted(recipe("default"), 10**6, fixed_epochs=False) == recipe("default")


def test_the_body_follows_the_classifier_at_its_share_of_the_rate() -> None:
    import_keras().utils.set_random_seed(1)
    model = build(_NET)
    x = np.random.default_rng(1).uniform(0, 255, (4, 28, 28, 1)).astype(np.float32)
    y = np.array([0, 1, 2, 0], np.int32)

    def moved(body_rate: float) -> dict[str, float]:
        chosen = replace(recipe("transfer"), optimizer=NesterovSgd(0.1, weight_decay=0.0), body_rate=body_rate)
        state = TrainingState(model, _NET, chosen)
        before = state.vectors["weights"].numpy()
        state.step(x, y, np.float32(0.1), 0, 0)
        change = np.abs(state.vectors["weights"].numpy() - before)
        head = 24 * 3 + 3  # the last of the vector
        return {"head": float(change[-head:].max()), "body": float(change[:-head].max())}

    all_alike, third, frozen = moved(1.0), moved(0.3), moved(0.0)
    assert all_alike["head"] == third["head"] == frozen["head"] > 0 == frozen["body"]
    assert third["body"] == pytest.approx(0.3 * all_alike["body"], rel=0.01)


def test_zoom_and_light_change_images_as_far_as_they_say() -> None:
    x = np.full((64, 9, 9, 1), 100, np.uint8)
    lit = augment(x, Augmentation(light=0.1), np.random.default_rng(0))
    assert np.all(lit == lit[:, :1, :1]) and 0.7 * 25.5 < np.ptp(lit) / 2 < 25.5 + 0.1 * 28
    ramp = np.tile(np.arange(9, dtype=np.float32)[:, None, None], (1, 1, 9, 1)) * 10
    nearer = shifted(ramp, np.zeros(1), axis=1, zooms=np.array([0.5]))
    assert nearer[0, :, 0, 0].tolist() == [20, 25, 30, 35, 40, 45, 50, 55, 60]
    zoomed = augment(np.tile(ramp, (30, 1, 1, 1)).astype(np.uint8), Augmentation(zoom=0.2), np.random.default_rng(0))
    assert 9 < (zoomed[:, 5] - zoomed[:, 4]).max() <= 12.1 and 7.9 <= (zoomed[:, 5] - zoomed[:, 4]).min() < 9


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    evaluation = Evaluation("float", np.array([[9, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert evaluation.balanced == pytest.approx((0.9 + 0.5) / 2) and evaluation.fraction == pytest.approx(10 / 12)


def _photos(folder: Path, classes: dict[str, int], seed: int) -> Path:
    """Write pictures of the sample as people have them: of all sizes and kinds, one of them broken, one twice."""
    data, random = load("sample"), np.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        images = data.x_train[data.y_train == data.class_names.index(re.split("[ ,]", name)[0])]
        for number, index in enumerate(random.permutation(len(images))[:count]):
            image = Image.fromarray(images[index][..., 0]).resize([int(random.integers(24, 90))] * 2)
            if number % 5 == 1:
                image = ImageOps.expand(image, (0, 0, int(random.integers(0, 9)), 0))
            mode = ("L", "RGB", "RGBA", "P", "LA", "deep")[number % 6]
            deep = Image.fromarray(np.asarray(image, np.uint16) * 257)
            (deep if mode == "deep" else image.convert(mode)).save(folder / name / f"{number}.png")
    (folder / name / "0.png").write_bytes(b"\x89PNG, of which nothing more was saved")
    shutil.copy(folder / name / "1.png", folder / name / "copy.png")
    return folder


@pytest.mark.slow
def test_from_other_classes_to_a_header_with_the_names_of_ones_own(tmp_path: Path) -> None:
    """A network that knows six classes learns four others from 24 to 40 pictures: better than without its start."""
    sample = load("sample")
    known = [0, 1, 2, 3, 6, 9]
    parts = {}
    for part, x, y in (("train", sample.x_train, sample.y_train), ("test", sample.x_test, sample.y_test)):
        chosen = np.concatenate([np.flatnonzero(y == label)[:400] for label in known])
        parts |= {f"x_{part}": x[chosen], f"y_{part}": np.searchsorted(known, y[chosen])}
    np.savez(tmp_path / "known.npz", **parts)
    shape = shape_of("8s2,16,24s2,32,48s2")
    options = TrainingOptions("", tmp_path / "known", shape=shape, alpha=1.0, epochs=8, threads=1, recipe="sample")
    train(replace(options, data=str(tmp_path / "known.npz")))

    photos = _photos(tmp_path / "photos", {"bag": 40, "coat": 24, 'sandal "new"': 32, "sneaker, white": 28}, seed=1)
    words = ["train", "--data", str(photos), "--from", str(tmp_path / "known"), "--epochs", "30", "--threads", "1"]
    done = CliRunner().invoke(main, [*words, "--json", "--out", str(tmp_path / "pets")])
    assert done.exit_code == 0, done.output
    assert "cannot be read: 1 (" in done.stderr and "copies of others: 1 (" in done.stderr
    alone = train(
        replace(
            options, data=str(photos), out=tmp_path / "alone", size=(28, 28), channels=1, recipe="transfer", epochs=30
        )
    )
    labels = [sample.class_names.index(name) for name in ("bag", "coat", "sandal", "sneaker")]
    chosen = np.flatnonzero(np.isin(sample.y_test, labels))
    x, y = sample.x_test[chosen], np.array([labels.index(label) for label in sample.y_test[chosen]])
    told, other = (evaluate_float(tmp_path / name, x, y).fraction for name in ("pets", "alone"))
    assert told > 0.7 and told > other + 0.05 and alone.history[-1].epoch == 30

    card = (tmp_path / "pets" / "README.md").read_text()
    assert (
        "known, sha256 " in card
        and "bag (40), coat (24)" in card
        and "each class counting as much as any other | " in card
    )
    int8 = tmp_path / "pets.tflite"
    for command_words in (
        ["quantize", str(tmp_path / "pets"), "-o", str(int8)],
        ["codegen", str(int8), "-o", str(tmp_path / "c")],
    ):
        done = CliRunner().invoke(main, command_words)
        assert done.exit_code == 0, done.output
    header = (tmp_path / "c" / "pets.h").read_text()
    assert '#define PETS_LABELS { "bag", "coat", "sandal \\"new\\"", "sneaker, white" }' in header
    again = tmp_path / "again.tflite"
    quantize(QuantizationOptions(tmp_path / "pets", again))
    assert again.read_bytes() == int8.read_bytes()


@pytest.mark.slow
def test_a_resumed_run_needs_the_same_start(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(run, source)
    options = TrainingOptions(
        "sample", tmp_path / "run", source=str(source), recipe="sample", epochs=2, train_images=200, threads=1
    )

    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, interrupt)
    other = import_keras().models.load_model(source / "model.keras", compile=False)
    other.variables[0].assign(other.variables[0] + 1)
    (source / "model.keras").rename(tmp_path / "old.keras")
    other.save(source / "model.keras")
    with pytest.raises(MnetError, match="was trained with another source"):
        train(replace(options, resume=True))
    (tmp_path / "old.keras").replace(source / "model.keras")
    assert len(train(replace(options, resume=True)).history) == 2


@pytest.mark.slow
def test_training_starts_from_the_source_and_says_so(run: Path, tmp_path: Path) -> None:
    options = TrainingOptions(
        "sample", tmp_path / "run", source=str(run), recipe="sample", epochs=1, train_images=640, threads=1
    )
    result = train(options)
    values = json.loads((result.folder / "run.json").read_text())
    assert values["source"]["sha256"] == find_source(str(run)).sha256
    assert values["architecture"]["classes"] == 10 and values["architecture"]["stem_width"] == _NET.stem_width
    assert "old pictures: Expat" in (result.folder / "README.md").read_text()
