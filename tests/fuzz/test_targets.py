"""The committed corpus and changes of it: no reader of foreign bytes raises what it must not.

`python -m tests.fuzz.run` does the same for longer, led by what of the code is reached.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
TIMES = 120


def seeds(name: str) -> list[bytes]:
    return [b"", *(file.read_bytes() for file in sorted((CORPUS / name).glob("*")))]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes with some changed, cut, put in or repeated."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(changed))
        act = rng.randrange(4)
        if act == 0:
            changed[place : place + 1] = rng.randbytes(1)
        elif act == 1:
            del changed[place : place + rng.randint(1, 16)]
        elif act == 2:
            changed[place:place] = rng.randbytes(rng.randint(1, 12))
        else:
            changed += changed[place : place + 40]
    return bytes(changed[:4096])


def test_every_target_has_a_corpus_and_no_corpus_is_of_none() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == {*TARGETS}
    assert all(len(seeds(name)) > 1 for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_escapes(name: str) -> None:
    rng, known = random.Random(name), seeds(name)
    for data in known:
        TARGETS[name](data)
    for turn in range(TIMES):
        TARGETS[name](mutated(rng, known[turn % len(known)]))
