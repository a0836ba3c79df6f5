"""Data sets of all kinds, and what is said about bad ones."""

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnet import published, resources
from mnet.data.make_sample import sheet
from mnet.datasets import balanced_choice, balanced_order, stratified_choice, validation_split
from mnet.errors import DataError
from mnet.sources import load


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {
        "x_train": np.zeros((8, 6, 5, 1), np.uint8),
        "y_train": np.arange(8) % 2,
        "x_test": np.zeros((4, 6, 5, 1), np.uint8),
        "y_test": np.arange(4) % 2,
    }
    np.savez(path, **(arrays | changes))  # type: ignore[arg-type]
    return path


def test_sample_is_small_balanced_and_grey() -> None:
    sample = load("sample")
    assert sample.x_train.shape == (4000, 28, 28, 1) and sample.x_test.shape == (1000, 28, 28, 1)
    assert np.bincount(sample.y_train).tolist() == [400] * 10 and np.bincount(sample.y_test).tolist() == [100] * 10
    assert sample.class_names[9] == "ankle-boot" and "Zalando" in sample.licence
    assert sum(p.stat().st_size for p in resources.folder("data").glob("*.png")) < 3e6
    assert "Copyright (c) 2017 Zalando SE" in (resources.folder("data") / "LICENSE").read_text()
    assert not sample.x_train.flags.writeable


@pytest.mark.skipif(
    not (published.FASHION_FOLDERS[0] / "train-images-idx3-ubyte.gz").is_file(), reason="no dataset-fashion-mnist"
)
def test_sample_is_what_its_command_makes() -> None:
    whole = load("fashion-mnist")
    assert whole.x_train.shape == (60000, 28, 28, 1) and whole.x_test.shape == (10000, 28, 28, 1)
    for name, x, y, count in (
        ("train", whole.x_train, whole.y_train, published.SAMPLE_TRAIN_PER_CLASS),
        ("test", whole.x_test, whole.y_test, published.SAMPLE_TEST_PER_CLASS),
    ):
        stored = np.asarray(Image.open(resources.folder("data") / f"{name}.png"))
        assert np.array_equal(stored, sheet(x, y, 10, count))
    assert np.array_equal(load("sample").x_train[400], whole.x_train[whole.y_train == 1][0])


def test_shared_cifar10_says_that_it_is_jpeg() -> None:
    shared = resources.shared_folder()
    if shared is None or not (shared / "data" / "cifar10-jpeg.tar.gz").is_file():
        pytest.skip("no shared data")
    if not list(published.cache_folder().glob("cifar10-jpeg-*.npz")):
        pytest.skip("not decoded yet: takes 20 s")
    cifar = load("cifar10-jpeg")
    assert cifar.description == "CIFAR-10 (JPEG)"
    assert cifar.x_train.shape == (50000, 32, 32, 3) and cifar.x_test.shape == (10000, 32, 32, 3)
    assert np.bincount(cifar.y_test).tolist() == [1000] * 10


def test_npz_with_names_and_flat_grey_images(tmp_path: Path) -> None:
    path = _npz(tmp_path / "toy.npz", x_train=np.zeros((8, 6, 5), np.uint8), class_names=np.array(["no", "yes"]))
    assert load(str(path)).class_names == ("no", "yes")
    assert load(str(path)).image_shape == (6, 5, 1)


def test_cifar10_archive_is_read_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    random = np.random.default_rng(2)
    for part in ("train", "test"):
        for name in published.CIFAR10_NAMES:
            _save(tmp_path / part / name / "0.jpg", random.integers(0, 256, (32, 32, 3), np.uint8))
    archive = tmp_path / "shared" / "data" / "cifar10-jpeg.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for part in ("train", "test"):
            tar.add(tmp_path / part, part)
    monkeypatch.setenv("MNET_SHARED", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read = load("cifar10-jpeg")
    assert sorted(read.y_train.tolist()) == list(range(10))
    (cached,) = (tmp_path / "cache" / "mnet").iterdir()
    assert np.array_equal(load("cifar10-jpeg").x_train, read.x_train)
    cached.write_bytes(b"damaged")
    assert np.array_equal(load("cifar10-jpeg").x_train, read.x_train)
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        load("cifar10-jpeg")


def test_validation_images_are_training_images_of_all_classes() -> None:
    sample = load("sample")
    split = validation_split(sample, 500, seed=3)
    assert len(split.x_train) == 3500 and np.bincount(split.y_validation).tolist() == [50] * 10
    assert np.array_equal(split.x_validation, validation_split(sample, 500, seed=3).x_validation)
    assert not np.array_equal(split.x_validation, validation_split(sample, 500, seed=4).x_validation)
    kept = {image.tobytes() for image in split.x_validation}
    assert kept <= {image.tobytes() for image in sample.x_train}


def test_validation_images_have_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [200, 40, 8])
    chosen = stratified_choice(labels, 31, seed=2)
    assert np.bincount(labels[chosen]).tolist() == [25, 5, 1] and len(set(chosen)) == 31
    assert not np.array_equal(chosen, stratified_choice(labels, 31, seed=3))
    equal = load("sample").y_train
    assert np.array_equal(stratified_choice(equal, 403, 1), balanced_choice(equal, 403, 1))


def test_an_epoch_has_each_class_as_often_as_any_other() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 6])
    order = balanced_order(labels, np.random.default_rng(1))
    times = np.bincount(order, minlength=96)
    assert np.bincount(labels[order]).tolist() == [32, 32, 32] and len(order) == 96
    assert times[labels == 0].max() == 1 and set(times[labels == 2]) == {5, 6}
    assert sorted(balanced_order(np.arange(9) % 3, np.random.default_rng(1))) == list(range(9))


def test_choice_from_unequal_classes_takes_all_of_the_small_one() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    assert np.bincount(labels[balanced_choice(labels, 8, 0)]).tolist() == [6, 2]


# What bad input gets: one finished sentence.


def test_missing_path_names_the_choices() -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; --data takes cifar10, .*\.npz file\.$"):
        load("nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((8, 6, 5, 1), np.float32)}, "x_train is float32"),
        ({"x_train": np.zeros((8, 6, 5, 2), np.uint8)}, "2 channels"),
        ({"x_train": np.zeros((7, 6, 5, 1), np.uint8)}, "7 training images and 8 labels"),
        ({"x_test": np.zeros((4, 5, 5, 1), np.uint8)}, "test images"),
        ({"y_train": np.zeros((8, 2), np.int64)}, "expected whole numbers"),
        ({"y_test": np.array([0, 1, 0, -1])}, "labels reach from -1"),
        ({"class_names": np.array(["one", "two"]), "y_test": np.array([0, 1, 2, 1])}, "labels reach from 0 to 2"),
        ({"y_train": np.zeros(8, np.int64), "y_test": np.zeros(4, np.int64)}, "1 classes"),
        ({"x_test": np.zeros((0, 6, 5, 1), np.uint8), "y_test": np.zeros(0, np.int64)}, "no test images"),
    ],
)
def test_npz_of_the_wrong_form(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(str(_npz(tmp_path / "toy.npz", **changes)))


def test_npz_that_lacks_arrays_or_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x_train=np.zeros(3))
    with pytest.raises(DataError, match="lacks y_train, x_test, y_test"):
        load(str(tmp_path / "few.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "pickle.npz", x_train=np.array([{}], object), y_train=0, x_test=0, y_test=0)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load(str(tmp_path / "pickle.npz"))


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"\0\0\x08"),
        gzip.compress(b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"x"),
        gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 4) + b"x" * 23),
        gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 9) + b"x" * 9)[:-9],
    ],
    ids=["no gzip", "short head", "not bytes", "one pixel short", "cut off"],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz"):
        published.read_idx(path)


def test_too_many_validation_images() -> None:
    with pytest.raises(DataError, match="4000 cannot be kept"):
        validation_split(load("sample"), 4000)


def test_sample_command_is_a_module() -> None:
    assert importlib.util.find_spec("mnet.data.make_sample") is not None
