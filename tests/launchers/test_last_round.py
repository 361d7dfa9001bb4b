"""After which round peers of one machine stop: whatever the moment, all after the same one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from p2p_dml.launchers.last_round import LastRound, agreed

PEERS = 3


@pytest.fixture
def last(tmp_path: Path) -> Iterator[LastRound]:
    with closing(LastRound.create(tmp_path / "last", PEERS)) as each:
        yield each


def test_nobody_stops_unasked(last: LastRound) -> None:
    assert not any(last.is_over(me, done) for done in range(100) for me in range(PEERS))


def test_before_anyone_has_begun_nobody_begins(last: LastRound) -> None:
    assert not last.choose()
    assert all(last.is_over(me, 0) for me in range(PEERS))


def test_of_a_resumed_run_too(tmp_path: Path) -> None:
    with closing(LastRound.create(tmp_path / "resumed", PEERS, 40)) as last:
        assert not last.choose(40)
        assert all(last.is_over(me, 40) for me in range(PEERS))
    with closing(LastRound.create(tmp_path / "resumed", PEERS, 40)) as last:
        assert not last.is_over(1, 40)
        assert last.choose(40)
        assert [last.is_over(me, done) for me, done in ((0, 40), (0, 41), (1, 41))] == [
            False,
            True,
            True,
        ]


@pytest.mark.parametrize(("behind", "is_agreed"), [(PEERS, True), (PEERS + 1, False)])
def test_peers_that_do_not_wait_for_each_other_are_not_made_to(
    last: LastRound, behind: int, is_agreed: bool
) -> None:
    for me, done in ((0, 50), (1, 50 - behind), (2, 50)):
        assert not last.is_over(me, done)
    assert last.choose() == is_agreed
    assert last.is_over(0, 51) == is_agreed


def test_the_latest_round_begun_is_done_by_all(last: LastRound) -> None:
    for me, done in ((0, 4), (1, 6), (2, 5)):
        assert not last.is_over(me, done)
    assert last.choose()
    assert not last.is_over(0, 5)
    assert not last.is_over(0, 6)
    assert last.is_over(0, 7)
    assert last.is_over(1, 7)


@pytest.mark.parametrize("attempt", range(5))
def test_whatever_the_moment_all_stop_after_the_same_round(tmp_path: Path, attempt: int) -> None:
    """Each waits in a round for what the others have done in the one before."""
    done = [0] * PEERS
    path = tmp_path / "last"
    begun = threading.Event()

    def live(me: int) -> None:
        with closing(LastRound(path)) as mine:
            while not mine.is_over(me, done[me]):
                while min(done) < done[me]:
                    time.sleep(0)
                done[me] += 1
                if done[me] == 10 * (attempt + 1):
                    begun.set()

    with closing(LastRound.create(path, PEERS)) as launcher:
        threads = [threading.Thread(target=live, args=(me,)) for me in range(PEERS)]
        for thread in threads:
            thread.start()
        begun.wait()
        assert launcher.choose()
        for thread in threads:
            thread.join()
    assert len(set(done)) == 1


@pytest.mark.parametrize(
    ("begun", "last"), [([4], 4), ([3, 5, 4], 5), ([3, 6, 6], 6), ([2, 6, 6], None), ([0, 0], 0)]
)
def test_the_latest_is_agreed_on_unless_somebody_is_far_behind(
    begun: list[int], last: int | None
) -> None:
    assert agreed(begun) == last


@pytest.mark.parametrize(("last_round", "goes_on"), [(5, False), (6, True), (None, True)])
def test_who_was_called_on_waits_for_the_round_that_is_named(
    last: LastRound, last_round: int | None, goes_on: bool
) -> None:
    for me in range(PEERS):
        assert not last.is_over(me, 4)
    assert last.call([0, 2]) == [5, 5]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(last.is_over, 1, 5)
        while last.call([1]) != [6]:  # it has said so, and must not go on before
            time.sleep(0)
        assert not answer.done()
        last.name(last_round)
        assert answer.result() != goes_on
