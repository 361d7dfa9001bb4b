"""What peers write of themselves, held against what must be true of them at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, final

from p2p_dml.events import EventTail, event_file
from p2p_dml.launchers.soak.usage import Life, life_of
from p2p_dml.types import PeerId

Break = Callable[[str, str], None]
"""(invariant, evidence): says that an invariant does not hold."""


@final
@dataclass(frozen=True, slots=True)
class Loneliness:
    """A round in which a peer did not hear some neighbours."""

    at: float
    round: int
    missing: tuple[PeerId, ...]


@final
@dataclass(slots=True)
class View:
    """One peer as its events show it; times are those of its events, None before the first.

    `life` is its process now. `excused_until`: a fault keeps it from going on until then; None
    while nobody knows when that is over. `is_killed`: its process was, and no other began yet.
    `done` are the times of all its rounds, `lonely` those in which it did not hear somebody.
    """

    life: Life | None = None
    starts: int = 0
    round: int = 0
    done_at: float | None = None
    accuracy: float | None = None
    endpoint: str = ""
    excused_until: float | None = 0.0
    is_killed: bool = False
    worst_gap_s: float = 0.0
    is_stalled: bool = False
    done: list[float] = field(default_factory=list)
    lonely: list[Loneliness] = field(default_factory=list)


@final
class Watch:
    """Follows the event files of all peers as they grow; `broken` is told of what does not hold."""

    def __init__(self, run: Path, peers: int, bound_s: float, broken: Break) -> None:
        """`bound_s`: for so long a peer that no fault befell may do no round."""
        self.views = {peer: View() for peer in range(peers)}
        self.num_lines = 0
        self._tails = {peer: EventTail(event_file(run, peer)) for peer in range(peers)}
        self._bound_s = bound_s
        self._broken = broken
        self._best_accuracy = 0.0

    def read(self, now: float) -> None:
        """Take in what is new, then see who is without progress."""
        for peer, tail in self._tails.items():
            for line in tail.lines():
                self.num_lines += 1
                self._take(peer, line)
        for peer, view in self.views.items():
            self._check_progress(peer, view, now)
        self._best_accuracy = max(self._best_accuracy, self.accuracy or 0.0)

    @property
    def accuracy(self) -> float | None:
        """The mean of all peers' last ones; None before every peer has one."""
        found = [view.accuracy for view in self.views.values()]
        return mean(x for x in found if x is not None) if None not in found else None

    @property
    def best_accuracy(self) -> float:
        """The best mean so far."""
        return self._best_accuracy

    def excuse(self, peer: PeerId, *, killed: bool) -> None:
        """A fault befalls a peer now; nobody expects it to go on before `release`."""
        view = self.views[peer]
        view.excused_until, view.is_killed = None, killed

    def release(self, peer: PeerId, now: float) -> None:
        """What befell a peer is over: from now on it must go on as any other."""
        self.views[peer].excused_until = now

    # ---- one line -------------------------------------------------------------------------

    def _take(self, peer: PeerId, text: bytes) -> None:
        view = self.views[peer]
        try:
            line: Mapping[str, Any] = json.loads(text)
            kind = line["event"]
        except (ValueError, KeyError, TypeError):
            if not view.is_killed:  # a peer that was killed may have been writing
                self._broken("event files parse", f"peer {peer}: {text[:80]!r}")
            return
        if kind == "started":
            self._start(peer, view, line)
        elif kind == "round_done":
            self._advance(peer, view, line)
        elif kind == "evaluated":
            view.accuracy = line["accuracy"]
        elif kind == "finished" and line["error"]:
            self._broken("no peer ends but by a fault", told(peer, line["error"]))

    def _start(self, peer: PeerId, view: View, line: Mapping[str, Any]) -> None:
        if view.starts and not view.is_killed:
            self._broken("no peer ends but by a fault", f"peer {peer} was started again")
        view.starts += 1
        view.life, view.endpoint = life_of(line["pid"]), line["endpoint"]
        view.round, view.done_at, view.is_killed = 0, None, False

    def _advance(self, peer: PeerId, view: View, line: Mapping[str, Any]) -> None:
        if line["round"] <= view.round:
            self._broken(
                "rounds only go up", f"peer {peer}: round {line['round']} after {view.round}"
            )
        at = float(line["t"])
        if view.done_at is not None and _is_free(view, view.done_at):
            view.worst_gap_s = max(view.worst_gap_s, at - view.done_at)
        if view.excused_until is None and view.done_at is None:  # the first one after a restart
            self.release(peer, at)
        view.round, view.done_at, view.is_stalled = line["round"], at, False
        view.done.append(at)
        if line["missing"]:
            view.lonely.append(Loneliness(at, line["round"], tuple(line["missing"])))

    def _check_progress(self, peer: PeerId, view: View, now: float) -> None:
        if view.done_at is None or not _is_free(view, view.done_at) or view.is_stalled:
            return
        if now - view.done_at > self._bound_s:
            view.is_stalled = True
            self._broken(
                "no unfaulted peer is without progress",
                f"peer {peer}: no round for {self._bound_s:g} s after round {view.round}",
            )


def told(peer: PeerId, why: str) -> str:
    """What a peer said, with its name, which most messages begin with already."""
    return why if why.startswith(f"peer {peer}") else f"peer {peer}: {why}"


def _is_free(view: View, since: float) -> bool:
    """Whether nothing has befallen a peer since then."""
    return view.excused_until is not None and view.excused_until <= since
