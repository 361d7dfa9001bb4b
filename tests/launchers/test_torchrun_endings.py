"""Whose fault it is, from the last words of all."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from p2p_dml.errors import ExitCode
from p2p_dml.launchers.endings import Ending, cause_of, decode_ending, judge, reporter
from p2p_dml.types import PeerId

DONE = Ending(how="done", round=9)
STOPPED = Ending(how="stopped", round=5)
LOST = "was lost in round {}: {}"


def blames(peer: PeerId | None, round: int = 5) -> Ending:
    return Ending(how="broken", round=round, blames=peer, why=f"the connection to {peer} broke")


def failed(round: int = 5) -> Ending:
    return Ending(how="failed", round=round, why="the loss is nan")


@pytest.mark.parametrize("ending", [DONE, STOPPED, blames(3), blames(None), failed()])
def test_words_survive_the_store(ending: Ending) -> None:
    assert decode_ending(ending.encode()) == ending


@pytest.mark.parametrize(
    ("endings", "cause"),
    [
        ({0: blames(1)}, "peer 1 was lost in round 5: the connection to 1 broke"),
        (
            {0: blames(1, 6), 1: blames(2)},
            "peer 2 was lost in round 5: the connection to 2 broke",
        ),
        (
            {0: blames(3, 7), 1: blames(2), 3: blames(1, 6)},
            "peer 2 was lost in round 5: the connection to 2 broke",
        ),
        ({0: blames(1, 6), 1: failed()}, "peer 1 failed in round 5: the loss is nan"),
        (
            {0: blames(1, 7), 1: blames(2, 6), 2: failed(), 3: blames(2)},
            "peer 2 failed in round 5: the loss is nan",
        ),
        # All tell of the first who noticed, also who noticed it himself, later.
        (
            {0: blames(2, 6), 1: blames(2, 5), 3: blames(2, 5)},
            "peer 2 was lost in round 5: the connection to 2 broke",
        ),
        # Blame in a circle: two timed out on each other, because both waited for a third.
        (
            {0: blames(1), 1: blames(0), 3: blames(2, 4)},
            "peer 2 was lost in round 4: the connection to 2 broke",
        ),
        ({0: blames(None), 1: DONE, 3: DONE}, "peer 2 was lost in round 5: it ended or hangs"),
        ({0: STOPPED, 1: STOPPED, 2: STOPPED}, "peer 3 was lost in round 5: it ended or hangs"),
        ({0: STOPPED, 1: failed(4), 2: STOPPED}, "peer 1 failed in round 4: the loss is nan"),
        ({0: Ending(how="stopped", round=0), 1: DONE, 2: DONE}, "peer 3 was lost before the first"),
    ],
)
def test_the_first_to_end_is_found(endings: Mapping[PeerId, Ending], cause: str) -> None:
    found = cause_of(0, endings, peers=range(4))
    assert found is not None
    assert found.told().startswith(cause)
    assert found.told("rank") == found.told().replace("peer", "rank", 1)


@pytest.mark.parametrize(
    ("own", "others", "code", "why"),
    [
        (DONE, [DONE, DONE], ExitCode.DONE, None),
        (STOPPED, [STOPPED, STOPPED], ExitCode.STOPPED, None),
        (STOPPED, [DONE, STOPPED], ExitCode.STOPPED, None),
        # Behind a peer that was told to stop earlier.
        (blames(1), [STOPPED, STOPPED], ExitCode.STOPPED, None),
        (blames(1), [blames(0), blames(0)], ExitCode.BROKEN, "round 5: the connection to 1 broke"),
        (DONE, [failed(), DONE], ExitCode.DONE, "peer 1 failed in round 5: the loss is nan"),
        (STOPPED, [failed(), DONE], ExitCode.BROKEN, "peer 1 failed in round 5: the loss is nan"),
        (blames(1), [failed(), DONE], ExitCode.BROKEN, "peer 1 failed in round 5: the loss is nan"),
        (
            blames(1, 0),
            [failed(0), DONE],
            ExitCode.STARTUP,
            "peer 1 failed before the first round: the loss is nan",
        ),
    ],
)
def test_a_peer_ends_with_the_code_of_its_fate(
    own: Ending, others: list[Ending], code: ExitCode, why: str | None
) -> None:
    judgement = judge(0, dict(enumerate([own, *others])), peers=range(3))
    assert (judgement.code, judgement.why) == (code, why)
    assert judgement.is_said == (why is not None and "failed" in why)


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        ({0: DONE, 1: DONE}, 0),
        ({0: failed(), 1: blames(0), 2: blames(0)}, 0),
        ({1: blames(0), 2: blames(0)}, 1),
        ({1: failed(), 2: blames(0), 3: blames(0)}, 2),
        ({1: failed()}, 0),
    ],
)
def test_one_peer_writes_the_report(endings: Mapping[PeerId, Ending], expected: PeerId) -> None:
    assert reporter(endings) == expected
