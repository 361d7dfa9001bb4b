"""Graphs by hand, and the weights of an inbox with and without losses."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from p2p_dml.types import Graph, Inbox, Message, Neighbourhood, Payload, Tag

PATH = Graph(((1,), (0, 2), (1,)))
CYCLE = Graph(((2,), (0,), (1,)))  # 0 speaks to 1, 1 to 2, 2 to 0
TRIANGLE = Graph(((1, 2), (0, 2), (0, 1)))
STAR_IN = Graph(((1, 2, 3), (), (), ()))
EMPTY = Graph(((), ()))


@pytest.mark.parametrize(
    ("graph", "receivers", "num_links", "is_symmetric", "is_complete"),
    [
        (PATH, ((1,), (0, 2), (1,)), 4, True, False),
        (CYCLE, ((1,), (2,), (0,)), 3, False, False),
        (TRIANGLE, ((1, 2), (0, 2), (0, 1)), 6, True, True),
        (STAR_IN, ((), (0,), (0,), (0,)), 3, False, False),
        (EMPTY, ((), ()), 0, True, False),
        (Graph(((),)), ((),), 0, True, True),
    ],
)
def test_graphs(
    graph: Graph,
    receivers: tuple[tuple[int, ...], ...],
    num_links: int,
    is_symmetric: bool,
    is_complete: bool,
) -> None:
    assert graph.receivers == receivers
    assert graph.num_peers == len(receivers)
    assert graph.num_links == num_links
    assert graph.is_symmetric is is_symmetric
    assert graph.is_complete is is_complete


@pytest.mark.parametrize("graph", [PATH, CYCLE, TRIANGLE, STAR_IN, EMPTY])
def test_receivers_of_the_receivers_are_the_senders(graph: Graph) -> None:
    assert Graph(graph.receivers).receivers == graph.senders


def test_graphs_with_equal_links_are_equal() -> None:
    again = Graph(((1,), (0, 2), (1,)))
    assert again.receivers == PATH.receivers
    assert (again, hash(again)) == (PATH, hash(PATH))


def test_tags_are_ordered_by_round_then_exchange() -> None:
    tags = [Tag(1), Tag(1, 1), Tag(2), Tag(2, 3), Tag(10)]
    assert all(sorted(order) == tags for order in permutations(tags))


HOOD = Neighbourhood(
    me=2, self_weight=0.5, in_weights={0: 0.125, 1: 0.25, 5: 0.125}, out_weights={0: 0.1, 5: 0.2}
)


def payload(x: float) -> Payload:
    return Payload({"x": torch.tensor(x)})


def test_broadcast_goes_to_everyone_that_hears_the_peer() -> None:
    one = payload(1.0)
    outbox = HOOD.broadcast(one)
    assert list(outbox) == [0, 5]
    assert all(sent is one for sent in outbox.values())


@pytest.mark.parametrize(
    ("heard", "missing", "self_weight"),
    [
        ((0, 1, 5), (), 0.5),
        ((0, 5), (1,), 0.75),
        ((1,), (0, 5), 0.75),
        ((), (0, 1, 5), 1.0),
    ],
)
def test_missing_weights_return_to_self(
    heard: tuple[int, ...], missing: tuple[int, ...], self_weight: float
) -> None:
    inbox = Inbox(HOOD, {j: payload(j) for j in heard})
    assert inbox.missing == missing
    assert inbox.self_weight == self_weight
    _, weights = inbox.with_own({"x": torch.tensor(2.0)})
    assert sum(weights) == 1.0


def test_own_tensors_stand_among_the_others_in_peer_order() -> None:
    inbox = Inbox(HOOD, {5: payload(5.0), 0: payload(0.0)})
    tensors, weights = inbox.with_own({"x": torch.tensor(2.0)})
    assert [row["x"].item() for row in tensors] == [0.0, 2.0, 5.0]
    assert weights == [0.125, 0.75, 0.125]


def test_losing_a_link_at_both_ends_keeps_the_mean() -> None:
    """Two peers of a path lose their link; rows sum to 1 and so do columns, so the mean stays."""
    x = [1.0, 10.0, 100.0]
    third = 1 / 3
    hoods = [
        Neighbourhood(0, 2 * third, {1: third}, {1: third}),
        Neighbourhood(1, third, {0: third, 2: third}, {0: third, 2: third}),
        Neighbourhood(2, 2 * third, {1: third}, {1: third}),
    ]
    heard: list[tuple[int, ...]] = [(), (2,), (1,)]
    mixed = []
    for hood, senders in zip(hoods, heard, strict=True):
        inbox = Inbox(hood, {j: payload(x[j]) for j in senders})
        rows, weights = inbox.with_own({"x": torch.tensor(x[hood.me])})
        mixed.append(sum(w * row["x"].item() for w, row in zip(weights, rows, strict=True)))
    assert mixed[0] == 1.0
    assert sum(mixed) == pytest.approx(sum(x), rel=1e-15)


def test_late_mail_does_not_count_as_heard() -> None:
    inbox = Inbox(HOOD, {}, late=[Message(0, Tag(1), payload(1.0))])
    assert inbox.missing == (0, 1, 5)
