"""Data sets: one digest whatever the source, and a clear error for whatever is not the real thing."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import data
from experiments.errors import DataError

SHAPES = {"mnist": (6, 4, (3, 3)), "cifar10": (5, 3, (2, 2, 3))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "_fetch", lambda name, folder: pytest.fail("a download was tried"))
    return tmp_path


def small(name: str, seed: int = 0) -> data.Arrays:
    train, test, shape = SHAPES[name]
    random = np.random.default_rng(seed)
    return {
        f"{letter}_{split}": random.integers(
            256 if letter == "x" else 10, size=(n, *(shape if letter == "x" else ())), dtype=np.uint8
        )
        for split, n in (("train", train), ("test", test))
        for letter in "xy"
    }


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sets of a few images the real ones."""
    monkeypatch.setattr(data, "SHAPES", data.SHAPES | SHAPES)
    digests = {name: data.digest(data.canonical(small(name))) for name in SHAPES}
    monkeypatch.setattr(data, "DIGESTS", data.DIGESTS | digests)


def test_digits_need_no_file_and_no_network() -> None:
    ds = data.load("digits")
    assert ds.digest == data.DIGESTS["digits"]
    assert (ds.x_train.shape, ds.x_test.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert ds.x_train.dtype == ds.y_train.dtype == torch.uint8
    assert ds.classes == 10
    assert len(set(ds.y_test.tolist())) == 10
    assert (int(ds.x_train.min()), int(ds.x_train.max())) == (0, 255)


def test_images_are_normalized() -> None:
    ds = data.load("digits")
    images = ds.images("train")
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, (ds.x_train.float() / 255 - 0.5) / 0.5)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert int(ds.x_train.max()) == 255, "the stored tensor must not be changed"


def test_the_splits_of_the_digits_are_a_partition() -> None:
    ds = data.load("digits")
    train, test = ({image.tobytes() for image in x.numpy()} for x in (ds.x_train, ds.x_test))
    assert len(train | test) == 1797
    assert not train & test


def test_two_orders_give_one_digest() -> None:
    first = small("cifar10")
    shuffle = np.random.default_rng(1).permutation
    train, test = shuffle(len(first["y_train"])), shuffle(len(first["y_test"]))
    second = {key: array[train if "train" in key else test] for key, array in first.items()}
    assert data.digest(first) != data.digest(second)
    assert data.digest(data.canonical(first)) == data.digest(data.canonical(second))
    assert data.digest(data.canonical(data.canonical(first))) == data.digest(data.canonical(first))


def test_equal_images_are_ordered_by_label() -> None:
    image = np.zeros((2, 2, 2), np.uint8)
    for labels in ([3, 1], [1, 3]):
        arrays = {
            "x_train": image,
            "y_train": np.array(labels, np.uint8),
            "x_test": image,
            "y_test": np.array(labels, np.uint8),
        }
        assert data.canonical(arrays)["y_train"].tolist() == [1, 3]


@pytest.mark.usefixtures("small_sets")
def test_an_archive_and_a_download_are_the_same_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reverse = {key: array[::-1] for key, array in small("cifar10").items()}
    monkeypatch.setattr(data, "_fetch", lambda name, folder: reverse)
    downloaded = data.load("cifar10")
    assert (folder / "cifar10.npz").exists(), "the archive is written for the next time"
    assert [path.name for path in folder.iterdir()] == ["cifar10.npz"], "nothing else is left behind"
    data._load.cache_clear()
    monkeypatch.setattr(data, "_fetch", lambda name, folder: pytest.fail("the archive was not used"))
    loaded = data.load("cifar10")
    assert loaded.digest == downloaded.digest
    assert torch.equal(loaded.x_train, downloaded.x_train)
    assert loaded.x_train.shape == (5, 3, 2, 2)
    expected = data.canonical(small("cifar10"))["x_train"][0, 0, 1]
    assert loaded.x_train[0, :, 0, 1].tolist() == expected.tolist(), "channels move first, pixels stay"


@pytest.mark.usefixtures("small_sets")
def test_a_truncated_archive_names_the_file(folder: Path) -> None:
    path = folder / "mnist.npz"
    data.write_archive(path, small("mnist"))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"mnist\.npz is damaged .* delete"):
            data.load("mnist")


@pytest.mark.usefixtures("small_sets")
def test_an_archive_with_other_content_is_refused(folder: Path) -> None:
    path = folder / "mnist.npz"
    data.write_archive(path, small("mnist", seed=1))
    with pytest.raises(DataError, match=r"mnist\.npz is not the mnist that this book measures on .* delete"):
        data.load("mnist")
    data.write_archive(path, small("mnist") | {"y_test": np.zeros(3, np.uint8)})
    with pytest.raises(DataError, match=r"mnist\.npz: y_test is uint8 of shape \(3,\), not uint8 of shape \(4,\)"):
        data.load("mnist")
    np.savez(path, x_train=np.zeros(1))
    with pytest.raises(DataError, match=r"mnist\.npz is damaged or not a data archive"):
        data.load("mnist")


def test_a_missing_set_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, folder: Path) -> data.Arrays:
        (folder / "half").write_bytes(b"half a download")
        raise urllib.error.URLError("no route to host, " + 20 * "mirror " + "the end")

    monkeypatch.setattr(data, "_fetch", offline)
    message = r"mnist is not at .*mnist\.npz and could not be downloaded \(.*no route.*mirror …\): .*DATA_DIR"
    with pytest.raises(DataError, match=message):
        data.load("mnist")
    assert list(folder.iterdir()) == [], "nothing half-written stays"


def test_an_unknown_set() -> None:
    with pytest.raises(DataError, match="there is no data set 'imagenet'; there are digits, mnist, cifar10"):
        data.load("imagenet")


def test_an_interrupted_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        data.write_archive(folder / "mnist.npz", small("mnist"))
    assert list(folder.iterdir()) == []


def test_torchvision_loads_even_without_its_compiled_part() -> None:
    torchvision = data.import_torchvision()
    assert torchvision.datasets.MNIST
    assert data.import_torchvision() is torchvision
