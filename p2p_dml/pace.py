"""How fast peers go: who waits for whom, who is slow, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np

from p2p_dml.types import PeerId

_STREAM = 0x57A661E4  # keeps the draw of stragglers apart from other uses of the seed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Synchronous:
    """Every peer waits in a round for what its neighbours send in the same round."""

    @property
    def waits(self) -> bool:
        return True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asynchronous:
    """Every peer goes through its own rounds and takes what has come; nobody is waited for.

    A neighbour's newest model is used again until it is older than `max_age` of one's own rounds
    since it came. A larger one lets slow neighbours weigh more, and holds everybody back with what
    is old.
    """

    max_age: int = 2

    def __post_init__(self) -> None:
        if self.max_age < 0:
            raise ValueError(f"max_age = {self.max_age}: expected rounds, 0 or more")

    @property
    def waits(self) -> bool:
        return False


Pace = Synchronous | Asynchronous
PACES: Mapping[str, type[Any]] = {"synchronous": Synchronous, "asynchronous": Asynchronous}
"""Paces by the `name` of a run file's [pace] table."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """How long a peer's local work in a round lasts: `factor` times its own, at least `round_s`."""

    factor: float = 1.0
    round_s: float = 0.0

    def pause_s(self, worked_s: float) -> float:
        """Seconds to let pass after `worked_s` seconds of local work."""
        return self.factor * max(worked_s, self.round_s) - worked_s


def draw_stragglers(peers: int, share: float, seed: int) -> frozenset[PeerId]:
    """The `share` of all peers, rounded, that are slow; the same at every peer."""
    drawn = np.random.Philox(key=[seed, _STREAM]).random_raw(peers)
    return frozenset(np.argsort(drawn, kind="stable")[: round(share * peers)].tolist())


class Clock(Protocol):
    """Tells and passes the time of one peer."""

    def now(self) -> float:
        """Seconds since some beginning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...


@final
class WallClock:
    """The time on the wall."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


_TICKS_PER_S = 10**9
CLOCK_TICK_S = 1 / _TICKS_PER_S


@final
class VirtualClock:
    """Time that passes only by `sleep`: computing costs none.

    Counted in whole ticks, so that clocks which passed equal times are equal.
    """

    def __init__(self) -> None:
        self._ticks = 0

    def now(self) -> float:
        return self._ticks / _TICKS_PER_S

    def sleep(self, seconds: float) -> None:
        self._ticks += max(0, round(seconds * _TICKS_PER_S))
