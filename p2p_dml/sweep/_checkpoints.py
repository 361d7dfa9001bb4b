"""What the final checkpoints of a run say about its parameters."""

from __future__ import annotations

import statistics
from pathlib import Path

from p2p_dml import checkpoint
from p2p_dml.tensors import num_elements, part


def small_share(run: Path, limit: float) -> float | None:
    """Share of the model's numbers whose absolute value is at most `limit`, mean over the peers.

    Counted is every floating-point number of the model in a peer's last checkpoint: weights, biases
    and, where there is BatchNorm, its running figures. None if no checkpoint is there.
    """
    folders = sorted((run / "checkpoints").glob("peer-*"))
    files = [max(folder.glob("round-*.safetensors"), default=None) for folder in folders]
    shares = [_small_share(file, limit) for file in files if file]
    return statistics.fmean(shares) if shares else None


def _small_share(file: Path, limit: float) -> float:
    model = part(checkpoint.load(file).tensors, "model")
    counted = {name: x for name, x in model.items() if x.is_floating_point()}
    small = sum(int((x.abs() <= limit).sum()) for x in counted.values())
    return small / num_elements(counted)
