"""Which faults befall whom and when: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from p2p_dml.errors import ConfigError
from p2p_dml.types import PeerId

Kind = Literal["kill", "half", "stop", "garbage", "flood"]

SHARES: dict[Kind, int] = {"kill": 35, "half": 5, "stop": 30, "garbage": 15, "flood": 15}
"""How many of a hundred faults are of a kind."""

HURTING: frozenset[Kind] = frozenset({"kill", "half", "stop"})
"""Kinds that keep their victims from going on; the others must not."""

KILLING: frozenset[Kind] = frozenset({"kill", "half"})

WARM_S = 30.0
"""Before the first fault and after the last one, in soaks of some minutes: time to be measured."""

_STOP_S, _ATTACK_S = (0.5, 3.0), 2.0
_WORDS = 4
"""Random words of a fault: its kind, how long it lasts, and two that say whom it befalls."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault `at_s` seconds after the start that lasts `for_s`, 0 if that is an instant."""

    at_s: float
    kind: Kind
    peers: tuple[PeerId, ...]
    for_s: float = 0.0


def quiet_s(duration_s: float) -> float:
    """How long a soak has no faults, at its beginning and again at its end."""
    return min(WARM_S, duration_s / 4)


def spared(peers: int) -> range:
    """Peers that are never killed, so that what a process keeps can be seen over the whole time."""
    return range(max(1, peers // 4))


def plan(peers: int, duration_s: float, every_s: float, seed: int) -> list[Fault]:
    """One fault each `every_s` between the quiet at both ends; equal arguments, equal plans.

    ConfigError if there are not two peers, or there is no time for a fault.
    """
    quiet = quiet_s(duration_s)
    count = int((duration_s - 2 * quiet) / every_s)
    if peers < 2 or count < 1:
        raise ConfigError(
            f"soak: expected at least 2 peers and time for one fault, found {peers} peers and "
            f"{duration_s:g} s with a fault each {every_s:g} s, of which {2 * quiet:g} s are quiet"
        )
    words = np.random.Philox(key=[seed, peers]).random_raw(count * _WORDS).reshape(count, _WORDS)
    return [
        _fault(quiet + i * every_s, [int(word) for word in row], peers)
        for i, row in enumerate(words)
    ]


def _fault(at_s: float, words: Sequence[int], peers: int) -> Fault:
    kind = _kind(words[0] % sum(SHARES.values()))
    if kind in KILLING:
        mortal = [peer for peer in range(peers) if peer not in spared(peers)]
        count = min(peers // 2, len(mortal)) if kind == "half" else 1
        return Fault(at_s=at_s, kind=kind, peers=tuple(_drawn(mortal, count, words[2], words[3])))
    victim = words[2] % peers
    shortest, longest = _STOP_S
    share = (words[1] >> 11) * 2.0**-53
    for_s = shortest + (longest - shortest) * share if kind == "stop" else _ATTACK_S
    return Fault(at_s=at_s, kind=kind, peers=(victim,), for_s=for_s)


def _kind(point: int) -> Kind:
    """The kind in whose share of all a point lies."""
    for kind, share in SHARES.items():
        if point < share:
            return kind
        point -= share
    raise AssertionError("shares do not add up")


def _drawn(peers: Sequence[PeerId], count: int, *words: int) -> Iterator[PeerId]:
    """`count` of `peers`, in their order."""
    order = np.argsort(np.random.Philox(key=list(words)).random_raw(len(peers)), kind="stable")
    return (peers[i] for i in sorted(order[:count].tolist()))
