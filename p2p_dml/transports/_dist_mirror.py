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
    peers: range,
) -> Tensor:
    """What one peer is about to do, int64 [3 + 2 len(peers)]: where it is, to whom, from whom."""
    sends = [int(j in receivers) for j in peers]
    hears = [int(j in senders) for j in peers]
    return torch.tensor([tag.round, tag.exchange, int(is_alike), *sends, *hears])


def mirror_fault(rows: Sequence[Sequence[int]], peers: range) -> str | None:
    """The first contradiction between the rows of `peers`, in words; None if there is none."""
    for peer, row in zip(peers, rows, strict=True):
        if [*row[:3]] != [*rows[0][:3]]:
            return f"peer {peers[0]} is in {_place(rows[0])}, peer {peer} in {_place(row)}"
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            sends, hears = row[3 + j], other[3 + len(rows) + i]
            if sends != hears:
                act = "sends to" if sends else "does not send to"
                awaits = "awaits nothing of it" if sends else "awaits a message"
                return f"peer {peers[i]} {act} peer {peers[j]}, which {awaits}"
    return None


def _place(row: Sequence[int]) -> str:
    return f"round {row[0]}, exchange {row[1]} ({_KINDS[row[2]]} payloads)"
