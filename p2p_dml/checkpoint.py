"""Checkpoints: one safetensors file per peer and round, written whole or not at all.

Names in the file: `model/…` and whatever else the learner keeps (`optimiser/…`), and `strategy/…`.
The metadata are one entry, `checkpoint`, a line of JSON: peer, round, run digest, package version,
the outline of the strategy's state, and a checksum over all of these and the tensors. Equal
checkpoints are equal files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from safetensors.torch import save_file
from torch import Tensor

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.types import PeerId, Tensors

Write = Callable[[Tensors, Path, dict[str, str]], None]
"""(tensors, path, metadata): writes a safetensors file."""

_KEY = "checkpoint"
_FACTS = ("peer", "round", "digest", "version")
_NAME = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds. Without the `outline` of the strategy's state no run can go on from it."""

    peer: PeerId
    round: int
    digest: str
    version: str
    tensors: Tensors
    outline: str | None = None


def checkpoint_file(peer: PeerId, round: int) -> str:
    """Path of a checkpoint, relative to the run folder."""
    return f"checkpoints/peer-{peer:03d}/round-{round:06d}.safetensors"


def write_file(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, as it is when nothing goes wrong."""
    save_file(tensors, path, metadata)


def save(run: Path, checkpoint: Checkpoint, write: Write = write_file) -> str:
    """Write atomically; returns the path relative to `run`. StorageError if it cannot be."""
    name = checkpoint_file(checkpoint.peer, checkpoint.round)
    path = run / name
    temporary = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(_apart(checkpoint.tensors), temporary, {_KEY: json.dumps(_signed(checkpoint))})
        os.replace(temporary, path)
    except Exception as error:  # want of memory too: no half of a file stays
        with suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink()
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise StorageError(
            f"peer {checkpoint.peer}, round {checkpoint.round}: cannot write {path}: {error}"
        ) from error
    return name


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, and hold it against its checksum if it has one (older files have none).

    Raises ConfigError if the file is missing, torn, damaged or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        facts = json.loads(metadata[_KEY]) if _KEY in metadata else metadata
        return _checked(facts, tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not a checkpoint of this runtime: {error}") from error


def encode(checkpoint: Checkpoint) -> bytes:
    """The file's bytes, as `save` writes them."""
    return serialise(_apart(checkpoint.tensors), {_KEY: json.dumps(_signed(checkpoint))})


def decode(data: bytes) -> Checkpoint:
    """What `encode` made, held against its checksum; ConfigError if it is anything else."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        facts = json.loads(metadata[_KEY])
        if not isinstance(facts, dict):
            raise ValueError("its metadata is no table")
        return _checked(facts, deserialise(data))
    except (
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ConfigError(f"not a checkpoint of this runtime: {error}") from error


def newest(run: Path, peer: PeerId, digests: Collection[str]) -> Checkpoint | None:
    """The last whole checkpoint that a peer has of the run, which has these digests, if any."""
    for round_ in saved_rounds(run, peer):
        with suppress(ConfigError):  # torn or damaged: the one before it counts
            found = load(run / checkpoint_file(peer, round_))
            if (found.peer, found.round) == (peer, round_) and found.digest in digests:
                return found
    return None


def saved_rounds(run: Path, peer: PeerId) -> list[int]:
    """Rounds of which a peer has a file, newest first; whether one is whole, `load` says."""
    folder = (run / checkpoint_file(peer, 0)).parent
    names = [_NAME.fullmatch(path.name) for path in folder.glob("round-*")]
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _apart(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same values, none in the memory of another, which the format would refuse."""
    found: Tensors = {}
    places: set[int] = set()
    for name, x in tensors.items():
        place = x.untyped_storage().data_ptr()
        found[name] = x.clone() if place in places else x
        places.add(place)
    return found


def _signed(checkpoint: Checkpoint) -> dict[str, Any]:
    """All of it but the tensors, with the checksum."""
    facts = _facts_of(checkpoint)
    return facts | {"checksum": _checksum(facts, checkpoint.tensors)}


def _checked(facts: dict[str, Any], tensors: Tensors) -> Checkpoint:
    """Raises KeyError or ValueError where something is wrong."""
    checksum = facts.pop("checksum", None)
    if checksum not in (None, _checksum(facts, tensors)):
        raise ValueError("its checksum says that it is damaged")
    return Checkpoint(
        int(facts["peer"]),
        int(facts["round"]),
        facts["digest"],
        facts["version"],
        tensors,
        facts.get("outline"),
    )


def _facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    facts = {key: getattr(checkpoint, key) for key in _FACTS}
    return facts if checkpoint.outline is None else facts | {"outline": checkpoint.outline}


def _checksum(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of facts, names, dtypes, shapes and bytes."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name, x in sorted(tensors.items()):
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
