"""Images as arrays of bytes: decoded, scaled, in grey or in colours."""

import io

import numpy as np

from mnet.datasets import Images
from mnet.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")


def decoded(content: bytes, name: str, channels: int | None) -> Images:
    """Return an image [height, width, channels]; None keeps grey as 1 channel and anything else as 3."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if channels is None:
                channels = 1 if image.mode in ("L", "1", "I;16") else 3
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no readable image: {error}.") from error
    return pixels.reshape(*pixels.shape[:2], channels)


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
