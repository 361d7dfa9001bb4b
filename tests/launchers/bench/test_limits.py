"""The bare loops, as real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2p_dml import config
from p2p_dml.errors import TransportError
from p2p_dml.launchers.bench import limits
from p2p_dml.launchers.bench.bare import FRAME_BYTES, KINDS, Kind, Plan, run_peer
from p2p_dml.launchers.bench.cases import WARM_UP


def run_of(links: str, scheme: str) -> config.RunConfig:
    tables = {"peers": 4, "rounds": 1, "strategy": "dpsgd", "links": links}
    return config.parse({**tables, "transport": {"scheme": scheme}}, Path())


@pytest.mark.parametrize(
    ("kind", "links", "scheme"),
    [
        ("pyzmq", "ring", "tcp"),
        ("pyzmq", "exponential", "ipc"),  # one-way links
        ("shared", "complete", "ipc"),
        ("shared", "random_matching", "ipc"),  # another graph in every round
    ],
)
def test_bare_loops_come_to_their_end(kind: Kind, links: str, scheme: str) -> None:
    size = 2 * FRAME_BYTES + 12
    found = limits.bare_loop(kind, run_of(links, scheme), size, WARM_UP + 3)
    assert 0 < found["round_ms_p10"] <= found["round_ms"] <= found["slowest_round_ms"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_fails_says_why(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_GRAPHS", 0)  # a plan without a graph
    with pytest.raises(TransportError, match=rf"the bare loop over {kind} failed"):
        limits.bare_loop(kind, run_of("ring", "ipc"), 8, WARM_UP + 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_without_neighbours_is_its_own_round(kind: Kind, tmp_path: Path) -> None:
    plan = Plan(kind=kind, folder=str(tmp_path), num_bytes=8, rounds=3, scheme="ipc", graphs=[[[]]])
    assert run_peer(0, plan) == 0
    assert (tmp_path / "0.json").exists()


def test_timed_calls_are_counted() -> None:
    calls: list[int] = []
    assert len(limits.timed(lambda: calls.append(1), 3)) == len(calls) == 3
    assert limits.memory_copy_gb_s(np.dtype(np.float64).itemsize * 1000, 3) > 0
