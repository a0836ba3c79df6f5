"""Augmentation: images displaced and flipped, so that a network sees each one a little different every epoch."""

import numpy as np
import numpy.typing as npt

from mnet.datasets import Images
from mnet.recipes import Augmentation

Float32Array = npt.NDArray[np.float32]


def augment(x: Images, augmentation: Augmentation, random: np.random.Generator) -> Float32Array:
    """Return the images, each displaced and perhaps flipped, as real numbers 0 to 255.

    Args:
        x: [images, height, width, channels].
    """
    images, height, width, _ = x.shape
    flipped = random.random(images) < 0.5 if augmentation.flip else np.zeros(images, bool)
    result = np.array(x)
    result[flipped] = x[flipped, :, ::-1]
    if augmentation.crop_padding:
        pad = augmentation.crop_padding
        padded = np.pad(result, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        for i, (top, left) in enumerate(random.integers(0, 2 * pad + 1, (images, 2))):
            result[i] = padded[i, top : top + height, left : left + width]
    real = result.astype(np.float32)
    if augmentation.cutout:
        _cut_out(real, augmentation.cutout, random)
    if augmentation.shift_fraction or augmentation.zoom:
        largest = augmentation.shift_fraction * np.array([height, width])
        shifts = random.uniform(-largest, largest, (images, 2))
        zooms = (
            1.0 + random.uniform(-augmentation.zoom, augmentation.zoom, (2, images)) if augmentation.zoom else (1, 1)
        )
        real = shifted(shifted(real, shifts[:, 0], axis=1, zooms=zooms[0]), shifts[:, 1], axis=2, zooms=zooms[1])
    if augmentation.light:
        _relight(real, augmentation.light, random)
    return real


def shifted(
    x: Float32Array, shifts: npt.NDArray[np.float64], axis: int, zooms: npt.NDArray[np.float64] | float = 1.0
) -> Float32Array:
    """Move each image by its own number of pixels along `axis`, interpolated; the edge pixel is repeated.

    Args:
        x: [images, height, width, channels].
        shifts: of each image.
        axis: 1 or 2.
        zooms: pixels of the old image for each of the new one, around its middle.
    """
    side = x.shape[axis]
    middle = (side - 1) / 2
    place = (np.arange(side) - middle) * np.reshape(zooms, (-1, 1)) + middle + shifts[:, None]
    place = np.clip(place, 0, side - 1)  # [images, side]
    before = np.minimum(place.astype(np.int64), side - 2) if side > 1 else np.zeros(place.shape, np.int64)
    share = (place - before).astype(np.float32)
    form = (len(x), side, 1, 1) if axis == 1 else (len(x), 1, side, 1)
    low = np.take_along_axis(x, before.reshape(form), axis)
    high = np.take_along_axis(x, np.minimum(before + 1, side - 1).reshape(form), axis)
    result: Float32Array = low + share.reshape(form) * (high - low)
    return result


def _relight(x: Float32Array, light: float, random: np.random.Generator) -> None:
    """Change contrast around the middle grey, then brightness, of each image, in place."""
    contrast = random.uniform(1 - light, 1 + light, (len(x), 1, 1, 1)).astype(np.float32)
    brightness = random.uniform(-255 * light, 255 * light, (len(x), 1, 1, 1)).astype(np.float32)
    np.clip((x - 128) * contrast + 128 + brightness, 0, 255, out=x)


def _cut_out(x: Float32Array, side: int, random: np.random.Generator) -> None:
    """Make a square of each image grey, in place; its centre lies anywhere, so that it may be cut off at the edge."""
    images, height, width, _ = x.shape
    centres = random.integers(0, (height, width), (images, 2))
    for image, (row, column) in zip(x, centres - side // 2, strict=True):
        image[max(row, 0) : max(row + side, 0), max(column, 0) : max(column + side, 0)] = 128.0
