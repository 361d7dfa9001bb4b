"""A transport whose mail is brought to the device of the peer's model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from p2p_dml.types import Mail, Message, Payload, PeerId, Sent, Tag, Transport


def at_home(transport: Transport, device: torch.device) -> Transport:
    """`transport`, with received tensors on `device`."""
    return transport if device.type == "cpu" else AtHome(transport, device)


@final
@dataclass(frozen=True, slots=True)
class AtHome:
    """Everything but `collect` is the transport's own."""

    transport: Transport
    device: torch.device

    @property
    def elastic(self) -> bool:
        return self.transport.elastic

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self.transport.expect(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        return self.transport.post(tag, sent)

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        mail = self.transport.collect(tag, senders, deadline_s)
        on_time = {peer: self._bring(payload) for peer, payload in mail.on_time.items()}
        late = [Message(m.sender, m.tag, self._bring(m.payload)) for m in mail.late]
        return replace(mail, on_time=on_time, late=late)

    def _bring(self, payload: Payload) -> Payload:
        tensors = {name: x.to(self.device) for name, x in payload.tensors.items()}
        return Payload(tensors, payload.scalars)

    def close(self) -> None:
        self.transport.close()
