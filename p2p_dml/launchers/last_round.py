"""After which round all peers stop, so that they save the same one.

A file of words on each machine, one for each peer and one for the launcher. Each peer says which
round it begins, then looks whether the launcher has called for the end; the launcher calls, on all
machines, then looks which rounds have begun, and names the latest of them. Whichever comes first, a
round that any peer has begun is done by all, and none begins a later one.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import final

from p2p_dml.files import write_whole
from p2p_dml.types import PeerId

_WORD = struct.Struct("<q")
_OPEN, _CALLED = -1, -2  # else the last round


@final
class LastRound:
    """One process's end of the file; `create` makes it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)

    @staticmethod
    def create(path: Path, num_peers: int, done: int = 0) -> LastRound:
        """A file that says that no peer has begun and none is to end; `done`: rounds before.

        Raises StorageError if it cannot be written.
        """
        write_whole(path, _WORD.pack(_OPEN) + _WORD.pack(done) * num_peers)
        return LastRound(path)

    def choose(self, done: int = 0) -> bool:
        """The launcher's: have all peers end after the latest round begun; whether they will.

        They will not if none has begun a round after `done`; then none does any more. Nor if there
        is none that they `agreed` on: then each is free to go on.
        """
        begun = self.call()
        last = agreed(begun)
        self.name(last)
        return last is not None and last > done

    def call(self, peers: Iterable[PeerId] | None = None) -> list[int]:
        """Have nobody begin a round until one is named; which rounds `peers` (all) have begun."""
        self._write(0, _CALLED)
        words = os.pread(self._file, os.fstat(self._file).st_size, _WORD.size)
        begun = [int(round_) for (round_,) in _WORD.iter_unpack(words)]
        return begun if peers is None else [begun[peer] for peer in peers]

    def name(self, last: int | None) -> None:
        """After `call`: nobody begins a round after `last`; None: all are free to go on."""
        self._write(0, _OPEN if last is None else last)

    def is_over(self, me: PeerId, done: int) -> bool:
        """Peer `me`'s, before it begins the round after `done`: whether it is not to."""
        self._write(1 + me, done + 1)
        while (last := self._read()) == _CALLED:
            time.sleep(0.001)
        return last != _OPEN and done >= last

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> int:
        (word,) = _WORD.unpack(os.pread(self._file, _WORD.size, 0))
        return int(word)

    def _write(self, place: int, word: int) -> None:
        os.pwrite(self._file, _WORD.pack(word), place * _WORD.size)


def agreed(begun: Collection[int]) -> int | None:
    """The last round of peers that have `begun` these: the latest.

    None if some peer is more rounds behind than there are peers, as where they do not wait for each
    other.
    """
    last = max(begun)
    return last if last - min(begun) <= len(begun) else None
