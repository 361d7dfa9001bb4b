"""`p2p-dml keys`, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from p2p_dml import keys
from p2p_dml.cli import app
from p2p_dml.errors import ConfigError


def said(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": "200"})
    if outcome.exception:
        raise outcome.exception
    return outcome.output


def test_new_says_what_goes_where_and_shows_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    told = said("new", str(folder), "--peers", "3")
    for part in ("peers.toml", "peer-000.key … peer-002.key", "scp -p", "transport.keys"):
        assert part in told
    assert not any(keys.read(folder, me, 3).own.secret in told for me in range(3))


def test_new_does_not_write_over(tmp_path: Path) -> None:
    said("new", str(tmp_path), "--peers", "2")
    with pytest.raises(ConfigError, match="there are keys already"):
        said("new", str(tmp_path), "--peers", "2")


def test_show_tells_whose_secrets_are_here_and_which_are_open(tmp_path: Path) -> None:
    keys.create(tmp_path, 3)
    (tmp_path / "peer-000.key").unlink()
    (tmp_path / "peer-001.key").chmod(0o644)
    (tmp_path / "peer-009.key").touch(0o600)
    told = said("show", str(tmp_path))
    rows = {
        peer: next(line for line in told.splitlines() if key in line)
        for peer, key in keys.read_public(tmp_path).items()
    }
    assert "not here" in rows[0]
    assert "others may read it (mode 0644)" in rows[1]
    assert "here" in rows[2] and "not here" not in rows[2]
    assert "peer-009.key: a secret key of no peer here" in told
