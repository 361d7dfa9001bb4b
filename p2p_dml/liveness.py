"""Who is worth waiting for: a pure state machine fed with what a transport observes.

    connecting ──welcomed──► alive ──disconnected──► (drain) ──► dead
         ▲                    │  ▲                                │
         └────────────────────┼──┴──────────welcomed──────────────┘
                              └──goodbye──► left

Slow is not dead: a connected neighbour that misses a deadline is reported as slow and waited for
again in the next exchange. A neighbour whose connection broke is waited for `drain_s` more, since
what it sent last may still be on its way, and then not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2p_dml.types import PeerId

State = Literal["connecting", "alive", "slow", "dead", "left"]


@dataclass(frozen=True, slots=True)
class Change:
    """A neighbour changed its state."""

    neighbour: PeerId
    state: Literal["alive", "slow", "dead", "left"]
    why: str


class Liveness:
    """States of all neighbours; times are seconds of one monotonic clock."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._states: dict[PeerId, State] = {}
        self._broken_at: dict[PeerId, float] = {}
        self._changes: list[Change] = []

    def state(self, peer: PeerId) -> State:
        return self._states.get(peer, "connecting")

    def is_connected(self, peer: PeerId) -> bool:
        """Whether the connection to `peer` stands, as far as has been noticed."""
        return self.state(peer) in ("alive", "slow") and peer not in self._broken_at

    def welcomed(self, peer: PeerId) -> None:
        """The handshake with `peer` is complete (again)."""
        was = self.state(peer)
        self._broken_at.pop(peer, None)
        self._states[peer] = "alive"
        if was in ("slow", "dead", "left"):
            self._changes.append(Change(peer, "alive", "connected again"))

    def disconnected(self, peer: PeerId, now: float) -> None:
        """The connection to `peer` broke, or its heartbeats stopped."""
        if self.state(peer) in ("alive", "slow"):
            self._broken_at.setdefault(peer, now)

    def unreachable(self, peer: PeerId) -> None:
        """Nobody listens at the address of `peer`; it may still come (back)."""
        if self.state(peer) == "connecting":
            self._set(peer, "dead", "nobody listens at its address")

    def said_goodbye(self, peer: PeerId) -> None:
        """`peer` announced that nothing more will come."""
        if self.state(peer) != "left":
            self._set(peer, "left", "said goodbye")

    def missed_deadline(self, peer: PeerId, waited_s: float) -> None:
        """`peer` did not deliver in time."""
        if self.state(peer) == "alive":
            self._set(peer, "slow", f"nothing within {waited_s:g} s, still connected")
        elif self.state(peer) == "connecting":
            self._set(peer, "dead", f"no connection within {waited_s:g} s")

    def delivered(self, peer: PeerId) -> None:
        """A payload of `peer` arrived."""
        if self.state(peer) == "slow":
            self._set(peer, "alive", "delivers again")

    def is_awaited(self, peer: PeerId, now: float) -> bool:
        """Whether waiting for `peer` makes sense at time `now`."""
        broken_at = self._broken_at.get(peer)
        if broken_at is not None and now >= broken_at + self._drain_s:
            del self._broken_at[peer]
            self._set(peer, "dead", "connection lost")
        return self.state(peer) not in ("dead", "left")

    def recheck_s(self, now: float) -> float:
        """Seconds until `is_awaited` may change by the mere passing of time (inf if never)."""
        due = [at + self._drain_s - now for at in self._broken_at.values()]
        return max(0.0, min(due, default=float("inf")))

    def take_changes(self) -> list[Change]:
        """Changes since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def _set(self, peer: PeerId, state: Literal["alive", "slow", "dead", "left"], why: str) -> None:
        self._states[peer] = state
        self._broken_at.pop(peer, None)
        self._changes.append(Change(peer, state, why))
