"""The send/receive matrix of an exchange, as `transport.debug` compares it: integers, no group."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from p2p_dml.types import PeerId, Tag

_KINDS = ("variable", "alike")


def mirror_row(
    tag: Tag,
    is_alike: bool,
    receivers: Collection[PeerId],
    senders: Collection[PeerId],
    num_peers: int,
) -> Tensor:
    """What one peer is about to do, int64 [3 + 2 num_peers]: where it is, to whom, from whom."""
    sends = [int(j in receivers) for j in range(num_peers)]
    hears = [int(j in senders) for j in range(num_peers)]
    return torch.tensor([tag.round, tag.exchange, int(is_alike), *sends, *hears])


def mirror_fault(rows: Sequence[Sequence[int]]) -> str | None:
    """The first contradiction between the rows of all peers, in words; None if there is none."""
    for peer, row in enumerate(rows):
        if [*row[:3]] != [*rows[0][:3]]:
            return f"peer 0 is in {_place(rows[0])}, peer {peer} in {_place(row)}"
    for sender, row in enumerate(rows):
        for receiver, other in enumerate(rows):
            sends, hears = row[3 + receiver], other[3 + len(rows) + sender]
            if sends != hears:
                act = "sends to" if sends else "does not send to"
                awaits = "awaits nothing of it" if sends else "awaits a message"
                return f"peer {sender} {act} peer {receiver}, which {awaits}"
    return None


def _place(row: Sequence[int]) -> str:
    return f"round {row[0]}, exchange {row[1]} ({_KINDS[row[2]]} payloads)"
