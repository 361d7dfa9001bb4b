"""Payloads over ZeroMQ: any host, no asyncio, no receiver thread, survives the death of others.

One bound ROUTER takes everything in and only ever answers handshakes; one connected ROUTER sends,
with a bounded queue per neighbour, and its socket monitor tells at once when a connection breaks.
libzmq moves bytes, and encrypts them where there are keys, in its own thread while Python computes.
A connection begins with HELLO, which is answered by WELCOME or by REFUSED with the reason; nothing
else is accepted before it. HELLO also says where its sender can be reached.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import final

import zmq
from zmq.utils.monitor import parse_monitor_message

from p2p_dml import wire
from p2p_dml.errors import StartupError, WireError
from p2p_dml.events import Event, NeighbourChanged
from p2p_dml.keys import Keys
from p2p_dml.liveness import Liveness
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.transports._addresses import AddressBook, is_wildcard, peer_on
from p2p_dml.transports._admission import TWINS, Admission, unknown
from p2p_dml.transports._incoming import Incoming, decode, origin
from p2p_dml.transports._outgoing import FAILED_HANDSHAKE, Outgoing
from p2p_dml.transports._refusals import Refusals
from p2p_dml.transports._snapshots import Snapshots
from p2p_dml.transports._sockets import Frames, Limits, receive, router
from p2p_dml.types import Mail, Mailbox, Message, Payload, PeerId, Sent, Tag, outbox_of
from p2p_dml.wire import Header, Kind

__all__ = ["Limits", "ZeroMQTransport"]

_IO_THREADS = 1

_DRAIN_S = 0.001
"""Wait for more where a queue was found full: the rest needs a moment to follow."""


@final
class ZeroMQTransport:
    """One peer's sockets. Bind first (the constructor), then `open` with everybody's address."""

    elastic = True

    def __init__(
        self,
        me: PeerId,
        bind: str,
        digest: bytes,
        incarnation: int,
        limits: Limits,
        on_event: Callable[[Event], None],
        mailbox: Mailbox | None = None,
        keys: Keys | None = None,
    ) -> None:
        """Bind to `bind` (port `*` takes a free one). StartupError if the address is taken.

        `mailbox`: that of synchronous rounds if None. With `keys` all is encrypted, and nobody but
        the holders of listed keys gets in, each as the peer that it is.
        """
        self.me = me
        self._digest = digest
        self._incarnation = incarnation
        self._limits = limits
        self.on_event = on_event
        self._context = zmq.Context(_IO_THREADS)
        self._in = Incoming(router(self._context, limits), keys)
        depth = limits.resend or limits.queue_messages
        self._out = Outgoing(router(self._context, limits), depth, keys)
        self._monitor = self._out.monitor()
        self.endpoint = self._bind(bind)
        self._poller = zmq.Poller()
        for each in (self._in.socket, self._out.socket, self._monitor):
            self._poller.register(each, zmq.POLLIN)
        self._book = AddressBook({})
        self._own_address = self.endpoint  # as others reach it
        self._admission = Admission(me, digest)
        self._answering: dict[PeerId, int] = {}  # incarnation at the peer's address
        self._announced: dict[PeerId, str] = {}  # where the peer says it can be reached
        self._to_greet: set[PeerId] = set()
        self._liveness = Liveness(limits.drain_s)
        self._snapshots = Snapshots()
        self._tag = Tag(0)
        self._mailbox = mailbox or TaggedMailbox(limits.queue_messages)
        self._num_heard: Counter[PeerId] = Counter()  # in one go
        self._farewells: set[PeerId] = set()
        self._refused_by: dict[PeerId, str] = {}
        self._locked_out: set[PeerId] = set()  # by whom
        self._refusals = Refusals()
        self._is_open = False

    def _bind(self, address: str) -> str:
        """Listen on `address`; returns it with the port that was taken."""
        try:
            return self._in.listen(address)
        except zmq.ZMQError as error:
            self._destroy()
            raise StartupError(
                f"peer {self.me}: cannot listen on {address}: {error.strerror}; is another peer "
                f"{self.me} or another program using it? choose another address in [transport]"
            ) from error

    # ---- coming together ------------------------------------------------------------------

    def open(self, book: Mapping[PeerId, str], neighbours: Iterable[PeerId]) -> None:
        """Connect to `neighbours` and wait until each has exchanged hellos with this peer.

        Raises StartupError naming who is missing and the address tried, or who refused and why.
        """
        self._book = AddressBook(book)
        self._own_address = book.get(self.me, self.endpoint)
        wanted = sorted(set(neighbours) - {self.me})
        self.expect(wanted)
        deadline = time.monotonic() + self._limits.startup_s
        while missing := [j for j in wanted if not self._has_met(j)]:
            for peer, why in self._refused_by.items():
                raise StartupError(f"peer {self.me}: peer {peer} at {self._book[peer]} {why}")
            if time.monotonic() > deadline:
                raise StartupError(self._who_is_missing(missing))
            self._pump(deadline - time.monotonic())
        self._is_open = True

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Begin to connect to further neighbours, ahead of the round that needs them."""
        for peer in neighbours:
            if peer not in self._out and peer != self.me:
                try:
                    self._out.connect(peer, self._book[peer])
                except StartupError as error:
                    raise StartupError(f"peer {self.me}: {error}") from error

    def _has_met(self, peer: PeerId) -> bool:
        return self._liveness.state(peer) != "connecting" and self._admission.has_met(peer)

    def _who_is_missing(self, missing: Sequence[PeerId]) -> str:
        who = ", ".join(f"peer {j} at {self._book[j]}" for j in missing)
        self._take_refusals()
        foreign = "; ".join(self._refusals.reasons())
        keyless = [j for j in missing if j in self._locked_out]
        why = f"no hello within {self._limits.startup_s:g} s from {who}; was it started, and is "
        why += "the address right?"
        why += f" Peers {keyless} ended the handshake: are both keys of this run?" * bool(keyless)
        return f"peer {self.me}: {why}" + f" Refused meanwhile: {foreign}" * bool(foreign)

    # ---- the exchange ---------------------------------------------------------------------

    def post(self, tag: Tag, sent: Sent) -> int:
        """Send without blocking; a receiver that is gone or has a full queue is skipped."""
        self._tag = tag
        frames: dict[int, tuple[bytes, list[zmq.Frame], int]] = {}
        bytes_out = 0
        for peer, payload in outbox_of(sent).items():
            if id(payload) not in frames:
                slots = wire.slots_of(payload.tensors)
                header = self._header(Kind.ROUND, tag, scalars=payload.scalars, slots=slots)
                block = self._snapshots.take(payload, slots)
                frames[id(payload)] = (wire.encode_header(header), block, header.block_bytes)
            data, block, num_bytes = frames[id(payload)]
            if self._post_to(peer, data, block):
                bytes_out += num_bytes
        return bytes_out

    def _post_to(self, peer: PeerId, header: bytes, block: Sequence[zmq.Frame]) -> bool:
        """Send, or keep until there is a connection or, if so wanted, room; False if dropped."""
        state = self._liveness.state(peer)
        if state in ("alive", "slow"):
            if self._out.flush(peer) and self._out.send(peer, header, block):
                return True
            if not self._limits.resend:
                return False
        elif state != "connecting":
            return False
        self.expect([peer])
        self._out.keep(peer, header, block)
        return True

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """Whom the mailbox awaits is waited for: not the dead, the slow up to the deadline."""
        self._tag, start = tag, time.monotonic()
        self._mailbox.begin(tag)
        for peer in self._out:
            if self._out.has_waiting(peer) and self._liveness.is_connected(peer):
                self._out.flush(peer)
        # Who could not be sent to goes on without, and is not awaited: nor would it be any further.
        worth = [j for j in senders if self._liveness.state(j) != "dead"]
        self._pump(0.0)  # the dead may be back, and only reading finds out
        while True:
            now = time.monotonic()
            alive = {j for j in worth if self._liveness.is_awaited(j, now)}
            awaited = [j for j in self._mailbox.absent(senders) if j in alive]
            left_s = start + deadline_s - now
            if not awaited or left_s <= 0:
                break
            self._pump(min(left_s, self._liveness.recheck_s(now), self._mailbox.due_in_s()))
        for peer in awaited:
            self._liveness.missed_deadline(peer, deadline_s)
        self._tell_changes()
        mail = self._mailbox.take(senders)
        silent = [j for j in senders if j not in mail.on_time and self._is_fine(j)]
        return replace(mail, silent=len(silent))

    def close(self) -> None:
        """Say goodbye, wait (bounded) until neighbours have read everything, free the sockets."""
        if self._context.closed:
            return
        goodbye = wire.encode_header(self._header(Kind.GOODBYE, self._tag))
        waiting = {
            j for j in self._out if self._liveness.is_connected(j) or self._out.has_waiting(j)
        }
        unsaid = set(waiting)
        deadline = time.monotonic() + self._limits.linger_s
        while True:
            now = time.monotonic()
            ready = {j for j in unsaid if self._liveness.is_connected(j)}
            unsaid -= {j for j in ready if self._out.flush(j) and self._out.send(j, goodbye)}
            waiting = {j for j in waiting - self._farewells if self._liveness.is_awaited(j, now)}
            if not waiting or now >= deadline:
                break
            retry_s = 0.02 if unsaid & waiting else math.inf  # no event tells of room in a queue
            self._pump(min(deadline - now, self._liveness.recheck_s(now), retry_s))
        self._take_refusals()
        for event in self._refusals.rest(self._tag.round):
            self.on_event(event)
        self._destroy()

    # ---- what comes in --------------------------------------------------------------------

    def _pump(self, timeout_s: float) -> None:
        """Wait for anything to happen, at most `timeout_s`, and take in all that has."""
        self._read(timeout_s)
        if self._limits.resend:
            while max(self._num_heard.values(), default=0) >= self._limits.queue_messages:
                self._read(_DRAIN_S)

    def _read(self, timeout_s: float) -> None:
        self._poller.poll(max(0, math.ceil(timeout_s * 1000)))
        self._num_heard.clear()
        while frames := receive(self._monitor):
            self._on_monitor(frames)
        if self._to_greet:
            self._greet()
        while frames := receive(self._out.socket):
            self._on_reply(frames)
        for frames in self._in.read():
            self._on_message(frames)
        self._take_refusals()

    def _take_refusals(self) -> None:
        """Tell whom the gate has turned away meanwhile."""
        for who_and_why, times in self._in.turned_away().items():
            self._complain(None, who_and_why, times)

    def _on_monitor(self, frames: Frames) -> None:
        event = parse_monitor_message([frame.bytes for frame in frames])
        peer = self._out.peer_at(event["endpoint"].decode())
        if peer is None:
            return
        if event["event"] == zmq.EVENT_DISCONNECTED:
            self._liveness.disconnected(peer, time.monotonic())
        elif event["event"] == zmq.EVENT_CONNECT_RETRIED:
            self._follow(peer)
            if self._is_open:
                self._liveness.unreachable(peer)
        elif event["event"] in FAILED_HANDSHAKE:
            self._locked_out.add(peer)
        else:
            self._locked_out.discard(peer)
            self._to_greet.add(peer)

    def _greet(self) -> None:
        """Say hello on new connections; again later if a queue is still full of old messages."""
        where = "" if is_wildcard(self._own_address) else self._own_address
        hello = wire.encode_header(self._header(Kind.HELLO, self._tag, note=where))
        self._to_greet -= {j for j in self._to_greet if self._out.send(j, hello)}

    def _on_reply(self, frames: Frames) -> None:
        """WELCOME, REFUSED or FAREWELL from the peer this peer connected to."""
        peer = peer_on(frames[0].bytes)
        if not self._out.is_current(peer, frames[0].bytes):
            return  # of where the peer was before
        try:
            header = wire.decode_header(frames[-1].buffer, 0)
        except WireError as error:
            self._on_refusal(peer, f"is not a peer of this runtime: {error}")
            return
        if header.kind is Kind.REFUSED:
            self._on_refusal(peer, f"refused this peer: {header.note}")
        elif header.kind is Kind.FAREWELL:
            self._farewells.add(peer)
        elif header.kind is Kind.WELCOME and header.sender == peer:
            self._liveness.welcomed(peer)
            self._answering[peer] = header.incarnation
            self._out.flush(peer)
        else:
            self._on_refusal(peer, f"answers as peer {header.sender}: the address book is wrong")

    def _on_refusal(self, peer: PeerId, why: str) -> None:
        self._refused_by[peer] = why
        if self._is_open:  # before that, `open` raises it
            self._complain(peer, why)

    def _on_message(self, frames: Frames) -> None:
        contact = frames[0].bytes
        sender = self._admission.peer_on(contact)
        holder = self._in.holder(frames)
        try:
            header, payload = decode(frames, self._limits.max_message_bytes)
            if holder is not None:
                self._admission.check_holder(header, holder)
            if header.kind is Kind.HELLO:
                self._on_hello(contact, header)
            elif sender is None:
                return  # queued for an earlier incarnation of this peer, before its hello
            else:
                self._admission.check(sender, header)
                self._on_known(contact, sender, header, payload)
        except WireError as error:
            self._complain(holder if sender is None else sender, f"{error}{origin(frames)}")
            if sender is None:
                self._answer(contact, Kind.REFUSED, str(error))

    def _on_hello(self, contact: bytes, header: Header) -> None:
        peer = header.sender
        is_alive = self._liveness.is_connected(peer)
        self._admission.check_hello(header, self._answering[peer] if is_alive else None)
        if self._book and peer not in self._book:
            raise unknown(peer)
        for lost in self._admission.admit(contact, header):
            self._answer(lost, Kind.REFUSED, TWINS.format(peer=peer))
        self._announced[peer] = header.note
        if not is_alive and self._liveness.state(peer) != "connecting":
            self._follow(peer)
        self._answer(contact, Kind.WELCOME)

    def _follow(self, peer: PeerId) -> None:
        """Connect to where a lost peer says that it is now, if that is elsewhere."""
        try:
            has_moved = self._book.move(peer, self._announced.pop(peer, ""))
            if has_moved and peer in self._out:
                self._out.move(peer, self._book[peer])
        except StartupError as error:
            self._complain(peer, str(error))

    def _on_known(self, contact: bytes, sender: PeerId, header: Header, payload: Payload) -> None:
        if header.kind is Kind.GOODBYE:
            self._liveness.said_goodbye(sender)
            self._mailbox.left(sender)
            self._answer(contact, Kind.FAREWELL)
        elif header.kind is Kind.ROUND:
            self._admission.advance(sender, header.tag)
            self._on_payload(sender, header, payload)

    def _on_payload(self, sender: PeerId, header: Header, payload: Payload) -> None:
        self._liveness.delivered(sender)
        self._num_heard[sender] += 1
        why = self._mailbox.put(Message(sender, header.tag, payload), header.block_bytes)
        if why is not None:
            self._complain(sender, why)

    def _is_fine(self, peer: PeerId) -> bool:
        return self._liveness.is_connected(peer) or self._liveness.state(peer) == "left"

    # ---- small parts ----------------------------------------------------------------------

    def _header(
        self,
        kind: Kind,
        tag: Tag,
        *,
        note: str = "",
        scalars: Mapping[str, float] | None = None,
        slots: tuple[wire.Slot, ...] = (),
    ) -> Header:
        scalars = {name: float(x) for name, x in (scalars or {}).items()}
        return Header(kind, self._digest, self.me, self._incarnation, tag, note, scalars, slots)

    def _answer(self, contact: bytes, kind: Kind, note: str = "") -> None:
        self._in.answer(contact, self._header(kind, self._tag, note=note[: wire.MAX_NAME]))

    def _complain(self, sender: PeerId | None, why: str, times: int = 1) -> None:
        """Report what was rejected, once per sender and reason; how often is told in the end."""
        for event in self._refusals.add(sender, why, self._tag.round, times):
            self.on_event(event)

    def _tell_changes(self) -> None:
        for change in self._liveness.take_changes():
            self.on_event(
                NeighbourChanged(change.neighbour, change.state, self._tag.round, change.why)
            )

    def _destroy(self) -> None:
        self._in.close()
        self._context.destroy(linger=0)
