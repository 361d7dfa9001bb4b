"""Tiny Shakespeare (Karpathy 2015) as windows of characters, by speaker."""

from __future__ import annotations

import numpy as np

from p2p_dml.data import _places
from p2p_dml.data._dataset import Array, Dataset
from p2p_dml.errors import ConfigError

FILE = "tinyshakespeare/input.txt"
_TRAIN_SHARE = 0.9


def shakespeare(*, length: int = 80) -> Dataset:
    """Read Tiny Shakespeare: windows of `length` characters, each with the characters after them.

    x int64 [N, length] are indices into the sorted characters of the whole text, y is x moved on
    by one. Speeches that begin in the first 90 % of the characters train, the others test. Each
    speaker's speeches are joined and cut into windows that do not overlap; `groups` numbers the
    speakers with at least one window in order of appearance. Speakers' names are not in the text.
    """
    if length < 1:
        raise ValueError(f"length: expected at least 1, found {length}")
    (file,) = _places.locate("shakespeare", [FILE])
    try:
        content = _places.read("shakespeare", file).decode("ascii")
    except UnicodeDecodeError as error:
        raise _places.damaged("shakespeare", file, f"not ASCII text ({error})") from error
    train, test = by_speaker(content)
    alphabet = np.unique(_codes(content))
    train_x, train_y, groups = _windows(train, alphabet, length)
    test_x, test_y, _ = _windows(test, alphabet, length)
    if not len(train_x) or not len(test_x):
        raise ConfigError(
            f"data set 'shakespeare': {file}: no speaker says more than {length} characters in "
            "each half; choose a smaller length"
        )
    return Dataset(
        name="shakespeare",
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=len(alphabet),
        groups=groups,
    )


def by_speaker(content: str) -> tuple[dict[str, str], dict[str, str]]:
    """What each speaker says in the first 90 % of the characters, and in the rest.

    A speech opens with the speaker's name and a colon on a line of its own, after an empty line;
    it belongs to the half in which it begins. Text before the first speech is left out.
    """
    halves: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    speaker, begin = "", 0
    for block in content.split("\n\n"):
        head, _, body = block.partition("\n")
        if head.endswith(":"):
            speaker = head[:-1]
        else:
            body = block
        if speaker:
            half = halves[begin >= _TRAIN_SHARE * len(content)]
            half.setdefault(speaker, []).append(body)
        begin += len(block) + 2
    train, test = ({who: "\n".join(said) for who, said in half.items()} for half in halves)
    return train, test


def _codes(text: str) -> Array:
    return np.frombuffer(text.encode("ascii"), np.uint8)


def _windows(texts: dict[str, str], alphabet: Array, length: int) -> tuple[Array, Array, Array]:
    """Samples, labels and speaker numbers of all windows in `texts`."""
    rows = []
    for text in texts.values():
        tokens = np.searchsorted(alphabet, _codes(text)).astype(np.int64)
        count = max(0, len(tokens) - 1) // length
        if count:
            used = tokens[: count * length + 1]
            rows.append((used[:-1].reshape(count, length), used[1:].reshape(count, length)))
    if not rows:
        empty = np.zeros((0, length), np.int64)
        return empty, empty, np.zeros(0, np.int64)
    groups = np.repeat(np.arange(len(rows)), [len(x) for x, _ in rows])
    return np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows]), groups
