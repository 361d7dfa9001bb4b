"""A directory: peers tell it where they are and learn where the others are, before they meet.

HELLO with the address in its note is answered by BOOK, all addresses so far, or by REFUSED. Once
everybody is known, and again when somebody comes back elsewhere, all are sent the book. A run
needs its directory only until its peers have met, unless it relays (`relay.py`): the address of a
peer that says RELAY is a port of the directory's, and the note of its BOOK says how it is joined.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import torch
import zmq

from p2p_dml import wire
from p2p_dml.addresses import host_and_port, is_ipv6, is_wildcard, resolve
from p2p_dml.errors import StartupError, WireError
from p2p_dml.keys import Keys
from p2p_dml.transports import _curve
from p2p_dml.transports._incoming import Incoming, decode
from p2p_dml.transports._sockets import Frames, Limits, receive, router
from p2p_dml.types import PeerId, Tag
from p2p_dml.wire import Header, Kind

_LIMITS = Limits(max_message_bytes=1 << 24)  # a hundred thousand addresses
_AGAIN_S = 1.0
_ADDRESSES = "addresses"

RELAY = "relay"
"""What a peer says of its address if it can only dial out."""


@final
class Directory:
    """The end that answers; `attend` to it again and again.

    `told` is called with a sentence for whatever happens. `relay` gives a peer that can only dial
    out an address, and a ticket that it needs for that.
    """

    def __init__(
        self,
        listen: str,
        peers: int,
        keys: Keys | None,
        told: Callable[[str], None],
        relay: Callable[[PeerId], tuple[str, str]] | None = None,
    ) -> None:
        """Listen on `listen`. Raises StartupError if that cannot be."""
        self._peers = peers
        self._told = told
        self._relay = relay
        self._digest: bytes | None = None
        self._contacts: dict[PeerId, bytes] = {}
        self._notes: dict[PeerId, str] = {}
        self._context = zmq.Context()
        self._in = Incoming(router(self._context, _LIMITS, pings=False), keys)
        self.book: dict[PeerId, str] = {}
        try:
            self.endpoint = self._in.listen(listen)
        except zmq.ZMQError as error:
            self.close()
            raise StartupError(f"directory: cannot listen on {listen}: {error.strerror}") from error

    def attend(self, timeout_s: float) -> None:
        """Answer all who come in this time, and whoever came before."""
        self._in.socket.poll(int(timeout_s * 1000))
        for frames in self._in.read():
            contact = frames[0].bytes
            try:
                header, _ = decode(frames, 0)
                self._admit(contact, header, self._in.holder(frames))
            except WireError as error:
                self._told(f"refused: {error}")
                note = str(error)[: wire.MAX_NAME]
                refusal = Header(Kind.REFUSED, bytes(wire.DIGEST_BYTES), 0, 0, Tag(0), note)
                self._in.answer(contact, wire.encode_header(refusal))
        for who, times in self._in.turned_away().items():
            self._told(f"{who}, {times} times")

    def _admit(self, contact: bytes, header: Header, holder: PeerId | None) -> None:
        peer = header.sender
        if header.kind is not Kind.HELLO or not 0 <= peer < self._peers:
            raise WireError(f"no hello of a peer 0 to {self._peers - 1}, found peer {peer}")
        if holder not in (None, peer):
            raise WireError(f"says it is peer {peer}, and has shown the key of peer {holder}")
        if header.digest != (self._digest or header.digest):
            raise WireError(
                f"peer {peer} is of another run than those before: run file, seed and p2p_dml "
                "version must be the same; for another run start another directory"
            )
        address, note = self._place(peer, header.note)
        self._digest = header.digest
        self._contacts[peer] = contact
        was_complete, before = len(self.book) == self._peers, self.book.get(peer)
        self.book[peer] = address
        if address != before:
            self._told(f"peer {peer} is at {address} ({len(self.book)} of {self._peers})")
        is_news = len(self.book) == self._peers and (not was_complete or address != before)
        self._notes[peer] = note
        self._send_book(self._contacts if is_news else [peer])

    def _place(self, peer: PeerId, place: str) -> tuple[str, str]:
        """Where others reach a peer, and what it needs to know for that."""
        if place == RELAY:
            if self._relay is None:
                raise WireError("this directory does not relay; start it with --relay")
            return self._relay(peer)
        if is_wildcard(place) or not place.startswith("tcp://"):
            raise WireError(f"peer {peer} cannot be reached at {place!r}")
        return place, ""

    def _send_book(self, peers: Iterable[PeerId]) -> None:
        text = "\n".join(self.book.get(peer, "") for peer in range(self._peers))
        tensors = {_ADDRESSES: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}
        slots = wire.slots_of(tensors)
        assert self._digest is not None
        block = wire.encode_block(tensors, slots)
        for peer in peers:
            header = Header(Kind.BOOK, self._digest, 0, 0, Tag(0), self._notes[peer], slots=slots)
            frames = [self._contacts[peer], wire.encode_header(header), block]
            self._in.socket.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        """Free the sockets."""
        self._in.close()
        self._context.destroy(linger=0)


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """Everybody's address; `ticket`: with which to be relayed, empty if that was not asked."""

    book: Mapping[PeerId, str]
    ticket: str


def ask(directory: str, hello: Header, peers: int, keys: Keys | None, timeout_s: float) -> Answer:
    """Tell a directory where a peer is (the note of its hello), and learn where all are.

    Waits until all have told. Raises StartupError saying who has not, or what is wrong.
    """
    place = resolve(directory)
    context = zmq.Context()
    line = context.socket(zmq.DEALER)
    try:
        line.setsockopt(zmq.MAXMSGSIZE, _LIMITS.max_message_bytes)
        line.setsockopt(zmq.IPV6, is_ipv6(place))
        if keys is not None:
            _curve.use(line, keys.own)
            _curve.expect(line, keys.directory)
        line.connect(place)
        return _Inquiry(directory, hello, peers).wait(line, timeout_s)
    finally:
        context.destroy(linger=0)


@final
class _Inquiry:
    """What a peer has heard of a directory so far."""

    def __init__(self, directory: str, hello: Header, peers: int) -> None:
        self._directory = directory
        self._hello = hello
        self._me = hello.sender
        self._peers = peers
        self._book: dict[PeerId, str] | None = None
        self._ticket = ""

    def wait(self, line: zmq.Socket[bytes], timeout_s: float) -> Answer:
        """Say hello until the book is complete: the directory may have been started again."""
        begin = again = time.monotonic()
        while self._book is None or len(self._book) < self._peers:
            if (now := time.monotonic()) > begin + timeout_s:
                raise StartupError(f"peer {self._me}: {self._what_is_missing(timeout_s)}")
            if now >= again:
                with suppress(zmq.Again):  # nobody reads them
                    line.send(wire.encode_header(self._hello), zmq.NOBLOCK)
                again = now + _AGAIN_S
            line.poll(math.ceil(1000 * (min(again, begin + timeout_s) - now)))
            while frames := receive(line):
                self._read(frames)
        return Answer(self._book, self._ticket)

    def _read(self, frames: Frames) -> None:
        try:
            # A ROUTER, for which `decode` is, would have a contact in front.
            header, block = decode([frames[0], *frames], _LIMITS.max_message_bytes)
            payload = wire.payload_of(header, block)
        except WireError as error:
            raise StartupError(
                f"peer {self._me}: {self._directory} is not a directory: {error}"
            ) from error
        if header.kind is Kind.REFUSED:
            raise StartupError(
                f"peer {self._me}: the directory at {self._directory} refused it: {header.note}"
            )
        if header.kind is Kind.BOOK and _ADDRESSES in payload.tensors:
            letters = payload.tensors[_ADDRESSES]
            if letters.dtype != torch.uint8:
                raise StartupError(
                    f"peer {self._me}: {self._directory} is not a directory: {_ADDRESSES}: "
                    f"expected uint8, found {letters.dtype}"
                )
            text = letters.numpy().tobytes().decode(errors="replace")
            self._book = {peer: place for peer, place in enumerate(text.split("\n")) if place}
            self._ticket = header.note

    def _what_is_missing(self, timeout_s: float) -> str:
        if self._book is None:
            return (
                f"no answer from the directory at {self._directory} within {timeout_s:g} s; "
                "is `p2p-dml directory` running there, with keys of this run?"
            )
        missing = ", ".join(str(j) for j in range(self._peers) if j not in self._book)
        return (
            f"the directory at {self._directory} has not heard of peers {missing} within "
            f"{timeout_s:g} s; were they started?"
        )


def reachable_at(endpoint: str, directory: str) -> str:
    """Where others reach a peer that listens at `endpoint`: of a wildcard, its own address.

    That from which it would talk to the directory. Raises StartupError if there is no way there.
    """
    if not is_wildcard(endpoint):
        return endpoint
    place = resolve(directory)
    family = socket.AF_INET6 if is_ipv6(place) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # no packet is sent
            probe.connect(host_and_port(place))
            own = probe.getsockname()[0]
    except OSError as error:
        raise StartupError(f"no way to the directory at {directory}: {error.strerror}") from error
    own = f"[{own}]" if family == socket.AF_INET6 else own
    return f"tcp://{own}:{endpoint.rpartition(':')[2]}"
