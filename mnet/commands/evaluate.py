"""`mnet eval`: how many images of a data set a model classifies rightly."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnet.commands.console import print_json, progress
from mnet.datasets import Images, Labels, batches
from mnet.errors import DataError, MnetError
from mnet.evaluation import Accuracy, evaluate_float, evaluate_int8
from mnet.runs import MODEL_FILE, read_run
from mnet.sources import load
from mnet.tflite import read_model

_CHUNK = 250  # images between two movements of the progress bar


@dataclass(frozen=True, eq=False)
class _Pictures:
    x: Images
    y: Labels
    description: str


def evaluate(model: Path, data: str | None, split: str, json_file: str | None) -> None:
    """Measure a model and print its accuracy."""
    is_int8 = model.suffix == ".tflite"
    source = data or _data_of_run(model)
    if is_int8:
        graph = read_model(model)
        if len(graph.inputs) > 1 or len(graph.outputs) > 1:
            raise MnetError(
                f"{model} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: `mnet eval` needs one of "
                "each."
            )
        height, width, channels = graph.tensors[graph.inputs[0]].shape
    else:
        height, width, channels = _shape_of_run(model)
    pictures = _pictures(source, split, (height, width), channels)
    accuracy = _int8(model, pictures) if is_int8 else evaluate_float(model, pictures.x, pictures.y)
    share = accuracy.fraction
    error = (share * (1 - share) / accuracy.images) ** 0.5
    if json_file:
        figures = {
            "model": model.name,
            "data": pictures.description,
            "correct": accuracy.correct,
            "images": accuracy.images,
            "accuracy": share,
            "standard_error": error,
            "runtime": accuracy.runtime,
        }
        print_json(figures, json_file)
        return
    print(f"{model}: {share:.2%} ({accuracy.correct:,} of {accuracy.images:,}), standard error {error:.2%}")
    print(f"{pictures.description}; {accuracy.runtime}")


def _int8(model: Path, pictures: _Pictures) -> Accuracy:
    correct, runtime = 0, ""
    with progress() as report:
        for part in batches(len(pictures.x), _CHUNK):
            some = evaluate_int8(model, pictures.x[part], pictures.y[part])
            correct, runtime = correct + some.correct, some.runtime
            report("evaluate", part.stop, len(pictures.x))
    return Accuracy(correct, len(pictures.x), runtime)


def _data_of_run(model: Path) -> str:
    folder = model if model.is_dir() else model.parent
    if not (folder / "run.json").is_file():
        raise MnetError(f"{model} has no run.json beside it: say which images with --data.")
    return str(read_run(folder)["options"]["data"])


def _shape_of_run(model: Path) -> tuple[int, int, int]:
    folder = model if model.is_dir() else model.parent
    if (folder / "run.json").is_file() and (model.is_dir() or model.name == MODEL_FILE):
        options = read_run(folder)["options"]
        height, width = options["size"]
        return height, width, options["channels"]
    from mnet.trained import load_keras

    height, width, channels = load_keras(model).input_shape[1:]
    return height, width, channels


def _pictures(source: str, split: str, size: tuple[int, int], channels: int) -> _Pictures:
    path = Path(source).expanduser()
    if path.suffix == ".npz" and path.is_file():
        found = _plain_npz(path)
        if found is not None:
            return found
    dataset = load(source, size=size, channels=channels)
    x, y = (dataset.x_test, dataset.y_test) if split == "test" else (dataset.x_train, dataset.y_train)
    return _Pictures(x, y, f"{dataset.description}, {split} images")


def _plain_npz(path: Path) -> _Pictures | None:
    """Return the images of an .npz that holds just x and y; None where it holds a whole data set."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                return None
            x, y = file["x"], file["y"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}.") from None
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or not len(x):
        raise DataError(f"{path}: x is {x.dtype} {list(x.shape)}; expected uint8 [n, height, width, channels].")
    if y.ndim != 1 or len(y) != len(x) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: y is {y.dtype} {list(y.shape)}; expected {len(x)} whole numbers.")
    return _Pictures(x, y.astype(np.int64), path.stem)
