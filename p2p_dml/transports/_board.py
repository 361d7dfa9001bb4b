"""Who has done with what: where a peer says which of the payloads lent to it it still uses.

Every peer has one board, a segment with a row for each lender, and reads its own row of the boards
of those to whom it lends. Cell s < SLOTS of a row: 2g while the payload of generation g, which lies
in slot s, is in use, 2g + 1 when it no longer is. The last cell: the newest generation that came.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from p2p_dml.transports._segments import MappedSegment, Place, Segment, this_machine
from p2p_dml.types import PeerId

SLOTS = 15
"""Payloads that a peer can have lent at a time."""

MAX_PEERS = 1 << 16
"""Only peers below this id lend."""

MAX_GENERATION = 1 << 62
"""Twice one fits a cell, int64."""

_CELLS = SLOTS + 1
_ROW_BYTES = 8 * _CELLS


@final
class Board:
    """This peer's own."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no memory that others can read."""
        self._segment = Segment(MAX_PEERS * _ROW_BYTES, sparse=True)
        self._cells = self._segment.data.view(torch.int64).view(MAX_PEERS, _CELLS).numpy()
        self.place = Place(
            machine=this_machine(),
            pid=pid,
            descriptor=self._segment.descriptor,
            token=self._segment.token,
        )

    def newest(self, lender: PeerId) -> int:
        """The generation that came last; 0 if none has."""
        return int(self._cells[lender, SLOTS])

    def take(self, lender: PeerId, slot: int, generation: int) -> None:
        """Say that a payload came and is in use."""
        self._cells[lender, slot] = 2 * generation
        self._cells[lender, SLOTS] = generation  # after the slot, see `Row.has_done`

    def give_back(self, lender: PeerId, slot: int, generation: int) -> None:
        """Say that it no longer is."""
        if self._cells[lender, slot] == 2 * generation:
            self._cells[lender, slot] += 1

    def forget(self, lender: PeerId) -> None:
        """Begin anew: `lender` is another process now, and counts from 1."""
        self._cells[lender] = 0

    def close(self) -> None:
        """Let nobody open it any more."""
        self._segment.close()


@final
class Row:
    """This peer's row on the board of another one, which it has lent something."""

    def __init__(self, board: MappedSegment, me: PeerId) -> None:
        whole = board.view(MAX_PEERS * _ROW_BYTES).view(np.int64)
        self._cells = whole.reshape(MAX_PEERS, _CELLS)[me]

    @property
    def newest(self) -> int:
        """The generation that came there last."""
        return int(self._cells[SLOTS])

    def has_done(self, slot: int, generation: int) -> bool:
        """Whether a payload is not in use there and never will be.

        Messages keep their order: if a later one came and this one did not, it was lost.
        """
        newest = self.newest  # read before the cell, which is written before it
        cell = int(self._cells[slot])
        return cell > 2 * generation or (cell < 2 * generation < 2 * newest)
