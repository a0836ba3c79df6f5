"""Ways to quantize one trained network side by side: accuracy on all test images, image by image against float."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnet.datasets import Labels
from mnet.errors import MnetError
from mnet.evaluation import Progress as Images
from mnet.evaluation import no_progress, predict_keras, predictions, read_classifier, run_int8
from mnet.progress import Progress
from mnet.quantization import QuantizationOptions, quantize
from mnet.runs import partial_folder, write_atomically
from mnet.sources import load
from mnet.trained import load_keras, locate, normalization_of

MODEL_FILE = "compared.json"  # says which network the files of a folder were made from
_FILES = {"PTQ": "ptq.tflite", "PTQ+": "ptq_plus.tflite", "QAT": "qat.tflite"}


@dataclass(frozen=True)
class Compared:
    """One way; "float" is the network itself."""

    method: str
    images: int
    correct: int
    points: float  # accuracy less that of float, in percentage points
    won: int  # images that are right here and wrong in float
    lost: int  # the other way round
    chance: float  # that as many or more go to one side if neither were better: McNemar's exact test
    same_answer: float  # fraction of the images
    file_bytes: int
    sha256: str

    @property
    def accuracy(self) -> float:
        """Correct ones among all."""
        return self.correct / self.images


@dataclass(frozen=True)
class Comparison:
    """All ways for one network."""

    model: str
    data: str
    rows: tuple[Compared, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        rows = [asdict(row) | {"accuracy": row.accuracy} for row in self.rows]
        return {"model": self.model, "data": self.data, "runtime": "LiteRT reference kernels", "rows": rows}


def compare(
    options: QuantizationOptions, report: Callable[[Progress], None] | None = None, images: Images = no_progress
) -> Comparison:
    """Quantize a run in three ways, and look at all test images by each.

    Files that are in the folder already are taken as they are, and an unfinished training there goes on: after a kill,
    the same call does the rest.

    Args:
        options: `out` is a folder here; methods are chosen in turn.
        report: called after each step of training.
        images: called as test images are done.

    Raises:
        MnetError: the run has no run.json, or the folder holds files of another one.
    """
    path, run = locate(options.model)
    if run is None:
        raise MnetError(f"{options.model} has no run.json beside it: --compare needs the folder of a training.")
    if options.method != "PTQ":
        raise MnetError("--compare makes every kind of file by itself; leave out --improve, its parts and --qat.")
    if options.out.suffix == ".tflite" or options.out.is_file():
        raise MnetError(f"{options.out}: --compare writes several files; name a folder.")
    model = load_keras(path)
    _check_folder(options.out, path)
    for method, name in _FILES.items():
        _make(options, method, options.out / name, report)
    _, height, width, channels = model.input_shape
    dataset = load(options.data or run["options"]["data"], size=(height, width), channels=channels)
    exact = predict_keras(model, options.normalization or normalization_of(options.model, run), dataset.x_test)
    rows = [_compared("float", path, exact, exact, dataset.y_test)]
    for method, name in _FILES.items():
        file = options.out / name
        predicted = predictions(read_classifier(file), run_int8(file, dataset.x_test, images))
        rows.append(_compared(method, file, predicted, exact, dataset.y_test))
    return Comparison(str(options.model), f"{dataset.description}, all test images", tuple(rows))


def mcnemar(won: int, lost: int) -> float:
    """Return how likely a split at least as uneven is when a fair coin decides each of the images that changed.

    Source: Q. McNemar 1947; the exact, two-sided form.

    >>> mcnemar(5, 5), round(mcnemar(1, 9), 4)
    (1.0, 0.0215)
    """
    changed = won + lost
    tail = sum(math.comb(changed, k) for k in range(max(won, lost), changed + 1))
    return min(1.0, 2 * tail / (1 << changed))


def _compared(method: str, path: Path, predicted: Labels, exact: Labels, y: Labels) -> Compared:
    right, right_in_float = predicted == y, exact == y
    won, lost = int(np.sum(right & ~right_in_float)), int(np.sum(~right & right_in_float))
    content = path.read_bytes()
    return Compared(
        method=method,
        images=len(y),
        correct=int(right.sum()),
        points=100 * (won - lost) / len(y),
        won=won,
        lost=lost,
        chance=mcnemar(won, lost),
        same_answer=float(np.mean(predicted == exact)),
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _make(options: QuantizationOptions, method: str, out: Path, report: Callable[[Progress], None] | None) -> None:
    if out.is_file() and not partial_folder(out).is_dir():
        return
    trained = method == "QAT"
    chosen = replace(
        options,
        out=out,
        improve=method == "PTQ+",
        qat=trained,
        epochs=options.epochs if trained else None,
        resume=trained and partial_folder(out).is_dir(),
    )
    quantize(chosen, report)


def _check_folder(folder: Path, model: Path) -> None:
    """Raise MnetError unless the folder is new, or holds files of the same model."""
    about = folder / MODEL_FILE
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if about.is_file():
        if json.loads(about.read_text()).get("model") != digest:
            raise MnetError(f"{folder} holds files of another model than {model}; name another folder.")
        return
    if folder.is_dir() and any((folder / name).exists() for name in _FILES.values()):
        raise MnetError(f"{folder} holds files of which {MODEL_FILE} does not say what they are; name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(about, (json.dumps({"model": digest}) + "\n").encode())
    except OSError as error:
        raise MnetError(f"{folder} cannot be written: {error.strerror}.") from error
