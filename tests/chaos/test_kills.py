"""Killed peers: the others finish, bystanders miss nothing, and every bit is as simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.conftest import Chaos

KILLED = -9
VICTIM, NEIGHBOURS, BYSTANDERS = 3, (2, 4), (0, 1, 5)  # on a ring of six
ROUND = 4


def kill(phase: str, peers: object = (VICTIM,)) -> dict[str, object]:
    chosen = list(peers) if isinstance(peers, tuple) else peers
    return {"peers": chosen, "round": ROUND, "phase": phase, "kind": "kill"}


@pytest.mark.parametrize(
    ("phase", "saved", "heard_in_round"),
    [
        ("train", 3, ()),
        pytest.param("send", 3, (2,), marks=pytest.mark.slow),
        pytest.param("mix", 3, NEIGHBOURS, marks=pytest.mark.slow),
        ("checkpoint", 3, NEIGHBOURS),
    ],
)
def test_a_peer_killed_in_any_phase(
    chaos: Chaos, phase: str, saved: int, heard_in_round: tuple[int, ...]
) -> None:
    """Half of a file is no checkpoint: the newest of the victim is that of the round before."""
    after = chaos.run(kill(phase), checkpoint_every=1)
    assert after.outcome.exit_codes == {**dict.fromkeys(range(6), 0), VICTIM: KILLED}
    after.expect_untouched(BYSTANDERS)
    after.expect_all_well(NEIGHBOURS)
    for peer in NEIGHBOURS:
        first = [] if peer in heard_in_round else [VICTIM]
        assert after.missing(peer) == [[]] * (ROUND - 1) + [first] + [[VICTIM]] * 4
        assert after.told(peer, "dead") == [VICTIM]
    assert max(after.saved(VICTIM)) == saved
    assert after.events(VICTIM, "finished") == []
    assert [e["phase"] for e in after.events(VICTIM, "injected")] == [phase]
    assert "Traceback" not in after.words()
    after.expect_same_as(chaos.simulate(kill(phase), checkpoint_every=1), range(6))


STRATEGIES: Mapping[str, Mapping[str, object]] = {
    "hyperprism": {"strategy": {"name": "hyperprism", "degree": "learned"}},
    "mcepl": {"strategy": "mcepl"},
    "sgp": {"strategy": "sgp", "mixing": "push_uniform", "dtype": "float64"},
    "training after the exchange": {"strategy": {"name": "gradient_tracking", "lr": 0.05}},
    "one graph after another": {"links": {"kind": "erdos_renyi", "density": 0.6}},
    "over TCP": {"transport": {"scheme": "tcp"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_left_computes_what_the_simulator_says(chaos: Chaos, name: str) -> None:
    tables = {**STRATEGIES[name], "checkpoint_every": 1}
    after = chaos.run(kill("train"), **tables)
    assert after.survivors == [0, 1, 2, 4, 5]
    after.expect_all_well(after.survivors)
    after.expect_same_as(chaos.simulate(kill("train"), **tables), range(6))


@pytest.mark.slow
def test_half_of_32_peers_at_one_instant(chaos: Chaos) -> None:
    half = kill("train", {"share": 0.5})
    tables = {
        "peers": 32,
        "links": {"kind": "k_regular", "degree": 6},
        "partition": "iid",
        "min_neighbours": 0,
    }
    after = chaos.run(half, **tables)
    assert len(after.survivors) == 16
    after.expect_all_well(after.survivors)
    for peer in after.survivors:
        gone = set(range(32)) - set(after.survivors)
        assert all(set(missing) <= gone for missing in after.missing(peer))
        assert set(after.told(peer, "dead")) <= gone
    after.expect_same_as(chaos.simulate(half, **tables), after.survivors)


@pytest.mark.slow
def test_the_most_central_of_a_scale_free_graph(chaos: Chaos) -> None:
    """The disruption study's preset: those left are in several components, and all finish."""
    central = kill("train", {"most_central": 3})
    tables = {
        "peers": 12,
        "links": {"kind": "barabasi_albert", "attach": 1},
        "min_neighbours": 0,
    }
    after = chaos.run(central, **tables)
    assert len(after.survivors) == 9
    after.expect_all_well(after.survivors)
    after.expect_same_as(chaos.simulate(central, **tables), after.survivors)


@pytest.mark.slow
def test_who_is_left_alone_for_too_long_says_so(chaos: Chaos) -> None:
    """A star whose centre dies: with `min_neighbours` the others end, after so many exchanges."""
    tables = {"links": "star", "max_isolated_rounds": 3}
    after = chaos.run(kill("train", (0,)), **tables)
    assert after.outcome.exit_codes == {0: KILLED, **dict.fromkeys(range(1, 6), 4)}
    for peer in range(1, 6):
        rounds = [event["round"] for event in after.events(peer, "isolated")]
        assert rounds == [ROUND, ROUND + 1, ROUND + 2]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "send", "mix", "checkpoint"])
def test_who_is_started_again_is_not_killed_again(chaos: Chaos, phase: str) -> None:
    tables = {"restarts": 1, "rounds": 60, "stragglers": {"round_s": 0.15}, "checkpoint_every": 1}
    after = chaos.run(kill(phase), **tables)
    after.expect_all_well((*NEIGHBOURS, *BYSTANDERS))
    assert [e["round"] for e in after.events(VICTIM, "injected")] == [ROUND]
    assert after.outcome.exit_codes[VICTIM] == 0
    for peer in BYSTANDERS:
        assert after.missing(peer) == [[]] * 60
    for peer in NEIGHBOURS:
        assert after.missing(peer)[-3:] == [[]] * 3
