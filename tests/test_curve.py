"""The picture of a training, and the history that it is drawn from."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mnet.curve import curve_svg
from mnet.errors import MnetError
from mnet.runs import EpochRow, history_csv, images_per_second, read_history

_HISTORY = [EpochRow(n, 0.25 / n, 2.0 / n, 0.3 + 0.05 * n, 0.4 + 0.04 * n, 10.0 + n) for n in range(1, 9)]


def _points(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")][1:]


def test_every_epoch_is_a_point_with_its_figures() -> None:
    points = _points(curve_svg(_HISTORY, "mobilenet & more"))
    assert len(points) == 2 * len(_HISTORY)
    assert "epoch 3, validation images: 52.00%, loss 0.667, rate 0.08333" in points


def test_one_epoch_without_validation_images_is_drawn() -> None:
    points = _points(curve_svg([EpochRow(1, 0.1, 2.0, 0.5, math.nan, 1.0)], "net"))
    assert len(points) == 1 and "training images" in points[0]


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text(history_csv([*_HISTORY, EpochRow(9, 0.0, 0.5, 0.9, math.nan, 1.0)]))
    rows = read_history(path)
    assert history_csv(list(rows)) == path.read_text() and math.isnan(rows[-1].validation_accuracy)


@pytest.mark.parametrize("text", ["epoch,loss\n1,2\n", "epoch,learning_rate\n1,x\n", "\x00"])
def test_a_damaged_history_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text("epoch,learning_rate,loss,train_accuracy,validation_accuracy,seconds\nx,1,1,1,1,1\n" + text)
    with pytest.raises(MnetError, match=r"history\.csv is damaged"):
        read_history(path)
    with pytest.raises(MnetError, match=r"none\.csv cannot be read"):
        read_history(tmp_path / "none.csv")


def test_images_per_second_is_of_the_median_epoch() -> None:
    assert (
        images_per_second(45_000, [EpochRow(n, 0, 0, 0, 0, seconds) for n, seconds in enumerate((10, 15, 900))]) == 3000
    )
