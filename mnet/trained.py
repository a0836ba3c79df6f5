"""A trained model as it lies on disk: the folder of a run, or a .keras file, perhaps with run.json beside it."""

from pathlib import Path
from typing import Any

from mnet.architecture import import_keras
from mnet.errors import MnetError, ModelError
from mnet.recipes import Normalization
from mnet.runs import MODEL_FILE, read_run


def locate(model: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the .keras file and what run.json beside it says."""
    if model.is_dir():
        return model / MODEL_FILE, read_run(model)
    return model, read_run(model.parent) if (model.parent / "run.json").is_file() else None


def normalization_of(model: Path, run: dict[str, Any] | None) -> Normalization:
    """Return how bytes become the real input of a model, by what run.json beside it says.

    Raises:
        MnetError: there is none.
    """
    if run is None:
        raise MnetError(
            f"{model} has no run.json beside it: say how its input is normalized: --normalization x/255 or 'x/128 - 1'."
        )
    return Normalization(run["recipe"]["normalization"])


def load_keras(path: Path) -> Any:
    """Load a Keras model.

    Raises:
        ModelError: it is missing, damaged, or takes something else than one image.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist; `mnet train` writes a folder with {MODEL_FILE}.")
    keras = import_keras()
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever zip, JSON, HDF5 and Keras raise
        raise ModelError(f"{path} is no readable Keras model: {str(error).splitlines()[0].rstrip('.')}.") from error
    shape = getattr(model, "input_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]):
        raise ModelError(f"{path} takes {shape}; expected one image [height, width, channels] of fixed size.")
    return model
