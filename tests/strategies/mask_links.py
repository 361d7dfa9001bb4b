"""Two ends of a link over which masks travel, and the masks: for tests of how they are coded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels.masks import pack
from p2p_dml.strategies._mask_coding import CodingState, MaskCoding, Mode
from p2p_dml.types import Neighbourhood, Payload, PeerId

NUMELS = (75, 800, 1200, 40)
SHARES = (0.3, 0.3, 0.1, 0.9)
CODING = MaskCoding(numels=NUMELS)
A, B = 0, 1


def hood_of(me: PeerId, neighbours: Sequence[PeerId]) -> Neighbourhood:
    weights = dict.fromkeys(neighbours, 0.1)
    return Neighbourhood(me, 1 - 0.1 * len(neighbours), weights, weights)


def mask_of(seed: int, numels: Sequence[int] = NUMELS, family: int = 7) -> Tensor:
    """A packed mask; one bit in twenty differs between consecutive seeds of a `family`."""
    base, change = (np.random.Philox(key=[family, s]).random_raw(sum(numels)) for s in (0, seed))
    chances = np.repeat(SHARES[: len(numels)], numels)
    bits = ((base >> 11) * 2.0**-53 < chances) ^ ((change >> 11) * 2.0**-53 < 0.05)
    return pack([torch.from_numpy(bits)])


@dataclass
class Peer:
    """One end of a link, and the masks it has sent, by digest."""

    me: PeerId
    other: PeerId
    coding: MaskCoding = CODING
    state: CodingState = field(default_factory=CodingState)
    round: int = 0

    def send(self, bits: Tensor) -> Payload:
        self.round += 1
        hood = hood_of(self.me, [self.other])
        outbox, self.state = self.coding.outbox(self.state, hood, self.round, bits)
        return outbox[self.other]

    def hear(self, payload: Payload | None) -> Tensor | None:
        """The mask read; None if nothing came or it was refused."""
        try:
            read = None if payload is None else self.coding.read(self.state, self.other, payload)
        except WireError:
            read = None
        messages = {} if read is None else {self.other: read}
        self.state = self.coding.heard(self.state, self.round, messages)
        return None if read is None else read.tensors["mask"]

    def alone(self, bits: Tensor) -> None:
        """A round in which there is no link."""
        self.round += 1
        outbox, self.state = self.coding.outbox(self.state, hood_of(self.me, []), self.round, bits)
        assert not outbox
        self.state = self.coding.heard(self.state, self.round, {})


def pair(mode: Mode = "delta") -> tuple[Peer, Peer]:
    coding = MaskCoding(numels=NUMELS, mode=mode)
    return Peer(A, B, coding), Peer(B, A, coding)


def meet(
    a: Peer, b: Peer, seed: int, lost: Sequence[PeerId] = (), family: int = 7
) -> tuple[Payload, Payload]:
    """One round; messages of peers in `lost` do not arrive. All others are read as sent."""
    masks = mask_of(2 * seed, family=family), mask_of(2 * seed + 1, family=family)
    sent = a.send(masks[0]), b.send(masks[1])
    read = b.hear(None if A in lost else sent[0]), a.hear(None if B in lost else sent[1])
    for peer, bits, found in zip((A, B), masks, read, strict=True):
        assert (found is None) == (peer in lost)
        assert found is None or torch.equal(found, bits)
    return sent


def met(a: Peer, b: Peer) -> tuple[Peer, Peer]:
    """The same after two rounds: both know of a mask that the other holds."""
    meet(a, b, 0)
    meet(a, b, 1)
    return a, b


def codings(payloads: Sequence[Payload]) -> list[int]:
    return [int(payload.scalars["coding"]) for payload in payloads]
