"""The host's files: those that come from the launcher, and those that go to it as they grow."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2p_dml.launchers.ssh.remote.control import MAX_BODY, Frame


def receive(root: Path, head: Mapping[str, Any], body: bytes) -> None:
    """Write a piece of a file below `root`; it takes its name and mode when the last one is in."""
    path = root / head["put"]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if head["offset"] else os.O_TRUNC)
    with os.fdopen(os.open(part, flags, head["mode"]), "ab") as file:
        file.write(body)
    if head["is_last"]:
        part.replace(path)


def give(path: Path, owner: Sequence[int] | None) -> None:
    """Give a folder with all in it to a user and group, if there is an `owner` at all."""
    if owner is not None:
        for each in (path, *path.rglob("*")):
            os.chown(each, owner[0], owner[1])


class Scratch:
    """A new folder below `folder`/runs, for this launch alone; of earlier ones the rest is removed.

    A folder is left over if nobody holds the lock in it: its host lost power, say.
    """

    def __init__(self, folder: Path) -> None:
        runs = folder / "runs"
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in runs.iterdir():
            if _is_left_over(old):
                shutil.rmtree(old, ignore_errors=True)
        self.path = runs / secrets.token_hex(8)
        # The lock comes before the name, so that no other launch takes this one for left over.
        nascent = runs / f".{self.path.name}"
        nascent.mkdir(mode=0o700)
        self._lock = os.open(nascent / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        nascent.rename(self.path)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _is_left_over(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    try:
        with (path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Growing:
    """Sends what is appended to the files of a folder, and new files; links are passed over."""

    def __init__(self, root: Path, *patterns: str) -> None:
        self._root = root
        self._patterns = patterns
        self._sent: dict[Path, int] = {}

    def pieces(self) -> Iterator[Frame]:
        """What is new since it was last asked, a piece at a time."""
        for pattern in self._patterns:
            for path in sorted(self._root.glob(pattern)):
                if not path.is_symlink():
                    yield from self._pieces_of(path)

    def _pieces_of(self, path: Path) -> Iterator[Frame]:
        offset = self._sent.get(path, 0)
        while path.stat().st_size > offset:
            for frame in pieces(path, str(path.relative_to(self._root)), offset, MAX_BODY):
                offset += len(frame.body)
                self._sent[path] = offset
                yield frame


def pieces(path: Path, name: str, offset: int = 0, most: int | None = None) -> Iterator[Frame]:
    """A file from `offset` on as frames, under `name`; at most so many bytes."""
    with path.open("rb") as file:
        file.seek(offset)
        size = os.fstat(file.fileno()).st_size
        left = most if most is not None else size - offset
        while left > 0 and (chunk := file.read(min(left, MAX_BODY))):
            yield Frame({"file": name, "offset": offset, "size": size}, chunk)
            offset += len(chunk)
            left -= len(chunk)


def signed(frames: Iterable[Frame], name: str) -> Iterator[Frame]:
    """The frames, each saying of which program it is."""
    for frame in frames:
        yield Frame({**frame.head, "of": name}, frame.body)
