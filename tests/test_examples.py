"""Every run file and module in examples/ does what it says."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2p_dml import config, report
from p2p_dml.data.fetch import available
from p2p_dml.errors import ExitCode
from p2p_dml.launchers import local, simulated

EXAMPLES = Path(__file__).parents[1] / "examples"
MAX_LINES = 40


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


def test_the_examples_of_the_documentation_are_here() -> None:
    names = {path.name for path in EXAMPLES.iterdir()}
    assert names >= {"demo.toml", "own_model.toml", "own_loop.toml", "median_gossip.toml"}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_a_run_file_runs(file: Path, tmp_path: Path) -> None:
    run = config.load(file, ["rounds=3"])
    if any(row.name == run.data["name"] and row.place is None for row in available()):
        pytest.skip(f"the data set {run.data['name']} is not on this machine")
    outcome = simulated.simulate(run, tmp_path / "out", _ignore)
    assert outcome.exit_code is ExitCode.DONE
    assert {len(peer.rounds.round) for peer in report.load(outcome.folder).peers} == {3}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_a_module_is_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_own_model_learns_on_processes(tmp_path: Path) -> None:
    run = config.load(EXAMPLES / "own_model.toml")
    outcome = local.run(run, tmp_path / "out", _ignore)
    assert outcome.exit_code is ExitCode.DONE
    for peer in report.load(outcome.folder).peers:
        # Three classes in equal shares: guessing is right in a third of the cases.
        assert peer.evaluations.accuracy[-1] > 0.6


def test_median_gossip_learns(tmp_path: Path) -> None:
    run = config.load(EXAMPLES / "median_gossip.toml")
    simulated.simulate(run, tmp_path / "out", _ignore)
    for peer in report.load(tmp_path / "out").peers:
        assert peer.evaluations.accuracy[-1] > 0.8


def _free_addresses(count: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def test_own_loop_from_python_alone(tmp_path: Path) -> None:
    """As its docstring says: three processes, each sees a third of the line, all fit all of it."""
    shutil.copy(EXAMPLES / "own_loop.py", tmp_path)
    text = (EXAMPLES / "own_loop.toml").read_text(encoding="utf-8")
    addresses = f"\n[transport]\naddresses = {_free_addresses(3)}\n"
    (tmp_path / "own_loop.toml").write_text(text + addresses, encoding="utf-8")
    peers = [
        subprocess.Popen(
            [sys.executable, "own_loop.py", str(me)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(3)
    ]
    for me, peer in enumerate(peers):
        out, err = peer.communicate(timeout=100)
        assert (peer.returncode, err) == (0, "")
        found = re.fullmatch(rf"peer {me}: y = (\S+) x ([+-]\S+)\n", out)
        assert found is not None
        slope, offset = map(float, found.groups())
        assert slope == pytest.approx(2, abs=0.3)
        assert offset == pytest.approx(-1, abs=0.3)
