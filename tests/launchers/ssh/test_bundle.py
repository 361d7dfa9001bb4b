"""What goes along with a run: its topologies, traces and modules, and no path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2p_dml import config
from p2p_dml.assemble import blueprint
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.ssh.bundle import Bundle, bundle

BASE: dict[str, Any] = {"peers": 2, "rounds": 1, "strategy": "dpsgd", "links": "ring"}
TRACE = "from,to,up,down\n0,1,0,3\n"


def _bundle(folder: Path, **tables: object) -> Bundle:
    return bundle(config.parse({**BASE, **tables}, folder))


def _unpacked(found: Bundle, folder: Path) -> config.RunConfig:
    """What a host reads after it has got the files."""
    for name, content in found.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return config.load(folder / "run.toml")


def test_files_of_links_lie_beside_the_run_file(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deep").mkdir(parents=True)
    (here / "deep" / "trace.csv").write_text(TRACE, encoding="utf-8")
    (here / "deep" / "links.toml").write_text(
        'kind = "trace"\nfile = "trace.csv"\nat_end = "repeat"\n', encoding="utf-8"
    )
    before = config.parse({**BASE, "links": {"file": "deep/links.toml"}}, here)
    found = bundle(before)
    assert found.files.keys() == {"run.toml", "links.toml", "trace.csv"}
    after = _unpacked(found, there)
    schedules = blueprint(before).schedule, blueprint(after).schedule
    assert [schedules[0](tick) for tick in range(6)] == [schedules[1](tick) for tick in range(6)]
    assert before.canonical() == after.canonical()


def test_files_of_nested_schedules_go_along(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    trace = {"kind": "trace", "file": "trace.csv"}
    links = {"kind": "alternating", "of": [trace, {"kind": "ring"}]}
    assert _bundle(tmp_path, links=links).files.keys() == {"run.toml", "trace.csv"}


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "t.csv").write_text(TRACE.replace("3", number + "3"), encoding="utf-8")
    traces = [{"kind": "trace", "file": f"{number}/t.csv"} for number in "121"]
    found = _bundle(tmp_path, links={"kind": "alternating", "of": traces})
    assert found.files.keys() == {"run.toml", "t.csv", "t-2.csv"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.csv: cannot be read: No such file"):
        _bundle(tmp_path, links={"kind": "trace", "file": "no.csv"})


def test_modules_go_along_with_those_that_they_import(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\nfrom helpers.a import x\n", encoding="utf-8")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").touch()
    (tmp_path / "helpers" / "a.py").write_text("import more\nx = 1\n", encoding="utf-8")
    (tmp_path / "more.py").write_text("import mine\n", encoding="utf-8")
    (tmp_path / "other.py").write_text("", encoding="utf-8")
    found = _bundle(tmp_path, model={"name": "mine:model"}, train={"function": "absent:train"})
    modules = {"mine.py", "helpers/__init__.py", "helpers/a.py", "more.py"}
    assert found.files.keys() == {"run.toml", *modules}
    assert found.elsewhere == ("absent",)


def test_a_module_that_is_no_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.py:1: invalid syntax"):
        _bundle(tmp_path, model={"name": "mine:model"})
