"""Learning from a better network: the loss, what runs record, teachers that cannot teach."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mnet.architecture import Architecture, Block, import_keras
from mnet.errors import MnetError
from mnet.optimizer import distance
from mnet.recipes import Distillation, Normalization
from mnet.teacher import teacher_of
from mnet.training import train
from mnet.training_task import TrainingOptions
from mnet.transfer import find_source

_NET = Architecture("tiny", 28, 28, 1, 10, 2, 8, (Block(2, 16), Block(2, 24)), dropout=0.0)


def _options(out: Path, **changes: object) -> TrainingOptions:
    values: dict[str, object] = {
        "data": "sample", "out": out, "recipe": "sample", "epochs": 2, "train_images": 640, "validation_images": 64,
        "threads": 1, "architecture": _NET,
    }  # fmt: skip
    return TrainingOptions(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distance_is_the_softened_cross_entropy_and_least_for_the_teachers_own_answers(temperature: float) -> None:
    random = np.random.default_rng(0)
    wanted, other = (random.normal(0, 3, (6, 10)).astype(np.float32) for _ in range(2))

    def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        softened = logits.astype(np.float64) / temperature
        return softened - np.log(np.exp(softened).sum(1, keepdims=True))

    for logits in (wanted, other):
        expected = -(np.exp(log_softmax(wanted)) * log_softmax(logits)).sum(1) * temperature**2
        np.testing.assert_allclose(distance(wanted, logits, Distillation(0.5, temperature)), expected, rtol=1e-4)
    nearest, further = (distance(wanted, logits, Distillation(0.5, temperature)).numpy() for logits in (wanted, other))
    assert np.all(further > nearest)


@pytest.mark.slow
@pytest.mark.parametrize("theirs", list(Normalization))
def test_a_teacher_sees_the_same_images_however_they_are_normalized(tmp_path: Path, theirs: Normalization) -> None:
    run = train(_options(tmp_path / "run", recipe="seed" if theirs is Normalization.UNIT else "sample", epochs=1))
    bytes_ = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1)).astype(np.float32)
    model = import_keras().models.load_model(run.model, compile=False)
    logits = import_keras().Model(model.input, model.get_layer("reshape_2").output)
    expected = logits((bytes_ - 128 - theirs.zero_point) * theirs.scale, training=False)
    for ours in Normalization:
        given = (bytes_ - 128 - ours.zero_point) * ours.scale
        made = teacher_of(find_source(str(run.folder)), ours)(given)
        np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_student_follows_its_teacher_and_its_run_says_so(tmp_path: Path) -> None:
    master = train(_options(tmp_path / "teacher"))
    student = train(_options(tmp_path / "student", teacher=str(tmp_path / "teacher"), epochs=1))
    run = json.loads((student.folder / "run.json").read_text())
    assert run["teacher"]["trained_by"] == [json.loads((master.folder / "run.json").read_text())["command"]]
    assert "--teacher" in run["command"] and "learned also from" in (student.folder / "README.md").read_text()
    alone = train(_options(tmp_path / "alone", epochs=1))
    assert alone.history[-1].loss != student.history[-1].loss
    further = train(_options(tmp_path / "further", architecture=None, source=str(student.folder), recipe="polish"))
    assert len(json.loads((further.folder / "run.json").read_text())["source"]["trained_by"]) == 1


@pytest.mark.slow
def test_a_teacher_of_other_images_or_classes_is_refused(tmp_path: Path) -> None:
    train(_options(tmp_path / "teacher", epochs=1))
    name = str(tmp_path / "teacher")
    with pytest.raises(MnetError, match="takes images of 28x28x1, the network to train 32x32x1: choose a teacher"):
        train(_options(tmp_path / "a", teacher=name, architecture=None, size=(32, 32)))
    with pytest.raises(MnetError, match=r"--teacher .*none does not exist"):
        train(_options(tmp_path / "b", teacher=str(tmp_path / "none")))
    run = json.loads((tmp_path / "teacher" / "run.json").read_text())
    run["data"]["class_names"][0] = "hat"
    (tmp_path / "teacher" / "run.json").write_text(json.dumps(run))
    with pytest.raises(MnetError, match=r"knows hat, trouser, pullover \.\.\. \(10 classes\)"):
        train(_options(tmp_path / "c", teacher=name))
