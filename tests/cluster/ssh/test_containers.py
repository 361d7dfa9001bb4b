"""`p2p-dml up --hosts-file` on two hosts, each with an engine that begins without an image."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pytest
import tomli_w

from p2p_dml.checkpoint import saved_rounds
from p2p_dml.events import event_file

if TYPE_CHECKING:
    from tests.cluster.ssh.conftest import DockerHost

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

PEERS = 4
DEADLINE_S = 800.0
LOST_S = 20.0
# Rounds of half a second: time for a fault to be seen in.
RUN: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": 30,
    "data": "digits",
    "model": "mlp",
    "links": "complete",
    "strategy": "dpsgd",
    "train": {"lr": 0.1, "steps": 2},
    "stragglers": {"round_s": 0.5},
    "transport": {"startup_s": 300.0, "straggler_s": 8.0},
    "max_isolated_rounds": 1000,
    "evaluate_every": 10,
    "checkpoint_every": 4,
}


@final
class Up:
    """The command on both hosts, and what becomes of it."""

    def __init__(self, hosts: list[DockerHost], folder: Path, image: str, rounds: int) -> None:
        self.hosts = hosts
        self.out = folder / "out"
        self._folder = folder
        self._image = image
        self._log = folder / "log.txt"
        entries = [each.host.entry(peers=2, folder=f"{each.host.folder}/p2p") for each in hosts]
        tables = {"lost_s": LOST_S, "hosts": entries}
        (folder / "hosts.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        (folder / "run.toml").write_text(tomli_w.dumps({**RUN, "rounds": rounds}), encoding="utf-8")
        self.process = self._start("run.toml", "--out", "out")

    def resume(self, rounds: int) -> None:
        """Go on to so many rounds, when it has ended."""
        self.process = self._start("--resume", "out", "--set", f"rounds={rounds}")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "p2p_dml", "up", "--hosts-file", "hosts.toml")
        with self._log.open("ab") as log:
            return subprocess.Popen(
                (*command, "--image", self._image, *words),
                cwd=self._folder,
                env=os.environ | {"COLUMNS": "300"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What the command has printed so far."""
        return self._log.read_text(encoding="utf-8")

    @property
    def summary(self) -> dict[str, Any]:
        """The report's figures."""
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text("utf-8"))
        return summary

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Poll; the test fails, with all that was said, if it never holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def wait_for_round(self, number: int) -> None:
        """Until every peer has done it."""
        files = [event_file(self.out, peer) for peer in range(PEERS)]
        mark = f'"round_done", "t": .*"round": {number},'

        def is_done() -> bool:
            assert self.process.poll() is None, self.said
            return all(file.exists() and re.search(mark, file.read_text()) for file in files)

        self.wait_until(is_done)

    def end(self) -> int:
        """The exit code; nothing of the run is on any host."""
        code = self.process.wait(DEADLINE_S)
        assert not [left for each in self.hosts for left in each.left()]
        return code

    def close(self) -> None:
        """Kill what is left here; what is on hosts goes by itself."""
        self.process.kill()
        self.process.wait()
        self.wait_until(lambda: not any(each.left() for each in self.hosts))


@pytest.fixture
def up(docker_hosts: list[DockerHost], ready: str, tmp_path: Path) -> Iterator[Callable[[int], Up]]:
    """Starts a run of so many rounds; ended whatever happens."""
    runs: list[Up] = []

    def start(rounds: int) -> Up:
        runs.append(Up(docker_hosts, tmp_path, ready, rounds))
        return runs[-1]

    yield start
    for each in runs:
        each.close()


def test_from_bare_engines_to_the_report_with_one_killed_and_one_paused(
    up: Callable[[int], Up],
) -> None:
    run = up(30)
    run.wait_for_round(2)
    one, two = run.hosts
    inside = one.docker("exec", one.container(1), "sh", "-c", "id --user; ls /p2p/home/keys")
    assert inside.split() == ["10001", "peer-001.key", "peers.toml"]
    one.docker("kill", one.container(1))
    two.docker("pause", two.container(3))
    assert run.end() == 1, run.said
    assert "copied: run.toml, keys" in run.said
    summary = run.summary
    assert (summary["peers_finished"], summary["peers_lost"]) == (2, 2)
    reasons = {lost["peer"]: lost["error"] for lost in summary["lost"]}
    assert reasons[1] == "its container was killed by signal 9 (Killed)"
    assert "its container was paused (docker pause) when all others had ended" in reasons[3]
    assert "the container of peer 3 is paused" in run.said
    assert f"error: peer 1: {reasons[1]}; 1 more peers failed" in run.said
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert "killed by signal 9" in page and "was paused (docker pause)" in page
    assert saved_rounds(run.out, 0)[0] == saved_rounds(run.out, 2)[0] == 30


def test_a_host_is_cut_off_for_good_and_ctrl_c_ends_the_rest(up: Callable[[int], Up]) -> None:
    run = up(10_000)
    run.wait_for_round(1)
    lost = run.hosts[1].host
    lost.cut()
    try:
        run.wait_until(lambda: f"host root@{lost.address} is lost" in run.said)
        # What is left there goes by itself, with nobody to tell it.
        run.wait_until(lambda: not run.hosts[1].left())
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 1, run.said
    finally:
        lost.heal()
    assert f"host root@{lost.address} was lost, and with it peers 2, 3: " in run.said
    assert (run.summary["peers_stopped"], run.summary["peers_lost"]) == (2, 2)
    assert saved_rounds(run.out, 0)[0] == saved_rounds(run.out, 1)[0]


def test_nothing_outlives_its_launcher_and_the_run_can_go_on(up: Callable[[int], Up]) -> None:
    run = up(10_000)
    run.wait_until(lambda: all(saved_rounds(run.out, peer) for peer in range(PEERS)))
    run.process.kill()
    run.process.wait()
    run.wait_until(lambda: not any(each.left() for each in run.hosts))
    saved = [set(saved_rounds(run.out, peer)) for peer in range(PEERS)]
    done = max(set.intersection(*saved))
    run.resume(done + 2)
    assert run.end() == 0, run.said
    assert run.said.count("bringing the image") <= 1
    assert f"resumed after round {done} of {done + 2}" in run.said
    assert run.summary["peers_finished"] == PEERS
