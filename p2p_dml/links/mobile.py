"""Moving peers: who is near hears whom, so links come and go slowly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from numpy.typing import NDArray

from p2p_dml.links._graphs import (
    RECENT,
    Flags,
    Ints,
    below,
    check_peers,
    check_seed,
    check_share,
    of_pairs,
    require,
    words,
)
from p2p_dml.types import Graph

_SIDE = 1 << 30  # the unit square's side in whole steps, so that all peers agree to the last bit


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Geometric:
    """Peers in the unit square, linked within `radius`, moving straight and bouncing off walls.

    Each peer has a constant speed along each axis, drawn from [-speed, speed] sides per tick, so
    its place at any tick is a closed form. `speed` 0 gives a static random geometric graph. The
    expected density is about pi radius^2, less at the walls. Source: Gilbert 1961 for the graph.
    """

    num_peers: int
    radius: float
    seed: int
    speed: float = 0.02

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)
        require(0.0 < self.radius <= 1.5, f"radius must be in (0, 1.5] sides, got {self.radius}")
        check_share("speed", self.speed)

    def __call__(self, tick: int) -> Graph:
        return _within_reach(self.num_peers, self.radius, self.speed, self.seed, tick)

    def positions(self, tick: int) -> NDArray[np.float64]:
        """Where the peers are, [num_peers, 2] in sides, each in [0, 1)."""
        return _places(self.num_peers, self.speed, self.seed, tick) / _SIDE


def _places(num_peers: int, speed: float, seed: int, tick: int) -> Ints:
    """Positions [num_peers, 2] in steps.

    A bouncing motion is a uniform one on a circle of two sides, folded in the middle.
    """
    circle = 2 * _SIDE
    start = below(words(seed, 0, 2 * num_peers, 0), circle)
    reach = int(speed * _SIDE)
    velocity = below(words(seed, 0, 2 * num_peers, 1), 2 * reach + 1) - reach
    turned = (start + velocity * (tick % circle)) % circle
    folded: Ints = np.minimum(turned, circle - 1 - turned)
    return folded.reshape(num_peers, 2)


@lru_cache(maxsize=RECENT)
def _within_reach(num_peers: int, radius: float, speed: float, seed: int, tick: int) -> Graph:
    x, y = _places(num_peers, speed, seed, tick).T
    reach = int(radius * _SIDE) ** 2

    def are_near(low: Ints, high: Ints) -> Flags:
        # At most 2 (2^30)^2: squares of whole steps fit 64 bits.
        near: Flags = (x[low] - x[high]) ** 2 + (y[low] - y[high]) ** 2 <= reach
        return near

    return of_pairs(num_peers, are_near)
