"""`p2p-dml launch` and `doctor` on five hosts: namespaces with an sshd each, faults included."""

from __future__ import annotations

import json
import os
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
from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.cluster.ssh.conftest import FakeHost

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

DEADLINE_S = 240.0
LOST_S = 25.0
RUN: Mapping[str, Any] = {
    "name": "hosts",
    "peers": 10,
    "rounds": 5,
    "links": {"kind": "erdos_renyi", "density": 0.5},
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "model": "mlp",
    "strategy": {"name": "hyperprism", "degree": "learned"},
    "train": {"lr": 0.1, "steps": 5},
    "transport": {"startup_s": 240.0},
}
# Rounds of half a second: time for a fault to be seen in.
LONG: Mapping[str, Any] = {
    **RUN,
    "rounds": 60,
    "max_isolated_rounds": 1000,
    "transport": {"startup_s": 240.0, "straggler_s": 8.0},
    "stragglers": {"round_s": 0.5},
    "evaluate_every": 10,
}


@final
class Launch:
    """A command on hosts of a hosts file of its own, and what becomes of it."""

    def __init__(
        self, hosts: list[FakeHost], folder: Path, entries: list[Mapping[str, Any]]
    ) -> None:
        self.hosts = hosts
        self.folder = folder
        self.out = folder / "out"
        self._log = folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        tables = {"lost_s": LOST_S, "hosts": entries}
        (folder / "hosts.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")

    def start(self, command: str, run: Mapping[str, Any]) -> None:
        """Start `launch` or `doctor`."""
        (self.folder / "run.toml").write_text(tomli_w.dumps(run), encoding="utf-8")
        self._start(command, "hosts.toml", "run.toml", *(["--out", "out"] * (command == "launch")))

    def resume(self, rounds: int) -> None:
        """Start `launch --resume` to so many rounds."""
        self._start("launch", "hosts.toml", "--resume", "out", "--set", f"rounds={rounds}")

    def _start(self, *arguments: str) -> None:
        words = [sys.executable, "-m", "p2p_dml", *arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                cwd=self.folder,
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
    def summary(self) -> Any:
        """The report's figures."""
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """Poll until `holds()`; the test fails, with all that was said, if it never does."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, f"never happened: {what}\n{self.said}"
            assert self._process is None or self._process.poll() is None, self.said
            time.sleep(0.05)

    def wait_for_round(self, number: int) -> None:
        """Wait until peer 0 has done so many rounds."""
        file = event_file(self.out, 0)
        self.wait_until(
            lambda: file.exists() and any(x.get("round") == number for x in read_events(file)),
            f"round {number}",
        )

    def signal(self, number: signal.Signals) -> None:
        """Send the command a signal, as a terminal would."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for the command; its exit code. Nothing of it runs on any host then."""
        assert self._process is not None
        code = self._process.wait(DEADLINE_S)
        self._process = None
        self.wait_until(lambda: not any(host.started() for host in self.hosts), "all have gone")
        return code

    def close(self) -> None:
        """Kill what is left."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


Launcher = Callable[..., Launch]


@pytest.fixture
def on(fake_hosts: list[FakeHost], tmp_path: Path, shared: Path) -> Iterator[Launcher]:
    """Make a launch on the first so many hosts; more keys for the entries of some."""
    made: list[Launch] = []

    def make(count: int, changes: Mapping[int, Mapping[str, object]] | None = None) -> Launch:
        hosts = fake_hosts[:count]
        common = {"python": sys.executable, "inherit": True, "folder": str(shared), "peers": 2}
        more = [{**common, **(changes or {}).get(i, {})} for i in range(count)]
        entries = [host.entry(**each) for host, each in zip(hosts, more, strict=True)]
        made.append(Launch(hosts, tmp_path, entries))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all hosts see, like a home on a file server: one installation for all."""
    return tmp_path_factory.mktemp("home") / "p2p-dml"


@pytest.fixture
def no_files(shared: Path, tmp_path: Path) -> Iterator[None]:
    """No file of a run is left on any host, but for what a lost one had before."""
    before = set(shared.glob("runs/*"))
    yield
    assert {*shared.glob("runs/*"), *tmp_path.glob("new/runs/*")} <= before


@pytest.mark.usefixtures("no_files")
def test_from_bare_hosts_to_the_report_in_one_command(on: Launcher, shared: Path) -> None:
    assert not shared.exists()
    launch = on(5)
    launch.start("launch", RUN)
    assert launch.end() == 0, launch.said
    assert launch.said.count("installing what the package needs") == 1
    assert "copied: run.toml, keys" in launch.said
    assert "report: out/report.html" in launch.said
    summary = launch.summary
    assert (summary["peers_finished"], summary["peers_lost"], summary["mode"]) == (10, 0, "launch")
    assert summary["missing_messages"] == summary["rejected"] == 0
    assert len(list(launch.out.glob("checkpoints/*/*.safetensors"))) == 10
    assert not list(shared.rglob("*.key"))


@pytest.mark.usefixtures("no_files")
def test_a_host_that_is_cut_off_for_ten_seconds_goes_on(on: Launcher) -> None:
    launch = on(5)
    launch.start("launch", LONG)
    launch.wait_for_round(5)
    launch.hosts[2].cut()
    cut_at = time.time()
    launch.wait_until(lambda: time.time() > cut_at + 10, "ten seconds")
    launch.hosts[2].heal()
    assert launch.end() == 0, launch.said
    assert launch.summary["peers_finished"] == 10
    own = list(read_events(event_file(launch.out, 4)))
    rounds = [event for event in own if event["event"] == "round_done"]
    assert any(len(event["missing"]) == event["neighbours"] for event in rounds)
    assert not rounds[-1]["missing"]


def test_a_host_lost_for_good_costs_its_own_peers_alone(on: Launcher, shared: Path) -> None:
    launch = on(5)
    launch.start("launch", LONG)
    launch.wait_for_round(5)
    launch.hosts[3].kill()
    try:
        assert launch.end() == 1, launch.said
    finally:
        launch.hosts[3].revive()
    name = f"root@{launch.hosts[3].address}"
    assert f"host {name} was lost, and with it peers 6, 7: " in launch.said
    summary = launch.summary
    assert (summary["peers_finished"], summary["peers_lost"]) == (8, 2)
    assert [lost["peer"] for lost in summary["lost"]] == [6, 7]
    assert len(list(shared.glob("runs/*"))) == 1  # what power loss leaves the next launch removes


@pytest.mark.parametrize(
    ("moment", "is_new"),
    [
        ("", False),
        ("checked:", True),
        ("installing what the package needs", True),
        ("copied:", False),
    ],
)
@pytest.mark.usefixtures("no_files")
def test_ctrl_c_before_the_first_round_ends_everything(
    on: Launcher, tmp_path: Path, moment: str, is_new: bool
) -> None:
    folder = {"folder": str(tmp_path / "new")} if is_new else {}
    launch = on(2, {0: folder, 1: folder})
    launch.start("launch", {**LONG, "peers": 4})
    launch.wait_until(lambda: moment in launch.said and launch.hosts[1].started(), moment)
    launch.signal(signal.SIGINT)
    assert launch.end() == 5, launch.said
    assert not launch.out.exists()
    assert "Traceback" not in launch.said


@pytest.mark.usefixtures("no_files")
def test_ctrl_c_in_the_run_lets_all_save_the_same_round_to_go_on_after(on: Launcher) -> None:
    launch = on(2)
    launch.start("launch", {**LONG, "peers": 4})
    launch.wait_for_round(3)
    launch.signal(signal.SIGINT)
    assert launch.end() == 5, launch.said
    assert launch.summary["peers_stopped"] == 4
    saved = [saved_rounds(launch.out, peer) for peer in range(4)]
    (last,) = saved[0]
    assert saved == [[last]] * 4
    launch.resume(last + 2)
    assert launch.end() == 0, launch.said
    assert f"resumed after round {last} of {last + 2}" in launch.said
    assert launch.summary["peers_finished"] == 4


@pytest.mark.usefixtures("no_files")
def test_a_second_ctrl_c_does_not_wait(on: Launcher) -> None:
    launch = on(2)
    slow = {"round_s": 1000.0}
    launch.start("launch", {**LONG, "peers": 4, "stragglers": slow, "rounds": 2})
    launch.wait_until(
        lambda: all(
            event_file(launch.out, peer).exists()
            and "joined" in event_file(launch.out, peer).read_text(encoding="utf-8")
            for peer in range(4)
        ),
        "all peers have met",
    )
    launch.signal(signal.SIGINT)
    first_at = time.time()
    launch.wait_until(lambda: time.time() > first_at + 1, "two signals at once would be one")
    launch.signal(signal.SIGINT)
    assert launch.end() == 1, launch.said
    assert launch.summary["peers_lost"] == 4


@pytest.mark.parametrize("moment", ["installing what the package needs", "round 1"])
@pytest.mark.usefixtures("no_files")
def test_nothing_outlives_a_launcher_that_is_killed(
    on: Launcher, tmp_path: Path, moment: str
) -> None:
    folder = {"folder": str(tmp_path / "new")} if moment.startswith("installing") else {}
    launch = on(2, {0: folder, 1: folder})
    launch.start("launch", {**LONG, "peers": 4})
    if folder:
        launch.wait_until(lambda: moment in launch.said and launch.hosts[0].started(), moment)
    else:
        launch.wait_for_round(1)
    launch.signal(signal.SIGKILL)
    assert launch.end() == -signal.SIGKILL


@pytest.mark.usefixtures("no_files")
def test_nothing_outlives_the_connection(on: Launcher) -> None:
    """The launching machine is gone from one moment to the next: nobody says goodbye."""
    launch = on(2)
    launch.start("launch", {**LONG, "peers": 4, "rounds": 10_000})
    launch.wait_for_round(1)
    for host in launch.hosts:
        host.cut()
    try:
        launch.signal(signal.SIGKILL)
        assert launch.end() == -signal.SIGKILL
    finally:
        for host in launch.hosts:
            host.heal()


@pytest.mark.usefixtures("no_files")
def test_doctor_names_each_fault_with_its_fix(on: Launcher, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\necho; echo 'p2p-dml agent on Python 3.6.8'\n", encoding="ascii")
    old.chmod(0o755)
    strange = {"ssh_options": ["-F", "/dev/null", "-o", "StrictHostKeyChecking=yes"]}
    launch = on(5, {1: {"python": str(old)}, 2: strange, 3: {"ssh": "root@10.213.1.77"}})
    launch.hosts[4].close_ports(5800, 5801)
    launch.start("doctor", {**RUN, "data": "mnist"})
    try:
        assert launch.end() == 3, launch.said
    finally:
        launch.hosts[4].heal()
    found = [line for line in launch.said.splitlines() if line.startswith("error: ")]
    ours = {host.address: [x for x in found if f"@{host.address}: " in x] for host in launch.hosts}
    zero, one, two, _, four = ours.values()
    assert any("data set 'mnist' is not" in line for line in zero)
    assert any("is Python 3.6.8, and 3.10 is the oldest" in line for line in one)
    assert any("Host key verification failed" in line and "by hand" in line for line in two)
    assert any("cannot be reached from any other host" in line for line in four)
    assert any("root@10.213.1.77: " in line and "is it up" in line for line in found)


def test_hosts_that_are_fine_are_shown_with_their_links(on: Launcher) -> None:
    launch = on(5)
    launch.start("doctor", RUN)
    assert launch.end() == 0, launch.said
    lines = launch.said.splitlines()
    assert sum("fine" in line for line in lines) == 5
    assert sum(line.lstrip().startswith("from") for line in lines) == 2
