"""Every line of the table of threats names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "security.md"
ROW = re.compile(
    r"^\| (?P<threat>[^|]+) \| yes[^|]* \| [^|]+ \| `(?P<test>[^`]+)` \|$", re.MULTILINE
)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_the_table_is_read_whole() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(ROWS) == len(re.findall(r"^\| .* \| yes", text, re.MULTILINE)) > 20


@pytest.mark.parametrize(("threat", "test"), ROWS)
def test_the_test_is_there(threat: str, test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in names, threat


def test_every_test_of_a_threat_is_in_the_table() -> None:
    named = {test.partition("::")[2] for _, test in ROWS}
    for file in ("test_replay.py", "test_limits.py"):
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        tests = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert {name for name in tests if name.startswith("test_")} <= named
