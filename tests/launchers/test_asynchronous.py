"""Asynchronous runs on real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml import config, report
from p2p_dml.errors import ExitCode
from p2p_dml.launchers import local


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("strategy", "mixing", "limit"),
    [
        ("dpsgd", "metropolis", {"rounds": 8}),
        ("sgp", "push_uniform", {"rounds": 8}),
        ("dpsgd", "metropolis", {"rounds": 10**6, "duration_s": 0.3}),
    ],
)
def test_a_slow_peer_and_three_others(
    tmp_path: Path, strategy: str, mixing: str, limit: dict[str, float]
) -> None:
    tables = {
        "peers": 4,
        "links": "complete",
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "pace": {"name": "asynchronous", "max_age": 2},
        "stragglers": {"share": 0.25, "factor": 5.0, "round_s": 0.02},
        "strategy": strategy,
        "mixing": mixing,
        **limit,
    }
    outcome = local.run(config.parse(tables, tmp_path), tmp_path / "out", _ignore)
    assert outcome.exit_code is ExitCode.DONE
    recorded = report.load(outcome.folder)
    assert (recorded.meta.pace, recorded.meta.clock) == ("asynchronous", "wall")
    (slow,) = recorded.meta.stragglers
    for peer in recorded.peers:
        assert peer.fate == "finished"
        assert peer.rounds.bytes_in.sum() > 0
        assert np.nanmax(peer.rounds.age, initial=0) <= 2
        assert all(line["event"] == "neighbour_changed" for line in peer.happenings)
        assert all(line["state"] == "left" for line in peer.happenings)
        training = peer.rounds.seconds[:, 0]
        assert (training >= (0.1 if peer.peer == slow else 0.02) * 0.99).all()
    if "duration_s" not in limit:
        assert {len(peer.rounds.round) for peer in recorded.peers} == {8}
