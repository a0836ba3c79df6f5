"""Better int8 without training: a trained MobileNet folded, channels equalized, ranges chosen, biases corrected."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnet.architecture import Architecture, Head, build
from mnet.calibration import Calibration, Float32Array, Grid, calibrate, correct_bias, equalize
from mnet.errors import MnetError, ModelError
from mnet.fake_quantization import logits_of
from mnet.folding import Weights, fold
from mnet.recipes import Normalization
from mnet.transfer import architecture_of

_FOLDING_TOLERANCE = 1e-3  # of the largest output; batch normalization is folded in other roundings


@dataclass(frozen=True)
class Improvements:
    """What is done beyond what TensorFlow's converter does."""

    calibration: Calibration = Calibration.MINMAX
    equalize: bool = False
    bias_correction: bool = False


@dataclass(frozen=True, eq=False)
class Folded:
    """A network without batch normalization."""

    architecture: Architecture
    weights: Weights


def folded_network(path: Path, run: dict[str, Any] | None, model: Any, x: Float32Array, without: str) -> Folded:
    """Return a MobileNet of `mnet train`, folded; what it computes is compared with what `model` does.

    Args:
        path: of the model.
        run: what run.json beside it says.
        model: the Keras model.
        x: some normalized images.
        without: the options that need this, for messages.

    Raises:
        MnetError: how it is built is not known.
        ModelError: it is another network than run.json says.
    """
    if run is None:
        raise MnetError(
            f"{path} has no run.json beside it, which says how it is built: {without} needs a MobileNet of `mnet "
            "train`. Give the folder of its training, or quantize with --plain."
        )
    try:
        architecture = architecture_of(run["architecture"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MnetError(f"{path}: run.json beside it is damaged ({error!r}).") from None
    _check_variables(path, architecture, model, without)
    folded = Folded(architecture, fold(architecture, {each.path: each.numpy() for each in model.variables}))
    expected = np.asarray(model(x, training=False))
    made = logits_of(architecture, folded.weights, None, x)
    if architecture.head is Head.SOFTMAX:
        made = np.exp(made - made.max(axis=1, keepdims=True))
        made /= made.sum(axis=1, keepdims=True)
    if not np.abs(made - expected).max() <= _FOLDING_TOLERANCE * np.abs(expected).max():
        raise ModelError(
            f"{path} computes something else than the MobileNet that run.json beside it describes; quantize it "
            "with --plain."
        )
    return folded


def improve(
    folded: Folded, x: Float32Array, normalization: Normalization, how: Improvements
) -> tuple[Weights, dict[str, Grid]]:
    """Return weights, not rounded yet, and the grids of all activations.

    Args:
        folded: the network.
        x: images to calibrate by, normalized.
        normalization: of these.
        how: what to do.
    """
    architecture, weights = folded.architecture, folded.weights
    if how.equalize:
        weights = equalize(architecture, weights, x)
    grids = calibrate(architecture, weights, x, normalization, how.calibration)
    if how.bias_correction:
        weights = correct_bias(architecture, weights, grids, x)
    return weights, grids


def _check_variables(path: Path, architecture: Architecture, model: Any, without: str) -> None:
    ours, theirs = (
        {variable.path: tuple(variable.shape) for variable in each.variables if "seed_generator" not in variable.path}
        for each in (build(architecture), model)
    )
    if ours != theirs:
        strange = min(path for path, _ in ours.items() ^ theirs.items())
        raise ModelError(
            f"{path} is not the MobileNet that run.json beside it describes ({strange} is not the same); quantize it "
            "with --plain."
        )
