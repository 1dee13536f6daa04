"""Texts: the source's entropy against what its own predictions lose, digests, files that are missing or wrong."""

import hashlib
import math

import numpy as np
import pytest
import torch

from experiments import text
from experiments.errors import DataError


@pytest.fixture(autouse=True)
def _fresh():
    text._load.cache_clear()
    yield
    text._load.cache_clear()


def test_the_markov_source_loses_its_entropy_to_who_knows_it():
    markov, source = text.load("markov"), text.transitions()
    assert (markov.symbols, markov.order, markov.train.dtype) == (32, 2, torch.uint8)
    assert markov.train.shape == (990, 1000)
    assert markov.test.shape == (110, 1000)
    assert markov.entropy == pytest.approx(1.7042, abs=5e-5)
    rows = torch.cat([markov.train, markov.test]).numpy()
    losses = -np.log(source[rows[:, :-2], rows[:, 1:-1], rows[:, 2:]])
    deviation = losses.mean(1).std() / math.sqrt(len(rows))
    assert abs(losses.mean() - markov.entropy) < 3 * deviation < 0.01


def test_the_entropy_of_known_sources():
    fair = np.full((4, 4, 4), 1 / 4)
    assert text.entropy_rate(fair) == pytest.approx(math.log(4), abs=1e-12)
    # What comes next is a coin's fall after a 0, and certain after a 1: a fair coin, two times of three.
    source = np.zeros((2, 2, 2))
    source[:, 0] = 1 / 2
    source[:, 1, 0] = 1
    assert text.stationary(source).sum(0) == pytest.approx([2 / 3, 1 / 3], abs=1e-9)
    assert text.entropy_rate(source) == pytest.approx(2 / 3 * math.log(2), abs=1e-9)


def test_rows_begin_as_the_source_is_in_the_long_run():
    source = text.transitions()
    rows = text.draw(source, 20000, 2)
    seen = np.zeros((32, 32))
    np.add.at(seen, (rows[:, 0], rows[:, 1]), 1 / len(rows))
    assert np.abs(seen - text.stationary(source)).max() < 0.01


def test_tinyshakespeare_is_read_from_the_folder(tmp_path, monkeypatch):
    letters = b"To be, or not to be." * 10
    (tmp_path / "tinyshakespeare.txt").write_bytes(letters)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt is not the tinyshakespeare.*delete"):
        text.load("tinyshakespeare")
    alphabet = sorted(set(letters))
    numbers = bytes(alphabet.index(letter) for letter in letters)
    monkeypatch.setitem(text.DIGESTS, "tinyshakespeare", hashlib.sha256(numbers).hexdigest())
    known = text.load("tinyshakespeare")
    assert known.symbols == len(alphabet)
    assert known.entropy is None
    assert bytes(known.train[0].tolist()) + bytes(known.test[0].tolist()) == numbers
    assert known.test.shape == (1, 20)


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(text, "URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(DataError, match=r"tinyshakespeare is not at .* and could not be downloaded.*SCALE=quick"):
        text.load("tinyshakespeare")
    with pytest.raises(DataError, match="no text 'markow'; there are markov, tinyshakespeare"):
        text.load("markow")
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_kept(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"abcabcabcabc")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(text, "URL", (tmp_path / "source").as_uri())
    monkeypatch.setitem(text.DIGESTS, "tinyshakespeare", hashlib.sha256(bytes([0, 1, 2] * 4)).hexdigest())
    assert text.load("tinyshakespeare").symbols == 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tinyshakespeare.txt"]
