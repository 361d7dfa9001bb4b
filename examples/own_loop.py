"""Your own training loop, in a run file (`train = "own_loop:train"`) or from Python alone.

python examples/own_loop.py 0 & python examples/own_loop.py 1 & python examples/own_loop.py 2
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from p2p_dml import Peer


def network() -> nn.Module:
    return nn.Linear(1, 1)


def train(model: nn.Module, round: int, peer: int = 0) -> dict[str, float]:
    """Fit y = 2x - 1 where peer i sees only x in [i, i + 1]; any optimiser, any data."""
    x = torch.linspace(peer, peer + 1, 16).unsqueeze(1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(model(x), 2 * x - 1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return {"loss": loss.item()}


if __name__ == "__main__":
    me = int(sys.argv[1])
    torch.manual_seed(0)  # all peers begin with the same weights
    model = network()
    run_file = Path(__file__).with_suffix(".toml")
    Peer(model, lambda model, round: train(model, round, me), run=run_file, me=me).run()
    slope, offset = model.parameters()
    print(f"peer {me}: y = {slope.item():.2f} x {offset.item():+.2f}")
