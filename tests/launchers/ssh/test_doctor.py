"""`p2p-dml doctor` as it is typed: tables, and an exit code that says whether all is fine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli_w
from typer.testing import CliRunner

from p2p_dml import cli
from p2p_dml.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from tests.launchers.ssh.conftest import Hosts

RUN = {"peers": 4, "rounds": 1, "strategy": "dpsgd", "links": "ring"}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which nothing is cut."""
    monkeypatch.setenv("COLUMNS", "200")


def _write(folder: Path, **tables: object) -> str:
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps({**RUN, **tables}), encoding="utf-8")
    return str(path)


def _hosts(hosts: Hosts, *names: str) -> str:
    return str(hosts.write(*(hosts.entry(name, peers=2) for name in names)))


def test_hosts_that_are_fine(hosts_here: Hosts) -> None:
    words = ["doctor", _hosts(hosts_here, "alpha", "beta")]
    shown = CliRunner().invoke(cli.app, words)
    assert shown.exit_code == ExitCode.DONE, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split()[:3] for line in lines if "fine" in line] == [
        ["0", "alpha", "0-1"],
        ["1", "beta", "2-3"],
    ]
    assert "round trip, ms" in shown.stdout
    assert "throughput, MB/s" in shown.stdout
    assert "data" not in shown.stdout
    assert not [*hosts_here.left("alpha"), *hosts_here.left("beta")]


def test_what_is_to_mend_is_said_last(hosts_here: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_DML_DATA", raising=False)
    words = ["doctor", _hosts(hosts_here, "alpha", "unreachable")]
    words.append(_write(hosts_here.folder, data="mnist"))
    shown = CliRunner().invoke(cli.app, words)
    assert shown.exit_code == ExitCode.STARTUP
    alpha, unreachable = shown.stderr.splitlines()
    assert alpha.startswith("error: alpha: data set 'mnist' is not anywhere")
    assert unreachable.startswith("error: unreachable: ")
    assert shown.stdout.count("mend") == 2


def test_a_run_of_another_size_is_refused(hosts_here: Hosts) -> None:
    words = ["doctor", _hosts(hosts_here, "alpha"), _write(hosts_here.folder)]
    shown = CliRunner().invoke(cli.app, words)
    assert isinstance(shown.exception, ConfigError)
    assert "2 peers in all, the run has 4" in str(shown.exception)
    fits = CliRunner().invoke(cli.app, [*words, "--set", "peers=2"])
    assert fits.exit_code == ExitCode.DONE, fits.output
