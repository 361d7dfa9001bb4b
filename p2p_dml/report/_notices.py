"""Sentences about what went otherwise than planned, gathered over all peers' events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from p2p_dml.events import PHASES
from p2p_dml.report._figures import lost_sentence
from p2p_dml.report._units import human_seconds, plural
from p2p_dml.report._values import Line, Run, Summary

_MAX_NOTICES = 50
_STRAGGLES_AT = 2.0
_MIN_STRAGGLE_S = 0.5
_TRAIN = PHASES.index("train")


def notices(run: Run, summary: Summary) -> list[str]:
    """Resumptions, losses, deaths, returns, rejections, isolation, stragglers, …; at most 50."""
    found = [
        *_emulated(run),
        *_planned(run),
        *_resumptions(run),
        *map(lost_sentence, summary.lost),
        *_reported(run, "dead", "declared dead"),
        *_entries(run),
        *_returns(run),
        *_rejections(run),
        *_unshared(run),
        *_isolations(run),
        *_skips(run),
        *_hangs(run),
        *_reported(run, "stuck", "given up on"),
        *_reported(run, "slow", "reported slow"),
        *_stragglers(run),
    ]
    more = len(found) - _MAX_NOTICES
    return found if more <= 0 else [*found[:_MAX_NOTICES], f"… and {more} more"]


def _emulated(run: Run) -> list[str]:
    slow = run.meta.stragglers
    return [f"slow on purpose, as [stragglers] says: peers {', '.join(map(str, slow))}"] * bool(
        slow
    )


def _planned(run: Run) -> list[str]:
    return [
        f"on purpose, as [[faults]] says: {kind} in round {round}, phase {phase}: peers "
        f"{', '.join(str(line['peer']) for line in sorted(lines, key=lambda x: int(x['peer'])))}"
        for (round, phase, kind), lines in _grouped(run, "injected", "round", "phase", "kind")
    ]


def _grouped(run: Run, event: str, *keys: str) -> list[tuple[tuple[Hashable, ...], list[Line]]]:
    """Lines of one event name, oldest first, grouped by the values of `keys`."""
    groups: dict[tuple[Hashable, ...], list[Line]] = defaultdict(list)
    lines = [line for peer in run.peers for line in peer.happenings if line["event"] == event]
    for line in sorted(lines, key=lambda line: line["t"]):
        groups[tuple(line[key] for key in keys)].append(line)
    return list(groups.items())


def _reported(run: Run, state: str, verb: str) -> list[str]:
    sentences = []
    for (neighbour, seen), lines in _grouped(run, "neighbour_changed", "neighbour", "state"):
        if seen == state:
            observers = len({line["peer"] for line in lines})
            sentences.append(
                f"peer {neighbour} was {verb} by {plural(observers, 'neighbour')}, "
                f"first in round {lines[0]['round']}: {lines[0]['why']}"
            )
    return sentences


def _hangs(run: Run) -> list[str]:
    """Phases that the peers' own watchdogs found too long, and what they took as far as told."""
    lines = {
        (line["peer"], line["round"], line["phase"]): line
        for _, found in _grouped(run, "stuck", "peer")
        for line in found
    }
    return [
        f"peer {peer} was stuck in {phase!r} in round {round} for "
        f"{human_seconds(line['seconds'])}" + " and more" * (not line["is_over"])
        for (peer, round, phase), line in lines.items()
    ]


def _resumptions(run: Run) -> list[str]:
    return [
        f"resumed after {_in_words([line['round'] for line in lines])}"
        for lines in _sessions(run)
        if lines
    ]


def _sessions(run: Run) -> list[list[Line]]:
    """The lines `resumed` of all peers, for each time that the run was."""
    lines = [[x for x in peer.happenings if x["event"] == "resumed"] for peer in run.peers]
    return [[own[i] for own in lines if i < len(own)] for i in range(max(map(len, lines)))]


def _in_words(rounds: Sequence[int]) -> str:
    first, last = min(rounds), max(rounds)
    return f"round {first}" if first == last else f"rounds {first} to {last}, each peer its own"


def _entries(run: Run) -> list[str]:
    """Who came into the run while it went on, and with which model."""
    lines = [line for peer in run.peers for line in peer.happenings if line["event"] == "rejoined"]
    return [
        f"peer {line['peer']} came into the run in round {line['round']}, with {_model(line)}"
        for line in sorted(lines, key=lambda line: line["t"])
    ]


def _model(line: Line) -> str:
    sources = {
        "checkpoint": f"its own model of round {line['model_round']}",
        "neighbour": f"that of peer {line['neighbour']} after round {line['model_round']}",
    }
    return sources.get(line["source"], "the initial model: no neighbour gave it another")


def _returns(run: Run) -> list[str]:
    return [
        f"peer {peer.peer} was started {peer.incarnations} times"
        for peer in run.peers
        if peer.incarnations > 1
    ]


def _rejections(run: Run) -> list[str]:
    return [
        f"{plural(_times(lines), 'message')} of {_name(sender)} rejected, "
        f"first by peer {lines[0]['peer']} in round {lines[0]['round']}: {why}"
        for (sender, why), lines in _grouped(run, "rejected", "sender", "why")
    ]


def _times(lines: Sequence[Line]) -> int:
    return sum(line.get("times", 1) for line in lines)


def _name(sender: Hashable) -> str:
    return "an unknown sender" if sender is None else f"peer {sender}"


def _skips(run: Run) -> list[str]:
    lines = [line for peer in run.peers for line in peer.happenings if line["event"] == "skipped"]
    return [
        f"peer {line['peer']} was out of reach while others went on, and skipped rounds "
        f"{line['first']} to {line['last']}"
        for line in sorted(lines, key=lambda line: line["t"])
    ]


def _unshared(run: Run) -> list[str]:
    """Which peers of one machine could not read each other's memory."""
    return [
        f"messages of {plural(len(lines), 'link')} within a machine go through sockets: {why}"
        for (why,), lines in _grouped(run, "not_shared", "why")
    ]


def _isolations(run: Run) -> list[str]:
    return [
        f"peer {peer} was isolated in {plural(len(lines), 'round')}, "
        f"first in round {lines[0]['round']}"
        for (peer,), lines in _grouped(run, "isolated", "peer")
    ]


def _stragglers(run: Run) -> list[str]:
    """Peers whose training took more than twice the median time per round."""
    per_round = {
        peer.peer: float(peer.rounds.seconds[:, _TRAIN].mean())
        for peer in run.peers
        if len(peer.rounds.round)
    }
    median = float(np.median(list(per_round.values()))) if per_round else 0.0
    return [
        f"peer {peer} trained {human_seconds(seconds)} per round, "
        f"{seconds / median:.1f} times the median peer"
        for peer, seconds in per_round.items()
        if median > 0
        and seconds > _STRAGGLES_AT * median
        and (seconds - median) * run.meta.rounds > _MIN_STRAGGLE_S
    ]
