"""The run folder: made once, never written over, and by one run at a time."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from p2p_dml import __version__, config, kernels
from p2p_dml.assemble import Blueprint
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.files import write_whole

FACTS, SETTINGS, _LOCK = "run.json", "run.toml", "run.lock"

_PATIENCE_S = 5.0
"""How long the processes of a run whose launcher was killed may take to go."""


def choose(out: Path | None, run: RunConfig) -> Path:
    """The folder to write to: `out`, or a new one below `runs/` named after the run.

    Raises ConfigError if `out` holds something already.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: is not an empty folder; choose another or remove it")
        return out
    stem = f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (Path("runs", stem + suffix) for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    return next(path for path in candidates if not path.exists())


def create(
    path: Path,
    shared: Blueprint,
    model: nn.Module,
    mode: str,
    started: float,
    *,
    is_virtual: bool = False,
    program: str = "p2p-dml",
    batched: bool = False,
    device: str = "cpu",
) -> None:
    """Write `run.toml` and `run.json`; StorageError, and no new folder left, if it cannot.

    `is_virtual`: the times of all events are those of virtual clocks. `program`: what the user
    called, before the arguments. `batched` and `device`: how a simulation computes.
    """
    is_new = not path.exists()
    try:
        with storage(path):
            (path / "events").mkdir(parents=True, exist_ok=True)
            (path / "logs").mkdir(exist_ok=True)
            config.dump(shared.config, path / SETTINGS)
            facts = _facts(shared, model, mode, started)
            facts |= {"clock": "virtual" if is_virtual else "wall", "command": command(program)}
            write_facts(path, facts | {"batched": batched, "device": device})
    except StorageError:
        if is_new:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _facts(shared: Blueprint, model: nn.Module, mode: str, started: float) -> dict[str, Any]:
    """What `run.json` says, whatever the launcher."""
    return {
        "name": shared.config.name,
        "digest": shared.digest(model).hex(),
        "version": __version__,
        "mode": mode,
        "pace": shared.config.pace["name"],
        "stragglers": sorted(shared.stragglers),
        "evaluate_on": shared.config.evaluate_on,
        "kernels": kernels.backend(),
        "folder": str(shared.config.folder.resolve()),
        "host": platform.node(),
        "started": started,
        "strategy": shared.config.strategy.get("name"),
        "peers": shared.config.peers,
        "first_peers": shared.config.first_peers,
        "rounds": shared.config.rounds,
        "seed": shared.config.seed,
        "params": sum(x.numel() for x in model.parameters()),
        "num_classes": shared.dataset.num_classes if shared.dataset else None,
    }


def command(program: str = "p2p-dml") -> str:
    """What the user typed."""
    return f"{program} {shlex.join(sys.argv[1:])}"


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json`, whole or not at all; StorageError if it cannot be."""
    write_whole(path / FACTS, (json.dumps(facts, indent=2) + "\n").encode())


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Show to whoever would resume the run that a process of it is alive, however it ends.

    Does nothing on a file system that has no locks. StorageError if the folder cannot be written.
    """
    with _lock_file(path) as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


@contextmanager
def claimed(path: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """`held` by this process, after all others of the run have ended.

    Raises ConfigError if they do not in `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    with _lock_file(path) as lock:
        while not _is_free(lock):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{path}: this run is still going on: a process of it is alive; stop it "
                    "first (Ctrl-C, or SIGTERM to its launcher)"
                )
            time.sleep(0.05)
        yield


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    with storage(path):
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock
    finally:
        os.close(lock)


def _is_free(lock: int) -> bool:
    """Whether nobody else has the lock, which is then held. True if there are no locks here."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Not in one move: whoever comes in between has the lock, and this one has not.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into a StorageError that says so."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to the run folder {path}: {error.strerror}; "
            "free some space or choose another folder with --out"
        ) from error
