"""docs/strategies.md describes every strategy, with tables that can be used."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from p2p_dml.strategies import STRATEGIES
from p2p_dml.tables import build
from p2p_dml.types import AnyStrategy, Need

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE))
WORDS = {
    Need.SYMMETRIC: "symmetric",
    Need.DOUBLY_STOCHASTIC: "doubly stochastic",
    Need.COLUMN_STOCHASTIC: "column stochastic",
    Need.COMPLETE: "complete",
    Need.SYNCHRONOUS: "synchronous",
    Need.EVERY_MESSAGE: "every message",
}


def shown(name: str) -> AnyStrategy:
    """The strategy of the table in a section, all of whose fields are checked on the way."""
    block = re.search(r"```toml\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert block is not None
    table = tomllib.loads(block.group(1))["strategy"]
    assert table.pop("name") == name
    strategy: AnyStrategy = build(STRATEGIES[name], table, "strategy")
    return strategy


def test_every_strategy_has_a_section_and_a_row() -> None:
    assert list(SECTIONS) == list(ROWS) == list(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_shown_table_builds_and_needs_what_the_row_says(name: str) -> None:
    needs = shown(name).needs
    for need, words in WORDS.items():
        assert (need in needs) == (words in ROWS[name].split("|")[-1])
