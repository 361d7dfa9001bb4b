"""Files of an export: what stands in the way of writing, and what cannot be read, says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.files import write_whole
from p2p_dml.types import Tensors


def clear(folder: Path, names: Collection[str]) -> None:
    """Remove the files `names` of an earlier export, if it is there.

    Raises ConfigError if the folder holds anything else, StorageError if they cannot be removed.
    """
    try:
        found = sorted(folder.iterdir()) if folder.exists() else []
        if strange := [path.name for path in found if path.name not in names]:
            raise ConfigError(
                f"{folder}: holds {strange[0]!r}, which is no part of an export; choose another "
                "folder with --out"
            )
        for path in found:
            path.unlink()
    except NotADirectoryError as error:
        raise ConfigError(f"{folder}: is a file; choose another folder with --out") from error
    except OSError as error:
        raise StorageError(f"cannot replace the export in {folder}: {error.strerror}") from error


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. StorageError naming the file and the reason."""
    whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    write_whole(path, save(whole, dict(metadata)))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. ConfigError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}; expected a file that `p2p-dml export` wrote"
        ) from error
