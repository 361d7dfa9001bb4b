"""The user's own objects by name: found, called, and every way to fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2p_dml import plugins
from p2p_dml.errors import ConfigError

MODULE = """
import own_helper_for_plugins

class Box:
    size = 3

def twice(number: int) -> int:
    return 2 * number

def fails() -> None:
    raise KeyError("lost")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder that imports another one beside it."""
    (tmp_path / "own_plugins_module.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "own_helper_for_plugins.py").write_text("", encoding="utf-8")
    (tmp_path / "own_broken_module.py").write_text("1 / 0", encoding="utf-8")
    (tmp_path / "own_lacking_module.py").write_text("import absent_xyz", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "own_plugins_module"


def test_finds_objects_in_the_current_folder(own: str) -> None:
    assert plugins.load_object(f"{own}:Box.size", "model") == 3
    assert plugins.call(f"{own}:twice", {"number": 4}, "model") == 8


def test_looks_in_other_folders_once(own: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "own_module_below.py").write_text("number = 5", encoding="utf-8")
    for _ in range(2):
        plugins.look_in(Path("below"))
    assert sys.path.count(str(tmp_path / "below")) == 1
    assert plugins.load_object("own_module_below:number", "model") == 5


def test_finds_installed_objects() -> None:
    assert plugins.load_object("pathlib:Path", "model") is Path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_plugins_module", 'expected "package.module:name", found'),
        (":twice", 'expected "package.module:name"'),
        ("own_plugins_module:", 'expected "package.module:name"'),
        ("absent_abc:twice", "no module named 'absent_abc'"),
        ("own_lacking_module:twice", "no module named 'absent_xyz'"),
        ("own_broken_module:twice", "ZeroDivisionError.*own_broken_module.py:1"),
        ("own_plugins_module:twce", "no 'twce'; did you mean 'twice'"),
        ("own_plugins_module:Box.weight", "no 'weight'"),
    ],
)
def test_what_cannot_be_loaded(own: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plugins.load_object(path, "run.toml: model")
    assert str(caught.value).startswith("run.toml: model: ")


@pytest.mark.parametrize(
    ("path", "table", "message"),
    [
        ("own_plugins_module:Box.size", {}, "is of type int, not a function"),
        ("own_plugins_module:twice", {"numbr": 4}, r"model\.numbr: unknown key"),
        ("own_plugins_module:twice", {"number": "4"}, r"model\.number: "),
        ("own_plugins_module:twice", {}, r"model\.number: missing"),
        ("own_plugins_module:fails", {}, r"KeyError: 'lost' \(own_plugins_module.py:\d+ in fails"),
    ],
)
def test_what_cannot_be_called(own: str, path: str, table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.call(path, table, "model")


def test_take_name() -> None:
    assert plugins.take_name({"name": "a", "k": 1}, "x") == ("a", {"k": 1})
    assert plugins.is_object_path("a.b:c")
    assert not plugins.is_object_path("mnist")
    with pytest.raises(ConfigError, match=r"x\.name: expected a name in quotes, found None"):
        plugins.take_name({}, "x")
