"""A user's own pictures: every size and kind, split by class, no copy on both sides, and what is left out is said."""

import io
import random
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnet.errors import DataError
from mnet.folders import load_folder
from mnet.folders import test_choice as choose_test
from mnet.images import decoded
from mnet.sources import load
from tests.mutate import damaged


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _noise(seed: object, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(str(seed).encode())).integers(0, 256, shape, np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/{cat,dog}/0..9.png and test/{cat,dog}/0..1.png of 6x5 colour pixels."""
    chance = np.random.default_rng(1)
    for part, count in (("train", 10), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                _save(tmp_path / "pets" / part / name / f"{i}.png", chance.integers(0, 256, (6, 5, 3), np.uint8))
    return tmp_path / "pets"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """{cat,dog}/*.png of 8x6 colour pixels: 10 cats and 4 dogs."""
    chance = np.random.default_rng(2)
    for name, count in (("cat", 10), ("dog", 4)):
        for i in range(count):
            _save(tmp_path / "photos" / name / f"{i}.png", chance.integers(0, 256, (8, 6, 3), np.uint8))
    return tmp_path / "photos"


# The parts


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=4, max_size=4)), unique_by=lambda p: p[1], min_size=1))
def test_the_split_is_stratified_and_only_of_what_is_there(pictures: list[tuple[int, bytes]]) -> None:
    labels, digests = [label for label, _ in pictures], [digest for _, digest in pictures]
    chosen = choose_test(labels, digests)
    for label, count in Counter(labels).items():
        assert sum(chosen[i] for i in range(len(labels)) if labels[i] == label) == max(1, round(count / 5))
    order = np.random.default_rng(len(labels)).permutation(len(labels))
    again = choose_test([labels[i] for i in order], [digests[i] for i in order])
    assert np.array_equal(again, chosen[order])  # whatever the names of the files
    more = choose_test([*labels, labels[0]], [*digests, b"\xff" * 5])
    assert not np.any(chosen & ~more[:-1])  # a picture more takes none away from the test part


def test_class_folders_become_classes_and_a_fifth_becomes_test(photos: Path) -> None:
    data = load(str(photos))
    assert data.class_names == ("cat", "dog") and data.image_shape == (8, 6, 3)
    assert np.bincount(data.y_train).tolist() == [8, 3] and np.bincount(data.y_test).tolist() == [2, 1]
    train, test = ({image.tobytes() for image in x} for x in (data.x_train, data.x_test))
    assert len(train) == 11 and len(test) == 3 and not train & test
    assert data.description == "photos (14 pictures, a fifth of them kept as test)" and data.remarks == ()
    assert np.array_equal(load(str(photos)).x_test, data.x_test)


def test_folders_within_a_class_count_and_hidden_files_do_not(photos: Path) -> None:
    before = load(str(photos))
    (photos / "dog" / "summer").mkdir()
    (photos / "dog" / "3.png").rename(photos / "dog" / "summer" / "x.PNG")
    shutil.copytree(photos / "cat", photos / ".thumbnails")
    (photos / "cat" / "._1.png").write_bytes(b"of a Mac")
    (photos / "cat" / "notes.txt").write_text("Tom, mostly")
    (photos / "list.csv").write_text("a,b")
    (photos / "dog" / ".cache").mkdir()
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / ".cache")
    after = load(str(photos))
    assert np.array_equal(after.x_test, before.x_test) and after.remarks == ()


def test_parts_that_are_there_stay(tree: Path) -> None:
    pets = load(str(tree))
    assert pets.class_names == ("cat", "dog") and pets.image_shape == (6, 5, 3)
    assert len(pets.x_train) == 20 and len(pets.x_test) == 4
    assert np.array_equal(pets.x_train[0], np.asarray(Image.open(tree / "train" / "cat" / "0.png")))
    shutil.rmtree(tree / "test")
    assert np.bincount(load(str(tree)).y_test).tolist() == [2, 2]


def test_a_class_may_be_called_train(photos: Path) -> None:
    (photos / "dog").rename(photos / "train")
    assert load(str(photos)).class_names == ("cat", "train")


# Copies and what cannot be read


def test_copies_are_in_no_two_parts(photos: Path) -> None:
    for i in range(10):
        shutil.copy(photos / "cat" / f"{i}.png", photos / "cat" / f"copy of {i}.png")
    data = load(str(photos))
    assert len(data.x_train) + len(data.x_test) == 14
    assert data.remarks == (
        f"left out, because they are copies of others: 10 ({photos}/cat/copy of 0.png; {photos}/cat/copy of 1.png; "
        f"{photos}/cat/copy of 2.png and 7 more).",
    )


def test_copies_of_test_pictures_are_not_trained_on(tree: Path) -> None:
    shutil.copy(tree / "test" / "cat" / "0.png", tree / "train" / "cat" / "holiday.png")
    assert len(load(str(tree)).x_train) == 20
    shutil.copy(tree / "test" / "cat" / "1.png", tree / "train" / "dog" / "cat.png")
    data = load(str(tree))
    assert len(data.x_test) == 3 and len(data.x_train) == 20 and "are in two classes: 1" in data.remarks[1]


def test_a_picture_in_two_classes_is_in_none(photos: Path) -> None:
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / "9.png")
    data = load(str(photos))
    assert len(data.x_train) + len(data.x_test) == 13
    assert f"{photos}/cat/1.png and {photos}/dog/9.png" in data.remarks[0]


def test_few_unreadable_pictures_are_told_and_left_out(photos: Path) -> None:
    path = photos / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-60])
    data = load(str(photos))
    assert len(data.x_train) + len(data.x_test) == 13
    assert data.remarks[0].startswith("left out, because they cannot be read: 1 (") and str(path) in data.remarks[0]


def test_many_unreadable_pictures_are_an_error(photos: Path) -> None:
    for i in (3, 4):
        (photos / "cat" / f"{i}.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(DataError, match=r"2 of 14 pictures in .*cat/3\.png is no readable image: .*more than one in"):
        load(str(photos))


# Every kind of picture


def _corner(tmp_path: Path, image: Image.Image, suffix: str = "png", channels: int = 3, **options: object) -> list[int]:
    path = tmp_path / f"one.{suffix}"
    image.save(path, **options)
    found: list[int] = decoded(path.read_bytes(), str(path), channels)[0, 0].tolist()
    return found


def test_transparent_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert _corner(tmp_path, clear) == [255, 255, 255]
    assert _corner(tmp_path, Image.new("LA", (4, 4), (10, 255)), channels=1) == [10]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert _corner(tmp_path, palette) == [9, 8, 7]
    assert _corner(tmp_path, palette, transparency=1) == [255, 255, 255]


def test_of_sixteen_bits_the_upper_eight_count(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 0x7F34, np.uint16))
    assert _corner(tmp_path, deep) == [0x7F] * 3 and _corner(tmp_path, deep, channels=1) == [0x7F]
    path = tmp_path / "one.pgm"
    path.write_bytes(b"P5\n2 1\n65535\n\x80\x01\x10\xff")
    assert decoded(path.read_bytes(), "one", None).ravel().tolist() == [0x80, 0x10]


def test_exif_turns_the_picture(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 200
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn to the right to look at it
    image.save(tmp_path / "one.png", exif=exif)
    found = decoded((tmp_path / "one.png").read_bytes(), "one", 3)
    assert found.shape == (8, 4, 3) and found[0, 0, 0] == 200 and found[-1, 0, 0] == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif", "tiff", "ppm"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    found = _corner(tmp_path, Image.new("RGB", (16, 16), (200, 100, 50)), suffix)
    assert np.abs(np.subtract(found, [200, 100, 50])).max() < 6
    assert _corner(tmp_path, Image.new("1", (8, 8), 1), suffix) == [255] * 3


def test_cmyk_and_large_photographs(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    ramp = np.zeros((600, 900), np.uint8)
    ramp[:, 150:750] = np.linspace(0, 255, 600).astype(np.uint8)
    ramp[:, 750:] = 255
    Image.fromarray(ramp).convert("CMYK").save(path, quality=95)
    found = decoded(path.read_bytes(), "large", 1, (32, 32))
    assert found.shape == (32, 32, 1)
    expected = np.linspace(0, 255, 65)[1::2]  # the middle square, whose shorter side is scaled
    assert np.abs(found[:, :, 0].astype(int) - expected).max() <= 4


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = 10, 20, 30
    _save(tmp_path / "one.png", pixels)
    content = (tmp_path / "one.png").read_bytes()
    assert set(decoded(content, "one", 3, (5, 5))[:, 1:-1].ravel()) == {20}  # scaling looks a little past the edges
    assert set(decoded(content, "one", 3, (5, 15)).ravel()) >= {10, 20, 30}  # its own form: nothing is cut off


def test_grey_and_coloured_pictures_together_are_coloured(photos: Path) -> None:
    _save(photos / "cat" / "0.png", _noise(1, 8, 6))
    assert load(str(photos)).image_shape == (8, 6, 3)
    assert load(str(photos), channels=1).image_shape == (8, 6, 1)
    assert load(str(photos), size=(4, 4)).image_shape == (4, 4, 3)


# What bad input gets


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif", "tiff", "ppm"])
def test_damaged_pictures_are_pictures_or_one_sentence(suffix: str) -> None:
    file = io.BytesIO()
    Image.fromarray(_noise(suffix, 12, 10, 3)).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    chance, refused = random.Random(suffix), 0
    for _ in range(300):
        try:
            assert decoded(damaged(file.getvalue(), chance), "one", 1, (8, 8)).shape == (8, 8, 1)
        except DataError as error:
            refused += 1
            assert str(error).startswith("one is no readable image: ") and "\n" not in str(error)
    assert refused > 20


def test_few_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 class folders; expected at least two, CLASS/\*\.jpg"):
        load(str(tmp_path))
    _save(tmp_path / "cat" / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="has 1 class folders"):
        load(str(tmp_path))


def test_few_pictures_of_a_class(photos: Path) -> None:
    (photos / "emu").mkdir()
    with pytest.raises(DataError, match=r"emu has no picture; at least 3 needed: \.jpg, "):
        load(str(photos))
    (photos / "emu" / "1.heic").write_bytes(b"of a telephone")
    with pytest.raises(DataError, match=r"emu has no picture \(and files that are not read: \.heic\); at least 3"):
        load(str(photos))
    for name in ("1", "2", "copy of 2"):
        _save(photos / "emu" / f"{name}.png", _noise(name[-1], 8, 6, 3))
    with pytest.raises(DataError, match="emu has 2 different pictures"):
        load(str(photos))


def test_empty_or_unknown_class_beside_parts(tree: Path) -> None:
    (tree / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"train/emu has no picture; at least 1 needed"):
        load(str(tree))
    (tree / "train" / "emu").rename(tree / "test" / "emu")
    with pytest.raises(DataError, match="has a class 'emu' that"):
        load(str(tree))


def test_pictures_of_different_sizes_ask_for_size(photos: Path) -> None:
    _save(photos / "dog" / "3.png", np.zeros((7, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"dog/3\.png is 7x5 pixels, .*cat/0\.png 8x6; give --size to scale all"):
        load(str(photos))


def test_what_cannot_be_read_at_all(photos: Path) -> None:
    with pytest.raises(DataError, match=r"^one is no readable image: it begins as no picture does\.$"):
        decoded(b"\x89PNG but no more", "one", 3)
    (photos / "cat" / "5.png").unlink()
    (photos / "cat" / "5.png").symlink_to(photos / "nowhere.png")
    assert "cat/5.png (No such file or directory)" in load_folder(photos, None, None).remarks[0]
