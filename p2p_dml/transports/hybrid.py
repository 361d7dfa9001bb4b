"""Two transports in one: torch.distributed between peers of a host, ZeroMQ between hosts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import final

from p2p_dml.types import Coded, Mail, PeerId, Sent, Tag, Transport, outbox_of


@final
class HybridTransport:
    """Every link picks its plane: `near` if its other end is in `here`, `far` otherwise.

    A lost peer of this host ends the run here, as `near` has it; lost hosts shrink the inbox, as
    `far` has it.
    """

    elastic = False

    def __init__(self, near: Transport, far: Transport, here: Container[PeerId]) -> None:
        self._near = near
        self._far = far
        self._here = here

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        wanted = set(neighbours)
        self._near.expect({peer for peer in wanted if peer in self._here})
        self._far.expect({peer for peer in wanted if peer not in self._here})

    def post(self, tag: Tag, sent: Sent) -> int:
        """What goes far is on its way when this returns; what stays near may go in `collect`."""
        far_bytes = self._far.post(tag, self._split(sent, here=False))
        return far_bytes + self._near.post(tag, self._split(sent, here=True))

    def _split(self, sent: Sent, *, here: bool) -> Sent:
        """What goes to peers of this host, or to the others."""
        outbox = {j: x for j, x in outbox_of(sent).items() if (j in self._here) is here}
        return replace(sent, outbox=outbox) if isinstance(sent, Coded) else outbox

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """First what is near, for which others of this host wait, then what is far.

        Near, twice the time is given: a peer of this host may itself have waited for one far away.
        """
        near = self._near.collect(tag, [j for j in senders if j in self._here], 2 * deadline_s)
        far = self._far.collect(tag, [j for j in senders if j not in self._here], deadline_s)
        on_time = {**near.on_time, **far.on_time}
        return Mail(
            on_time={j: on_time[j] for j in sorted(on_time)},
            late=[*near.late, *far.late],
            num_bytes=near.num_bytes + far.num_bytes,
            ages={**near.ages, **far.ages},
            silent=near.silent + far.silent,
            ahead=max(near.ahead, far.ahead),
        )

    def close(self) -> None:
        self._near.close()
        self._far.close()
