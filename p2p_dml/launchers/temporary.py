"""The temporary folder of a run on this machine, gone with it however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

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
    with _explained():
        for left in place.glob(f"{_PREFIX}*/{_LOCK}"):
            _remove_if_left(left)
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place)
        try:
            lock = _locked(Path(folder.name))
        except OSError:
            folder.cleanup()
            raise
    try:
        yield Path(folder.name)
    finally:
        with _explained():
            lock.close()
            folder.cleanup()


@contextmanager
def _explained() -> Iterator[None]:
    """Say of a failure to make or remove the folder what it is; those of the run are its own."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use a temporary folder: {error}") from error


def _locked(path: Path) -> IO[bytes]:
    """The folder's lock, held; the kernel lets it go however this process ends."""
    lock = (path / "unlocked").open("wb")
    with suppress(OSError):  # no locks here: nobody will take the folder for left behind
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, path / _LOCK)  # found by others from now on, and held already
    return lock


def _remove_if_left(lock: Path) -> None:
    with suppress(OSError), lock.open("rb") as file:  # another user's; held; or gone meanwhile
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)
