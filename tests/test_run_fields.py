"""Fields of a run file that need more than a bound: names that make folders, pairs of peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml import config
from p2p_dml.errors import ConfigError
from p2p_dml.run_fields import as_name, is_name

PLAIN = {"peers": 4, "rounds": 10, "strategy": "dpsgd", "links": "ring"}
GOOD = [
    "demo",
    "7",
    "_x",
    "own-loop",
    "long run",
    'a "quoted" näme',
    "s: lr = 0.1, seed = 0",
    "x" * 200,
]
BAD = [
    "",
    "x" * 201,
    "ä" * 101,
    "a\0b",
    "../../evil",
    "a/b",
    "a</b>",
    "a\\b",
    ".x",
    "-x",
    " x",
    "a\nb",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    assert config.parse({**PLAIN, "name": name}, Path()).name == as_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_and_can_be_made_good(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^run: name: expected 1 to 200 bytes .*; found str "):
        config.parse({**PLAIN, "name": name}, Path())
    assert is_name(as_name(name))


def test_a_good_name_is_the_nearest() -> None:
    assert as_name("../a/b") == "_.._a_b"
    assert as_name("ä" * 101) == "ä" * 100
