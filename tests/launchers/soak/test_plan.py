"""Plans of a soak: equal for equal seeds, quiet at both ends, sparing those that are measured."""

from __future__ import annotations

import pytest

from p2p_dml.errors import ConfigError
from p2p_dml.launchers.soak.plan import KILLING, SHARES, WARM_S, plan, quiet_s, spared

PEERS, DURATION_S, EVERY_S = 8, 3600.0, 5.0


def test_equal_seeds_make_equal_plans_and_others_do_not() -> None:
    first = plan(PEERS, DURATION_S, EVERY_S, 3)
    assert plan(PEERS, DURATION_S, EVERY_S, 3) == first
    assert plan(PEERS, DURATION_S, EVERY_S, 4) != first
    assert plan(PEERS + 1, DURATION_S, EVERY_S, 3) != first


def test_a_longer_soak_begins_as_a_shorter_one() -> None:
    short, long = (plan(PEERS, seconds, EVERY_S, 0) for seconds in (600.0, 1200.0))
    assert long[: len(short)] == short


@pytest.mark.parametrize(("duration_s", "quiet"), [(3600.0, WARM_S), (40.0, 10.0)])
def test_a_fault_each_so_often_and_none_at_both_ends(duration_s: float, quiet: float) -> None:
    times = [fault.at_s for fault in plan(PEERS, duration_s, EVERY_S, 0)]
    assert quiet_s(duration_s) == quiet
    assert times == [quiet + i * EVERY_S for i in range(int((duration_s - 2 * quiet) / EVERY_S))]


def test_kinds_come_as_often_as_their_shares_say() -> None:
    faults = plan(PEERS, 20_000 * EVERY_S, EVERY_S, 0)
    for kind, share in SHARES.items():
        found = sum(fault.kind == kind for fault in faults) / len(faults)
        assert found == pytest.approx(share / sum(SHARES.values()), abs=0.015)  # 4 sigma


@pytest.mark.parametrize(("peers", "half"), [(2, 1), (3, 1), (8, 4), (32, 16)])
def test_whom_faults_befall(peers: int, half: int) -> None:
    faults = plan(peers, DURATION_S, EVERY_S, 1)
    for fault in faults:
        assert len(set(fault.peers)) == (half if fault.kind == "half" else 1)
        assert all(0 <= peer < peers for peer in fault.peers)
        if fault.kind in KILLING:
            assert not set(fault.peers) & set(spared(peers))
    killed = {peer for fault in faults if fault.kind == "kill" for peer in fault.peers}
    assert killed == set(range(peers)) - set(spared(peers))
    stops = [fault.for_s for fault in faults if fault.kind == "stop"]
    assert min(stops) >= 0.5 and max(stops) <= 3.0


@pytest.mark.parametrize(("peers", "duration_s"), [(1, 600.0), (8, 8.0)])
def test_nothing_to_do_is_said(peers: int, duration_s: float) -> None:
    with pytest.raises(ConfigError, match="time for one fault"):
        plan(peers, duration_s, EVERY_S, 0)
