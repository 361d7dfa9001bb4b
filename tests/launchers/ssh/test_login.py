"""How hosts are called, and what is said when they do not answer."""

from __future__ import annotations

import sys

import pytest

from p2p_dml.launchers.ssh.hosts import Host, HostEntry
from p2p_dml.launchers.ssh.login import command, explain

HOST = Host(index=0, entry=HostEntry(ssh="me@gpu1", python=sys.executable), peers=range(2))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("Host key verification failed.", "connect once by hand, `ssh me@gpu1`"),
        ("me@gpu1: Permission denied (publickey).", "ssh-copy-id me@gpu1"),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "~/.ssh/config"),
        ("ssh: connect to host gpu1 port 22: Connection timed out", "is it up"),
    ],
)
def test_words_of_ssh_come_with_what_helps(words: str, hint: str) -> None:
    assert explain(words, HOST).startswith(f"{words}; ")
    assert hint in explain(words, HOST)


def test_other_words_stay_alone() -> None:
    assert explain("oops", HOST) == "oops"


def test_options_of_the_user_come_first_as_ssh_takes_the_first() -> None:
    entry = HostEntry(ssh="gpu1", ssh_options=["-o", "ConnectTimeout=99"])
    words = command(Host(index=0, entry=entry, peers=range(1)), 60.0)
    assert words[:3] == ["ssh", "-o", "ConnectTimeout=99"]
    assert words.index("ConnectTimeout=10") > 2
    assert "BatchMode=yes" in words
    assert words[words.index("--") + 1] == "gpu1"


@pytest.mark.parametrize("lost_s", [5.0, 10.0, 60.0, 600.0])
def test_ssh_gives_up_about_when_a_host_is_lost(lost_s: float) -> None:
    words = command(HOST, lost_s)
    (interval,) = (int(w.partition("=")[2]) for w in words if w.startswith("ServerAliveInt"))
    (count,) = (int(w.partition("=")[2]) for w in words if w.startswith("ServerAliveCount"))
    assert 0.8 * lost_s <= interval * count <= 1.25 * lost_s


@pytest.mark.parametrize(
    ("python", "word"),
    [("python3", "python3"), ("~/my env/bin/python", "~/'my env/bin/python'"), ("/a b", "'/a b'")],
)
def test_a_python_at_home_is_found_by_the_shell(python: str, word: str) -> None:
    entry = HostEntry(ssh="gpu1", python=python)
    remote = command(Host(index=0, entry=entry, peers=range(1)), 60.0)[-1]
    assert remote.startswith(f"{word} -c '")
