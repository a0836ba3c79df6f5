"""Training that starts from a trained network: what gets across, and what is said where it cannot."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet.architecture import Architecture, Block, Head, build, import_keras
from mnet.errors import MnetError
from mnet.recipes import Normalization
from mnet.runs import plain
from mnet.training import train
from mnet.training_task import TrainingOptions, command
from mnet.transfer import architecture_of, find_source, start_from

_NET = Architecture("net", 28, 28, 1, 3, 2, 8, (Block(2, 16), Block(2, 24)), linear_depthwise=True)
_NAMES = ("bag", "coat", "sandal")


def _run_values(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": plain(_NET),
        "recipe": {"normalization": "x/128 - 1"},
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
