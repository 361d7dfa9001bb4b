"""Push-sum between real processes on a network that loses messages keeps its mass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.checkpoint import load as load_checkpoint
from p2p_dml.launchers import local, simulated
from p2p_dml.types import Tensors

PEERS, ROUNDS = 4, 6
RUN: dict[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "dtype": "float64",
    "strategy": {"name": "sgp", "running_sums": True, "min_weight": 0.0},
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "mixing": "push_uniform",
    "network": {"loss": 0.3},
    "evaluate_every": 0,
}


def weight_of(peers: list[Tensors]) -> float:
    """Of all peers and of what is under way between them."""
    total = sum(float(each["strategy/weight"]) for each in peers)
    for sender, tensors in enumerate(peers):
        for receiver, other in enumerate(peers):
            given = tensors.get(f"strategy/sums/given/{receiver}/weight", torch.tensor(0.0))
            taken = other.get(f"strategy/sums/taken/{sender}/weight", torch.tensor(0.0))
            total += float(given) - float(taken)
    return total


@pytest.mark.slow
def test_mass_is_kept_and_every_bit_is_that_of_the_simulation(tmp_path: Path) -> None:
    run = config.parse(RUN, Path())
    outcome = local.run(run, tmp_path / "processes", lambda folder, started: lambda: None)
    assert outcome.exit_codes == dict.fromkeys(range(PEERS), 0)
    simulated.simulate(run, tmp_path / "simulated", lambda folder, started: lambda: None)
    ours, expected = (
        [load_checkpoint(tmp_path / kind / checkpoint_file(i, ROUNDS)).tensors for i in range(4)]
        for kind in ("processes", "simulated")
    )
    assert weight_of(ours) == pytest.approx(PEERS, abs=1e-12)
    assert sum(float(each["strategy/weight"]) for each in ours) < PEERS - 0.1
    for got, wanted in zip(ours, expected, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(x, got[name]) for name, x in wanted.items())
