"""The book of addresses, for peers that begin together and for those that are started again."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from p2p_dml.errors import StartupError
from p2p_dml.launchers import rendezvous
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


# ---- peers that end or are stopped ------------------------------------------------------------

LINE = json.dumps({"peer": 0, "endpoint": "tcp://a:0"}).encode() + b"\n"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Of peers 0 and 1, at `desk.sock`."""
    with closing(Desk(tmp_path / "desk.sock", range(2))) as made:
        yield made


def visit(folder: Path, said: bytes) -> socket.socket:
    """A peer that has said so much."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(folder / "desk.sock"))
    made.sendall(said)
    return made


@pytest.mark.timeout(30)
@pytest.mark.parametrize("said", [b"", LINE[:9], LINE[:-1], LINE], ids=str)
@pytest.mark.parametrize("is_gone", [True, False])
def test_who_ends_or_is_stopped_at_the_desk_is_late_and_keeps_nobody(
    desk: Desk, tmp_path: Path, said: bytes, is_gone: bool
) -> None:
    num_checks = 0

    def check() -> None:
        nonlocal num_checks
        num_checks += 1

    with closing(visit(tmp_path, said)) as other:
        if is_gone:
            other.close()
        late = [1] if said == LINE else [0, 1]
        with pytest.raises(StartupError, match=rf"peers \{late} did not start within 0\.3 s"):
            desk.gather(0.3, check)
    assert num_checks > 2


def test_a_line_may_come_in_pieces_and_after_another(desk: Desk, tmp_path: Path) -> None:
    first = visit(tmp_path, LINE[:9])
    with first, visit(tmp_path, LINE.replace(b"0", b"1")):
        checks = iter(range(1000))

        def check() -> None:
            if next(checks) == 3:  # the other one is in
                first.sendall(LINE[9:])

        assert desk.gather(20.0, check) == {0: "tcp://a:0", 1: "tcp://a:1"}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("is_gone", [True, False])
def test_who_is_gone_or_stopped_when_the_book_comes_out_is_passed_over(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """The book is longer than what fits between a desk and one that does not read."""
    monkeypatch.setattr(rendezvous, "_PATIENCE_S", 0.2)
    book = {0: "tcp://a:0", 1: "tcp://a:1", **{peer: "x" * 1000 for peer in range(2, 1000)}}
    with ThreadPoolExecutor(1) as pool, visit(tmp_path, LINE) as first:
        other = pool.submit(register, tmp_path / "desk.sock", 1, "tcp://a:1")
        desk.gather(20.0, lambda: None)
        if is_gone:
            first.close()
        desk.publish(book)
        assert other.result() == book
    assert recall(tmp_path / "desk.sock", 0, "tcp://b:0") == {**book, 0: "tcp://b:0"}


@pytest.mark.parametrize("answer", [b"", b'{"0": "tcp'])
def test_a_launcher_that_goes_away_is_named(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "desk.sock"))
        listener.listen()
        asking = pool.submit(register, tmp_path / "desk.sock", 1, "tcp://a:1")
        line, _ = listener.accept()
        with line:
            line.recv(100)
            line.sendall(answer)
        with pytest.raises(StartupError, match="peer 1: the launcher went away before"):
            asking.result()


def test_a_place_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot listen on .*too long; set TMPDIR"):
        Desk(tmp_path / ("x" * 120), range(2))
