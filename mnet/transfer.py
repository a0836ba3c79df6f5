"""A trained network as the start of another one: where it lies, what it fixes, how its weights get across."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mnet.architecture import HEAD_LAYER, Architecture, Block, Head
from mnet.errors import MnetError, ModelError
from mnet.pruning import Weights, narrowed, shape_of_network
from mnet.recipes import Augmentation, Normalization
from mnet.trained import load_keras, locate, normalization_of
from mnet.zoo import keras_path


@dataclass(frozen=True)
class Source:
    """A trained network that another training starts from."""

    name: str  # as the user wrote it
    model: Path  # the .keras file
    sha256: str  # of that file
    architecture: Architecture
    normalization: Normalization
    augmentation: Augmentation  # of the training that it comes from
    label_smoothing: float  # of the same
    class_names: tuple[str, ...]
    data: tuple[str, ...]  # all data that its weights have seen, each with its licence; the oldest first
    trained_by: tuple[str, ...]  # the commands that made it, in turn

    def record(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        return {"name": self.name, "sha256": self.sha256, "data": list(self.data), "trained_by": list(self.trained_by)}

    def weights(self) -> Weights:
        """Return all variables by their Keras path.

        Raises:
            ModelError: the file is damaged.
        """
        return {variable.path: np.asarray(variable.numpy()) for variable in load_keras(self.model).variables}


def find_source(name: str, flag: str = "--from") -> Source:
    """Return the network that `--from` names.

    Args:
        name: the folder of a run, a .keras file with the run.json of its training beside it, or zoo:NAME.
        flag: the option that names it, for messages.

    Raises:
        MnetError: there is none, or what it is made of is not known.
    """
    path = keras_path(name).expanduser()
    if not path.exists():
        raise MnetError(f"{flag} {name} does not exist; give the folder of a finished run, or its .keras file.")
    if path.is_file() and path.suffix != ".keras":
        raise MnetError(f"{flag} {name} is no .keras file: only a float model can be trained on.")
    model, run = locate(path)
    if run is None:
        raise MnetError(
            f"{flag} {name}: {path.parent} has no run.json, which says how the network is built and fed; start from "
            "the folder that `mnet train` made."
        )
    try:
        content = model.read_bytes()
    except OSError as error:
        raise ModelError(f"{model} cannot be read: {error.strerror}.") from None
    try:
        architecture, data = architecture_of(run["architecture"]), run["data"]
        seen = (*run.get("source", {}).get("data", ()), f"{data['description']}: {data['licence']}")
        commands = [*run.get("source", {}).get("trained_by", ()), *([run["command"]] if "command" in run else [])]
        class_names = tuple(map(str, data["class_names"]))
        normalization = normalization_of(path, run)
        augmentation = augmentation_of(run["recipe"]["augmentation"])
        smoothing = float(run["recipe"]["label_smoothing"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MnetError(f"{flag} {name}: its run.json is damaged ({error!r}); train it again.") from None
    digest = hashlib.sha256(content).hexdigest()
    return Source(
        name=name,
        model=model,
        sha256=digest,
        architecture=architecture,
        normalization=normalization,
        augmentation=augmentation,
        label_smoothing=smoothing,
        class_names=class_names,
        data=tuple(map(str, seen)),
        trained_by=tuple(map(str, commands)),
    )


def augmentation_of(values: dict[str, Any]) -> Augmentation:
    """Return the augmentation that `mnet.runs.plain` wrote to a run.json; what it does not name is off.

    Raises:
        KeyError, TypeError: it wrote something else.
    """
    return Augmentation(**{field.name: values[field.name] for field in fields(Augmentation) if field.name in values})


def architecture_of(values: dict[str, Any]) -> Architecture:
    """Return the architecture that `mnet.runs.plain` wrote to a run.json.

    Raises:
        KeyError, TypeError, ValueError: it wrote something else.
    """
    known = {field.name: values[field.name] for field in fields(Architecture) if field.name in values}
    blocks = tuple(Block(int(block["stride"]), int(block["width"])) for block in values["blocks"])
    return Architecture(**known | {"blocks": blocks, "head": Head(values["head"])})


def start_from(
    source: Source, model: Any, class_names: tuple[str, ...], architecture: Architecture | None = None
) -> tuple[str, ...]:
    """Put the weights of `source` into an untrained Keras model of the same architecture, whatever its classes.

    A class that both know by the same name keeps its part of the head; the others' stay as they were drawn. Where
    `architecture`, the model's, has fewer channels, it gets the most important ones: see `mnet.pruning`.

    Returns:
        The names of those classes.

    Raises:
        ModelError: the file of the source is damaged, or is not what its run.json says.
    """
    theirs: Weights = source.weights()
    if architecture is not None and shape_of_network(architecture) != shape_of_network(source.architecture):
        theirs = narrowed(theirs, source.architecture, architecture)
    kept = [(new, source.class_names.index(name)) for new, name in enumerate(class_names) if name in source.class_names]
    into, out_of = [new for new, _ in kept], [old for _, old in kept]
    for variable in model.variables:
        is_head = variable.path.startswith(f"{HEAD_LAYER}/")
        if not is_head and "seed_generator" in variable.path:  # of the dropout: no weight
            continue
        old = theirs.get(variable.path)
        expected = (*variable.shape[:-1], len(source.class_names)) if is_head else tuple(variable.shape)
        if old is None or old.shape != expected:
            found = "missing" if old is None else f"{list(old.shape)}"
            raise ModelError(f"{source.model}: {variable.path} is {found}; its run.json says {list(expected)}.")
        if is_head:
            head = np.array(variable.numpy())
            head[..., into] = old[..., out_of]
            old = head
        variable.assign(old)
    return tuple(class_names[new] for new in into)
