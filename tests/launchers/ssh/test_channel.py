"""Connections: what hosts say comes through, why one cannot be used is said, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from p2p_dml.launchers.ssh.channel import HostError, Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster

if TYPE_CHECKING:
    from tests.launchers.ssh.conftest import Hosts

OLD = "#!/bin/sh\necho; echo 'p2p-dml agent on Python 3.6.8'\n"


@contextmanager
def _board(cluster: Cluster) -> Iterator[Switchboard]:
    with closing(Switchboard(cluster.hosts, cluster.lost_s)) as board:
        yield board


def _ask(**head: object) -> Talk[object]:
    return (yield Request(head=head))


def _open() -> Talk[object]:
    """Have a folder made for a launch."""
    return (yield Request(head={"ask": "open", "folder": "~/.cache/p2p-dml"}))


def _expect_no_process(hosts: Hosts) -> None:
    """Those that have lost their ssh need a moment to notice."""
    deadline = time.monotonic() + 30
    while hosts.processes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_host_answers_for_itself(hosts_here: Hosts) -> None:
    names = ["alpha", "beta", "gamma"]
    cluster = hosts_here.cluster(*map(hosts_here.entry, names))
    with _board(cluster) as board:
        results, failures = board.converse({host: _open() for host in cluster.hosts})
        assert not failures
        for name, host in zip(names, cluster.hosts, strict=True):
            (folder,) = hosts_here.left(name)
            assert results[host] == {"home": str(folder / "home"), "out": str(folder / "out")}
        assert len(hosts_here.processes()) >= len(names)
    assert not any(map(hosts_here.left, names))
    assert not hosts_here.processes()


def test_a_file_of_many_pieces_arrives(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(hosts_here.entry("alpha"))
    content = os.urandom(3_000_000)

    def bring() -> Talk[object]:
        yield Request(head={"ask": "open", "folder": "~/.cache/p2p-dml"})
        file = (content, "home", "keys/a.key", 0o600)
        return (yield Request(head={"ask": "time"}, files=[file]))

    with _board(cluster) as board:
        _, failures = board.converse({cluster.hosts[0]: bring()})
        assert not failures
        (folder,) = hosts_here.left("alpha")
        assert (folder / "home" / "keys" / "a.key").read_bytes() == content


def test_one_host_that_fails_does_not_hinder_another(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(*map(hosts_here.entry, ("unreachable", "alpha")))
    bad, good = cluster.hosts
    with _board(cluster) as board:
        results, failures = board.converse({host: _open() for host in cluster.hosts})
    assert list(results) == [good]
    assert "Connection refused; is sshd running there" in failures[bad]


def test_what_a_host_cannot_do_is_its_answer(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(hosts_here.entry("alpha"))
    (hosts_here.homes / "alpha").mkdir(parents=True)
    (hosts_here.homes / "alpha" / "file").touch()
    head = {"ask": "open", "folder": "~/file/below"}
    with _board(cluster) as board:
        _, failures = board.converse({cluster.hosts[0]: _ask(**head)})
    assert "Not a directory" in failures[cluster.hosts[0]]


def test_a_talk_may_give_up(hosts_here: Hosts) -> None:
    def give_up() -> Talk[object]:
        yield Request(head={"ask": "time"})
        raise HostError("not good enough")

    cluster = hosts_here.cluster(hosts_here.entry("alpha"))
    with _board(cluster) as board:
        _, failures = board.converse({cluster.hosts[0]: give_up()})
    assert list(failures.values()) == ["not good enough"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (OLD, "is Python 3.6.8, and 3.10 is the oldest that will do"),
        ("#!/bin/sh\nexit 3\n", "ssh ended with exit code 3"),
        ("#!/bin/sh\necho 'sh: python3: not found' >&2; exit 127\n", "where Python is there"),
        (f"#!/bin/sh\n{OLD.splitlines()[1].replace('3.6.8', '3.12.0')}\necho oops\n", "not speak"),
    ],
)
def test_a_python_that_will_not_do_is_told(hosts_here: Hosts, script: str, expected: str) -> None:
    tool = hosts_here.folder / "tools" / "strange-python"
    tool.write_text(script, encoding="ascii")
    tool.chmod(0o755)
    cluster = hosts_here.cluster(hosts_here.entry("alpha", python=str(tool)))
    with _board(cluster) as board:
        _, failures = board.converse({cluster.hosts[0]: _open()})
    assert expected in failures[cluster.hosts[0]]


def test_a_killed_connection_is_told_and_leaves_nothing(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(hosts_here.entry("alpha"))
    (host,) = cluster.hosts
    with _board(cluster) as board:
        board.converse({host: _open()})
        for pid in hosts_here.processes():
            os.kill(pid, signal.SIGTERM)
        _, failures = board.converse({host: _ask(ask="time")})
    assert failures[host]
    assert not hosts_here.left("alpha")


def test_a_silent_host_is_lost(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(hosts_here.entry("alpha"), lost_s=5.0)
    (host,) = cluster.hosts
    with _board(cluster) as board:
        board.converse({host: _open()})
        stopped = hosts_here.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        _, failures = board.converse({host: _ask(ask="time")})
        for pid in stopped & hosts_here.processes():
            os.kill(pid, signal.SIGCONT)
    assert failures[host] == "nothing was heard of it for 5 s"
    _expect_no_process(hosts_here)
