"""Runs on real processes that are cut off and go on: every bit of the uninterrupted run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from p2p_dml import checkpoint, config, report
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.errors import ConfigError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import folder, local, resuming, simulated

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

PEERS, ROUNDS = 4, 24
TABLES: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "strategy": {"name": "mcepl", "lr": 1.0},
    "links": {"kind": "erdos_renyi", "density": 0.8},
    "model": {"name": "mlp", "hidden": [8]},
    "evaluate_every": 5,
    "checkpoint_every": 2,
    "stragglers": {"round_s": 0.03},  # so that there is time to strike
}


def _ignore(path: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts, in the simulator."""
    parent = tmp_path_factory.mktemp("whole")
    simulated.simulate(config.parse(TABLES, parent), parent / "run", _ignore)
    report.write_figures(parent / "run")
    return parent / "run"


def _done(run: Path, peer: int) -> int:
    """The last round in a peer's log."""
    file = event_file(run, peer)
    lines = read_events(file) if file.exists() else ()
    return max((line["round"] for line in lines if line["event"] == "round_done"), default=0)


def _expect_same(run: Path, whole: Path) -> None:
    """The same final checkpoints byte for byte, and the same figures but for times."""
    for peer in range(PEERS):
        name = checkpoint_file(peer, ROUNDS)
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    ours, expected = (_figures(each) for each in (run, whole))
    assert ours == expected


def _figures(run: Path) -> dict[str, Any]:
    """All figures of a report that are no times."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    drop = {"mode", "clock", "wall_s", "startup_s", "best_s", "seconds", "wait_share"}
    found = {key: value for key, value in summary.items() if key not in drop | _MEMORY}
    rows = (run / "curve.csv").read_text(encoding="utf-8").splitlines()
    place = rows[0].split(",").index("seconds")
    curve = [[x for i, x in enumerate(row.split(",")) if i != place] for row in rows]
    return found | {"curve": curve, "reported": (run / "reported.csv").read_text(encoding="utf-8")}


_MEMORY = {"pss_mb_median", "pss_mb_max", "rss_mb_median"}


def _killed_and_resumed(shell: Shell, tables: Mapping[str, Any]) -> Path:
    run = shell.folder / "out"
    process = shell.start("run", shell.write("run.toml", tables), "--out", "out", "--quiet")
    shell.wait_until(lambda: _done(run, 1) >= 5, "round 5 is over")
    process.kill()
    shell.end(process)
    ended = shell.run("run", "--resume", "out")
    assert ended.code == 0, ended.err
    assert "resumed after round" in ended.out
    return run


def test_killed_and_resumed(shell: Shell, whole: Path) -> None:
    _expect_same(_killed_and_resumed(shell, TABLES), whole)


def test_messages_under_way_when_all_were_killed_are_sent_again(
    shell: Shell, tmp_path: Path
) -> None:
    """Models of 8 bits, mixed a round after they were sent."""
    tables = {**TABLES, "strategy": "hyperprism", "wire_format": "int8", "overlap": True}
    simulated.simulate(config.parse(tables, tmp_path), tmp_path / "whole", _ignore)
    report.write_figures(tmp_path / "whole")
    _expect_same(_killed_and_resumed(shell, tables), tmp_path / "whole")


@pytest.mark.slow
def test_stopped_by_a_signal_and_resumed_without_periodic_checkpoints(
    shell: Shell, whole: Path
) -> None:
    run = shell.folder / "out"
    file = shell.write("run.toml", {**TABLES, "checkpoint_every": 0})
    process = shell.start("run", file, "--out", "out", "--quiet")
    shell.wait_until(lambda: _done(run, 2) >= 3, "round 3 is over")
    with pytest.raises(ConfigError, match="still going on"), folder.claimed(run, 0.0):
        pass
    process.send_signal(signal.SIGINT)
    assert shell.end(process).code == 5
    saved = {peer: checkpoint.saved_rounds(run, peer) for peer in range(PEERS)}
    assert saved == dict.fromkeys(range(PEERS), saved[0]) and len(saved[0]) == 1
    assert shell.run("run", "--resume", "out", "--quiet").code == 0
    _expect_same(run, whole)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"resumed after round {saved[0][0]}" in page


@pytest.mark.slow
def test_peers_that_wait_for_nobody_go_on_each_after_its_own_round(tmp_path: Path) -> None:
    tables = {
        **TABLES,
        "rounds": 4,
        "strategy": "dpsgd",
        "pace": "asynchronous",
        "stragglers": {},
    }
    run = tmp_path / "run"
    assert local.run(config.parse(tables, tmp_path), run, _ignore).exit_code == 0
    (run / checkpoint_file(1, 4)).unlink()
    past = resuming.read(run, ["rounds=6"], "run")
    said: list[str] = []
    assert local.run(past.config, None, _ignore, past, said.append).exit_code == 0
    assert said == ["resumed after rounds 2 to 4 of 6"]
    for peer in range(PEERS):
        lines = list(read_events(event_file(run, peer)))
        (resumed,) = (line["round"] for line in lines if line["event"] == "resumed")
        assert resumed == (2 if peer == 1 else 4)
        assert _done(run, peer) == 6
        assert checkpoint.saved_rounds(run, peer)[0] == 6
