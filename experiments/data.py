"""Data sets as uint8 tensors in one canonical order, whatever they were read from.

All come from `DATA_DIR/<name>.npz`. Where there is none, `digits` is embedded (scikit-learn carries it); `mnist`
and `cifar10` are downloaded by torchvision, and the file is written. Every set is checked against the digest that
stands here, so a result names exactly what it was measured on.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from experiments.errors import DataError

Array = npt.NDArray[np.uint8]
Arrays = dict[str, Array]
KEYS = ("x_train", "y_train", "x_test", "y_test")

# SHA-256 of x_train + y_train + x_test + y_test in canonical order, as raw bytes (images N × H × W [× C]).
DIGESTS = {
    "digits": "44206727ac6aaeefb6e90b996cb4bbc9b19fe050219d9b9fa174cd6123cf15e4",
    "mnist": "169ed1c31c08037e64955425c40f9eb82446da6d86da170a754516a69f6da856",
    "cifar10": "cac8a7f09e8811334cea009f770bf0040c5a12f65bc27a54603a17d6adba36b7",
}
# Images (training, test) and the shape of one image, channels last.
SHAPES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "digits": (1437, 360, (8, 8)),
    "mnist": (60000, 10000, (28, 28)),
    "cifar10": (50000, 10000, (32, 32, 3)),
}


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a cache's key
class Dataset:
    """Images x of shape (N, C, H, W) and labels y of shape (N,), uint8, on the CPU."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    digest: str
    classes: int

    def images(self, split: Literal["train", "test"], device: str | torch.device = "cpu") -> Tensor:
        """The split as float32 in [-1, 1] on `device`: normalized with mean ½ and deviation ½ per channel."""
        x = self.x_train if split == "train" else self.x_test
        return x.to(device).float().div_(127.5).sub_(1.0)

    def labels(self, split: Literal["train", "test"], device: str | torch.device = "cpu") -> Tensor:
        """The split's labels as int64 of shape (N,) on `device`."""
        return (self.y_train if split == "train" else self.y_test).to(device).long()


def directory() -> Path:
    """Where the archives are: the environment's DATA_DIR, or a folder in the user's cache."""
    return Path(os.environ.get("DATA_DIR") or "~/.cache/optimization-for-deep-learning").expanduser()


def load(name: str) -> Dataset:
    """The data set called `name`: digits, mnist or cifar10. Raises DataError when there is none to be had."""
    if name not in DIGESTS:
        raise DataError(f"there is no data set {name!r}; there are {', '.join(DIGESTS)}")
    return _load(name, directory())


@functools.lru_cache(maxsize=4)
def _load(name: str, folder: Path) -> Dataset:
    path = folder / f"{name}.npz"
    if path.exists():
        arrays, origin = read_archive(path), str(path)
    elif name == "digits":
        arrays, origin = _digits(), "scikit-learn's digits"
    else:
        arrays, origin = _download(name, path), "the download"
    arrays = canonical(arrays)
    found = digest(arrays)
    if found != DIGESTS[name]:
        embedded = name == "digits" and not path.exists()
        mend = "update this repository" if embedded else f"delete {path} to have it made again"
        raise DataError(
            f"{origin} is not the {name} that this book measures on "
            f"(SHA-256 {found[:12]}…, expected {DIGESTS[name][:12]}…): {mend}"
        )
    if name != "digits" and not path.exists():
        write_archive(path, arrays)
    x_train, x_test = (_channels_first(arrays[key]) for key in ("x_train", "x_test"))
    y_train, y_test = (torch.from_numpy(arrays[key]) for key in ("y_train", "y_test"))
    return Dataset(name, x_train, y_train, x_test, y_test, found, int(y_train.max()) + 1)


def canonical(arrays: Mapping[str, Array]) -> Arrays:
    """The same examples with each split sorted by the SHA-256 of the image's bytes, ties by label.

    Two sources that hold the same examples in different orders become equal bit for bit, and the first n examples
    are a random subset.
    """
    result = {}
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        keys = [(hashlib.sha256(image.tobytes()).digest(), int(label)) for image, label in zip(x, y, strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        result[f"x_{split}"], result[f"y_{split}"] = x[order], y[order]
    return result


def digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the four arrays' raw bytes, as hexadecimal."""
    whole = hashlib.sha256()
    for key in KEYS:
        whole.update(np.ascontiguousarray(arrays[key]).tobytes())
    return whole.hexdigest()


def read_archive(path: Path) -> Arrays:
    """The four arrays of an .npz; DataError naming the file if it cannot be read or holds something else."""
    mend = f"delete {path} to have it downloaded again, or replace it"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged or not a data archive ({reason}): {mend}") from error
    train, test, shape = SHAPES[path.stem]
    expected = {"x_train": (train, *shape), "y_train": (train,), "x_test": (test, *shape), "y_test": (test,)}
    for key, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != expected[key]:
            raise DataError(
                f"{path}: {key} is {array.dtype} of shape {array.shape}, not uint8 of shape {expected[key]}: {mend}"
            )
    return arrays


def write_archive(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write the .npz whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
        try:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _channels_first(x: Array) -> Tensor:
    x = x[..., None] if x.ndim == 3 else x
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _digits() -> Arrays:
    """scikit-learn's 1,797 images of 8 × 8, scaled from 0..16 to 0..255, split by a salted hash of the image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits come with scikit-learn, which is not installed: install it, or set DATA_DIR to a folder with a "
            "digits.npz that `data.write_archive` made elsewhere"
        ) from error

    source = load_digits()
    x = np.round(source.images * (255 / 16)).astype(np.uint8)
    y = source.target.astype(np.uint8)
    # A hash rather than a random generator: the split cannot change with a library's version.
    order = sorted(range(len(x)), key=lambda i: hashlib.sha256(b"split" + x[i].tobytes()).digest())
    train, test = order[: SHAPES["digits"][0]], order[SHAPES["digits"][0] :]
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def _download(name: str, path: Path) -> Arrays:
    """Fetch through torchvision into a scratch folder beside the archive-to-be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{name}-"))
    print(f"downloading {name} to {path}", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints each mirror that it tries
            return _fetch(name, scratch)
    except Exception as error:  # torchvision raises RuntimeError, URLError, OSError, …
        reason = textwrap.shorten(str(error), 120, placeholder=" …")
        raise DataError(
            f"{name} is not at {path} and could not be downloaded ({reason}): go online, "
            f"set DATA_DIR to the folder that holds {name}.npz, or run SCALE=quick, which needs no data"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch(name: str, folder: Path) -> Arrays:
    datasets: Any = import_torchvision().datasets
    source = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    splits = {split: source(folder, train=split == "train", download=True) for split in ("train", "test")}
    return {
        f"{letter}_{split}": np.asarray(getattr(splits[split], attribute), dtype=np.uint8)
        for split in splits
        for letter, attribute in (("x", "data"), ("y", "targets"))
    }


def import_torchvision() -> ModuleType:
    """torchvision, even where its compiled operators cannot load.

    PyPI's torchvision is linked against CUDA. Beside a CPU-only torch its extension does not load, and the import
    stops at "operator torchvision::nms does not exist". Data sets and transforms need none of it, so declaring the
    two operators and importing again is enough.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _KEPT.append(library)  # the declarations live as long as the object does
    return importlib.import_module("torchvision")


_KEPT: list[torch.library.Library] = []
