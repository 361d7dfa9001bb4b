"""Who a peer has met: hellos and their answers, at both ends of every connection.

A connection begins with HELLO, answered by WELCOME or by REFUSED with the reason. HELLO says where
its sender can be reached, and up to which exchange nothing of it is still to come: whoever comes
into a run that is under way stays outside first, as one for whom nobody waits, and says hello again
when it knows its round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import zmq
from torch import Tensor
from zmq.utils.monitor import parse_monitor_message

from p2p_dml import wire
from p2p_dml.addresses import AddressBook, is_wildcard, peer_on
from p2p_dml.errors import StartupError, WireError
from p2p_dml.liveness import Liveness
from p2p_dml.transports._admission import TWINS, Admission, unknown
from p2p_dml.transports._incoming import Incoming, decode
from p2p_dml.transports._outgoing import FAILED_HANDSHAKE, Letter, Outgoing
from p2p_dml.transports._plane import Plane
from p2p_dml.transports._sockets import Frames
from p2p_dml.types import Mailbox, Membership, PeerId, Tag
from p2p_dml.wire import Header, Kind

_ANSWER_BYTES = 1 << 10
"""More than the block of an answer to a hello has."""


@final
@dataclass(frozen=True, slots=True)
class Signature:
    """What every header of one peer says of its sender."""

    me: PeerId
    digest: bytes
    incarnation: int

    def header(
        self,
        kind: Kind,
        tag: Tag,
        *,
        note: str = "",
        scalars: Mapping[str, float] | None = None,
        slots: tuple[wire.Slot, ...] = (),
    ) -> Header:
        numbers = {name: float(x) for name, x in (scalars or {}).items()}
        return Header(kind, self.digest, self.me, self.incarnation, tag, note, numbers, slots)


@final
class Handshakes:
    """The hellos between one peer and the others.

    `tag` is the exchange that the peer is in, `rounds` those that others have said they are in.
    `is_outside`: it is to come into a run that is under way, and nobody is to wait for it yet.
    `complain` is told of what does not fit. `members`: who takes part, where peers come and go.
    """

    def __init__(
        self,
        signature: Signature,
        incoming: Incoming,
        outgoing: Outgoing,
        liveness: Liveness,
        mailbox: Mailbox,
        plane: Plane,
        complain: Callable[[PeerId, str], None],
        members: Membership | None,
    ) -> None:
        self.tag = Tag(0)
        self.rounds: dict[PeerId, int] = {}
        self.is_outside = False
        self.admission = Admission(signature.me, signature.digest)
        self.book = AddressBook({})
        self._own_address = ""  # as others reach it
        self.signature = signature
        self._in = incoming
        self._out = outgoing
        self._liveness = liveness
        self._mailbox = mailbox
        self._plane = plane
        self._complain = complain
        self._members = members
        self._answering: dict[PeerId, int] = {}  # incarnation at the peer's address
        self._announced: dict[PeerId, str] = {}  # where the peer says it can be reached
        self._to_greet: set[PeerId] = set()
        self._greeted: set[PeerId] = set()  # on the connection that stands
        self._refused_by: dict[PeerId, str] = {}
        self._locked_out: set[PeerId] = set()  # by whom
        self._is_open = False

    # ---- coming together ------------------------------------------------------------------

    def begin(self, book: Mapping[PeerId, str], own_address: str) -> None:
        """Take down where everybody is; StartupError if an address cannot be one."""
        self.book = AddressBook(book)
        self._own_address = own_address

    def has_met(self, peer: PeerId) -> bool:
        """Whether `peer` has answered and, unless this one is outside, has said hello itself."""
        is_answered = self._liveness.state(peer) != "connecting"
        return is_answered and (self.is_outside or self.admission.has_met(peer))

    def check_refusals(self) -> None:
        """StartupError, with the reason, if somebody has refused this peer."""
        for peer, why in self._refused_by.items():
            raise StartupError(f"peer {self.signature.me}: peer {peer} at {self.book[peer]} {why}")

    def who_is_missing(
        self, missing: Sequence[PeerId], waited_s: float, refused: Sequence[str]
    ) -> StartupError:
        """The error that says who of the neighbours did not come; `refused`: reasons, of others."""
        who = ", ".join(f"peer {j} at {self.book[j]}" for j in missing)
        foreign = "; ".join(refused)
        keyless = [j for j in missing if j in self._locked_out]
        why = f"no hello within {waited_s:g} s from {who}; was it started, and is the address "
        why += "right?"
        why += f" Peers {keyless} ended the handshake: are both keys of this run?" * bool(keyless)
        why += f" Refused meanwhile: {foreign}" * bool(foreign)
        return StartupError(f"peer {self.signature.me}: {why}")

    def open(self) -> None:
        """From now on a refusal is told, not fatal, and who has no listener is dead."""
        self._is_open = True

    def stay_outside(self) -> None:
        """Let nobody wait for this peer until it comes `inside`."""
        self.is_outside = True
        self._to_greet |= self._greeted
        self.greet()

    def come_inside(self, round_: int) -> None:
        """Say that messages from `round_` on will come."""
        self.is_outside = False
        self.tag = Tag(round_ - 1, wire.MAX_INT)
        self._to_greet |= self._greeted
        self.greet()

    # ---- hellos ---------------------------------------------------------------------------

    def can_send_to(self, peer: PeerId) -> bool:
        """Whether `peer` takes messages: it reads this peer's hello first, or has read it.

        Not while a broken connection is made anew: what comes before a hello is passed over.
        """
        return not self.is_to_come(peer) and peer in self._greeted

    def take_leave(self, peer: PeerId) -> None:
        """Take in a goodbye; on another connection the peer may come again."""
        self._liveness.said_goodbye(peer)
        self._greeted.discard(peer)

    def is_to_come(self, peer: PeerId) -> bool:
        """Whether `peer` has never been connected, and may still be."""
        return self._liveness.state(peer) == "connecting"

    def on_monitor(self, frames: Frames) -> None:
        """Take in that a connection was made, broken, refused, or could not be made."""
        event = parse_monitor_message([frame.bytes for frame in frames])
        peer = self._out.peer_at(event["endpoint"].decode())
        if peer is None:
            return
        if event["event"] == zmq.EVENT_DISCONNECTED:
            self._lose(peer)
        elif event["event"] == zmq.EVENT_CONNECT_RETRIED:
            self._follow(peer)
            if self._is_open:
                self._liveness.unreachable(peer)
        elif event["event"] in FAILED_HANDSHAKE:
            self._locked_out.add(peer)
        else:
            self._locked_out.discard(peer)
            self._to_greet.add(peer)

    def on_silence(self, frames: Frames) -> None:
        """Connect anew to a peer without heartbeats: what is stuck on the way would stay so."""
        address = parse_monitor_message([frame.bytes for frame in frames])["endpoint"].decode()
        peer = self._out.peer_at(address)
        if peer is not None and self._liveness.is_connected(peer):
            self._lose(peer)
            self._out.move(peer, address)

    def _lose(self, peer: PeerId) -> None:
        self._liveness.disconnected(peer, time.monotonic())
        self._greeted.discard(peer)
        self._plane.lose(peer)

    def greet(self) -> None:
        """Say hello on new connections; again later if a queue is still full of old messages."""
        said = {peer for peer in self._to_greet if self._out.send(peer, *self._hello(peer))}
        self._to_greet -= said
        self._greeted |= said

    def _hello(self, peer: PeerId) -> tuple[bytes, list[bytes]]:
        where = "" if is_wildcard(self._own_address) else self._own_address
        is_new = self._liveness.state(peer) == "connecting"
        done = Tag(0) if is_new and self._out.has_waiting(peer) else self.tag
        tag = wire.NEVER if self.is_outside else done
        return self._introducing(Kind.HELLO, tag, where, self._plane.introduction())

    def _introducing(
        self, kind: Kind, tag: Tag, note: str, introduction: Mapping[str, Tensor]
    ) -> tuple[bytes, list[bytes]]:
        """Header and block of a hello or its answer."""
        slots = wire.slots_of(introduction)
        header = self.signature.header(kind, tag, note=note, scalars=self.record(), slots=slots)
        block = [wire.encode_block(introduction, slots)] if slots else []
        return wire.encode_header(header), block

    def on_hello(self, contact: bytes, header: Header, introduction: Mapping[str, Tensor]) -> None:
        """Let a peer in, or raise WireError."""
        peer = header.sender
        is_alive = self._liveness.is_connected(peer)
        self.admission.check_hello(header, self._answering.get(peer) if is_alive else None)
        if self._members is not None and not self._members.may_have(peer):
            raise unknown(peer)
        self.learn(header)
        if self.book and peer not in self.book:
            self._add(peer, header.note)
        for lost in self.admission.admit(contact, header):
            self.answer(lost, Kind.REFUSED, TWINS.format(peer=peer))
        self._announced[peer] = header.note
        if not is_alive and self._liveness.state(peer) != "connecting":
            self._follow(peer)
        self._mailbox.comes_after(peer, header.tag)
        if header.tag != wire.NEVER:
            self.hear(peer, header.tag)
        mutual = self._plane.know(peer, introduction)
        data, block = self._introducing(Kind.WELCOME, self.tag, "", mutual)
        self._in.answer(contact, data, *block)

    def _add(self, peer: PeerId, address: str) -> None:
        """Take down where somebody new is; WireError if nobody new can be, or not there."""
        if self._members is None:
            raise unknown(peer)
        try:
            self.book.add(peer, address)
        except StartupError as error:
            raise WireError(str(error)) from error

    def _follow(self, peer: PeerId) -> None:
        """Connect to where a lost peer says that it is now, if that is elsewhere."""
        try:
            has_moved = self.book.move(peer, self._announced.pop(peer, ""))
            if has_moved and peer in self._out:
                self._out.move(peer, self.book[peer])
        except StartupError as error:
            self._complain(peer, str(error))

    # ---- answers --------------------------------------------------------------------------

    def answer(self, contact: bytes, kind: Kind, note: str = "") -> None:
        header = self.signature.header(kind, self.tag, note=note[: wire.MAX_NAME])
        self._in.answer(contact, wire.encode_header(header))

    def on_reply(self, frames: Frames) -> PeerId | None:
        """Take in the answer of a peer this one connected to; whose farewell it is, if it is."""
        peer = peer_on(frames[0].bytes)
        if not self._out.is_current(peer, frames[0].bytes):
            return None  # of where the peer was before
        try:
            header, block = decode(frames, _ANSWER_BYTES)
            payload = wire.payload_of(header, block)
        except WireError as error:
            self._on_refusal(peer, f"is not a peer of this runtime: {error}")
            return None
        if header.kind is Kind.FAREWELL:
            return peer
        if header.kind is Kind.REFUSED:
            self._on_refusal(peer, f"refused this peer: {header.note}")
        elif header.kind is Kind.WELCOME and header.sender == peer:
            if peer not in self._greeted:
                return None  # it answered on a connection that is lost meanwhile
            try:
                self._on_welcome(peer, header, payload.tensors)
            except WireError as error:
                self._on_refusal(peer, str(error))
        else:
            self._on_refusal(peer, f"answers as peer {header.sender}: the address book is wrong")
        return None

    def _on_welcome(self, peer: PeerId, header: Header, introduction: Mapping[str, Tensor]) -> None:
        self.learn(header)
        self._plane.reach(peer, introduction)
        self._liveness.welcomed(peer)
        self._answering[peer] = header.incarnation
        self.hear(peer, header.tag)
        self._out.flush(peer)

    def _on_refusal(self, peer: PeerId, why: str) -> None:
        self._refused_by[peer] = why
        if self._is_open:  # before that, `check_refusals` raises it
            self._complain(peer, why)

    def hear(self, peer: PeerId, tag: Tag) -> None:
        """Take down that `peer` is in that round."""
        self.rounds[peer] = max(self.rounds.get(peer, 0), tag.round)

    # ---- who takes part -------------------------------------------------------------------

    def record(self) -> Mapping[str, float]:
        """What is known of who takes part, where peers come and go."""
        return self._members.record() if self._members is not None else {}

    def learn(self, header: Header) -> None:
        """Take in, and pass on, what its sender knows. Raises WireError."""
        if self._members is not None and self._members.merge(header.scalars):
            self.spread({header.sender})

    def admit(self, peer: PeerId) -> None:
        """Let a peer that has asked take part, and tell the others."""
        if self._members is not None and self._members.admit(peer, self.tag.round):
            self.spread(())

    def spread(self, but: Collection[PeerId]) -> None:
        """Tell all that are connected, but for some, who takes part."""
        header = self.signature.header(Kind.MEMBERS, self.tag, scalars=self.record())
        news = Letter(wire.encode_header(header))
        for peer in self._out:
            if peer not in but and self._liveness.is_connected(peer):
                self._out.deliver(peer, news)
