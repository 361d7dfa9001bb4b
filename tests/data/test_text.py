"""Tiny Shakespeare: speeches of a text made here, the real set where it is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2p_dml import data
from p2p_dml.data import _places
from p2p_dml.data.text import FILE, by_speaker
from p2p_dml.errors import ConfigError

PLAY = "A:\nabcdef\n\nB:\nxy\n\nA:\nghi\n\nnot a speaker\n\nB:\n" + "zzzz" * 5 + "\n\nC:\nlast"


def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = tmp_path / FILE
    file.parent.mkdir()
    file.write_text(content, encoding="utf-8")
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))


def test_speeches_are_joined_and_split_where_they_begin() -> None:
    train, test = by_speaker(PLAY)
    assert train == {"A": "abcdef\nghi\nnot a speaker", "B": "xy\n" + "z" * 20}
    assert test == {"C": "last"}


def test_windows_do_not_overlap_and_labels_are_the_next_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, monkeypatch, PLAY)
    dataset = data.load({"name": "shakespeare", "length": 3})
    alphabet = sorted(set(PLAY))
    first = ["".join(alphabet[t] for t in row) for row in dataset.train_x[:3]]
    after = ["".join(alphabet[t] for t in row) for row in dataset.train_y[:3]]
    assert first == ["abc", "def", "\ngh"]
    assert after == ["bcd", "ef\n", "ghi"]
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [0] * 7 + [1] * 7
    assert (dataset.num_classes, dataset.is_tokens) == (len(alphabet), True)


def test_window_longer_than_every_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch, PLAY)
    with pytest.raises(ConfigError, match="smaller length"):
        data.load({"name": "shakespeare", "length": 30})


def test_length_is_positive() -> None:
    with pytest.raises(ConfigError, match="length: expected at least 1, found 0"):
        data.load({"name": "shakespeare", "length": 0})


def test_not_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch, "A:\nnaïve")
    with pytest.raises(ConfigError, match="not ASCII"):
        data.load({"name": "shakespeare"})


def test_the_real_set() -> None:
    if _places.holder([FILE]) is None:
        pytest.skip("Tiny Shakespeare is not on this machine")
    dataset = data.load({"name": "shakespeare", "length": 40})
    assert dataset.num_classes == 65
    assert dataset.groups is not None
    assert 200 < len(np.unique(dataset.groups)) <= 310
    total = dataset.train_x.size + dataset.test_x.size
    assert 0.9 < total / 1_115_394 < 1
    assert dataset.train_x.size / total == pytest.approx(0.9, abs=0.01)
    assert np.array_equal(dataset.train_x[0, 1:], dataset.train_y[0, :-1])
