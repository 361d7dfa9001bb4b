"""Which incoming connection is which peer's, and what it may still say: pure state.

A connection begins with HELLO; what comes before that has no sender. The rounds of a sender only
go up, so that a message which was recorded counts once.
"""

from __future__ import annotations

from typing import final

from p2p_dml.errors import WireError
from p2p_dml.types import PeerId, Tag
from p2p_dml.wire import Header

TWINS = "a peer {peer} is here and alive: two peers with one id"


@final
class Admission:
    """The connections of one run's peers; everything that does not fit is a WireError."""

    def __init__(self, me: PeerId, digest: bytes) -> None:
        self._me = me
        self._digest = digest
        self._contacts: dict[bytes, PeerId] = {}
        self._incarnations: dict[PeerId, int] = {}
        self._newest: dict[PeerId, Tag] = {}

    def peer_on(self, contact: bytes) -> PeerId | None:
        """Whose connection it is; None before its hello."""
        return self._contacts.get(contact)

    def has_met(self, peer: PeerId) -> bool:
        return peer in self._incarnations

    def check_holder(self, header: Header, holder: PeerId) -> None:
        """The sender must be the peer whose key the connection showed."""
        if header.sender != holder:
            raise WireError(f"claims to be peer {header.sender}, with the key of peer {holder}")

    def check_hello(self, header: Header, alive_as: int | None) -> None:
        """Whether a hello fits this run. `alive_as`: incarnation that answers at its address."""
        peer = header.sender
        if header.digest != self._digest:
            raise WireError(
                f"peer {peer} is of another run (digest {header.digest.hex()[:12]}, here "
                f"{self._digest.hex()[:12]}): run file, seed and p2p_dml version must be the same"
            )
        if peer == self._me:
            raise unknown(peer)
        if alive_as is not None and alive_as != header.incarnation:
            raise WireError(TWINS.format(peer=peer))

    def admit(self, contact: bytes, header: Header) -> list[bytes]:
        """Take down whose connection it is; those that an earlier incarnation loses by it."""
        peer, is_new = header.sender, self._incarnations.get(header.sender) != header.incarnation
        old = [each for each, its_peer in self._contacts.items() if its_peer == peer]
        for each in old:
            del self._contacts[each]
        self._contacts[contact] = peer
        self._incarnations[peer] = header.incarnation
        if is_new:
            self._newest.pop(peer, None)
        return old if is_new else []

    def check(self, sender: PeerId, header: Header) -> None:
        """Whether a later message is of the sender that said hello."""
        if header.sender != sender or header.digest != self._digest:
            raise WireError(f"claims to be peer {header.sender} of another run")
        if header.incarnation != self._incarnations[sender]:
            raise WireError(
                "sent a message of another incarnation: of before a restart, or replayed"
            )

    def advance(self, sender: PeerId, tag: Tag) -> None:
        """Take down a message of a round; WireError unless it is newer than all before."""
        newest = self._newest.get(sender)
        if newest is not None and tag <= newest:
            raise WireError("sent a message of an exchange again, or of an earlier one: replayed")
        self._newest[sender] = tag


def unknown(peer: PeerId) -> WireError:
    """The error for a peer id that nobody else of this run can have."""
    return WireError(f"peer id {peer} is this peer's own or not of this run")
