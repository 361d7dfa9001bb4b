"""The run folder: made once, never written over."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from p2p_dml import __version__, config, kernels
from p2p_dml.assemble import Blueprint
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, StorageError


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
) -> None:
    """Write `run.toml` and `run.json`; StorageError, and no new folder left, if it cannot.

    `is_virtual`: the times of all events are those of virtual clocks. `program`: what the user
    called, before the arguments.
    """
    facts = {
        "name": shared.config.name,
        "digest": shared.digest(model).hex(),
        "version": __version__,
        "command": f"{program} {shlex.join(sys.argv[1:])}",
        "mode": mode,
        "pace": shared.config.pace["name"],
        "stragglers": sorted(shared.stragglers),
        "clock": "virtual" if is_virtual else "wall",
        "evaluate_on": shared.config.evaluate_on,
        "kernels": kernels.backend(),
        "host": platform.node(),
        "started": started,
        "strategy": shared.config.strategy.get("name"),
        "peers": shared.config.peers,
        "rounds": shared.config.rounds,
        "seed": shared.config.seed,
        "params": sum(x.numel() for x in model.parameters()),
        "num_classes": shared.dataset.num_classes if shared.dataset else None,
    }
    is_new = not path.exists()
    try:
        with storage(path):
            (path / "events").mkdir(parents=True, exist_ok=True)
            (path / "logs").mkdir(exist_ok=True)
            config.dump(shared.config, path / "run.toml")
            (path / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except StorageError:
        if is_new:
            shutil.rmtree(path, ignore_errors=True)
        raise


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
