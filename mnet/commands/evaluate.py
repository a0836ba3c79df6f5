"""`mnet eval`: accuracy, confusion matrix, figures of each class; an int8 model on every link of the chain of proof."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnet.agreement import EvaluatedLeg, evaluate_legs, exit_code, legs_of
from mnet.commands.console import Column, print_json, print_table, progress, write_bytes, write_text
from mnet.confusion_picture import confusion_picture
from mnet.datasets import LabelledImages
from mnet.drawing import as_png, as_svg
from mnet.errors import MnetError
from mnet.evaluation import Evaluation, check_labels, classes_of, evaluate_keras, read_classifier
from mnet.labels import labels_of
from mnet.pipeline import Options
from mnet.recipes import Normalization
from mnet.runs import read_run
from mnet.sources import load_labelled
from mnet.trained import load_keras, locate, normalization_of

_MOST_PRINTED = 20  # classes of a matrix on the terminal
_LEGS = (
    Column("leg"),
    Column("images", True),
    Column("correct", True),
    Column("accuracy", True),
    Column("95 % interval", True),
    Column("differing", True),
    Column("status"),
)
_CLASSES = (
    Column("class"),
    Column("images", True),
    Column("recall", True),
    Column("precision", True),
    Column("F1", True),
    Column("most confused with"),
)


@dataclass(frozen=True, eq=False)
class _Found:
    """What is printed."""

    model: str
    images: LabelledImages
    names: tuple[str, ...]  # of the classes
    legs: tuple[EvaluatedLeg, ...]
    exit_code: int

    @property
    def evaluation(self) -> Evaluation | None:
        """What tables and picture show: the reference's; None where no leg could run."""
        return next((leg.evaluation for leg in self.legs if leg.evaluation), None)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        values = {
            "model": self.model,
            "data": self.images.description,
            "class_names": list(self.names),
            "legs": [self._leg_as_json(leg) for leg in self.legs],
            "exit_code": self.exit_code,
        }
        if self.evaluation is None:
            return values
        classes = [
            asdict(figures) | {"recall": figures.recall, "precision": figures.precision, "f1": figures.f1}
            for figures in self.evaluation.classes(self.names)
        ]
        return values | _as_json(self.evaluation) | {"per_class": classes}

    def _leg_as_json(self, leg: EvaluatedLeg) -> dict[str, Any]:
        values = {
            "name": leg.name,
            "runtime": leg.runtime,
            "status": leg.status,
            "reason": leg.reason,
            "differing": leg.differing,
            "disagreeing": leg.disagreeing,
            "differences": [asdict(difference) for difference in leg.differences],
        }
        return values | (_as_json(leg.evaluation) if leg.evaluation else {})


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "runtime": evaluation.runtime,
        "images": evaluation.images,
        "correct": evaluation.correct,
        "accuracy": evaluation.fraction,
        "interval": list(evaluation.interval),
        "confusion": evaluation.confusion.tolist(),
    }


def evaluate(
    model: Path,
    data: str | None,
    split: str,
    on: str | None,
    images: int | None,
    emulated: int | None,
    options: Options,
    normalization: Normalization | None,
    allow_missing: bool,
    picture: Path | None,
    json_file: str | None,
) -> int:
    """Let a model classify images, print how well it did, and return the exit code.

    Raises:
        MnetError: unknown words, a model or images that are not read, or that do not fit together.
    """
    if picture is not None and picture.suffix not in (".svg", ".png"):  # --picture model.tflite must not overwrite it
        raise MnetError(f"{picture}: the picture's name must end in .svg or .png.")
    source = data or _data_of_run(model)
    if model.suffix == ".tflite":
        found = _evaluate_int8(model, source, split, images, legs_of(on, options, emulated), options, emulated)
    elif on is not None:
        raise MnetError(f"--on is for a .tflite: {model} is a float model, which Keras alone runs.")
    else:
        found = _evaluate_float(model, source, split, images, normalization)
    code = 0 if allow_missing and found.exit_code == 3 else found.exit_code
    if picture is not None and found.evaluation is not None:
        _draw(picture, found, found.evaluation)
    if json_file:
        print_json(found.as_json() | {"exit_code": code}, json_file)
    if json_file != "-":
        _print(found, code)
    return code


def _evaluate_int8(
    model: Path,
    source: str,
    split: str,
    count: int | None,
    legs: Sequence[str],
    options: Options,
    emulated: int | None,
) -> _Found:
    graph = read_classifier(model)
    images = _images(source, split, graph.tensors[graph.inputs[0]].shape, count)
    images, names = _fitting(model, classes_of(graph), images)
    with progress() as report:
        made = evaluate_legs(model, graph, images, legs, options, emulated, report)
    return _Found(model.name, images, names, made, exit_code(made))


def _evaluate_float(
    model: Path, source: str, split: str, count: int | None, normalization: Normalization | None
) -> _Found:
    path, run = locate(model)
    normalization = normalization or normalization_of(model, run)
    keras_model = load_keras(path)
    images = _images(source, split, keras_model.input_shape[1:], count)
    images, names = _fitting(model, math.prod(keras_model.output_shape[1:]), images)
    with progress() as report:
        made = evaluate_keras(
            keras_model, normalization, images.x, images.y, lambda done, total: report("Keras", done, total)
        )
    return _Found(model.name, images, names, (EvaluatedLeg("keras", made.runtime, "run", made),), 0)


def _data_of_run(model: Path) -> str:
    folder = model if model.is_dir() else model.parent
    if not (folder / "run.json").is_file():
        raise MnetError(f"{model} has no run.json beside it: say which images with --data.")
    return str(read_run(folder)["options"]["data"])


def _images(source: str, split: str, shape: tuple[int, int, int], count: int | None) -> LabelledImages:
    height, width, channels = shape
    images = load_labelled(source, split, size=(height, width), channels=channels)
    return images if count is None else images.some(count)


def _fitting(model: Path, classes: int, images: LabelledImages) -> tuple[LabelledImages, tuple[str, ...]]:
    """Return the images with labels that are the model's classes, by their names where it knows them; and the names.

    Raises:
        MnetError: the data has other classes.
    """
    known = _class_names(model)
    known = known if len(known) == classes else ()
    images = images.labelled_by(known)
    return images, check_labels(model.name, classes, images.y, images.class_names or known)


def _class_names(model: Path) -> tuple[str, ...]:
    """Return the names of the classes that a .tflite holds, or that the run beside a model tells; () without either."""
    inside = labels_of(model.read_bytes()) if model.suffix == ".tflite" else ()
    folder = model if model.is_dir() else model.parent
    if inside or not (folder / "run.json").is_file():
        return inside
    return tuple(read_run(folder)["data"]["class_names"])


def _draw(picture: Path, found: _Found, evaluation: Evaluation) -> None:
    low, high = evaluation.interval
    title = (
        f"{found.model}, {found.images.description}, {evaluation.runtime}: {evaluation.fraction:.2%} of "
        f"{evaluation.images:,} (95 %: {low:.2%} to {high:.2%})"
    )
    drawn = confusion_picture(title, evaluation, found.names)
    if picture.suffix == ".svg":
        write_text(picture, as_svg(drawn))
    else:
        write_bytes(picture, as_png(drawn))


def _print(found: _Found, code: int) -> None:
    print_table(_LEGS, [_leg_row(leg) for leg in found.legs], f"{found.model}, {found.images.description}")
    for leg in found.legs:
        if leg.reason:
            print(f"\n{leg.runtime}, {leg.status}: {leg.reason}")
        if leg.differences:
            print("\n" + _explained(leg, found))
    if found.evaluation is not None:
        print()
        print_table(_CLASSES, _class_rows(found.evaluation, found.names))
        if len(found.names) <= _MOST_PRINTED:
            print("\n" + matrix_text(found.evaluation, found.names))
    compared = [leg for leg in found.legs if leg.status in ("run", "equal")]
    if code == 0 and len(compared) > 1:
        print("\nEqual in every byte of every output" + (", as far as it was run." if found.exit_code else "."))
    elif code == 3:
        print("\nA leg was not run: install what it lacks (`mnet doctor`), or say --allow-missing.")


def _leg_row(leg: EvaluatedLeg) -> tuple[object, ...]:
    """Return a leg as a row under _LEGS."""
    if leg.evaluation is None:
        return (leg.runtime, None, None, None, None, None, leg.status)
    made = leg.evaluation
    low, high = made.interval
    return (
        leg.runtime,
        made.images,
        made.correct,
        f"{made.fraction:.2%}",
        f"{low:.2%} to {high:.2%}",
        None if leg.status == "run" else leg.differing,
        leg.status,
    )


def _class_rows(evaluation: Evaluation, names: Sequence[str]) -> list[tuple[object, ...]]:
    """Return the classes as rows under _CLASSES."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    return [
        (
            figures.name,
            figures.images,
            percent(figures.recall),
            percent(figures.precision),
            percent(figures.f1),
            f"{figures.confused_with} ({figures.confused:,})" if figures.confused else "",
        )
        for figures in evaluation.classes(names)
    ]


def matrix_text(evaluation: Evaluation, names: Sequence[str]) -> str:
    """Return the confusion matrix in monospaced lines: rows are classes, columns the same by number."""
    cells = [[str(number) if number else "." for number in row] for row in evaluation.confusion.tolist()]
    width = max(len(cell) for row in cells for cell in row) + 2
    place = max(len(str(len(names) - 1)), 1)
    heads = [f"{number:>{place}} {name}" for number, name in enumerate(names)]
    left = max(map(len, heads))
    lines = ["Rows: the class of an image; columns: what it was taken for."]
    lines.append(" " * left + "".join(f"{number:>{width}}" for number in range(len(names))))
    lines += [
        f"{head:{left}}" + "".join(f"{cell:>{width}}" for cell in row) for head, row in zip(heads, cells, strict=True)
    ]
    return "\n".join(lines)


def _explained(leg: EvaluatedLeg, found: _Found) -> str:
    """Say in which images a leg's output is not the reference's, and how they differ first."""
    assert leg.evaluation is not None and found.evaluation is not None
    lines = [
        f"{leg.runtime}: other bytes than {found.evaluation.runtime} for {leg.differing:,} of "
        f"{leg.evaluation.images:,} images, another class for {leg.disagreeing:,}"
    ]
    for one in leg.differences:
        taken = f"taken for {found.names[one.predicted]}"
        if one.predicted != one.expected_class:
            taken += f", there for {found.names[one.expected_class]}"
        where = f"image {one.image} ({found.names[one.label]}): value {one.value}"
        lines.append(f"  {where} is {one.got}, there {one.expected}; {taken}")
    if leg.differing > len(leg.differences):
        lines.append(f"  and {leg.differing - len(leg.differences):,} more")
    return "\n".join(lines)
