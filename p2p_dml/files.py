"""Writes a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from p2p_dml.errors import StorageError


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` in one move, so that a reader never sees half of it.

    Raises StorageError naming the file and the reason.
    """
    # The process id keeps two reports of one run from writing the same temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder"
        ) from error
