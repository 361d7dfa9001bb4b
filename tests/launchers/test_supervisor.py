"""The supervisor of a host, driven by pipes as the program at a host's end of an ssh drives it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import tomli_w
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.data import Dataset
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated
from p2p_dml.launchers.hosting import digest
from p2p_dml.launchers.line import LauncherGone, Line

PEERS, ROUNDS = 4, 3
RUN: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "links": "ring",
    "strategy": "dpsgd",
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "train": {"lr": 0.1, "steps": 2},
}


@final
class Host:
    """A supervisor of some peers of a run, on a host that is a folder."""

    def __init__(self, folder: Path, peers: Sequence[int], run: Mapping[str, Any]) -> None:
        self.run = folder / "run"
        self.peers = peers
        folder.mkdir()
        (folder / "run.toml").write_text(tomli_w.dumps(run), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "p2p_dml.launchers.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        listen = run["transport"]["addresses"]
        order = {"home": str(folder), "run": str(self.run), "peers": list(peers)}
        self.tell({**order, "listen": listen, "started": 0.0, "past": None})

    def tell(self, order: Mapping[str, Any]) -> None:
        """Say a line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def hear(self, what: str) -> Any:
        """The next line that says `what`; other lines are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if what in (said := json.loads(line)):
                return said[what]
        raise AssertionError(f"it ended and never said {what!r}")

    def end(self) -> int:
        """Close its input; its exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


Hire = Callable[..., tuple[Host, Host]]


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Hire]:
    """Two hosts, with `here` peers on the first; more tables for the run."""
    hosts: list[Host] = []

    def start(here: int = PEERS // 2, **more: object) -> tuple[Host, Host]:
        run = {**RUN, "transport": {"addresses": _addresses()}, **more}
        hosts.append(Host(tmp_path / "a", range(here), run))
        hosts.append(Host(tmp_path / "b", range(here, PEERS), run))
        return hosts[0], hosts[1]

    yield start
    for host in hosts:
        host.end()


def _addresses() -> list[str]:
    """Free ones, of ports that the system has given and taken back."""
    probes = [socket.socket() for _ in range(PEERS)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return found


def _meet(*hosts: Host) -> None:
    """Bring all peers to the first round."""
    for step, answer in ((None, "ready"), ("begin", "gathered"), ("meet", None)):
        for host in hosts:
            if step:
                host.tell({"do": step})
        for host in hosts:
            if answer:
                host.hear(answer)


def _pids(host: Host) -> list[int]:
    """Of its peers, by their own logs."""
    logs = [host.run / "events" / f"peer-{peer:03d}.jsonl" for peer in host.peers]
    return [json.loads(log.read_text(encoding="utf-8").splitlines()[0])["pid"] for log in logs]


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_two_hosts_are_one_run_bit_for_bit(hire: Hire, tmp_path: Path) -> None:
    hosts = hire()
    for host in hosts:
        ready = host.hear("ready")
        assert ready["facts"]["mode"] == "launch"
        assert ready["data"] is not None
        host.tell({"do": "begin"})
    for host in hosts:
        host.hear("gathered")
    for host in hosts:
        host.tell({"do": "meet"})
    for host in hosts:
        over = host.hear("over")
        assert over == {"exit_codes": {str(peer): 0 for peer in host.peers}, "errors": {}}
        assert host.end() == 0
    simulated.simulate(config.parse(RUN, tmp_path), tmp_path / "simulated", lambda *_: _nothing)
    for host in hosts:
        for peer in host.peers:
            file = checkpoint_file(peer, ROUNDS)
            ours, expected = load(host.run / file), load(tmp_path / "simulated" / file)
            for name, x in expected.tensors.items():
                assert torch.equal(x, ours.tensors[name])


def _nothing() -> None:
    """What is done after each round."""


@pytest.mark.slow
def test_stopped_peers_finish_a_round_and_save(hire: Hire) -> None:
    hosts = hire(rounds=10**6)
    _meet(*hosts)
    for host in hosts:
        host.tell({"do": "stop"})
    for host in hosts:
        assert set(host.hear("over")["exit_codes"].values()) == {5}
        assert len(list(host.run.glob("checkpoints/*/*.safetensors"))) == len(host.peers)


@pytest.mark.slow
def test_peers_of_all_hosts_end_after_the_same_round(hire: Hire) -> None:
    hosts = hire(rounds=10**6)
    _meet(*hosts)
    for host in hosts:
        host.tell({"do": "call"})
    last = max(round_ for host in hosts for round_ in host.hear("begun")) + 2
    for host in hosts:
        host.tell({"do": "end", "round": last})
    for host in hosts:
        assert set(host.hear("over")["exit_codes"].values()) == {5}
        saved = [path.stem for path in host.run.glob("checkpoints/*/*.safetensors")]
        assert saved == [f"round-{last:06d}"] * len(host.peers)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGKILL"])
def test_no_peer_outlives_its_supervisor(hire: Hire, way: str) -> None:
    first, second = hire(rounds=10**6)
    _meet(first, second)
    pids = _pids(first)
    assert all(map(_is_alive, pids))
    if way == "SIGTERM":
        first.signal(signal.SIGTERM)
    elif way == "SIGKILL":
        first.kill()
    first.end()
    while any(map(_is_alive, pids)):  # the test's time limit ends this
        os.sched_yield()


@pytest.mark.slow
@pytest.mark.parametrize(("here", "lost"), [(2, 1), (1, 0)], ids=["one of two", "the only one"])
def test_a_lost_peer_is_started_again_at_its_address(hire: Hire, here: int, lost: int) -> None:
    """With data of its host and at its port; to the launcher it never ended."""
    fault = {"peers": [lost], "round": 4, "kind": "kill"}
    rounds = {"rounds": 60, "stragglers": {"round_s": 0.15}, "evaluate_every": 0}
    hosts = hire(here, faults=[fault], restarts=1, **rounds)
    _meet(*hosts)
    for host in hosts:
        assert host.hear("over") == {"exit_codes": {str(p): 0 for p in host.peers}, "errors": {}}
    first, second = (_events(hosts[0], lost, name) for name in ("started", "rejoined"))
    assert len({event["endpoint"] for event in first}) == 1
    assert [len(first), len(second)] == [2, 1]
    for peer in ((lost + 1) % PEERS, (lost - 1) % PEERS):  # its neighbours on the ring
        host = next(host for host in hosts if peer in host.peers)
        missing = [event["missing"] for event in _events(host, peer, "round_done")]
        assert missing[3] == [lost]
        assert missing[-3:] == [[]] * 3


def _events(host: Host, peer: int, name: str) -> list[dict[str, Any]]:
    lines = read_events(event_file(host.run, peer))
    return [line for line in lines if line["event"] == name]


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_before_anyone_begins(hire: Hire) -> None:
    addresses = _addresses()
    with socket.socket() as listener:
        host, _, port = addresses[1].removeprefix("tcp://").rpartition(":")
        listener.bind((host, int(port)))
        listener.listen()
        first, _second = hire(transport={"addresses": addresses})
        first.hear("ready")
        first.tell({"do": "begin"})
        over = first.hear("over")
    assert over["exit_codes"] == {"1": 3}
    assert "cannot listen on" in over["errors"]["1"]


@pytest.mark.slow
def test_an_error_of_the_run_file_is_said(hire: Hire) -> None:
    first, second = hire(data="no-such-set")
    for host in (first, second):
        assert "no-such-set" in host.hear("failed")
        assert host.end() == 2


def test_orders_may_come_in_pieces() -> None:
    source, sink = os.pipe()
    line = Line(source, io.StringIO())
    assert line.next(0.0) is None
    os.write(sink, b'{"do": "be')
    assert line.next(0.0) is None
    os.write(sink, b'gin"}\n{"do": "meet"}\n')
    assert [line.next(0.0), line.next(None)] == [{"do": "begin"}, {"do": "meet"}]
    os.close(sink)
    with pytest.raises(LauncherGone):
        line.next(0.0)
    os.close(source)


def _dataset(*ones: str) -> Dataset:
    """Of zeros, but ones in the named arrays."""
    shapes = {"train_x": (4, 1, 2, 2), "train_y": (4,), "test_x": (4, 1, 2, 2), "test_y": (4,)}
    arrays: dict[str, Any] = {
        name: np.full(shape, name in ones, np.float32 if name.endswith("x") else np.int64)
        for name, shape in shapes.items()
    }
    return Dataset(name="zeros", num_classes=2, **arrays)


def test_the_digest_is_of_every_sample_and_label() -> None:
    changes = [(), ("train_x",), ("test_x",), ("train_y",), ("test_y",)]
    found = [digest(_dataset(*ones)) for ones in changes]
    assert len(set(found)) == len(changes)
    assert digest(_dataset()) == found[0]
    assert digest(None) is None
