"""One copy of data set and shards for all processes of a machine, in memory where there is room."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from p2p_dml import data
from p2p_dml.assemble import Blueprint, Shards, blueprint
from p2p_dml.config import RunConfig
from p2p_dml.data import Dataset
from p2p_dml.errors import StorageError
from p2p_dml.launchers import folder
from p2p_dml.types import PeerId

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


def lay_out(dataset: Dataset | None, shards: Shards, path: Path) -> None:
    """Put data set and shards where every peer maps them, once for all."""
    if dataset is None:
        return
    data.share(dataset, path / "data")
    with folder.storage(path):
        for peer, shard in shards.items():
            np.save(path / f"shard-{peer}.npy", shard, allow_pickle=False)


def laid_out(config: RunConfig, path: Path, me: PeerId) -> Blueprint:
    """What `lay_out` left, with the shard of peer `me` alone."""
    return with_shards(shared_by_all(config, path), path, [me])


def shared_by_all(config: RunConfig, path: Path) -> Blueprint:
    """What `lay_out` left, without a shard."""
    dataset = data.open_shared(path / "data") if (path / "data").exists() else None
    return blueprint(config, dataset)


def with_shards(parts: Blueprint, path: Path, peers: Iterable[PeerId]) -> Blueprint:
    """The same with the shards of `peers` alone, those it has not read from `path`."""
    if parts.dataset is None:
        return parts
    had = parts.shards
    shards = {j: had[j] if j in had else np.load(path / f"shard-{j}.npy") for j in peers}
    return replace(parts, shards=shards)
