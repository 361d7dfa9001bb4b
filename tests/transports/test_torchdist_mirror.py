"""The send/receive matrix: two ends of a link that do not agree are named."""

from __future__ import annotations

import pytest

from p2p_dml.transports._dist_mirror import mirror_fault, mirror_row
from p2p_dml.types import Tag

PEERS = range(3)
RING = [([1, 2], [1, 2]), ([0, 2], [0, 2]), ([0, 1], [0, 1])]
ONE_WAY = [([1], []), ([2], [0]), ([], [1])]

Ends = list[tuple[list[int], list[int]]]


def _rows(ends: Ends, tags: tuple[Tag, ...] = (Tag(1),) * 3) -> list[list[int]]:
    return [
        mirror_row(tag, True, sends, hears, PEERS).tolist()
        for tag, (sends, hears) in zip(tags, ends, strict=True)
    ]


@pytest.mark.parametrize("ends", [RING, ONE_WAY, [([], [])] * 3])
def test_mirror_images_have_no_fault(ends: Ends) -> None:
    assert mirror_fault(_rows(ends), PEERS) is None


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([([1], []), ([], []), ([], [])], "peer 0 sends to peer 1, which awaits nothing of it"),
        ([([], []), ([], []), ([], [1])], "peer 1 does not send to peer 2, which awaits a message"),
    ],
)
def test_the_first_pair_is_named(ends: Ends, words: str) -> None:
    assert mirror_fault(_rows(ends), PEERS) == words


def test_peers_go_by_their_ids_in_the_run() -> None:
    peers = range(4, 6)
    rows = [mirror_row(Tag(1), True, [5], [], peers), mirror_row(Tag(1), True, [], [], peers)]
    fault = mirror_fault([row.tolist() for row in rows], peers)
    assert fault == "peer 4 sends to peer 5, which awaits nothing of it"


def test_who_is_elsewhere_is_named_first() -> None:
    rows = _rows([([1], []), ([], []), ([], [])], (Tag(3), Tag(3), Tag(3, 1)))
    assert mirror_fault(rows, PEERS) == (
        "peer 0 is in round 3, exchange 0 (alike payloads), "
        "peer 2 in round 3, exchange 1 (alike payloads)"
    )


def test_a_coded_outbox_must_be_coded_everywhere() -> None:
    rows = _rows(RING)
    rows[1] = mirror_row(Tag(1), False, [0, 2], [0, 2], PEERS).tolist()
    assert "peer 1 in round 1, exchange 0 (variable payloads)" in str(mirror_fault(rows, PEERS))
