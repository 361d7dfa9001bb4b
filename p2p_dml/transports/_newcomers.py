"""Models for peers that come into a run: asked for at one end, given at the other."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from p2p_dml import wire
from p2p_dml.transports._handshakes import Handshakes, Signature
from p2p_dml.transports._outgoing import Letter, Outgoing
from p2p_dml.transports._snapshots import Snapshots
from p2p_dml.types import Payload, PeerId
from p2p_dml.wire import Header, Kind


@final
class Newcomers:
    """Both ends, at one peer. To ask for a model is also to ask to take part."""

    def __init__(
        self, signature: Signature, hands: Handshakes, outgoing: Outgoing, snapshots: Snapshots
    ) -> None:
        self._signature = signature
        self._hands = hands
        self._out = outgoing
        self._snapshots = snapshots
        self._asking: set[PeerId] = set()  # who wants this peer's model
        self._given: dict[PeerId, Payload | None] = {}  # by whom this one asks for theirs

    def on_ask(self, sender: PeerId) -> None:
        """Remember who wants this peer's model, which is given at the end of a round."""
        self._asking.add(sender)
        self._hands.admit(sender)

    def on_state(self, sender: PeerId, header: Header, payload: Payload) -> None:
        """Take in what was asked for, and nothing else. Raises WireError."""
        if sender in self._given:
            self._hands.learn(header)
            self._given[sender] = payload

    def give(self, payload: Payload, to: Collection[PeerId]) -> None:
        """Send it to these, who have asked."""
        slots, record = wire.slots_of(payload.tensors), self._hands.record()
        header = self._signature.header(Kind.STATE, self._hands.tag, slots=slots, scalars=record)
        frames = self._snapshots.take(payload, slots).frames(wire.MAX_FRAME_BYTES)
        model = Letter(wire.encode_header(header), frames)
        for peer in to:  # a connection that is lost would lose it too
            act = self._out.deliver if self._hands.can_send_to(peer) else self._out.keep
            act(peer, model)
        self._asking.difference_update(to)

    @property
    def asking(self) -> frozenset[PeerId]:
        """Who wants this peer's model."""
        return frozenset(self._asking)

    def ask(self, peer: PeerId) -> None:
        """Ask `peer` for its model."""
        self._given[peer] = None
        header = self._signature.header(Kind.ASK, self._hands.tag)
        self._out.deliver(peer, Letter(wire.encode_header(header)))

    def has_given(self, peer: PeerId) -> bool:
        return self._given[peer] is not None

    def take(self, peer: PeerId) -> Payload | None:
        """What `peer` has given, if it has; what still comes of it is not taken."""
        return self._given.pop(peer)
