"""What goes out in an exchange: each payload copied once, in a way that suits each receiver."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import final

from p2p_dml import wire
from p2p_dml.transports._handshakes import Handshakes
from p2p_dml.transports._outgoing import Message, Outgoing
from p2p_dml.transports._plane import Plane
from p2p_dml.transports._snapshots import Snapshot, Snapshots
from p2p_dml.transports._sockets import Limits
from p2p_dml.types import Payload, PeerId, Sent, Tag, outbox_of
from p2p_dml.wire import Header, Kind


@final
class _Parcel:
    """One payload, ready to go."""

    def __init__(
        self,
        header: Header,
        snapshot: Snapshot,
        plane: Plane,
        frame_bytes: Callable[[PeerId], int],
    ) -> None:
        self.num_bytes = header.block_bytes
        self._header = header
        self._snapshot = snapshot
        self._plane = plane
        self._frame_bytes = frame_bytes
        self._encoded: dict[Kind, bytes] = {}

    def to(self, peer: PeerId) -> Message:
        """The message for `peer`, which is lent what it can read in place."""
        link = self._plane.link(peer) if self._snapshot.can_be_lent else None
        if link is None:
            return self._encode(Kind.ROUND), self._snapshot.frames(self._frame_bytes(peer))
        return self._encode(Kind.LENT), [self._snapshot.place]

    def went(self, peer: PeerId) -> None:
        """What was lent is in use from now on."""
        link = self._plane.link(peer) if self._snapshot.can_be_lent else None
        if link is not None:
            self._snapshot.lend(link)

    def _encode(self, kind: Kind) -> bytes:
        if kind not in self._encoded:
            self._encoded[kind] = wire.encode_header(self._header.as_kind(kind))
        return self._encoded[kind]


@final
class Sending:
    """Posts the payloads of one peer; `connect` begins to connect to somebody new."""

    def __init__(
        self,
        hands: Handshakes,
        out: Outgoing,
        plane: Plane,
        snapshots: Snapshots,
        limits: Limits,
        connect: Callable[[Collection[PeerId]], None],
    ) -> None:
        self._hands = hands
        self._out = out
        self._plane = plane
        self._snapshots = snapshots
        self._limits = limits
        self._connect = connect

    def post(self, tag: Tag, sent: Sent) -> int:
        """Send without blocking; bytes of payload that went out, or wait for a connection."""
        bytes_out = 0
        for payload, peers in _by_payload(sent):
            parcel = self._pack(tag, payload)
            bytes_out += sum(parcel.num_bytes for peer in peers if self._post_to(peer, parcel))
        return bytes_out

    def _pack(self, tag: Tag, payload: Payload) -> _Parcel:
        slots, signature = wire.slots_of(payload.tensors), self._hands.signature
        header = signature.header(Kind.ROUND, tag, scalars=payload.scalars, slots=slots)
        snapshot = self._snapshots.take(payload, slots)
        return _Parcel(header, snapshot, self._plane, self._out.frame_bytes)

    def _post_to(self, peer: PeerId, parcel: _Parcel) -> bool:
        """Send, or keep until there is a connection or, if so wanted, room; False if dropped."""
        if self._hands.can_send_to(peer):
            if self.flush(peer) and self._out.post(peer, parcel):
                return True
            if not self._limits.resend:
                return False
        elif not self._hands.is_to_come(peer):
            return False
        self._connect([peer])
        self._out.keep(peer, parcel)
        return True

    def flush(self, peer: PeerId) -> bool:
        """Send what waits for `peer`; whether there is room for more."""
        link = self._plane.link(peer)
        # libzmq counts what waits in its queues; a message that only says where the block lies is
        # too small to be stopped by a full one.
        has_room = link is None or link.num_unread < 2 * self._limits.queue_messages
        return has_room and self._out.flush(peer)


def _by_payload(sent: Sent) -> Iterable[tuple[Payload, list[PeerId]]]:
    """Each payload once, with all it goes to."""
    peers: dict[int, tuple[Payload, list[PeerId]]] = {}
    for peer, payload in outbox_of(sent).items():
        peers.setdefault(id(payload), (payload, []))[1].append(peer)
    return peers.values()
