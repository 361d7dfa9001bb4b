"""Payloads over torch.distributed (gloo, NCCL): flat buffers in mirrored batches, no elasticity.

An exchange is one `batch_isend_irecv`. Of payloads that look alike, each exchange of a round has a
layout that all peers agree on once, by a collective; then both ends know the size of every message.
Payloads of a `Coded` outbox are preceded by a batch of their heads, which hold the sizes. A peer
that fails, hangs or is out of step ends the run: TransportError, at every peer sooner or later.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError, StartupError, TransportError
from p2p_dml.transports._dist_group import Group
from p2p_dml.transports._dist_memory import Memory
from p2p_dml.transports._dist_messages import (
    HEAD_BYTES,
    NO_LAYOUT,
    Layout,
    body_bytes,
    decode_layout,
    difference,
    letter_of,
    read_alike,
    read_coded,
    read_head,
)
from p2p_dml.transports._dist_mirror import mirror_fault, mirror_row
from p2p_dml.types import Coded, Mail, Payload, PeerId, Sent, Tag, outbox_of

__all__ = ["Group", "TorchDistTransport"]


@dataclass(frozen=True, slots=True)
class _Posted:
    """What waits to be sent; `layout` is that of payloads that look alike, if there are any."""

    tag: Tag
    flats: Mapping[PeerId, Tensor]
    layout: Layout | None
    is_alike: bool


@final
class TorchDistTransport:
    """One peer's end of a group. `open` first; what is posted is sent when it is collected.

    Every exchange is posted and collected by all peers, in the same order.
    """

    elastic = False

    def __init__(
        self,
        group: Group,
        digest: bytes,
        *,
        home: torch.device,
        max_message_bytes: int = 1 << 30,
        debug: bool = False,
    ) -> None:
        """`home`: where received tensors are wanted. `debug`: compare all links before a batch."""
        self.me = group.me
        self._group = group
        self._digest = digest
        self._memory = Memory(group.wire, home)
        self._max_message_bytes = max_message_bytes
        self._debug = debug
        self._layouts: dict[int, Layout] = {}  # by the exchange of a round
        self._posted = _Posted(Tag(0), {}, None, is_alike=True)

    def open(self, deadline_s: float) -> None:
        """Come together and compare runs; also the first collective, which connects NCCL.

        Raises StartupError naming peers of another run, TransportError if somebody is lost.
        """
        found = self._group.gather_bytes(self._digest, time.monotonic() + deadline_s)
        digests = dict(zip(self._group.peers, found, strict=True))
        foreign = [peer for peer, digest in digests.items() if digest != found[0]]
        if foreign:
            raise StartupError(
                f"peers {foreign} are of another run than peer {self._group.peers[0]} (digests "
                f"{digests[foreign[0]].hex()[:12]} and {found[0].hex()[:12]}): run file, seed and "
                "p2p_dml version must be the same on all hosts"
            )

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Everybody is connected from the beginning."""

    def post(self, tag: Tag, sent: Sent) -> int:
        """Copy what is to be sent. ConfigError if its layout is not that of earlier rounds."""
        is_alike = not isinstance(sent, Coded)
        flats: dict[PeerId, Tensor] = {}
        copies: dict[int, tuple[Tensor, int]] = {}
        layout = self._layouts.get(tag.exchange) if is_alike else None
        bytes_out = 0
        for peer, payload in outbox_of(sent).items():
            if id(payload) not in copies:
                letter = letter_of(payload, self.me, tag, is_alike=is_alike)
                if is_alike:
                    self._check_layout(tag, letter.layout, layout)
                    layout = letter.layout
                flat = self._memory.take(letter.num_bytes)
                letter.write(flat)
                copies[id(payload)] = flat, letter.block_bytes
            flats[peer], num_bytes = copies[id(payload)]
            bytes_out += num_bytes
        self._posted = _Posted(tag, flats, layout, is_alike)
        return bytes_out

    def _check_layout(self, tag: Tag, new: Layout, agreed: Layout | None) -> None:
        if agreed is not None and new != agreed:
            raise ConfigError(
                f"strategy: peer {self.me}, round {tag.round}: payloads of an outbox must look "
                f"alike in all rounds, and one has {difference(new, agreed)}; yield a Coded outbox"
            )

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """Exchange what was posted for `tag`; there is a payload of each of `senders`.

        Raises TransportError, naming the peer if it can be told, after `deadline_s` at the latest.
        """
        deadline = time.monotonic() + deadline_s
        posted = self._posted
        if posted.tag != tag:
            raise ValueError(f"peer {self.me}: nothing was posted for {tag}")
        self._posted = _Posted(tag, {}, None, is_alike=True)
        senders = sorted(senders)
        if self._debug:
            self._check_mirror(posted, senders, deadline)
        if not posted.is_alike:
            return self._exchange_coded(posted, senders, deadline)
        layout = self._layouts.get(tag.exchange) or self._agree(posted, deadline)
        return self._exchange_alike(posted, layout, senders, deadline) if layout else Mail({})

    def _agree(self, posted: _Posted, deadline: float) -> Layout | None:
        """Learn the layout of an exchange from those who send; None if nobody does this time.

        Raises ConfigError if theirs differ.
        """
        own = posted.layout.encode() if posted.layout else b""
        found = self._group.gather_bytes(own, deadline)
        told = zip(self._group.peers, found, strict=True)
        layouts = {peer: decode_layout(data) for peer, data in told if data}
        for peer, layout in layouts.items():
            first = min(layouts)
            if layout != layouts[first]:
                raise ConfigError(
                    f"strategy: round {posted.tag.round}: payloads of all peers must look alike, "
                    f"and those of peer {peer} have {difference(layout, layouts[first])}, which "
                    f"peer {first} sends; yield a Coded outbox"
                )
            self._layouts[posted.tag.exchange] = layout
        return self._layouts.get(posted.tag.exchange)

    def _exchange_alike(
        self, posted: _Posted, layout: Layout, senders: Sequence[PeerId], deadline: float
    ) -> Mail:
        incoming = {j: self._memory.take(layout.num_bytes) for j in senders}
        self._group.exchange(posted.flats, incoming, deadline)
        home = {j: self._memory.bring_home(flat) for j, flat in incoming.items()}
        on_time = {j: read_alike(flat, layout, j, posted.tag) for j, flat in home.items()}
        return Mail(on_time, (), layout.block_bytes * len(on_time))

    def _exchange_coded(self, posted: _Posted, senders: Sequence[PeerId], deadline: float) -> Mail:
        heads = {j: self._memory.take(HEAD_BYTES) for j in senders}
        own = {j: flat[:HEAD_BYTES] for j, flat in posted.flats.items()}
        self._group.exchange(own, heads, deadline)
        sizes = {j: self._sizes(head, j, posted.tag) for j, head in heads.items()}
        bodies = {j: self._memory.take(body_bytes(*both)) for j, both in sizes.items()}
        own = {j: flat[HEAD_BYTES:] for j, flat in posted.flats.items()}
        self._group.exchange(own, bodies, deadline)
        on_time: dict[PeerId, Payload] = {}
        for j, body in bodies.items():
            on_time[j] = read_coded(self._memory.bring_home(body), sizes[j][0], j)
        return Mail(on_time, (), sum(block_bytes for _, block_bytes in sizes.values()))

    def _sizes(self, head: Tensor, sender: PeerId, tag: Tag) -> tuple[int, int]:
        """Sizes of header and block; TransportError before memory is taken for too many bytes."""
        sizes = read_head(bytes(head.cpu().numpy()), sender, tag, NO_LAYOUT)
        if min(sizes) < 0 or sum(sizes) > self._max_message_bytes:
            raise TransportError(
                f"peer {sender} announces {sum(sizes)} bytes, limit {self._max_message_bytes} "
                "(transport.max_message_bytes)",
                sender,
            )
        return sizes

    def _check_mirror(self, posted: _Posted, senders: Sequence[PeerId], deadline: float) -> None:
        """Raise TransportError at every peer if any two see the exchange differently."""
        peers = self._group.peers
        row = mirror_row(posted.tag, posted.is_alike, posted.flats, senders, peers)
        fault = mirror_fault([x.tolist() for x in self._group.gather(row, deadline)], peers)
        if fault is not None:
            raise TransportError(f"peer {self.me} at {posted.tag}: {fault}")

    def close(self) -> None:
        """Nothing to say: peers of a group leave together, and who started the group ends it."""
        self._posted = _Posted(Tag(0), {}, None, is_alike=True)
