"""Who is worth waiting for: a pure state machine fed with what a transport observes.

    connecting ──welcomed──► alive ──disconnected──► (drain) ──► dead
         ▲                    │  ▲                                │
         └────────────────────┼──┴──────────welcomed──────────────┘
                              └──goodbye──► left

Slow is not dead: a connected neighbour that misses a deadline is reported as slow and waited for
again in the next exchange. One that does so `patience` times in a row is stuck, as a hung process
that still answers heartbeats: it is sent to, but not waited for before it delivers again, so it
costs its neighbours so many deadlines and no more. A neighbour whose connection broke is waited for
`drain_s` more, since what it sent last may still be on its way, and then not at all. Nor is one
that floods: for FLOOD_S after so much of it was refused that no more was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2p_dml.types import PeerId

State = Literal["connecting", "alive", "slow", "stuck", "dead", "left"]
Told = Literal["alive", "slow", "stuck", "dead", "left"]

FLOOD_S = 10.0

CONNECTED: frozenset[State] = frozenset({"alive", "slow", "stuck"})
"""States of a neighbour whose connection stands, or broke a moment ago."""

GONE: frozenset[State] = frozenset({"dead", "left"})
"""States of a neighbour that may come back, at a time of its own choice."""


@dataclass(frozen=True, slots=True)
class Change:
    """A neighbour changed its state."""

    neighbour: PeerId
    state: Told
    why: str


class Liveness:
    """States of all neighbours; times are seconds of one monotonic clock."""

    def __init__(self, drain_s: float, patience: int = 3) -> None:
        self._drain_s = drain_s
        self._patience = patience
        self._missed: dict[PeerId, int] = {}  # deadlines in a row
        self._states: dict[PeerId, State] = {}
        self._broken_at: dict[PeerId, float] = {}
        self._flooded_at: dict[PeerId, float] = {}
        self._changes: list[Change] = []

    def state(self, peer: PeerId) -> State:
        return self._states.get(peer, "connecting")

    def is_connected(self, peer: PeerId) -> bool:
        """Whether the connection to `peer` stands, as far as has been noticed."""
        return self.state(peer) in CONNECTED and peer not in self._broken_at

    def welcomed(self, peer: PeerId) -> None:
        """The handshake with `peer` is complete (again)."""
        was = self.state(peer)
        self._broken_at.pop(peer, None)
        self._missed.pop(peer, None)
        self._states[peer] = "alive"
        if was not in ("connecting", "alive"):
            self._changes.append(Change(peer, "alive", "connected again"))

    def disconnected(self, peer: PeerId, now: float) -> None:
        """The connection to `peer` broke, or its heartbeats stopped."""
        if self.state(peer) in CONNECTED:
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
        if self.state(peer) in CONNECTED:
            missed = self._missed[peer] = self._missed.get(peer, 0) + 1
            why = f"nothing within {waited_s:g} s, still connected"
            if missed == self._patience:
                self._set(peer, "stuck", f"{why}, {missed} times in a row: not waited for any more")
            elif missed == 1:
                self._set(peer, "slow", why)
        elif self.state(peer) == "connecting":
            self._set(peer, "dead", f"no connection within {waited_s:g} s")

    def delivered(self, peer: PeerId) -> None:
        """A payload of `peer` arrived."""
        self._missed.pop(peer, None)
        if self.state(peer) in ("slow", "stuck"):
            self._set(peer, "alive", "delivers again")

    def flooded(self, peer: PeerId, now: float) -> None:
        """More came of `peer` than is read, and what it should send may be among the rest."""
        self._flooded_at[peer] = now

    def is_awaited(self, peer: PeerId, now: float) -> bool:
        """Whether waiting for `peer` makes sense at time `now`."""
        broken_at = self._broken_at.get(peer)
        if broken_at is not None and now >= broken_at + self._drain_s:
            del self._broken_at[peer]
            self._set(peer, "dead", "connection lost")
        if now < self._flooded_at.get(peer, -FLOOD_S) + FLOOD_S:
            return False
        return self.state(peer) not in ("stuck", "dead", "left")

    def recheck_s(self, now: float) -> float:
        """Seconds until `is_awaited` may change by the mere passing of time (inf if never)."""
        due = [at + self._drain_s - now for at in self._broken_at.values()]
        return max(0.0, min(due, default=float("inf")))

    def take_changes(self) -> list[Change]:
        """Changes since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def _set(self, peer: PeerId, state: Told, why: str) -> None:
        self._states[peer] = state
        self._broken_at.pop(peer, None)
        self._changes.append(Change(peer, state, why))
