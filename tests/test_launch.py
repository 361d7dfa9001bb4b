"""The scripts in launch/: each is run as a person would run it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*args: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "launch" / "peers.sh"), *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": path}, timeout=100
    )


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for first in range(20_000, 30_000, 100):
        taken = 0
        for port in range(first, first + count):
            with socket.socket() as probe:
                taken += probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return first
    raise AssertionError("no free ports")


@pytest.mark.slow
def test_one_process_per_peer_at_fixed_addresses(tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ["peers=3", "rounds=2", "links=ring", f"transport.base_port={free_ports(3)}"]
    options = [word for change in changes for word in ("--set", change)]
    ended = run(str(ROOT / "examples" / "demo.toml"), str(out), *options)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["peers_finished"] == 3
    assert "report:" in ended.stdout


def test_without_arguments_it_says_how_to_call_it() -> None:
    ended = run()
    assert ended.returncode == 2
    assert "launch/peers.sh run.toml RUN_FOLDER" in ended.stderr
