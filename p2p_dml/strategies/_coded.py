"""Gossip over the lattice code: what is sent, how it is mixed, and how the cell follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.kernels import lattice
from p2p_dml.tensors import tmap
from p2p_dml.types import Inbox, Payload, Tensors

CELL_DECAY = 0.9
"""Factor per round by which a raised cell goes back, as long as all codes can be read."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A model in `bits` bits per value on a lattice of side `cell`.

    There is no second round trip for codes that cannot be read. Their sender counts as missing,
    and `next_cell` doubles what the reader will send itself; neighbours adopt the largest cell they
    hear, so both ends of a link reach one at which they can read each other within few rounds.
    """

    cell: float
    bits: int

    def payload(self, model: Mapping[str, Tensor]) -> Payload:
        """Codes by name, with the scalars `cell` and `checksum`."""
        codes, checksum = lattice.encode(lattice.points(model, self.cell), self.bits)
        return Payload(codes, {"cell": self.cell, "checksum": checksum})

    def mix(self, model: Tensors, inbox: Inbox) -> tuple[Tensors, int]:
        """sum_j w_ij (Q(x_j) - Q(x_i)), to be added to x_i, and how many codes could be read.

        Summed over all peers this is 0 if W is symmetric and all codes are read: rounding does not
        move the mean.
        """
        own = lattice.placed(lattice.points(model, self.cell), self.cell, model)
        shift = tmap(torch.zeros_like, own)
        num_read = 0
        for sender, payload in inbox.messages.items():
            heard = self._read(payload, model)
            if heard is not None:
                weight = inbox.hood.in_weights[sender]
                for name, total in shift.items():
                    total.add_(heard[name] - own[name], alpha=weight)
                num_read += 1
        return shift, num_read

    def next_cell(self, inbox: Inbox, num_read: int, smallest: float) -> float:
        """The cell for the next round: doubled after a failure, else slowly back to `smallest`."""
        heard = [p.scalars.get("cell", 0.0) for p in inbox.messages.values()]
        largest = max([self.cell, *(cell for cell in heard if 0 < cell < math.inf)])
        factor = CELL_DECAY if num_read == len(inbox.messages) else 2.0
        return max(smallest, factor * largest)

    def _read(self, payload: Payload, model: Tensors) -> Tensors | None:
        scalars = payload.scalars
        cell, expected = scalars.get("cell", 0.0), scalars.get("checksum", math.nan)
        if not 0 < cell < math.inf:
            return None
        found = lattice.decode(payload.tensors, model, cell, self.bits, expected)
        return None if found is None else lattice.placed(found, cell, model)
