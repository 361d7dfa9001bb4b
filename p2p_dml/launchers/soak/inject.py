"""Faults from outside: signals to peers' processes, strangers at their doors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import final

from p2p_dml.launchers.soak.plan import HURTING, KILLING, Fault
from p2p_dml.launchers.soak.usage import Life, life_of
from p2p_dml.launchers.soak.watch import Watch
from p2p_dml.types import PeerId


@final
@dataclass(slots=True)
class Injection:
    """A fault that was done: to whom, when it was over, and how long each then took to go on.

    `passed_over`: who was down already, or under another fault.
    """

    fault: Fault
    at: float
    over_at: float
    peers: Sequence[PeerId]
    passed_over: Sequence[PeerId]
    recovered_s: dict[PeerId, float] = field(default_factory=dict)
    is_late: bool = False


@final
class Injector:
    """Does what a plan says, once its time has come; times are those of the clock of events."""

    def __init__(
        self, plan: Sequence[Fault], watch: Watch, begin: float, say: Callable[[str], None]
    ) -> None:
        self.injections: list[Injection] = []
        self._due = list(plan)
        self._watch = watch
        self._begin = begin
        self._say = say
        self._halted: dict[PeerId, tuple[Life, Injection]] = {}
        self._attackers: list[subprocess.Popen[bytes]] = []

    def turn(self, now: float) -> None:
        """End what is over, begin what is due, and see who goes on."""
        for peer, (_, injection) in list(self._halted.items()):
            if now >= injection.over_at:
                self._let_go(peer, now)
        self._attackers = [each for each in self._attackers if each.poll() is None]
        while self._due and now >= self._begin + self._due[0].at_s:
            self._do(self._due.pop(0), now)
        for injection in self.injections:
            self._see(injection)

    def close(self) -> None:
        """Leave nobody halted, and no stranger about."""
        for peer, (_, injection) in list(self._halted.items()):
            self._let_go(peer, injection.over_at)
        for each in self._attackers:
            each.kill()
            each.wait()

    def late(self, now: float, bound_s: float) -> list[tuple[Injection, PeerId]]:
        """Who has not gone on for so long after a fault was over; told once."""
        found = []
        for each in self.injections:
            if not each.is_late and now > each.over_at + bound_s:
                missing = [peer for peer in each.peers if peer not in each.recovered_s]
                each.is_late = bool(missing)
                found += [(each, peer) for peer in missing]
        return found

    def _do(self, fault: Fault, now: float) -> None:
        hit = [peer for peer in fault.peers if self._can_be_hit(peer)]
        passed_over = [peer for peer in fault.peers if peer not in hit]
        over_at = now + fault.for_s if fault.kind == "stop" else now
        self.injections.append(Injection(fault, now, over_at, hit, passed_over))
        for peer in hit:
            self._befall(peer, self.injections[-1])
        whom = f"peer{'s' * (len(hit) > 1)} {', '.join(map(str, hit))}" if hit else "nobody"
        self._say(f"{now - self._begin:6.0f} s  {fault.kind} {whom}")

    def _can_be_hit(self, peer: PeerId) -> bool:
        """Whether it has done a round since it began, and no other fault befalls it."""
        view = self._watch.views[peer]
        is_there = view.life is not None and life_of(view.life.pid) == view.life
        return is_there and view.done_at is not None and view.excused_until is not None

    def _befall(self, peer: PeerId, injection: Injection) -> None:
        view, fault = self._watch.views[peer], injection.fault
        assert view.life is not None
        if fault.kind in HURTING:
            self._watch.excuse(peer, killed=fault.kind in KILLING)
        if fault.kind in KILLING:
            _signal(view.life, signal.SIGKILL)
        elif fault.kind == "stop":
            self._halted[peer] = (view.life, injection)
            _signal(view.life, signal.SIGSTOP)
        else:
            module, seconds = "p2p_dml.launchers.soak.attack", f"{fault.for_s:g}"
            command = (sys.executable, "-m", module, fault.kind, seconds, view.endpoint)
            self._attackers.append(subprocess.Popen(command, start_new_session=True))

    def _let_go(self, peer: PeerId, now: float) -> None:
        life, injection = self._halted.pop(peer)
        injection.over_at = now
        _signal(life, signal.SIGCONT)
        self._watch.release(peer, now)

    def _see(self, injection: Injection) -> None:
        """Take down who has done a round since a fault was over."""
        for peer in injection.peers:
            if peer in injection.recovered_s:
                continue
            done = self._watch.views[peer].done
            place = bisect_right(done, injection.over_at)
            if place < len(done):
                injection.recovered_s[peer] = done[place] - injection.over_at


def _signal(life: Life, number: signal.Signals) -> None:
    """Send a signal to a process, unless another has its id by now."""
    if life_of(life.pid) == life:
        with suppress(ProcessLookupError):
            os.kill(life.pid, number)
