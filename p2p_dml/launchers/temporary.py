"""The temporary folder of a run on this machine, gone with it however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2p_dml.errors import StorageError

_PREFIX, _LOCK = "p2p-", "lock"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in memory, if there is one; removed at the end.

    Where everything of a run was killed at once, nobody is left to do so: the next one to make such
    a folder removes those whose maker is gone.
    """
    memory = Path("/dev/shm")
    has_memory = memory.is_dir() and os.access(memory, os.W_OK)
    place = memory if has_memory else Path(tempfile.gettempdir())
    try:
        for left in place.glob(f"{_PREFIX}*/{_LOCK}"):
            _remove_if_left(left)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as name, _locked(Path(name)):
            yield Path(name)
    except OSError as error:
        raise StorageError(f"cannot use a temporary folder: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel lets go however this process ends."""
    with (path / "unlocked").open("wb") as lock:
        with suppress(OSError):  # no locks here: nobody will take the folder for left behind
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, path / _LOCK)  # found by others from now on, and held already
        yield


def _remove_if_left(lock: Path) -> None:
    with suppress(OSError), lock.open("rb") as file:  # another user's; held; or gone meanwhile
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)
