"""One copy of data set and shards for all processes of a machine, in memory where there is room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from p2p_dml import data
from p2p_dml.assemble import Blueprint, Shards, blueprint
from p2p_dml.config import RunConfig
from p2p_dml.data import Dataset
from p2p_dml.launchers import folder
from p2p_dml.types import PeerId


def lay_out(dataset: Dataset | None, shards: Shards, path: Path) -> None:
    """Put data set and shards where every peer maps them, once for all."""
    if dataset is None:
        return
    data.share(dataset, path / "data")
    with folder.storage(path):
        for peer, shard in shards.items():
            np.save(path / f"shard-{peer}.npy", shard, allow_pickle=False)


def laid_out(config: RunConfig, path: Path, me: PeerId) -> Blueprint:
    """What `lay_out` left, with the shard of peer `me` alone."""
    return with_shards(shared_by_all(config, path), path, [me])


def shared_by_all(config: RunConfig, path: Path) -> Blueprint:
    """What `lay_out` left, without a shard."""
    dataset = data.open_shared(path / "data") if (path / "data").exists() else None
    return blueprint(config, dataset)


def with_shards(parts: Blueprint, path: Path, peers: Iterable[PeerId]) -> Blueprint:
    """The same with the shards of `peers` alone, those it has not read from `path`."""
    if parts.dataset is None:
        return parts
    had = parts.shards
    shards = {j: had[j] if j in had else np.load(path / f"shard-{j}.npy") for j in peers}
    return replace(parts, shards=shards)
