"""Post-training arithmetic on folded weights: ranges of activations, equal channels, corrected biases.

Sources: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"; Jacob et al. 2018
for the grid.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import Architecture, Kind
from mnet.folding import Stage, Weights, activated, stages, sums
from mnet.recipes import Normalization

Float32Array = npt.NDArray[np.float32]
LARGEST_WEIGHT = 127  # of an int8 kernel; -128 is not used, so that 0 lies in the middle
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # what is below is 0 to a processor as TensorFlow sets it
_PERCENTILE = 99.99
_BINS = 2048
_SHRINKS = np.linspace(0.3, 1.0, 36)  # of the range that was seen


class Calibration(Enum):
    """How the range of an activation follows from the values that the calibration images give."""

    MINMAX = "minmax"  # all of them: what TensorFlow's converter does
    PERCENTILE = "percentile"  # all but one in 10,000 at each end
    MSE = "mse"  # the range of the least mean squared error, rounding and cutting off together


@dataclass(frozen=True)
class Grid:
    """The 256 real values that an int8 tensor can hold: (q - zero_point) * scale."""

    scale: float
    zero_point: int  # -128 to 127: real zero is one of the values

    @property
    def low(self) -> float:
        """The value of -128."""
        return (-128 - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The value of 127."""
        return (127 - self.zero_point) * self.scale

    def rounded(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the nearest values of the grid."""
        steps = np.clip(np.round(np.asarray(x, np.float64) / self.scale), -128 - self.zero_point, 127 - self.zero_point)
        return np.asarray(steps * self.scale)


def grid(low: float, high: float) -> Grid:
    """Return the grid that spans about [low, high] and holds 0.0 exactly.

    >>> grid(-1.0, 127 / 128)
    Grid(scale=0.0078125, zero_point=0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-6:  # a dead tensor; the converter, too, gives it some scale
        high = low + 1e-6
    scale = (high - low) / 255
    return Grid(scale, int(np.clip(np.round(-128 - low / scale), -128, 127)))


def image_grid(normalization: Normalization) -> Grid:
    """Return the grid of the input: the int8 value is byte - 128."""
    return Grid(normalization.scale, normalization.zero_point)


def weight_scales(kernel: Float32Array, kind: Kind) -> Float32Array:
    """Return the scale of each output channel, so that its largest weight becomes 127 or -127; as the converter does.

    Args:
        kernel: [rows, columns, in, out], or [rows, columns, channels, 1] of a depthwise convolution.

    Returns:
        of a form that broadcasts with the kernel. A channel of zeros, or nearly so, gets 1.
    """
    axes = (0, 1) if kind is Kind.DEPTHWISE else (0, 1, 2)
    scales = np.abs(kernel).max(axis=axes, keepdims=True) / np.float32(LARGEST_WEIGHT)
    return np.where(scales >= SMALLEST_SCALE, scales, np.float32(1)).astype(np.float32)


def rounded_weights(architecture: Architecture, weights: Weights) -> Weights:
    """Return the weights with each kernel on its int8 grid, as real numbers; biases, of 32 bits, stay."""
    result = dict(weights)
    for stage in weighted(architecture):
        result[f"{stage.name}/kernel"] = rounded_kernel(weights[f"{stage.name}/kernel"], stage.kind)
    return result


def rounded_kernel(kernel: Float32Array, kind: Kind) -> Float32Array:
    """Return a kernel on its int8 grid, as real numbers."""
    scales = weight_scales(kernel, kind)
    return np.round(kernel / scales) * scales


def weighted(architecture: Architecture) -> Iterator[Stage]:
    """Yield the stages that have weights."""
    return (stage for stage in stages(architecture) if stage.kind is not Kind.POOLING)


def outputs(architecture: Architecture, weights: Weights, x: Float32Array) -> Iterator[tuple[Stage, Float32Array]]:
    """Yield each stage with its output [images, height, width, channels] for normalized images."""
    made: Any = x
    for stage in stages(architecture):
        made = activated(stage, sums(stage, weights, made))
        yield stage, np.asarray(made)


def calibrate(
    architecture: Architecture, weights: Weights, x: Float32Array, normalization: Normalization, method: Calibration
) -> dict[str, Grid]:
    """Return the grid of the image and of each stage's output, by name.

    Args:
        architecture: the network.
        weights: folded ones.
        x: images to calibrate by, normalized.
        normalization: of the image, whose grid it fixes.
        method: how values become a range.
    """
    choose = METHODS[method]
    grids = {"image": image_grid(normalization)}
    for stage, values in outputs(architecture, weights, x):
        grids[stage.name] = choose(values)
    return grids


def equalize(architecture: Architecture, weights: Weights, x: Float32Array) -> Weights:
    """Return weights of the same function whose linear depthwise outputs use their one scale equally.

    A channel of a linear depthwise output goes into one pointwise convolution only, which reads no padding: scaled by s
    and moved by m, it is divided and moved back there, exactly. m makes the least value that `x` gives 0, see
    `moved_to`. s = sqrt(r / a), with a the range of the channel and r the largest weight that meets it, relative to its
    output channel's scale, makes both a * s and r / s equal: Nagel et al. 2019, equation 11, with the output's range in
    place of the weights', for depthwise kernels have a scale per channel anyway. Where a ReLU6 follows it would be no
    exact move; nothing is done.

    Args:
        architecture: the network.
        weights: folded ones.
        x: images to calibrate by, normalized.
    """
    result = dict(weights)
    chain = stages(architecture)
    followers = dict(itertools.pairwise(chain))
    for stage, values in outputs(architecture, weights, x):
        if stage.kind is not Kind.DEPTHWISE or stage.relu6:
            continue
        into = f"{followers[stage].name}/kernel"
        low, high = values.min(axis=(0, 1, 2)), values.max(axis=(0, 1, 2))
        reach = high - low
        kernel = weights[into]
        meets = np.abs(kernel / weight_scales(kernel, Kind.CONVOLUTION)).max(axis=(0, 1, 3))
        gain = np.ones_like(reach)
        alive = (reach > 0) & (meets > 0)
        gain[alive] = np.sqrt(meets[alive] / reach[alive])
        gain[alive] /= np.exp(np.log(gain[alive]).mean())  # one factor for all would change nothing
        result[f"{stage.name}/kernel"] = weights[f"{stage.name}/kernel"] * gain[:, None]
        result[f"{stage.name}/bias"] = (weights[f"{stage.name}/bias"] - low) * gain
        result[into] = kernel / gain[:, None]
        bias = f"{followers[stage].name}/bias"
        result[bias] = weights[bias] + np.tensordot(low, kernel[0, 0], 1)
    return result


def moved_to(
    zero_point: int, architecture: Architecture, weights: Weights, grids: Mapping[str, Grid]
) -> tuple[Weights, dict[str, Grid]]:
    """Return the same int8 network with another zero_point of each linear depthwise output.

    A whole number of steps is added to the output and taken away in the pointwise that follows, so the values on the
    board differ by that number and the network not at all, up to the rounding of biases.

    At -128 negative sums end at the zero_point, as after a ReLU, in whatever way a runtime rounds them, and the code
    generator finds two instructions for each output in place of seven. At 0 the values are of both signs: a network
    whose values are all positive can hardly be trained.

    Args:
        zero_point: the new one.
        architecture: the network.
        weights: folded ones.
        grids: of all activations.
    """
    result, moved = dict(weights), dict(grids)
    for stage, follower in itertools.pairwise(stages(architecture)):
        if stage.kind is not Kind.DEPTHWISE or stage.relu6:
            continue
        old = grids[stage.name]
        moved[stage.name] = Grid(old.scale, zero_point)
        added = moved[stage.name].low - old.low
        bias = f"{follower.name}/bias"
        sums_of_weights = rounded_kernel(weights[f"{follower.name}/kernel"], follower.kind)[0, 0].sum(axis=0)
        result[f"{stage.name}/bias"] = (result[f"{stage.name}/bias"] + added).astype(np.float32)
        result[bias] = (result[bias] - added * sums_of_weights).astype(np.float32)
    return result, moved


def correct_bias(architecture: Architecture, weights: Weights, grids: Mapping[str, Grid], x: Float32Array) -> Weights:
    """Return the weights with biases that make each channel's mean over `x` in int8 what it is in float.

    Stage by stage, each seeing the corrected ones before it. Source: Nagel et al. 2019, section 4.2, empirical.

    Args:
        architecture: the network.
        weights: folded ones.
        grids: of all activations.
        x: images, normalized.
    """
    result, rounded = dict(weights), rounded_weights(architecture, weights)
    exact: Any = x
    quantized: Any = grids["image"].rounded(x).astype(np.float32)
    for stage in stages(architecture):
        exact, quantized = sums(stage, weights, exact), sums(stage, rounded, quantized)
        if stage.kind is not Kind.POOLING:
            error = np.mean(np.asarray(exact) - np.asarray(quantized), axis=(0, 1, 2), dtype=np.float64)
            result[f"{stage.name}/bias"] = (weights[f"{stage.name}/bias"] + error).astype(np.float32)
            quantized = quantized + error.astype(np.float32)
        exact, quantized = activated(stage, exact), activated(stage, quantized)
        quantized = grids[stage.name].rounded(np.asarray(quantized)).astype(np.float32)
    return result


def _minmax(values: Float32Array) -> Grid:
    return grid(float(values.min()), float(values.max()))


def _percentile(values: Float32Array) -> Grid:
    low, high = np.percentile(values, [100 - _PERCENTILE, _PERCENTILE])
    return grid(float(low), float(high))


def _least_squares(values: Float32Array) -> Grid:
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    candidates = [grid(a, b) for a in low * (_SHRINKS if low else np.ones(1)) for b in high * _SHRINKS]
    errors = [float(counts @ (centres - each.rounded(centres)) ** 2) for each in candidates]
    return candidates[int(np.argmin(errors))]


METHODS: dict[Calibration, Callable[[Float32Array], Grid]] = {
    Calibration.MINMAX: _minmax,
    Calibration.PERCENTILE: _percentile,
    Calibration.MSE: _least_squares,
}
