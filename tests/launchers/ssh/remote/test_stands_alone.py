"""The sources that are sent to hosts need nothing there, and come in the order of their imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p_dml.launchers.ssh import login, remote

FOLDER = Path(remote.__file__).parent
ORDER = list(login.MODULES)


def _imported(file: Path) -> Iterator[str]:
    for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module is not None
            if statement.module == remote.__name__:
                yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
            else:
                yield statement.module


def test_all_modules_are_sent() -> None:
    assert sorted(ORDER) == sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


@pytest.mark.parametrize("name", ORDER)
def test_a_module_needs_the_standard_library_and_those_before_it(name: str) -> None:
    before = {f"{remote.__name__}.{other}" for other in ORDER[: ORDER.index(name)]}
    for module in _imported(FOLDER / f"{name}.py"):
        assert module.partition(".")[0] in sys.stdlib_module_names or module in before
