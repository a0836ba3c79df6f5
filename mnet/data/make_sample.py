"""Make the bundled sample again from the whole of Fashion-MNIST: `python -m mnet.data.make_sample [FOLDER]`."""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnet.published import SAMPLE_TEST_PER_CLASS, SAMPLE_TRAIN_PER_CLASS
from mnet.sources import load

_COLUMNS = 100  # images in a row of the sheet


def sheet(x: npt.NDArray[np.uint8], y: npt.NDArray[np.int64], classes: int, per_class: int) -> npt.NDArray[np.uint8]:
    """Lay out the first `per_class` images of each class, row by row, class after class.

    Args:
        x: [images, height, width, 1].
        y: [images].

    Returns:
        [rows * height, 100 * width].
    """
    chosen = np.concatenate([x[y == label][:per_class] for label in range(classes)])
    images, height, width, _ = chosen.shape
    grid = chosen.reshape(images // _COLUMNS, _COLUMNS, height, width)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3).reshape(-1, _COLUMNS * width))


def main(folder: Path) -> None:
    """Write train.png and test.png into `folder`."""
    from PIL import Image

    data = load("fashion-mnist")
    classes = len(data.class_names)
    for name, x, y, per_class in (
        ("train.png", data.x_train, data.y_train, SAMPLE_TRAIN_PER_CLASS),
        ("test.png", data.x_test, data.y_test, SAMPLE_TEST_PER_CLASS),
    ):
        Image.fromarray(sheet(x, y, classes, per_class)).save(folder / name, optimize=True)
        print(f"{folder / name}: {classes * per_class} images, {(folder / name).stat().st_size:,} B")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
