"""The folder of a run: what lies in it, written so that it is whole at any moment.

A training works in `out`.partial, which holds history.csv and, until the end, a checkpoint; with model.keras, run.json
(all settings and figures) and README.md (the model card) it is renamed to `out`.
"""

import csv
import io
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mnet.cache import cache_folder
from mnet.errors import MnetError

MODEL_FILE = "model.keras"
RUN_FILE = "run.json"
HISTORY_FILE = "history.csv"
CURVE_FILE = "curve.svg"
CARD_FILE = "README.md"
CHECKPOINT_FILE = "checkpoint.npz"


@dataclass(frozen=True)
class EpochRow:
    """One line of history.csv. Accuracies are fractions; `train_accuracy` is on augmented images, as they passed."""

    epoch: int  # from 1
    learning_rate: float  # of the epoch's last step
    loss: float
    train_accuracy: float
    validation_accuracy: float  # nan where no images were kept back
    seconds: float


def images_per_second(images: int, history: Sequence[EpochRow]) -> int:
    """Return the pace of a usual epoch (the median): `images` are trained on, and those kept back looked at."""
    return round(images / statistics.median(row.seconds for row in history))


def runs_folder() -> Path:
    """Return where runs without a place of their own go: `runs` in the user's cache folder."""
    return cache_folder() / "runs"


def read_history(path: Path) -> tuple[EpochRow, ...]:
    """Return history.csv as `history_csv` wrote it.

    Raises:
        MnetError: it is missing or damaged.
    """
    try:
        with path.open(newline="") as file:
            return tuple(
                EpochRow(int(row["epoch"]), *(float(row[field.name]) for field in fields(EpochRow)[1:]))
                for row in csv.DictReader(file)
            )
    except OSError as error:
        raise MnetError(f"{path} cannot be read: {error.strerror}; `mnet train` writes it.") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise MnetError(f"{path} is damaged: {error}.") from error


def read_run(folder: Path) -> dict[str, Any]:
    """Return what run.json of a finished training says.

    Raises:
        MnetError: there is none, or it is damaged.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text())
    except OSError as error:
        raise MnetError(f"{path} cannot be read: {error.strerror}; `mnet train` writes it.") from error
    except ValueError as error:
        raise MnetError(f"{path} is damaged: {error}.") from error
    if not isinstance(run, dict) or not {"data", "options", "recipe"} <= run.keys():
        raise MnetError(f"{path} is no run of `mnet train`.")
    return run


def history_csv(history: list[EpochRow]) -> str:
    """Return history.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(EpochRow))
    for row in history:
        writer.writerow(
            [
                row.epoch,
                f"{row.learning_rate:.6g}",
                f"{row.loss:.6f}",
                f"{row.train_accuracy:.6f}",
                f"{row.validation_accuracy:.6f}",
                f"{row.seconds:.2f}",
            ]
        )
    return text.getvalue()


def model_card(run: dict[str, Any]) -> str:
    """Return README.md of a finished training; `run` is what run.json says."""
    data, net, chosen, options = run["data"], run["architecture"], run["recipe"], run["options"]
    validation = run["validation_accuracy"]
    blocks = ", ".join(f"({block['stride']}, {block['width']})" for block in net["blocks"])
    rates = ", ".join(f"{key} {value}" for key, value in chosen["optimizer"].items() if key != "class")
    rows = {
        f"accuracy, {data['test_images']:,} test images": f"{run['test_accuracy']:.2%} (float)",
        **_by_class(run),
        f"accuracy, {data['validation_images']:,} validation images": (
            "none kept back" if validation is None else f"{validation:.2%}"
        ),
        "parameters": f"{run['parameters']:,}, of which trained {run['trainable_parameters']:,}",
        "multiply-adds": f"{run['multiply_adds']:,}",
        **({"budget, planned before training": run["fit"]["words"]} if run.get("fit") else {}),
        "data": f"{data['description']}, {data['train_images']:,} training images",
        "licence of the data": data["licence"],
        **{f"remark {number} on the data": remark for number, remark in enumerate(data["remarks"], 1)},
        **_start(run),
        "classes": ", ".join(_classes(data)),
        "input": f"{chosen['normalization']} of each byte x; as int8: byte - 128",
        "output": "probabilities" if net["head"] == "softmax" else "logits; the largest is the answer",
        "network": f"MobileNet V1: stem {net['stem_width']} stride {net['stem_stride']}; "
        f"blocks (stride, width) {blocks}" + ("; linear depthwise" if net["linear_depthwise"] else ""),
        "recipe": f"{chosen['name']}: {chosen['what']}",
        "epochs, batch, seed": f"{run['epochs']}, {chosen['batch']}, {options['seed']}",
        "optimizer": f"{chosen['optimizer']['class']}: {rates}",
        "time": f"{run['seconds']:,.0f} s, {run['images_per_second']:,} images/s, TensorFlow {run['tensorflow']}, "
        f"{options['threads'] or 'default'} threads",
    }
    return "\n".join(
        [
            f"# {net['name']}",
            "",
            f"An image classifier for {net['height']}x{net['width']}x{net['channels']} images, {net['classes']} "
            f"classes, trained by mnet {run['mnet']}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items()),
            "",
            f"Made with `{run['command']}`. All settings are in {RUN_FILE}, the curve in {HISTORY_FILE}:",
            "",
            f"![accuracy over epochs]({CURVE_FILE})",
            "",
            *(
                []
                if validation is None
                else ["The validation images were kept back from the training images; they trained nothing."]
            ),
            "This training looked at the test images once, for the figure above.",
            "",
        ]
    )


def _classes(data: dict[str, Any]) -> list[str]:
    """Return the names of the classes, each with its images where they are not equally many."""
    counts = data["images_of_class"]
    if len(set(counts)) == 1:
        return list(data["class_names"])
    return [f"{name} ({count:,})" for name, count in zip(data["class_names"], counts, strict=True)]


def _by_class(run: dict[str, Any]) -> dict[str, str]:
    """Return the row of the card on the accuracy of classes of which some have more images than others."""
    if len(set(run["data"]["images_of_class"])) == 1:
        return {}
    return {"the same, each class counting as much as any other": f"{run['balanced_test_accuracy']:.2%} (float)"}


def _start(run: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the card on the networks that a training started from and learned from."""
    rows = {}
    for key, words in (("source", "started from"), ("teacher", "learned also from")):
        if key in run:
            other = run[key]
            rows[words] = f"{other['name']}, sha256 {other['sha256'][:16]}: `{'`, then `'.join(other['trained_by'])}`"
            rows[f"data of {other['name']}"] = "; ".join(other["data"])
    return rows


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it holds either what it held before or all of `content`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_model(model: Any, path: Path) -> None:
    """Save a Keras model; the file is whole or not there."""
    temporary = path.with_name("unfinished.keras")  # Keras insists on the suffix
    model.save(temporary)
    temporary.replace(path)


def write_checkpoint(path: Path, identity: dict[str, Any], vectors: Mapping[str, Any], history: list[EpochRow]) -> None:
    """Write the state after the last row of `history`; `identity` is what a resumed run must agree with."""
    text = json.dumps({"identity": identity, "history": [asdict(row) for row in history]})
    content = io.BytesIO()
    np.savez(content, about=np.array(text), **{name: v.numpy() for name, v in vectors.items()})
    write_atomically(path, content.getvalue())


def read_checkpoint(path: Path, identity: dict[str, Any], vectors: Mapping[str, Any]) -> list[EpochRow]:
    """Assign what a checkpoint holds to `vectors` and return its history; none yet gives an empty one.

    Raises:
        MnetError: it is damaged, or of another run.
    """
    if not path.is_file():
        return []  # killed within the first epoch
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in vectors}
    except Exception as error:
        raise MnetError(f"{path} is damaged ({error}); delete {path.parent} and train again.") from error
    for key, value in identity.items():
        if about["identity"].get(key) != value:
            raise MnetError(
                f"{path.parent} was trained with another {key}: {about['identity'].get(key)}, now {value}; "
                "resume with the same options."
            )
    for name, array in arrays.items():
        vectors[name].assign(array)
    return [EpochRow(**row) for row in about["history"]]


def plain(value: Any) -> Any:
    """Return a dataclass as JSON has it: enums by value, tuples as lists, plus the class where it says which kind."""
    return json.loads(json.dumps(asdict(value), default=lambda item: getattr(item, "value", str(item)))) | {
        "class": type(value).__name__
    }


def check_folders(out: Path, *, resume: bool, overwrite: bool) -> Path:
    """Return the folder to work in, or raise MnetError when something is in the way."""
    partial = partial_folder(out)
    if resume:
        check_partial(partial, out, resume=True)
        return partial
    if overwrite:
        if out.exists() and not (out / RUN_FILE).is_file():
            raise MnetError(f"{out} exists and is no training run; it is left alone. Choose another --out.")
        return partial
    if out.exists():
        raise MnetError(f"{out} exists already; choose another --out or delete it.")
    check_partial(partial, out, resume=False)
    return partial


def partial_folder(out: Path) -> Path:
    """Return where a training works until `out`, a folder or a file, is there."""
    return out.with_name(out.name + ".partial")


def check_partial(partial: Path, out: Path, *, resume: bool) -> None:
    """Raise MnetError unless an unfinished training is there exactly when one is to be resumed."""
    if resume and not partial.is_dir():
        state = "is finished" if out.is_file() or (out / RUN_FILE).is_file() else "does not exist"
        raise MnetError(f"there is no unfinished training in {partial} to resume: {out} {state}.")
    if not resume and partial.exists():
        raise MnetError(f"{partial} holds an unfinished training; go on with --resume, or delete it.")


def move_into_place(partial: Path, out: Path, *, overwrite: bool) -> None:
    """Rename the finished folder; what it replaces goes last."""
    if overwrite and out.exists():
        old = out.with_name(out.name + ".old")
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        partial.rename(out)
