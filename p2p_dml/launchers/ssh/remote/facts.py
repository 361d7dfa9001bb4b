"""What a host is and has, before anything is started there."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2p_dml.launchers.ssh.remote.install import Places

_CHUNK_BYTES = 1 << 20
_GPU_TIMEOUT_S = 20.0


def look(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `request`: a folder, ports, where data are, and the files of them, if any."""
    folder = Path(request["folder"]).expanduser()
    place = data_folder(request["data"])
    return {
        "gpus": count_gpus(),
        "user": [os.getuid(), os.getgid()],
        "folder": str(folder),
        "disk_mb": disk_mb(folder),
        "obstacle": obstacle(folder),
        "taken": [port for port in request["ports"] if is_taken(port)],
        "data": find(request["files"], place) if request["files"] else None,
        "data_folder": str(place.resolve()) if place and place.is_dir() else None,
    }


def look_for_package(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is installed of the package that `request` names, and whether the rest can be."""
    places = Places(Path(request["folder"]).expanduser(), request)
    return {
        "can_install": can_install(),
        "has_env": places.has_env,
        "has_package": places.has_package,
    }


def count_gpus() -> int:
    """Number of NVIDIA GPUs, by the driver's files or its tool; 0 without either."""
    if devices := list(Path("/proc/driver/nvidia/gpus").glob("*")):
        return len(devices)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run(
            [tool, "-L"], capture_output=True, stdin=subprocess.DEVNULL, timeout=_GPU_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count(b"GPU ")


def disk_mb(folder: Path) -> int:
    """Megabytes (10^6 bytes) free where `folder` is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free // 1_000_000


def obstacle(folder: Path) -> str | None:
    """Why `folder` cannot be used, if it cannot; it is made if need be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror
    return None if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def is_taken(port: int) -> bool:
    """Whether a program listens on this TCP port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def can_install() -> bool:
    """Whether this Python makes virtual environments with pip; Debian's alone does not."""
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def data_folder(named: str | None) -> Path | None:
    """Where data are: as the launcher says, or else this host's environment."""
    place = named or os.environ.get("P2P_DML_DATA")
    return Path(place).expanduser() if place else None


def find(files: Sequence[str], place: Path | None) -> dict[str, Any]:
    """Which data `files` are there, plain or as `.gz`, and a digest of their contents unpacked."""
    found = [_plain_or_packed(place / name) if place else None for name in files]
    missing = [name for name, path in zip(files, found) if path is None]  # noqa: B905
    if missing:
        return {"place": str(place) if place else None, "missing": missing, "digest": None}
    digest = hashlib.sha256()
    for path in filter(None, found):
        _update(digest, path)
    return {"place": str(place), "missing": [], "digest": digest.hexdigest()}


def _plain_or_packed(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return next((file for file in (path, packed) if file.is_file()), None)


def _update(digest: Any, path: Path) -> None:
    """Take in the content of a file; one that cannot be read counts as another content."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, EOFError) as error:
        digest.update(f"damaged: {path.name}: {error}".encode())
