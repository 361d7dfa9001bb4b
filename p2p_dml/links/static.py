"""Schedules in closed form, without randomness: lines, grids, stars and exponential graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import final

import numpy as np

from p2p_dml.links._graphs import (
    RECENT,
    check_peers,
    closed_form,
    complete,
    empty,
    one_way,
    require,
    two_way,
)
from p2p_dml.types import Graph


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Everybody hears everybody else."""

    num_peers: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)

    def __call__(self, tick: int) -> Graph:
        return complete(self.num_peers)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Peer i is linked to i - 1 and i + 1, modulo the number of peers."""

    num_peers: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)

    def __call__(self, tick: int) -> Graph:
        return _ring(self.num_peers)


@lru_cache(maxsize=RECENT)
def _ring(num_peers: int) -> Graph:
    peers = np.arange(num_peers)
    return closed_form(
        num_peers,
        lambda me: ((me - 1) % num_peers, (me + 1) % num_peers),
        lambda: two_way(num_peers, peers, (peers + 1) % num_peers),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Star:
    """Everybody is linked to peer `hub` and to nobody else."""

    num_peers: int
    hub: int = 0

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        require(
            0 <= self.hub < self.num_peers,
            f"hub {self.hub} is out of range for {self.num_peers} peers",
        )

    def __call__(self, tick: int) -> Graph:
        return _star(self.num_peers, self.hub)


@lru_cache(maxsize=RECENT)
def _star(num_peers: int, hub: int) -> Graph:
    peers = np.arange(num_peers)
    return closed_form(
        num_peers,
        lambda me: range(num_peers) if me == hub else (hub,),
        lambda: two_way(num_peers, peers, np.full(num_peers, hub)),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Peers in row-major order on a rectangle, each linked to those left, right, above, below.

    `rows` must divide the number of peers; without it the rectangle is as square as possible
    (a line, if the number is prime).
    """

    num_peers: int
    rows: int | None = None

    def __post_init__(self) -> None:
        _check_rows(self.num_peers, self.rows)

    def __call__(self, tick: int) -> Graph:
        return _lattice(self.num_peers, self.rows or _squarest(self.num_peers), False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Torus:
    """A grid whose rows and columns close to rings. `rows` as for the grid."""

    num_peers: int
    rows: int | None = None

    def __post_init__(self) -> None:
        _check_rows(self.num_peers, self.rows)

    def __call__(self, tick: int) -> Graph:
        return _lattice(self.num_peers, self.rows or _squarest(self.num_peers), True)


def _check_rows(num_peers: int, rows: int | None) -> None:
    check_peers(num_peers)
    if rows is not None:
        fits = rows >= 1 and num_peers % rows == 0
        require(fits, f"rows must divide the number of peers, got {rows} rows for {num_peers}")


def _squarest(num_peers: int) -> int:
    return max(rows for rows in range(1, isqrt(num_peers) + 1) if num_peers % rows == 0)


@lru_cache(maxsize=RECENT)
def _lattice(num_peers: int, rows: int, wraps: bool) -> Graph:
    columns = num_peers // rows

    def near(me: int) -> Iterator[int]:
        row, column = divmod(me, columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if wraps or (0 <= r < rows and 0 <= c < columns):
                yield r % rows * columns + c % columns

    return closed_form(num_peers, near, lambda: _whole_lattice(num_peers, rows, wraps))


def _whole_lattice(num_peers: int, rows: int, wraps: bool) -> Graph:
    at = np.arange(num_peers).reshape(rows, -1)
    steps = [(at, np.roll(at, -1, 0)), (at, np.roll(at, -1, 1))]
    if not wraps:
        steps = [(at[:-1], at[1:]), (at[:, :-1], at[:, 1:])]
    left, right = (np.concatenate([step[end].ravel() for step in steps]) for end in (0, 1))
    return two_way(num_peers, left, right)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """Peer i hears i - 2^k for every power below the number of peers n; directed, regular.

    ceil(log2 n) links in and out per peer. With uniform weights the spectral gap is
    2 / (1 + ceil(log2 n)) for even n, larger for odd n. Source: Ying et al. 2021, section 3.
    """

    num_peers: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)

    def __call__(self, tick: int) -> Graph:
        return _exponential(self.num_peers)


@lru_cache(maxsize=RECENT)
def _exponential(num_peers: int) -> Graph:
    return _hops(num_peers, [2**k for k in range(_num_hops(num_peers))])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnePeerExponential:
    """At tick t peer i hears only i - 2^(t mod ceil(log2 n)); directed, one link in, one out.

    With uniform weights, any log2 n consecutive ticks average exactly when the number of peers n
    is a power of two. Source: Ying et al. 2021, section 4.
    """

    num_peers: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)

    def __call__(self, tick: int) -> Graph:
        if self.num_peers == 1:
            return empty(1)
        return _hop(self.num_peers, 2 ** (tick % _num_hops(self.num_peers)))


@lru_cache(maxsize=RECENT)
def _hop(num_peers: int, hop: int) -> Graph:
    return _hops(num_peers, [hop])


def _hops(num_peers: int, hops: Sequence[int]) -> Graph:
    """Peer i hears i - hop for each of `hops`, different ones below the number of peers."""

    def whole() -> Graph:
        receivers = np.repeat(np.arange(num_peers), len(hops))
        return one_way(num_peers, receivers, (receivers - np.tile(hops, num_peers)) % num_peers)

    return closed_form(
        num_peers,
        lambda me: ((me - hop) % num_peers for hop in hops),
        whole,
        receivers_of=lambda me: ((me + hop) % num_peers for hop in hops),
        degree=len(hops),
    )


def _num_hops(num_peers: int) -> int:
    """ceil(log2 num_peers), in integers."""
    return (num_peers - 1).bit_length()
