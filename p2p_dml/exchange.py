"""What a peer's loop and whoever drives it say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from p2p_dml.types import Mail, PeerId, Sent, Tag


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the loop asks its driver to do: send as `tag`, then collect `awaited` from `senders`.

    `receivers` are those whom the schedule lets hear this peer. `awaited` is `tag`, or with overlap
    the exchange of the round before.
    """

    tag: Tag
    sent: Sent
    receivers: tuple[PeerId, ...]
    awaited: Tag
    senders: tuple[PeerId, ...]
    upcoming: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the driver brings back: mail, payload bytes sent, and the seconds both took."""

    mail: Mail
    bytes_out: int
    send_s: float = 0.0
    wait_s: float = 0.0
