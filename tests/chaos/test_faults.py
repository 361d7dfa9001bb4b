"""Faults that are no death: stopped, hung, out of memory, disk or descriptors, or out of numbers.

Whatever befalls one peer, its neighbours finish, and bystanders miss nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.conftest import Aftermath, Chaos

VICTIM, NEIGHBOURS, BYSTANDERS = 3, (2, 4), (0, 1, 5)  # on a ring of six
OTHERS = (*NEIGHBOURS, *BYSTANDERS)
ROUND, ROUNDS = 4, 8
IN_A_HURRY: Mapping[str, object] = {"heartbeat_s": 1.0}
"""Transport settings with which silence is death after a second."""


def fault(kind: str, phase: str = "train", for_s: float = 1.0) -> dict[str, object]:
    return {"peers": [VICTIM], "round": ROUND, "phase": phase, "kind": kind, "for_s": for_s}


def error_of(after: Aftermath) -> str:
    """How the victim says that it ended."""
    (finished,) = after.events(VICTIM, "finished")
    assert finished["exit_code"] == after.outcome.exit_codes[VICTIM] == 1
    assert after.outcome.errors[VICTIM] == finished["error"]
    return str(finished["error"])


def expect_an_orderly_end(after: Aftermath, first_missed: int) -> None:
    """The victim took its leave; the others went on without it."""
    after.expect_untouched(BYSTANDERS)
    after.expect_all_well(NEIGHBOURS)
    for peer in NEIGHBOURS:
        heard = first_missed - 1
        assert after.missing(peer) == [[]] * heard + [[VICTIM]] * (ROUNDS - heard)
        assert after.told(peer, "left")[0] == VICTIM


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "phase", "first_missed", "says"),
    [
        ("exit", "train", 4, "peer 3, round 4: ended as faults[0] plans it"),
        ("full_disk", "checkpoint", 5, "No space left on device"),
        ("read_only", "checkpoint", 5, "Read-only file system"),
        ("descriptors", "checkpoint", 5, "Too many open files"),
        ("descriptors", "train", 5, "Too many open files"),  # at the next checkpoint
        ("memory", "train", 4, "out of memory: "),
        ("memory", "checkpoint", 5, "out of memory: "),
    ],
)
def test_who_cannot_go_on_says_why_and_takes_leave(
    chaos: Chaos, kind: str, phase: str, first_missed: int, says: str
) -> None:
    after = chaos.run(fault(kind, phase), checkpoint_every=1)
    assert says in error_of(after)
    expect_an_orderly_end(after, first_missed)
    assert list(after.saved(VICTIM)) == [3, 2, 1]  # whole, each of them
    assert not list(after.outcome.folder.rglob("round-*.part"))


def test_a_model_that_is_no_number_any_more_spreads_to_nobody(chaos: Chaos) -> None:
    after = chaos.run(fault("nan"))
    assert "round 5: loss is nan" in error_of(after)
    expect_an_orderly_end(after, ROUND)
    for peer in NEIGHBOURS:
        (refused,) = after.events(peer, "rejected")
        assert (refused["sender"], refused["round"]) == (VICTIM, ROUND)
        assert "holds a NaN or an infinity" in refused["why"]


@pytest.mark.slow
def test_messages_that_are_no_numbers_cost_a_round(chaos: Chaos) -> None:
    after = chaos.run(fault("nan", "send"), checkpoint_every=1)
    after.expect_untouched((*BYSTANDERS, VICTIM))
    after.expect_all_well(NEIGHBOURS)
    for peer in NEIGHBOURS:
        assert after.missing(peer) == [[VICTIM] if r == ROUND else [] for r in range(1, ROUNDS + 1)]
    after.expect_same_as(chaos.simulate(fault("nan", "send"), checkpoint_every=1), range(6))


# ---- time --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "send", "mix", "checkpoint"])
def test_who_hangs_is_waited_for_as_long_as_it_is_connected(chaos: Chaos, phase: str) -> None:
    """For longer than heartbeats may be silent, as libzmq answers them: no bit is different."""
    after = chaos.run(fault("hang", phase, 2.0), transport=IN_A_HURRY, checkpoint_every=1)
    after.expect_untouched(range(6))
    after.expect_same_as(chaos.simulate(checkpoint_every=1), range(6))


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "width"), [("train", 16), ("send", 16), ("train", 5000)])
def test_who_is_stopped_is_dead_and_comes_back(chaos: Chaos, phase: str, width: int) -> None:
    """The others stop waiting as its heartbeats fail; continued, it takes up their round.

    Also where messages of 1.5 MB to it are stuck on the way.
    """
    after = chaos.run(
        fault("stop", phase, 3.0),
        transport=IN_A_HURRY,
        rounds=60,
        stragglers={"round_s": 0.15},
        model={"name": "mlp", "hidden": [width]},
    )
    after.expect_untouched(BYSTANDERS)
    after.expect_all_well((*NEIGHBOURS, VICTIM))
    for peer in NEIGHBOURS:
        assert after.told(peer, "dead") == after.told(peer, "alive") == [VICTIM]
        missed = [place for place, each in enumerate(after.missing(peer), 1) if each == [VICTIM]]
        assert missed and missed[0] in (ROUND, ROUND + 1)
        assert after.missing(peer)[-5:] == [[]] * 5
    skipped = [
        round_
        for event in after.events(VICTIM, "skipped")
        for round_ in range(event["first"], event["last"] + 1)
    ]
    done = [event["round"] for event in after.events(VICTIM, "round_done")]
    assert skipped and min(skipped) > ROUND
    assert sorted(done + skipped) == list(range(1, 61))


@pytest.mark.slow
def test_at_their_own_pace_nobody_waits_for_a_hung_peer(chaos: Chaos) -> None:
    """It takes nothing meanwhile: queues are bounded, the newest model of each is kept."""
    after = chaos.run(
        fault("hang", for_s=3.0),
        pace="asynchronous",
        rounds=40,
        stragglers={"round_s": 0.05},
        model={"name": "mlp", "hidden": [2000]},
    )
    after.expect_all_well(range(6))
    ends = {peer: after.events(peer, "finished")[0]["t"] for peer in range(6)}
    assert max(ends[peer] for peer in OTHERS) < ends[VICTIM]
    for peer in NEIGHBOURS:
        assert after.told(peer, "dead") == []
        assert any(VICTIM in missing for missing in after.missing(peer))  # it grew too old
