"""The folder of a sweep: a folder for each case, and a mark in those that are finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2p_dml import config
from p2p_dml.errors import ConfigError
from p2p_dml.files import write_whole
from p2p_dml.launchers.folder import storage
from p2p_dml.sweep._values import Case

_MARK = "finished.json"
_LOG_TAIL_BYTES = 1 << 16


def case_folder(out: Path, case: Case) -> Path:
    """Where everything about a case is."""
    return out / "cases" / case.digest


def run_folder(out: Path, case: Case) -> Path:
    """The run folder of a case, as `p2p-dml run` writes it."""
    return case_folder(out, case) / "run"


def is_finished(out: Path, case: Case) -> bool:
    """Whether a case has a result that holds."""
    return (case_folder(out, case) / _MARK).is_file()


@contextmanager
def opened(out: Path, text: str) -> Iterator[None]:
    """Make the folder of a sweep, or take it up again; `text` is the sweep file's.

    Raises ConfigError if it holds something else or another sweep is at work in it, StorageError
    if it cannot be written.
    """
    lock = out / ".lock"
    if out.exists() and not lock.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is not the folder of a sweep; choose another or remove it")
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--out {out}: another sweep is at work in this folder; wait or choose another"
            ) from error
        write_whole(out / "sweep.toml", text.encode())
        yield


def prepare(out: Path, case: Case) -> Path:
    """A fresh folder for a case with its run file; what an earlier attempt left is removed."""
    path = case_folder(out, case)
    with storage(path):
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        config.dump(case.config, path / "case.toml")
    return path


def mark_finished(path: Path, case: Case, seconds: float, device: str = "cpu") -> None:
    """Say in a case's folder that its result holds; to be called last."""
    facts: dict[str, object] = {"labels": dict(case.labels), "seed": case.seed}
    facts |= {"device": device, "process_s": round(seconds, 3)}
    write_whole(path / _MARK, (json.dumps(facts, indent=2) + "\n").encode())


def last_words(path: Path, code: int) -> str:
    """Why the process of a case ended with `code`: its error message, or what else it said last."""
    with (path / "log.txt").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")] or [x for x in lines if x.strip()]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{said[-1].removeprefix('error: ')} ({how})" if said else how
