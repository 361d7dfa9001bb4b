"""How peers of one machine learn each other's addresses: bind first, then tell, then be told.

Every peer binds a free address of its own choice and registers it at the launcher's desk, a Unix
socket; once all have, the desk answers everyone with the whole address book. No port is guessed,
so none can be taken in between.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from p2p_dml.errors import StartupError
from p2p_dml.files import write_whole
from p2p_dml.graph import PeerId

Book = dict[PeerId, str]

_BOOK = ".book"

_PATIENCE_S = 5.0
"""How long a peer that reads nothing, such as a stopped one, may keep the book from the others."""


class Desk:
    """The launcher's end."""

    def __init__(self, path: Path, peers: Collection[PeerId]) -> None:
        """Listen at `path`. Raises StartupError if that cannot be."""
        self._peers = frozenset(peers)
        self._left_behind = path.with_suffix(_BOOK)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
        except OSError as error:
            self._listener.close()
            raise StartupError(
                f"cannot listen on {path}: {error}; set TMPDIR to a folder with room and a short "
                "name"
            ) from error
        self._listener.listen(len(self._peers))
        self._book: Book = {}
        self._visitors: list[socket.socket] = []

    def gather(self, timeout_s: float, check: Callable[[], None]) -> Book:
        """Wait until all `peers` have registered, calling `check` meanwhile (it may raise).

        Who ends or is stopped before its line is whole has not registered, and blocks nobody.
        Raises StartupError naming the peers that did not register in time.
        """
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while late := sorted(self._peers - self._book.keys()):
                check()
                if time.monotonic() > deadline:
                    raise StartupError(f"peers {late} did not start within {timeout_s:g} s")
                for ready, _ in selector.select(0.1):
                    if ready.data is None:
                        visitor = self._admit()
                        selector.register(visitor, selectors.EVENT_READ, (visitor, bytearray()))
                    elif self._has_said_all(*ready.data):
                        selector.unregister(ready.fileobj)
        return self._book

    def _admit(self) -> socket.socket:
        visitor, _ = self._listener.accept()
        visitor.setblocking(False)
        self._visitors.append(visitor)
        return visitor

    def _has_said_all(self, visitor: socket.socket, said: bytearray) -> bool:
        """Take in what a visitor says; whether no more is to come: its line is whole, or it ended.

        The nursery reports who has ended.
        """
        try:
            chunk = visitor.recv(1 << 16)
        except OSError:
            chunk = b""
        said += chunk
        if said.endswith(b"\n"):
            entry = json.loads(said)
            self._book[entry["peer"]] = entry["endpoint"]
            return True
        return not chunk

    def publish(self, book: Book | None = None) -> None:
        """Answer every registered peer with the book; `book`: that of peers elsewhere too.

        It stays beside the desk, for peers that are started again. Who is gone is passed over.
        Raises StorageError if it cannot be written.
        """
        answer = json.dumps(book or self._book).encode() + b"\n"
        write_whole(self._left_behind, answer)
        for visitor in self._visitors:
            visitor.settimeout(_PATIENCE_S)
            with suppress(OSError):
                visitor.sendall(answer)
        self.close()

    def close(self) -> None:
        for each in (*self._visitors, self._listener):
            each.close()


def register(desk: Path, peer: PeerId, endpoint: str) -> Book:
    """Tell the desk where this peer listens and wait for the book.

    Raises StartupError if the launcher goes away first.
    """
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visit, suppress(OSError):
        visit.connect(str(desk))
        visit.sendall(json.dumps({"peer": peer, "endpoint": endpoint}).encode() + b"\n")
        with visit.makefile("rb") as lines:
            answer = lines.readline()
    if not answer.endswith(b"\n"):  # it may have got a part
        raise StartupError(f"peer {peer}: the launcher went away before the run began")
    return _book_in(answer)


def recall(desk: Path, peer: PeerId, endpoint: str) -> Book:
    """The book that was published before this peer was started again, now at `endpoint`.

    That is put into it: of two that were started again, the later one knows where the other is.
    """
    file = desk.with_suffix(_BOOK)
    folder = os.open(desk.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        book = _book_in(file.read_bytes()) | {peer: endpoint}
        write_whole(file, json.dumps(book).encode() + b"\n")
    finally:
        os.close(folder)
    return book


def _book_in(answer: bytes) -> Book:
    return {int(key): address for key, address in json.loads(answer).items()}
