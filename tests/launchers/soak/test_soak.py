"""`p2p-dml soak`, whole: real peers, real faults, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w

from p2p_dml.errors import ConfigError
from p2p_dml.launchers.soak.run import DEFAULT, config_of

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell


def _soak(shell: Shell, *arguments: str) -> tuple[int, str]:
    """Exit code, and what was said; there is time for a machine that does something else too."""
    process = shell.start("soak", *arguments, "--out", "out")
    out, err = process.communicate(timeout=270.0)
    return process.returncode, out + err


def _soaked(folder: Path) -> Any:
    return json.loads((folder / "out" / "soak.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_peers_keep_what_is_promised_under_faults(shell: Shell) -> None:
    options = ("--minutes", "0.4", "--every", "1.5", "--peers", "6", "--seed", "1")
    code, words = _soak(shell, *options)
    said = _soaked(shell.folder)
    broken = [row for row in said["invariants"] if not row["held"]]
    assert code == 0 and not broken, (words, broken)
    assert sum(each["faults"] for each in said["faults"]) == 8
    assert "invariant" in words and "BROKEN" not in words


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peer_that_fails_by_itself_is_found(shell: Shell) -> None:
    """Its training diverges; nothing that the soak does is the reason."""
    run = shell.write(
        "run.toml",
        {**DEFAULT, "rounds": 5, "peers": 4, "train": {"lr": 1e30, "steps": 2}, "model": "mlp"},
    )
    code, _ = _soak(shell, run, "--minutes", "0.3", "--every", "1", "--quiet")
    assert code == 1
    rows = {row["name"]: row for row in _soaked(shell.folder)["invariants"]}
    assert not rows["no peer ends but by a fault"]["held"]


def test_a_run_of_the_users_has_no_end_and_comes_encrypted_over_tcp(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps({**DEFAULT, "rounds": 3, "name": "mine"}), encoding="utf-8")
    own, default = config_of(file, 5), config_of(None, None)
    for each in (own, default):
        assert (each.rounds, each.restarts) == (10**9, 10**6)
        assert (each.transport.scheme, each.transport.encryption) == ("tcp", "curve")
    assert (own.name, own.peers, own.transport.straggler_s) == ("mine", 5, 5.0)
    assert (default.name, default.peers) == ("soak", 8)


@pytest.mark.parametrize(("peers", "round_s"), [(None, 0.2), (4, 0.2), (8, 0.2), (32, 0.8)])
def test_more_peers_have_longer_rounds(peers: int | None, round_s: float) -> None:
    assert config_of(None, peers).stragglers.round_s == pytest.approx(round_s)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        config_of(tmp_path / "none.toml", None)
