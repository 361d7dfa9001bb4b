"""The book of addresses, for peers that begin together and for those that are started again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2p_dml.launchers.rendezvous import Desk, recall, register

PEERS = 4


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Where a desk was, at which all peers have met."""
    place = tmp_path / "desk.sock"
    desk = Desk(place, range(PEERS))
    with ThreadPoolExecutor(PEERS) as pool:
        books = [pool.submit(register, place, peer, f"tcp://a:{peer}") for peer in range(PEERS)]
        desk.gather(20.0, lambda: None)
        desk.publish()
        expected = {peer: f"tcp://a:{peer}" for peer in range(PEERS)}
        assert [book.result() for book in books] == [expected] * PEERS
    return place


def test_who_is_started_again_later_knows_where_the_earlier_ones_are(published: Path) -> None:
    first = recall(published, 1, "tcp://b:1")
    assert first == {0: "tcp://a:0", 1: "tcp://b:1", 2: "tcp://a:2", 3: "tcp://a:3"}
    second = recall(published, 3, "tcp://b:3")
    assert second == {0: "tcp://a:0", 1: "tcp://b:1", 2: "tcp://a:2", 3: "tcp://b:3"}


def test_of_any_two_that_are_started_again_at_once_one_knows_the_other(published: Path) -> None:
    with ThreadPoolExecutor(PEERS) as pool:
        books = list(
            pool.map(lambda peer: recall(published, peer, f"tcp://b:{peer}"), range(PEERS))
        )
    for one in range(PEERS):
        for other in range(one):
            assert books[one][other] == f"tcp://b:{other}" or books[other][one] == f"tcp://b:{one}"
