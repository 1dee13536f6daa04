"""Texts for language models: symbols as uint8, in rows that belong together, checked against their digest.

`markov` is made here, in a fifth of a second, by a source whose entropy is known: what a model loses beyond it is
what it has not learned. `tinyshakespeare` comes from `DATA_DIR/tinyshakespeare.txt`; where there is none it is
downloaded, and the file is written.
"""

import functools
import hashlib
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from experiments import data
from experiments.errors import DataError

# SHA-256 of all rows in order: of the training set, then of the test set.
DIGESTS = {
    "markov": "e810ce51b097d8ae88b2f12a2f9d5869820a3def87f99dafb7a943605c37c729",
    "tinyshakespeare": "eafbf6db15b85793ae12e0a3f5c38ae13106463a7cdc6bf859b88693b0b9fe1d",
}
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SYMBOLS = 32  # of the Markov source
ROWS, LENGTH = 1100, 1000  # what is drawn from it
HELD_OUT = 0.1  # the last part of a text, for testing


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a cache's key
class Text:
    """Training and test set of shape (rows, length), uint8, on the CPU; each row is one text from its beginning.

    `entropy` is what the best model loses on average, in nats per symbol, where that is known: one that has seen
    the `order` symbols before, on which the source's next one depends.
    """

    name: str
    train: Tensor
    test: Tensor
    symbols: int
    digest: str
    entropy: float | None = None
    order: int = 0


def load(name: str) -> Text:
    """The text called `name`: markov or tinyshakespeare. Raises DataError when there is none to be had."""
    if name not in DIGESTS:
        raise DataError(f"there is no text {name!r}; there are {', '.join(DIGESTS)}")
    return _load(name, data.directory())


@functools.lru_cache(maxsize=2)
def _load(name: str, folder: Path) -> Text:
    if name == "markov":
        source = transitions()
        rows = draw(source, ROWS, LENGTH)
        whole, symbols, origin = rows, SYMBOLS, "what was drawn from the Markov source"
        known = {"entropy": entropy_rate(source), "order": 2}
        mend = "update this repository"
    else:
        path = folder / f"{name}.txt"
        letters = np.frombuffer(_read(path), dtype=np.uint8)
        alphabet, numbers = np.unique(letters, return_inverse=True)
        whole, symbols, origin, known = numbers.astype(np.uint8)[None], len(alphabet), str(path), {}
        mend = f"delete {path} to have it downloaded again"
    found = hashlib.sha256(whole.tobytes()).hexdigest()
    if found != DIGESTS[name]:
        raise DataError(
            f"{origin} is not the {name} that this book measures on "
            f"(SHA-256 {found[:12]}…, expected {DIGESTS[name][:12]}…): {mend}"
        )
    parts = _split(torch.from_numpy(whole))
    return Text(name, *parts, symbols, found, **known)  # type: ignore[arg-type]


def _split(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The first nine tenths and the last: of the rows, or where there is one, of that."""
    dim = 0 if len(whole) > 1 else 1
    held_out = int(whole.shape[dim] * HELD_OUT)
    first, last = whole.split([whole.shape[dim] - held_out, held_out], dim)  # type: ignore[no-untyped-call]
    return first, last


# ---------------------------------------------------------------------- a source of which all is known


def transitions() -> npt.NDArray[np.float64]:
    """p(c | a, b) of the Markov source, of shape (32, 32, 32): rows of a Dirichlet distribution about Zipf's law.

    They are concentrated: after most pairs there are two or three symbols that count.
    """
    # The legacy generator's numbers are the same in every version of NumPy.
    random = np.random.RandomState(1977)
    zipf = 1 / np.arange(1, SYMBOLS + 1)
    return random.dirichlet(0.15 * SYMBOLS * zipf / zipf.sum(), size=(SYMBOLS, SYMBOLS))


def stationary(source: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """π(a, b): how often two symbols follow each other in the long run, of shape (symbols, symbols)."""
    pairs = np.full(source.shape[:2], 1 / source.shape[0] ** 2)
    for _ in range(1000):
        # π(b, c) = Σ_a π(a, b) p(c | a, b)
        pairs, before = np.einsum("ab,abc->bc", pairs, source), pairs
        if np.abs(pairs - before).max() < 1e-16:
            break
    return pairs


def entropy_rate(source: npt.NDArray[np.float64]) -> float:
    """H = −Σ π(a, b) p(c | a, b) log p(c | a, b), in nats per symbol."""
    logarithms = np.log(source, out=np.zeros_like(source), where=source > 0)
    return float(-(stationary(source)[..., None] * source * logarithms).sum())


def draw(source: npt.NDArray[np.float64], rows: int, length: int) -> npt.NDArray[np.uint8]:
    """So many texts of this length, each from its own beginning in the long run, of shape (rows, length)."""
    random = np.random.RandomState(1978)
    symbols = source.shape[0]
    pairs = random.choice(symbols**2, size=rows, p=stationary(source).ravel())
    text = np.empty((length, rows), dtype=np.uint8)
    text[0], text[1] = pairs // symbols, pairs % symbols
    cumulative = source.cumsum(-1)[..., :-1]
    for t in range(2, length):
        # The symbol in whose part of [0, 1) a uniform number falls.
        text[t] = (random.random_sample(rows)[:, None] >= cumulative[text[t - 2], text[t - 1]]).sum(1)
    return np.ascontiguousarray(text.T)


# ---------------------------------------------------------------------- a file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return _download(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _download(path: Path) -> bytes:
    """Fetch the text and keep it, whole or not at all."""
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content: bytes = answer.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:  # of urllib, too
        raise DataError(
            f"{path.stem} is not at {path} and could not be downloaded ({error}): go online, set DATA_DIR to the "
            f"folder that holds {path.name}, or run SCALE=quick, which needs no data"
        ) from error
    return content
