"""Payloads over ZeroMQ: any host, no asyncio, no receiver thread, survives the death of others.

One bound ROUTER takes everything in and only ever answers handshakes; one connected ROUTER sends,
with a bounded queue per neighbour, and its socket monitor tells at once when a connection breaks.
libzmq moves bytes, and encrypts them where there are keys, in its own thread while Python computes.
A connection begins with a hello (`_handshakes.py`); nothing is accepted before it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np
import zmq
from numpy.typing import NDArray

from p2p_dml import wire
from p2p_dml.errors import StartupError, WireError
from p2p_dml.events import Event, NeighbourChanged, NotShared
from p2p_dml.keys import Keys
from p2p_dml.liveness import GONE, Liveness
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.transports._handshakes import Handshakes, Signature
from p2p_dml.transports._incoming import Incoming, decode, origin
from p2p_dml.transports._newcomers import Newcomers
from p2p_dml.transports._outgoing import Outgoing
from p2p_dml.transports._plane import Plane
from p2p_dml.transports._refusals import Refusals
from p2p_dml.transports._sending import Sending
from p2p_dml.transports._snapshots import Snapshots
from p2p_dml.transports._sockets import Frames, Limits, receive, router
from p2p_dml.types import (
    Mail,
    Mailbox,
    Membership,
    Message,
    Payload,
    PeerId,
    Sent,
    Tag,
)
from p2p_dml.wire import Header, Kind

__all__ = ["Limits", "ZeroMQTransport"]

_IO_THREADS = 1

_LATECOMERS_S = 1.0
"""How long who comes into a run that is under way waits for neighbours that may be lost."""

_DRAIN_S = 0.001
"""Wait for more where a queue was found full: the rest needs a moment to follow."""
_DRAINS = 64  # at most: somebody may send without end


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
        members: Membership | None = None,
    ) -> None:
        """Bind to `bind` (port `*` takes a free one). StartupError if the address is taken.

        `mailbox`: that of synchronous rounds if None. With `keys` all is encrypted, and nobody but
        the holders of listed keys gets in, each as the peer that it is. `members`: who takes part,
        where peers come and go.
        """
        self.me = me
        self.signature = Signature(me, digest, incarnation)
        self._limits = limits
        self.on_event = on_event
        self._plane = Plane(me, self._explain, wanted=limits.shared_memory)
        self._context = zmq.Context(_IO_THREADS)
        longest = wire.MAX_FRAME_BYTES if keys else wire.MAX_NEAR_FRAME_BYTES
        bound = router(self._context, limits, pings=False, frame_bytes=longest)
        self._in = Incoming(bound, keys)
        depth = limits.resend or limits.queue_messages
        lines, pulse = (router(self._context, limits) for _ in range(2))
        self._out = Outgoing(lines, pulse, depth, keys)
        self._monitor, self._pulses = self._out.monitor(), self._out.pulse_monitor()
        self.endpoint = self._bind(bind)
        self._poller = zmq.Poller()
        for each in (self._in.socket, self._out.socket, self._monitor, self._pulses):
            self._poller.register(each, zmq.POLLIN)
        self._liveness = Liveness(limits.drain_s, limits.patience)
        snapshots = Snapshots(self._plane)
        self._mailbox = mailbox or TaggedMailbox(limits.queue_messages)
        self._num_heard: Counter[PeerId] = Counter()  # in one go
        self._farewells: set[PeerId] = set()
        self._refusals = Refusals()
        self._hands = Handshakes(
            self.signature,
            self._in,
            self._out,
            self._liveness,
            self._mailbox,
            self._plane,
            self.complain,
            members,
        )
        self._sending = Sending(self._hands, self._out, self._plane, snapshots, limits, self.expect)
        self._newcomers = Newcomers(self.signature, self._hands, self._out, snapshots)

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

    def open(
        self,
        book: Mapping[PeerId, str],
        neighbours: Iterable[PeerId],
        *,
        is_under_way: bool = False,
    ) -> None:
        """Connect to `neighbours` and wait until each has exchanged hellos with this peer.

        Of a run that is under way, as it is if one of them is past its beginning, those who do not
        come soon are taken for lost; the peer is outside then, until `come_inside`.
        Raises StartupError naming who is missing and the address tried, or who refused and why.
        """
        self._hands.begin(book, book.get(self.me, self.endpoint))
        wanted = sorted(set(neighbours) - {self.me})
        self.expect(wanted)
        begin = time.monotonic()
        while True:
            is_on = is_under_way or any(self._hands.rounds.get(j) for j in wanted)
            if is_on and not self._hands.is_outside:
                self._hands.stay_outside()
            missing = [j for j in wanted if not self._hands.has_met(j)]
            waited_s = time.monotonic() - begin
            if not missing or (is_on and self.connected and waited_s > _LATECOMERS_S):
                break
            self._hands.check_refusals()
            if waited_s > self._limits.startup_s:
                self._take_refusals()
                raise self._hands.who_is_missing(
                    missing, self._limits.startup_s, self._refusals.reasons()
                )
            self._pump(min(_LATECOMERS_S, self._limits.startup_s - waited_s))
        self._hands.open()

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Begin to connect to further neighbours, ahead of the round that needs them."""
        for peer in neighbours:
            if peer not in self._out and peer != self.me:
                try:
                    self._out.connect(peer, self._hands.book[peer])
                except StartupError as error:
                    raise StartupError(f"peer {self.me}: {error}") from error

    # ---- into a run that is under way -----------------------------------------------------

    @property
    def is_outside(self) -> bool:
        """Whether the run is under way and this peer has yet to come in."""
        return self._hands.is_outside

    @property
    def newest_round(self) -> int:
        """The latest round that somebody is known to be in."""
        return max(self._hands.rounds.values(), default=0)

    def come_inside(self, round_: int) -> None:
        """Let the others know that this peer sends from `round_` on."""
        self._hands.come_inside(round_)

    @property
    def connected(self) -> list[PeerId]:
        """Who can be asked for a model: those in the latest round first."""
        rounds = self._hands.rounds
        here = [peer for peer in rounds if self._liveness.is_connected(peer)]
        return sorted(here, key=lambda peer: (-rounds[peer], peer))

    def ask_for_model(self, peer: PeerId, timeout_s: float) -> Payload | None:
        """What `give_model` of a neighbour sends at the end of a round, or None.

        None if it is lost, or for so long nothing is heard of it nor that rounds go on. To ask is
        also to ask to take part.
        """
        newest, since = 0, time.monotonic()
        self._newcomers.ask(peer)
        while not self._newcomers.has_given(peer) and self._liveness.is_connected(peer):
            if self.newest_round > newest:
                newest, since = self.newest_round, time.monotonic()
            left_s = since + timeout_s - time.monotonic()
            if left_s <= 0:
                break
            self._pump(min(_LATECOMERS_S, left_s))
        return self._newcomers.take(peer)

    @property
    def asking(self) -> frozenset[PeerId]:
        """Who wants this peer's model."""
        return self._newcomers.asking

    def give_model(self, payload: Payload, to: Collection[PeerId]) -> None:
        """Send it to these, who have asked."""
        self.expect(to)
        self._newcomers.give(payload, to)

    def tell_members(self) -> None:
        """Tell all that are connected who takes part, where that has changed here."""
        self._hands.spread(())

    # ---- the exchange ---------------------------------------------------------------------

    def post(self, tag: Tag, sent: Sent) -> int:
        """Send without blocking; a receiver that is gone or has a full queue is skipped."""
        self._hands.tag = tag
        return self._sending.post(tag, sent)

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """Whom the mailbox awaits is waited for: not the dead, the slow up to the deadline."""
        # With overlap what is collected is a round behind what was posted.
        self._hands.tag, start = max(tag, self._hands.tag), time.monotonic()
        self._mailbox.begin(tag)
        for peer in self._out:
            if self._out.has_waiting(peer) and self._liveness.is_connected(peer):
                self._sending.flush(peer)
        # Who could not be sent to goes on without, and is not awaited: nor would it be any further.
        worth = [j for j in senders if self._liveness.state(j) not in GONE]
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
        return replace(mail, silent=len(silent)) if silent else mail

    def close(self) -> None:
        """Say goodbye, wait (bounded) until neighbours have read everything, free the sockets."""
        if self._context.closed:
            return
        goodbye = wire.encode_header(self.signature.header(Kind.GOODBYE, self._hands.tag))
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
        for event in self._refusals.rest(self._hands.tag.round):
            self.on_event(event)
        self._destroy()

    # ---- what comes in --------------------------------------------------------------------

    def _pump(self, timeout_s: float) -> None:
        """Wait for anything to happen, at most `timeout_s`, and take in all that has."""
        self._read(timeout_s)
        for _ in range(_DRAINS if self._limits.resend else 0):
            if max(self._num_heard.values(), default=0) < self._limits.queue_messages:
                break
            self._read(_DRAIN_S)

    def _read(self, timeout_s: float) -> None:
        ready = {each for each, _ in self._poller.poll(max(0, math.ceil(timeout_s * 1000)))}
        self._num_heard.clear()
        while self._monitor in ready and (frames := receive(self._monitor)):
            self._hands.on_monitor(frames)
        while self._pulses in ready and (frames := receive(self._pulses)):
            self._hands.on_silence(frames)
        self._hands.greet()
        while self._out.socket in ready and (frames := receive(self._out.socket)):
            if (leaving := self._hands.on_reply(frames)) is not None:
                self._farewells.add(leaving)
        for frames in self._in.read() if self._in.socket in ready else ():
            self._on_message(frames)
        self._take_refusals()

    def _take_refusals(self) -> None:
        """Tell whom the gate has turned away meanwhile."""
        for who_and_why, times in self._in.turned_away().items():
            self.complain(None, who_and_why, times)

    def _on_message(self, frames: Frames) -> None:
        contact = frames[0].bytes
        admission = self._hands.admission
        sender = admission.peer_on(contact)
        holder = self._in.holder(frames)
        try:
            header, block = decode(frames, self._limits.max_message_bytes)
            if holder is not None:
                admission.check_holder(header, holder)
            if header.kind is Kind.HELLO:
                self._in.count(contact)
                introduction = wire.payload_of(header, block).tensors
                self._hands.on_hello(contact, header, introduction)
            elif sender is None:
                return  # queued for an earlier incarnation of this peer, before its hello
            else:
                admission.check(sender, header)
                self._on_known(contact, sender, header, block)
        except WireError as error:
            if self._in.count(contact) and sender is not None:
                self._liveness.flooded(sender, time.monotonic())
            self.complain(holder if sender is None else sender, f"{error}{origin(frames)}")
            if sender is None:
                self._hands.answer(contact, Kind.REFUSED, str(error))

    def _on_known(
        self, contact: bytes, sender: PeerId, header: Header, block: NDArray[np.uint8]
    ) -> None:
        is_lent = header.kind is Kind.LENT
        if is_lent:
            block = self._plane.borrow(sender, block, header.block_bytes)
        payload = wire.payload_of(header, block, is_finite=is_lent)
        if header.kind is Kind.GOODBYE:
            self._hands.take_leave(sender)
            self._mailbox.left(sender)
            self._hands.answer(contact, Kind.FAREWELL)
        elif header.kind in (Kind.ROUND, Kind.LENT):
            self._hands.admission.advance(sender, header.tag)
            self._on_payload(sender, header, payload)
        elif header.kind is Kind.ASK:
            self._newcomers.on_ask(sender)
        elif header.kind is Kind.MEMBERS:
            self._hands.learn(header)
            self._hands.hear(sender, header.tag)
        elif header.kind is Kind.STATE:
            self._newcomers.on_state(sender, header, payload)

    def _on_payload(self, sender: PeerId, header: Header, payload: Payload) -> None:
        self._num_heard[sender] += 1
        if self._hands.is_outside:
            self._hands.hear(sender, header.tag)
            return
        # What is refused is no sign that the sender gets on.
        why = self._mailbox.put(Message(sender, header.tag, payload), header.block_bytes)
        if why is not None:
            raise WireError(why)
        self._liveness.delivered(sender)

    def _is_fine(self, peer: PeerId) -> bool:
        return self._liveness.is_connected(peer) or self._liveness.state(peer) == "left"

    # ---- small parts ----------------------------------------------------------------------

    def complain(self, sender: PeerId | None, why: str, times: int = 1) -> None:
        """Report what was rejected, once per sender and reason; how often is told in the end."""
        for event in self._refusals.add(sender, why, self._hands.tag.round, times):
            self.on_event(event)

    def _tell_changes(self) -> None:
        for change in self._liveness.take_changes():
            self.on_event(
                NeighbourChanged(change.neighbour, change.state, self._hands.tag.round, change.why)
            )

    def _explain(self, peer: PeerId, why: str) -> None:
        self.on_event(NotShared(peer, why))

    def _destroy(self) -> None:
        self._plane.close()
        self._in.close()
        self._context.destroy(linger=0)
