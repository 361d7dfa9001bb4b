"""Encrypted runs on real processes: the bits of the simulator, and strangers that stay outside."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml import keys
from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

pytestmark = pytest.mark.slow

PEERS, ROUNDS = 3, 4
BASE: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "strategy": "dpsgd",
    "links": "complete",
    "train": {"steps": 2},
    "model": {"name": "mlp", "hidden": [16]},
}


def has_the_simulators_bits(shell: Shell) -> bool:
    pairs = shell.final_models(PEERS, ROUNDS)
    return all(torch.equal(x, b[name]) for a, b in pairs for name, x in a.items())


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_local_run_makes_keys_of_its_own_and_leaves_none(shell: Shell, scheme: str) -> None:
    file = shell.write("run.toml", {**BASE, "transport": {"encryption": "curve", "scheme": scheme}})
    ended = shell.run("run", file, "--out", "out", "--quiet")
    assert (ended.code, ended.messages) == (0, [])
    summary = json.loads((shell.folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rejected"], summary["missing_messages"]) == (0, 0)
    assert [*shell.folder.rglob("*.key"), *shell.folder.rglob(keys.PUBLIC)] == []
    assert has_the_simulators_bits(shell)


def run_file(**transport: Any) -> dict[str, object]:
    lines = [socket.create_server(("127.0.0.1", 0)) for _ in range(PEERS)]
    ports = [line.getsockname()[1] for line in lines]
    for line in lines:
        line.close()
    fixed = {"addresses": [f"tcp://127.0.0.1:{port}" for port in ports], "encryption": "curve"}
    return {**BASE, "transport": {**fixed, "startup_s": 15.0, **transport}}


def peer(shell: Shell, file: str, me: int, out: str = "out") -> subprocess.Popen[str]:
    return shell.start("peer", file, "--me", str(me), "--out", out)


def test_peers_meet_with_the_keys_of_a_folder(shell: Shell) -> None:
    keys.create(shell.folder / "keys", PEERS)
    file = shell.write("run.toml", run_file())
    ended = [shell.end(each) for each in [peer(shell, file, me) for me in range(PEERS)]]
    assert [each.code for each in ended] == [0] * PEERS
    assert has_the_simulators_bits(shell)


def test_a_peer_with_keys_of_another_run_is_named_and_told(shell: Shell) -> None:
    keys.create(shell.folder / "keys", PEERS)
    keys.create(shell.folder / "others", PEERS)
    tables = run_file()
    file = shell.write("run.toml", tables)
    transport = {**dict(tables["transport"]), "keys": "others"}  # type: ignore[call-overload]
    other = shell.write("other.toml", {**tables, "transport": transport})
    started = [peer(shell, file, 0), peer(shell, file, 1), peer(shell, other, 2, "elsewhere")]
    ended = [shell.end(each) for each in started]
    assert [each.code for each in ended] == [3] * PEERS
    assert "no hello within 15 s from peer 2" in ended[0].messages[0]
    # Of who is gone at once libzmq may not tell the address.
    assert "Refused meanwhile: " in ended[0].messages[0]
    assert "made a handshake without a key, or not with this peer's" in ended[0].messages[0]
    assert "ended the handshake: are both keys of this run?" in ended[2].messages[0]
    events = [*read_events(event_file(shell.folder / "out", 0))]
    assert [e["sender"] for e in events if e["event"] == "rejected"][:1] == [None]


def test_without_keys_the_commands_that_make_them_are_said(shell: Shell) -> None:
    file = shell.write("run.toml", run_file(encryption="auto", listen="tcp://*:0"))
    ended = shell.end(peer(shell, file, 0))
    assert ended.code == 2
    assert f"p2p-dml keys new keys --peers {PEERS}" in ended.err
    assert not (shell.folder / "out").exists()


def test_a_key_that_others_may_read_is_not_used(shell: Shell) -> None:
    keys.create(shell.folder / "keys", PEERS)
    (shell.folder / "keys" / keys.secret_file(0)).chmod(0o644)
    ended = shell.end(peer(shell, shell.write("run.toml", run_file()), 0))
    assert (ended.code, "chmod 600" in ended.messages[0]) == (2, True)
