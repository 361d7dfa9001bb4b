"""Half a checkpoint: what a write leaves that does not come to its end."""

from __future__ import annotations

import os
from pathlib import Path

from p2p_dml.checkpoint import write_file
from p2p_dml.types import Tensors


def write_half(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    """Write the first half of a checkpoint's bytes."""
    write_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)
