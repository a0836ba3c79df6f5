"""Images as arrays of bytes: decoded, scaled, in grey or in colours."""

import io
import warnings
from typing import Any

import numpy as np

from mnet.datasets import Images
from mnet.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def decoded(content: bytes, name: str, channels: int | None, size: tuple[int, int] | None = None) -> Images:
    """Return a picture of any kind as an image [height, width, channels].

    It is turned as its EXIF says, of values of 16 bits the upper eight count, and what is transparent becomes white.

    Args:
        content: of the file.
        name: of the file, for messages.
        channels: 1 (grey) or 3; None keeps grey as 1 channel and anything else as 3.
        size: height and width: the shorter side is scaled (bilinear), what the longer one has too much is cut off on
            both sides. None leaves the size.

    Raises:
        DataError: it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content)) as image:
            if size is not None:
                image.draft(image.mode, (2 * max(size), 2 * max(size)))  # a JPEG need not be decoded at its full size
            picture = ImageOps.exif_transpose(image)
            grey = _is_grey(image.mode) if channels is None else channels == 1
            picture = _opaque(picture).convert("L" if grey else "RGB")
            if size is not None and picture.size != size[::-1]:
                picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is no readable image: it begins as no picture does.") from error
    except Exception as error:  # whatever Pillow's readers make of a damaged file
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"{name} is no readable image: {reason}.") from error
    return pixels.reshape(*pixels.shape[:2], 1 if grey else 3)


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "I") or mode.startswith("I;16")


def _opaque(picture: Any) -> Any:
    """Return a picture of bytes without transparency."""
    from PIL import Image

    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return Image.fromarray((np.clip(np.asarray(picture), 0, 0xFFFF) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return picture


def stacked(images: list[Images], name: str) -> Images:
    """Return images of one size as one array; `name` is for the message when they differ."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(f"{name}: images of different sizes, {sorted(shapes)[0]} and {sorted(shapes)[1]}.")
    return np.stack(images)


def resized(x: Images, size: tuple[int, int]) -> Images:
    """Scale images [n, height, width, channels] to `size`, height and width; bilinear."""
    from PIL import Image

    def one(image: Images) -> Images:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        scaled = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        return scaled.reshape(*size, image.shape[-1])

    return np.stack([one(image) for image in x])


def with_channels(x: Images, channels: int) -> Images:
    """Turn colour images grey (1), or grey ones into three equal colours (3)."""
    if channels == 3:
        return np.repeat(x, 3, axis=-1)
    luma = x @ np.array([299, 587, 114])  # ITU-R 601, the weights of Pillow's convert("L")
    grey: Images = ((luma + 500) // 1000).astype(np.uint8)[..., None]
    return grey
