"""Each promise of docs/reliability.md names a test that is there, and each test here a promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from p2p_dml.config import FaultConfig, FaultKind, FaultPhase

HERE = Path(__file__).parent
TESTS = HERE.parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| [^|]+ \| `([\w/]+\.py)::(\w+)` \|$", PAGE, re.MULTILINE)


def _tests_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_the_table_is_read_whole() -> None:
    assert len(ROWS) == len(re.findall(r"^\| .*\.py::", PAGE, re.MULTILINE)) > 30


@pytest.mark.parametrize(("fault", "file", "test"), ROWS)
def test_the_test_of_a_promise_is_there(fault: str, file: str, test: str) -> None:
    assert test in _tests_in(TESTS / file), fault


def test_every_test_of_chaos_is_a_promise() -> None:
    files = [file for file in HERE.glob("test_*.py") if file != Path(__file__)]
    here = {test for file in files for test in _tests_in(file)}
    assert here <= {test for _, _, test in ROWS}


@pytest.mark.parametrize("names", [get_args(FaultKind), get_args(FaultPhase)])
def test_every_kind_and_phase_is_explained(names: tuple[str, ...]) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    assert set(names) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_key_is_explained() -> None:
    for key in FaultConfig.model_fields:
        assert f"| `{key}` |" in PAGE
