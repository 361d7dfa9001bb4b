"""Random regular graphs: a random pairing of link ends, untangled by switching ends."""

from __future__ import annotations

from itertools import count
from typing import TypeVar

import numpy as np

from p2p_dml.links._graphs import (
    Flags,
    Ints,
    Words,
    below,
    complement,
    one_way,
    shuffled,
    two_way,
    words,
)
from p2p_dml.types import Graph

Number = TypeVar("Number", int, Ints)

_TRIES = 64  # switches tried per tangled link before the pairing is drawn anew


def regular_graph(num_peers: int, degree: int, seed: int, tick: int, *, directed: bool) -> Graph:
    """Draw a graph in which every peer hears `degree` others and is heard by as many.

    Undirected: num_peers x degree must be even. O(num_peers x degree) up to half density.
    Source: pairing model of Bollobás 1980; self-loops and repeats are removed by switches as in
    McKay and Wormald 1990, which is close to, not exactly, the uniform distribution.
    """
    if 2 * degree > num_peers - 1:
        rest = num_peers - 1 - degree
        return complement(regular_graph(num_peers, rest, seed, tick, directed=directed))
    for stream in count(0, 2):
        drawn = words(seed, tick, num_peers * degree, stream)
        heads, tails = _paired(drawn, num_peers, degree, directed)
        tangled = _tangled(heads, tails, num_peers, directed)
        picks = words(seed, tick, _TRIES * int(tangled.sum()), stream + 1)
        if _untangle(heads, tails, tangled, num_peers, directed, picks):
            break
    return (one_way if directed else two_way)(num_peers, heads, tails)


def _paired(drawn: Words, num_peers: int, degree: int, directed: bool) -> tuple[Ints, Ints]:
    ends = np.repeat(np.arange(num_peers), degree)
    mixed = ends[shuffled(drawn)]
    return (ends, mixed) if directed else (mixed[0::2].copy(), mixed[1::2].copy())


def _key(head: Number, tail: Number, num_peers: int, directed: bool) -> Number:
    """Name a link by one number; undirected by sum and product, which know no order."""
    if directed:
        return head * num_peers + tail
    return (head + tail) * num_peers**2 + head * tail


def _tangled(heads: Ints, tails: Ints, num_peers: int, directed: bool) -> Flags:
    """Mark self-loops, and repeats but for the first of each."""
    repeats = np.ones(len(heads), dtype=bool)
    repeats[np.unique(_key(heads, tails, num_peers, directed), return_index=True)[1]] = False
    tangled: Flags = repeats | (heads == tails)
    return tangled


def _untangle(
    heads: Ints,
    tails: Ints,
    tangled: Flags,
    num_peers: int,
    directed: bool,
    picks: Words,
) -> bool:
    """Switch tails, in place, with randomly picked links; False if the picks run out."""
    bad = np.flatnonzero(tangled).tolist()
    if not bad:
        return True
    present = set(_key(heads, tails, num_peers, directed)[~tangled].tolist())
    for other in below(picks, len(heads)).tolist():
        mine = bad[-1]
        (a, c), (b, d) = heads[[mine, other]].tolist(), tails[[mine, other]].tolist()
        new = {_key(a, d, num_peers, directed), _key(c, b, num_peers, directed)}
        if tangled[other] or a == d or c == b or len(new) < 2 or present & new:
            continue
        tails[mine], tails[other] = d, b
        present.remove(_key(c, d, num_peers, directed))
        present |= new
        tangled[bad.pop()] = False
        if not bad:
            return True
    return False
