"""How each peer of a group ended, as it said itself, and whose fault that makes it. Pure.

When one peer of a group is lost, the connections of the others break one after another, so whom a
peer blames has often only failed in turn. Who is blamed and said nothing was the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, final

from p2p_dml.errors import ExitCode
from p2p_dml.types import PeerId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A peer's last words: that it was done or stopped, failed, or lost its group, and where.

    `round` is the one being run (0 before the first). `why` is a message of its own; of a broken
    group `blames` is the peer whose connection broke, if that can be told, or which was late.
    """

    how: Literal["done", "stopped", "failed", "broken"]
    round: int
    blames: PeerId | None = None
    is_late: bool = False
    why: str = ""

    def encode(self) -> str:
        return json.dumps(asdict(self))


def decode_ending(text: str) -> Ending:
    """What `encode` made."""
    return Ending(**json.loads(text))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who ended a run, and in which round; `why` in its own words, or as another `noticed` it."""

    peer: PeerId
    round: int
    why: str = ""
    noticed: str = ""

    def told(self, noun: str = "peer") -> str:
        """A sentence; `noun`: what the numbers of the endings count."""
        when = f"in round {self.round}" if self.round else "before the first round"
        if self.why:
            return f"{noun} {self.peer} failed {when}: {self.why}"
        what = self.noticed or "it ended or hangs without a word"
        return f"{noun} {self.peer} was lost {when}: {what}"


def cause_of(me: PeerId, endings: Mapping[PeerId, Ending], peers: Iterable[PeerId]) -> Cause | None:
    """Who ended the run of peer `me`, from the `endings` of those that said anything, its own too.

    First along the chain of blame; if that leads nowhere, any peer that failed, then any of `peers`
    of whom nothing was heard. None: nobody, so either all is well or only a link broke.
    """
    seen, last = {me}, endings[me]
    while last.blames is not None and last.blames not in seen:
        if last.blames not in endings:
            return _lost(last.blames, endings, endings[me])
        seen.add(last.blames)
        last = endings[last.blames]
    failed = [*seen - {me}, *sorted(endings)]
    for peer in failed:
        if peer != me and endings[peer].how == "failed":
            return Cause(peer=peer, round=endings[peer].round, why=endings[peer].why)
    silent = [peer for peer in peers if peer not in endings]
    return _lost(silent[0], endings, endings[me]) if silent else None


def _lost(peer: PeerId, endings: Mapping[PeerId, Ending], own: Ending) -> Cause:
    """That `peer` is lost: as whoever noticed it first tells it, so that all tell the same.

    If nobody did, as of this peer's own round.
    """
    accounts = [endings[each] for each in sorted(endings) if endings[each].blames == peer]
    first = min(accounts, key=lambda ending: ending.round, default=None)
    if first is None:
        return Cause(peer=peer, round=own.round)
    return Cause(peer=peer, round=first.round, noticed=first.why)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How a peer ends that did not fail itself. `is_said`: who failed has said `why` already."""

    code: ExitCode
    why: str | None = None
    is_said: bool = False


def judge(
    me: PeerId, endings: Mapping[PeerId, Ending], peers: Iterable[PeerId], noun: str = "peer"
) -> Judgement:
    """What the last words of `peers` mean for peer `me`, whose own are among them, not "failed".

    Before the first round they may be ranks, as `noun` says.
    """
    own, cause = endings[me], cause_of(me, endings, peers)
    if cause is not None:
        broken = ExitCode.BROKEN if own.round else ExitCode.STARTUP
        code = ExitCode.DONE if own.how == "done" else broken
        return Judgement(code=code, why=cause.told(noun), is_said=bool(cause.why))
    if own.how == "done":
        return Judgement(code=ExitCode.DONE)
    if any(ending.how == "stopped" for ending in endings.values()):
        return Judgement(code=ExitCode.STOPPED)
    return Judgement(code=ExitCode.BROKEN, why=f"round {own.round}: {own.why}")


def reporter(endings: Mapping[PeerId, Ending]) -> PeerId:
    """Who writes the report: peer 0, or the lowest of those that waited in vain for its last words.

    Only a peer whose group broke has waited for all.
    """
    heirs = [peer for peer, ending in endings.items() if ending.how == "broken"]
    return 0 if 0 in endings else min(heirs, default=0)
