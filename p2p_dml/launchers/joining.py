"""`p2p-dml join`: one more peer for a run that goes on, asked for by way of its folder."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from p2p_dml.config import load
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.files import write_whole
from p2p_dml.launchers import folder
from p2p_dml.types import PeerId

_REQUEST, _ANSWER = ".join-{}", ".joined-{}"
_PATIENCE_S = 10.0


def ask(run: Path) -> PeerId:
    """Ask the launcher of the run in this folder for another peer; returns its id.

    Raises ConfigError if the run cannot grow, StartupError if nobody answers.
    """
    if not (run / folder.SETTINGS).exists():
        raise ConfigError(f"{run}: not a run folder: expected such as runs/demo")
    config = load(run / folder.SETTINGS)
    if not config.elastic:
        raise ConfigError(f"{run}: its peers are fixed; set elastic = true in the run file")
    name = secrets.token_hex(8)
    request, answer = (run / text.format(name) for text in (_REQUEST, _ANSWER))
    with folder.storage(run):
        request.touch()
    try:
        peer = _wait_for(answer)
    finally:
        for file in (request, answer):
            file.unlink(missing_ok=True)
    if peer is None:
        raise ConfigError(
            f"{run}: nobody can join: all {config.peers} peers are running, the most that the run "
            "file allows, or the run is at its end"
        )
    return peer


def _wait_for(answer: Path) -> PeerId | None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            peer: PeerId | None = json.loads(answer.read_text(encoding="utf-8"))
            return peer
        time.sleep(0.05)
    raise StartupError(
        f"{answer.parent}: nobody answers: `p2p-dml run` of this folder is not running here, or "
        "its peers are not started by it"
    )


def answer(run: Path, add: Callable[[], PeerId | None]) -> None:
    """The launcher's: `add` a peer for each that was asked for, and say which."""
    prefix = _REQUEST.format("")
    for name in sorted(os.listdir(run)):
        if name.startswith(prefix):
            (run / name).unlink(missing_ok=True)
            write_whole(run / _ANSWER.format(name.removeprefix(prefix)), json.dumps(add()).encode())
