"""What the supervisors of a run have said of their peers, and others of them; how all has ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from p2p_dml.launchers.ssh.hosts import Host
from p2p_dml.launchers.ssh.quarters import Site
from p2p_dml.types import PeerId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a supervisor has built: `facts` as in run.json, and a digest of the data.

    `before`: of a run that goes on, its digest before it was made longer.
    """

    facts: Mapping[str, Any]
    data: str | None
    before: str | None = None


@final
@dataclass(slots=True)
class Account:
    """How far a supervisor is, by its own words and those of who sees it from outside.

    `paused`: what it is to be ended for if all others have ended; `fate`: what has ended its peers.
    """

    ready: Ready | None = None
    has_gathered: bool = False
    begun: Sequence[int] | None = None
    failure: str | None = None
    has_reported: bool = False
    is_over: bool = False
    paused: str | None = None
    fate: str | None = None
    ended_at: float | None = None


@final
class Accounts:
    """One of each supervisor, and of how peers ended; `say` is told what a user wants to know."""

    def __init__(self, sites: Sequence[Site], say: Callable[[str], None]) -> None:
        self.states = {site: Account() for site in sites}
        self._say = say
        self._codes: dict[PeerId, int] = {}
        self._errors: dict[PeerId, str] = {}

    def hear(self, site: Site, said: Mapping[str, Any]) -> None:
        """Take in a line of a supervisor, or of who sees it from outside (see `Quarters.hear`)."""
        state = self.states[site]
        if "ready" in said:
            state.ready = Ready(**said["ready"])
        elif "gathered" in said:
            state.has_gathered = True
        elif "begun" in said:
            state.begun = said["begun"]
        elif "ended" in said:
            self._end(site, {said["ended"]: said["code"]}, {})
        elif "over" in said:
            self._end(site, said["over"]["exit_codes"], said["over"]["errors"])
            state.has_reported = True
            if not state.has_gathered:
                words = [self._errors[peer] for peer in site.peers if peer in self._errors]
                state.failure = words[0] if words else "its peers ended before all had met"
        elif "failed" in said:
            state.failure = said["failed"]
        elif "exit_code" in said:
            self._bury(site, said)
        elif "fate" in said:
            if state.fate is None or state.paused is None:  # else it is ours: see `PAUSED_S`
                state.fate = said["fate"]
        elif "paused" in said:
            self._notice(site, said["paused"])

    def _bury(self, site: Site, said: Mapping[str, Any]) -> None:
        """A supervisor has ended: if it has not said how its peers did, it was not to end."""
        state = self.states[site]
        state.is_over, state.ended_at = True, time.time()
        if not state.has_reported:
            why = said["last_words"] or f"exit code {said['exit_code']}"
            state.failure = state.fate or state.failure or f"{site.label} ended: {why}"

    def _notice(self, site: Site, paused: str | None) -> None:
        """Say that a supervisor was paused, or goes on."""
        state = self.states[site]
        if (paused is None) != (state.paused is None) and not state.is_over:
            self._say(f"{site.label} {'goes on' if paused is None else 'is paused'}")
        state.paused = paused

    def _end(self, site: Site, codes: Mapping[Any, int], errors: Mapping[Any, str]) -> None:
        """Take down how peers ended, which must be this site's."""
        self._codes |= {int(peer): code for peer, code in codes.items() if int(peer) in site.peers}
        self._errors |= {int(peer): why for peer, why in errors.items() if int(peer) in site.peers}

    @property
    def failures(self) -> dict[Host, str]:
        """Of each host that cannot begin, why."""
        found: dict[Host, str] = {}
        for site, state in self.states.items():
            if state.failure is not None:
                who = f"{_named(site.peers)}: " if state.fate else ""
                found.setdefault(site.host, f"{who}{state.failure}")
        return found

    # ---- how it went ----------------------------------------------------------------------

    def lose_host(self, host: Host, why: str) -> None:
        """Count peers of a host as killed with it, but for those that have ended before."""
        lost = [peer for peer in host.peers if peer not in self._codes]
        self._lose(lost, f"host {host.name} was lost, and with it {_named(lost)}: {why}")

    def settled(self) -> tuple[dict[PeerId, int], dict[PeerId, str]]:
        """Exit codes and errors of all peers; who has none by now was lost with its supervisor."""
        for site, state in self.states.items():
            lost = [peer for peer in site.peers if peer not in self._codes]
            self._lose(lost, f"{_named(lost)}: {state.fate or state.failure}")
            if state.fate:
                ended = [p for p in site.peers if self._codes[p] < 0 and p not in self._errors]
                self._lose(ended, f"{_named(ended)}: {state.fate}")
        return dict(sorted(self._codes.items())), self._errors

    def ended_at(self, peer: PeerId) -> float:
        """When its supervisor ended, or now, in seconds since 1970."""
        ends = [state.ended_at for site, state in self.states.items() if peer in site.peers]
        return ends[0] or time.time()

    def _lose(self, peers: Sequence[PeerId], why: str) -> None:
        for peer in peers:
            self._codes[peer] = -signal.SIGKILL
            self._errors[peer] = why


def _named(peers: Sequence[PeerId]) -> str:
    return f"peer{'s' * (len(peers) > 1)} {', '.join(map(str, peers))}"
