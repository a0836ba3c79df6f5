"""Networks that people build with Keras, from the converter to the emulated core, every byte."""

import subprocess
import sys
from pathlib import Path

import pytest

from mnet.pipeline import Options, prepare
from mnet.proof import prove
from tests.keras_models import MODELS
from tests.keras_table import tflm_head_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the models in a process of its own: TensorFlow stays out of this one."""
    place = tmp_path_factory.mktemp("keras")
    done = subprocess.run([sys.executable, "-m", "tests.keras_models", str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_keras_model_gives_the_bits_of_litert_on_host_and_board(folder: Path, name: str) -> None:
    path = folder / f"{name}.tflite"
    prepared = prepare(path, Options("cortex-m4"))
    proof = prove(prepared, count=6, emulated_count=1)
    assert [leg.status for leg in proof.legs if leg.status not in ("equal", "not run")] == []
    assert any(leg.name.startswith("LiteRT") and leg.status == "equal" for leg in proof.legs)
    tflm = tflm_head_bytes(path)
    assert tflm is None or prepared.plan.arena_bytes <= tflm


_REFUSED_BY_TFLM = {"autoencoder"}  # TILE in int8, and shapes that the file leaves open


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_keras_model_gives_the_bits_of_tflm(folder: Path, name: str) -> None:
    pytest.importorskip("tflite_micro")
    path = folder / f"{name}.tflite"
    proof = prove(prepare(path, Options("cortex-m4", oracle="tflm")), count=2, emulated_count=0, cores=())
    for leg in proof.legs:
        if name in _REFUSED_BY_TFLM and leg.status == "failed":
            assert "TFLM refuses" in leg.reason
        else:
            assert leg.status == "equal", (leg.name, leg.reason)
