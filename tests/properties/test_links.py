"""Any schedule, seed, tick and peer: both ends of a link agree, whatever each asked before."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml import links
from p2p_dml.kernels.mixing import metropolis, push_uniform
from p2p_dml.links import Walk
from p2p_dml.types import Graph, LinkSchedule, Tag

SHARES = st.floats(0, 1, allow_nan=False)
LEAVES = st.one_of(
    st.sampled_from(["complete", "ring", "star", "random_matching", "exponential"]).map(
        lambda kind: {"kind": kind}
    ),
    st.just({"kind": "one_peer_exponential"}),
    st.builds(lambda p: {"kind": "erdos_renyi", "density": p}, SHARES),
    st.builds(
        lambda k, one: {"kind": "epidemic", "fanout": k, "regular": one},
        st.integers(1, 3),
        st.booleans(),
    ),
    st.builds(lambda k: {"kind": "barabasi_albert", "attach": k}, st.integers(1, 3)),
    st.builds(lambda r: {"kind": "geometric", "radius": 0.1 + r, "speed": 0.05}, SHARES),
)


def _combined(inner: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.one_of(
        st.builds(lambda p, of: {"kind": "failing", "p": p, "of": of}, SHARES, inner),
        st.builds(
            lambda k, of: {"kind": "every", "interval": k, "of": of}, st.integers(1, 4), inner
        ),
        st.builds(
            lambda t, of: {"kind": "until", "at_tick": t, "of": of}, st.integers(1, 9), inner
        ),
        st.builds(
            lambda t, of: {"kind": "finally_complete", "at_tick": t, "of": of},
            st.integers(1, 9),
            inner,
        ),
        st.builds(lambda a, b: {"kind": "alternating", "phases": [a, b], "hold": 2}, inner, inner),
    )


TABLES: st.SearchStrategy[dict[str, object]] = st.recursive(LEAVES, _combined, max_leaves=3)
SEEDS = st.integers(0, (1 << 62) - 1)
TICKS = st.integers(0, 1 << 40)


def built(table: dict[str, object], seed: int, num_peers: int = 9) -> LinkSchedule:
    return links.build(table, num_peers, seed, Path())


def weights_agree(graph: Graph) -> None:
    """What a sender deals is what its receiver reckons with, by every rule that fits the graph."""
    for rule in (metropolis, push_uniform) if graph.is_symmetric else (push_uniform,):
        hoods = [rule(graph, me) for me in range(graph.num_peers)]
        for me, hood in enumerate(hoods):
            assert hood.in_weights == {j: hoods[j].out_weights[me] for j in graph.senders[me]}
            assert hood.out_weights.keys() == set(graph.receivers[me])
            assert me not in hood.in_weights


@given(TABLES, SEEDS, st.lists(TICKS, min_size=1, max_size=5))
@settings(max_examples=60)
def test_peers_that_ask_in_any_order_see_one_graph(
    table: dict[str, object], seed: int, ticks: list[int]
) -> None:
    mine, theirs = built(table, seed), built(table, seed)
    forth = {tick: mine(tick) for tick in ticks}
    back = {tick: theirs(tick) for tick in reversed(ticks)}
    assert forth == back
    for graph in forth.values():
        weights_agree(graph)


@given(TABLES, SEEDS, st.integers(1, 4), st.data())
@settings(max_examples=40)
def test_walks_of_all_peers_hear_whom_those_send_to(
    table: dict[str, object], seed: int, exchanges: int, data: st.DataObject
) -> None:
    """One may have been through all exchanges, and another begin right there."""
    tag = Tag(data.draw(st.integers(1, 50)), data.draw(st.integers(0, exchanges - 1)))
    walks = [Walk(built(table, seed), push_uniform, me, seed, exchanges) for me in range(9)]
    for walk in walks[:3]:
        while walk.tag != tag:
            walk.advance()
    for walk in walks[3:]:
        walk.seek(tag)
    bits = {tuple(walk.shared_bits(5, 3)) for walk in walks}
    assert len(bits) == 1
    heard = {(j, walk.me) for walk in walks for j in walk.now.in_weights}
    assert heard == {(walk.me, k) for walk in walks for k in walk.now.out_weights}
