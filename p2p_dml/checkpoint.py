"""Checkpoints: one safetensors file per peer and round, written whole or not at all.

Names in the file: `model/…` and whatever else the learner keeps (`optimiser/…`), and `strategy/…`.
The metadata hold peer, round, run digest and package version.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.types import PeerId, Tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds."""

    peer: PeerId
    round: int
    digest: str
    version: str
    tensors: Tensors


def checkpoint_file(peer: PeerId, round: int) -> str:
    """Path of a checkpoint, relative to the run folder."""
    return f"checkpoints/peer-{peer:03d}/round-{round:06d}.safetensors"


def leaves(value: object, path: str) -> Tensors:
    """All tensors and numbers of a nested state by path; numbers become 0-d tensors.

    Raises TypeError, naming the path, for anything else than dataclass, mapping, tensor, number,
    None.
    """
    if isinstance(value, Tensor):
        return {path: value.detach().cpu().contiguous()}
    if isinstance(value, int | float):
        return {path: torch.tensor(value, dtype=torch.float64 if type(value) is float else None)}
    if value is None:
        return {}
    if isinstance(value, Mapping):
        items = {str(key): child for key, child in value.items()}
    elif is_dataclass(value):
        items = {f.name: getattr(value, f.name) for f in fields(value)}
    else:
        raise TypeError(f"{path}: a state cannot hold a {type(value).__name__}")
    return {k: x for key, child in items.items() for k, x in leaves(child, f"{path}/{key}").items()}


def save(run: Path, checkpoint: Checkpoint) -> str:
    """Write atomically; returns the path relative to `run`. StorageError if it cannot be."""
    name = checkpoint_file(checkpoint.peer, checkpoint.round)
    path = run / name
    metadata = {
        key: str(getattr(checkpoint, key)) for key in ("peer", "round", "digest", "version")
    }
    temporary = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint.tensors, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink()
        raise StorageError(
            f"peer {checkpoint.peer}, round {checkpoint.round}: cannot write {path}: {error}"
        ) from error
    return name


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. ConfigError if the file is missing, torn or not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        return Checkpoint(
            int(metadata["peer"]),
            int(metadata["round"]),
            metadata["digest"],
            metadata["version"],
            tensors,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not a checkpoint of this runtime: {error}") from error
