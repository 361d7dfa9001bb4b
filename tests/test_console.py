"""What commands say, and where."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from p2p_dml import config
from p2p_dml.console import Watch, complain, sayer
from p2p_dml.errors import ConfigError


def _console() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=40), written


def test_complaints_go_to_standard_error_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain(ConfigError("links[0]: " + "long " * 40))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: links[0]: {'long ' * 40}\n"


@pytest.mark.parametrize(("quiet", "said"), [(False, "a [bold] line " * 9 + "\n"), (True, "")])
def test_lines_are_said_as_they_are_or_not_at_all(quiet: bool, said: str) -> None:
    console, written = _console()
    sayer(console, quiet)("a [bold] line " * 9)
    assert written.getvalue() == said


def test_a_quiet_watch_reads_nothing(tmp_path: Path) -> None:
    console, written = _console()
    tables = {"peers": 2, "rounds": 1, "strategy": "local", "links": "ring"}
    with Watch(config.parse(tables, tmp_path), console, quiet=True) as watch:
        watch.begin(tmp_path / "nowhere", 0.0)()
    assert written.getvalue() == ""
