"""What ranks tell each other through the store; here a store in memory, and one thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from p2p_dml.errors import StartupError, TransportError
from p2p_dml.launchers.endings import Ending
from p2p_dml.launchers.meeting import Meeting, meet
from p2p_dml.launchers.ranks import Ranks

SIZE = 3
PATIENT_S = 30.0


def nothing() -> None:
    """No signal came."""


def _ranks(rank: int) -> Ranks:
    return Ranks(rank=rank, size=SIZE, local_rank=rank, local_size=SIZE)


@pytest.fixture
def meetings() -> list[Meeting]:
    """Three ranks around one store."""
    store: Store = next(rendezvous("tcp://127.0.0.1:0?rank=0&world_size=1"))[0]
    return [Meeting(store, rank, SIZE) for rank in range(SIZE)]


def test_everybody_hears_what_was_told(meetings: list[Meeting]) -> None:
    a, b, c = meetings
    assert (a.count("here"), a.heard("here", 1), a.everything("here")) == (0, None, {})
    b.tell("here", "")
    c.tell("here", "ready: ü")
    assert (a.count("here"), a.heard("here", 1)) == (2, "")
    assert a.everything("here") == {1: "", 2: "ready: ü"}
    a.tell("here", "me too")
    everything = {0: "me too", 1: "", 2: "ready: ü"}
    assert [each.gather("here", PATIENT_S, nothing) for each in meetings] == [everything] * SIZE
    assert b.listen("here", 2, PATIENT_S, nothing) == "ready: ü"


def test_some_may_be_gathered(meetings: list[Meeting]) -> None:
    for each in meetings[1:]:
        each.tell("mapped", str(each is meetings[1]))
    found = meetings[0].gather("mapped", PATIENT_S, nothing, range(1, 3))
    assert found == {1: "True", 2: "False"}


def test_the_first_is_first_and_its_proposal_holds(meetings: list[Meeting]) -> None:
    assert [each.is_first("word") for each in meetings] == [True, False, False]
    assert [each.agree("round", f"{i}") for i, each in enumerate(meetings)] == ["0", "0", "0"]
    assert meetings[2].is_first("another word")


def test_who_is_missing_is_named(meetings: list[Meeting]) -> None:
    meetings[1].tell("here", "")
    with pytest.raises(StartupError, match=r"peers \[0, 2\] did not start within 0 s"):
        meetings[0].gather("here", 0.0, nothing)


def test_nobody_waits_for_a_peer_that_has_ended(meetings: list[Meeting]) -> None:
    meetings[2].tell("ending", Ending(how="failed", round=0, why="no data").encode())
    with pytest.raises(TransportError, match="peer 2 has ended") as error:
        meetings[0].gather("here", PATIENT_S, nothing)
    assert error.value.peer == 2
    with pytest.raises(TransportError, match="peer 2 has ended"):
        meetings[0].listen("folder", 2, PATIENT_S, nothing)


def test_a_peer_that_has_told_may_have_ended(meetings: list[Meeting]) -> None:
    for each in meetings[1:]:
        each.tell("here", "")
    meetings[2].tell("ending", Ending(how="done", round=9).encode())
    with pytest.raises(StartupError, match=r"peers \[0\]"):
        meetings[0].gather("here", 0.1, nothing)


def test_a_signal_ends_the_wait(meetings: list[Meeting]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    waits: list[Callable[[], object]] = [
        lambda: meetings[0].gather("here", PATIENT_S, interrupt),
        lambda: meetings[0].listen("folder", 1, PATIENT_S, interrupt),
    ]
    for wait in waits:
        with pytest.raises(KeyboardInterrupt):
            wait()


def test_last_words_are_awaited_until_it_is_enough(meetings: list[Meeting]) -> None:
    said = {1: Ending(how="done", round=9), 2: Ending(how="broken", round=5, blames=0)}
    for peer, ending in said.items():
        meetings[peer].tell("ending", ending.encode())
    assert meetings[0].last_words(lambda idle_s: True) == said
    own = Ending(how="stopped", round=5)
    meetings[0].tell("ending", own.encode())
    assert meetings[0].last_words(lambda idle_s: False) == {0: own, **said}
    assert meetings[0].last_words(lambda idle_s: False, range(1, 3)) == said


def test_who_gets_on_is_waited_for(meetings: list[Meeting]) -> None:
    """Each sign of peer 2 begins the wait anew."""
    idle: list[float] = []

    def is_over(idle_s: float) -> bool:
        idle.append(idle_s)
        meetings[2].beat()
        if len(idle) == 4:
            meetings[2].tell("ending", Ending(how="done", round=9).encode())
        return False

    assert meetings[0].last_words(is_over, [2]) == {2: Ending(how="done", round=9)}
    assert len(idle) == 4
    assert max(idle) < PATIENT_S


def test_a_store_that_has_gone_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    class Gone(Store):
        def add(self, key: str, amount: int) -> int:
            nonlocal asked
            asked += 1
            raise RuntimeError("broken pipe")

    meeting = Meeting(Gone(), 0, SIZE)
    for _ in range(3):
        with pytest.raises(TransportError, match="store does not answer: broken pipe"):
            meeting.beat()
    assert asked == 1


def test_no_store_is_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, x in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, x)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(StartupError, match="peer 1: cannot reach torchrun's store"):
        meet(_ranks(1), 0.2)
