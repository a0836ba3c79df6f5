"""The models that come with mnet: trained here, each in a folder with its card; see README.md.

A model's name stands for its files wherever one is asked for: `mnet codegen zoo:cifar10-tiny`.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet.errors import ModelError
from mnet.runs import MODEL_FILE

PREFIX = "zoo:"
FIGURES_FILE = "figures.json"

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class OnBoard:
    """What `mnet profile` says of a model on one core."""

    target: str
    input_mode: str  # as of `mnet profile`, and so on
    optimize: str
    ram: int | None
    instructions: int
    cycles: int  # modelled, zero wait states
    flash_bytes: int
    arena_bytes: int
    worst_stack_bytes: int
    compiler: str

    @property
    def options(self) -> str:
        """Of `mnet profile`."""
        words = ["--target", self.target]
        words += ["--input", self.input_mode] * (self.input_mode != "const")
        words += ["--ram", str(self.ram)] * (self.ram is not None)
        words += ["--optimize", self.optimize] * (self.optimize != "balanced")
        return " ".join(words)


@dataclass(frozen=True)
class Right:
    """How many test images a model classifies rightly: as it was trained, and as int8 by LiteRT's reference kernels."""

    images: int
    correct_float: int
    correct_int8: int

    @property
    def float_accuracy(self) -> float:
        """Share of the float model."""
        return self.correct_float / self.images

    @property
    def int8_accuracy(self) -> float:
        """Share of the int8 model."""
        return self.correct_int8 / self.images


@dataclass(frozen=True)
class Entry:
    """A model of the zoo with its figures, all measured by `python -m mnet.zoo.make`."""

    name: str
    data: str
    licence: str  # of the data
    input_shape: tuple[int, int, int]  # height, width, channels
    classes: tuple[str, ...]
    multiply_adds: int
    weights: int  # int8 ones, in bytes
    test: Right
    originals: Right | None  # of CIFAR-10: 1,017 test images with their original pixels, where the rest are JPEG
    boards: tuple[OnBoard, ...]  # image in memory, on a Cortex-M4; rows pushed, on the same; on a Cortex-M0+
    trained_by: str  # command
    quantized_by: str  # command
    sha256: str  # of the .tflite

    @property
    def pushed(self) -> OnBoard:
        """What it takes of a Cortex-M4 that gets the image row by row: the figures that the tables print."""
        return self.boards[1]

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return _FOLDER / self.name

    @property
    def tflite(self) -> Path:
        """The int8 model."""
        return self.folder / f"{self.name}.tflite"

    @property
    def keras(self) -> Path:
        """The float model, to train on from; run.json lies beside it."""
        return self.folder / MODEL_FILE


def names() -> tuple[str, ...]:
    """Return what the zoo holds, the smallest model of each data set first."""
    found = [json.loads(path.read_text()) for path in _FOLDER.glob(f"*/{FIGURES_FILE}")]
    return tuple(each["name"] for each in sorted(found, key=lambda each: (each["data"], each["multiply_adds"])))


def entry(name: str) -> Entry:
    """Return a model of the zoo, named with or without "zoo:".

    Raises:
        ModelError: there is none of that name.
    """
    name = name.removeprefix(PREFIX)
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.3)
        meant = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise ModelError(f"the zoo has no model {name}; {meant}`mnet zoo` lists {', '.join(known) or 'none'}.")
    return entry_of(json.loads((_FOLDER / name / FIGURES_FILE).read_text()))


def entry_of(values: dict[str, Any]) -> Entry:
    """Return the entry that `dataclasses.asdict` made plain values of."""
    return Entry(
        **values
        | {
            "input_shape": tuple(values["input_shape"]),
            "classes": tuple(values["classes"]),
            "test": Right(**values["test"]),
            "originals": Right(**values["originals"]) if values["originals"] else None,
            "boards": tuple(OnBoard(**board) for board in values["boards"]),
        }
    )


def tflite_path(text: str | Path) -> Path:
    """Return the .tflite that `text` means: a file's path, or zoo:NAME.

    Raises:
        ModelError: the zoo has no such model.
    """
    return entry(str(text)).tflite if str(text).startswith(PREFIX) else Path(text)


def keras_path(text: str | Path) -> Path:
    """Return what `text` means as something to train on from: a path as it is, or the model.keras of zoo:NAME.

    Raises:
        ModelError: the zoo has no such model.
    """
    return entry(str(text)).keras if str(text).startswith(PREFIX) else Path(text)
