"""The image of peers: built or pulled on this machine, and saved to a file for others."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from p2p_dml.errors import StartupError
from p2p_dml.launchers.containers import docker

Say = Callable[[str], None]


def have(name: str, *, is_ours: bool, build: bool, say: Say) -> str | None:
    """Build the image if need be, or pull it if it is not `ours`; returns the log of that."""
    source = docker.source_of(name)
    if source is not None and not build:
        if source not in ("", "unknown", docker.source_digest()):
            say(f"the image {name} has another state of p2p_dml; --build makes it anew")
        return None
    handle, log = tempfile.mkstemp(prefix="p2p-dml-image-", suffix=".log")
    os.close(handle)
    if build or is_ours:
        say(f"building the image {name}, which takes some minutes the first time; log: {log}")
        docker.build(name, Path(log))
    else:
        say(f"pulling the image {name}; log: {log}")
        docker.pull(name, Path(log))
    return log


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image for hosts. `content`: what it is here, as `docker.content_of` says.

    None: it is not here, and hosts pull it.
    """

    name: str
    content: str | None


def for_hosts(name: str | None, *, build: bool, say: Say) -> Image:
    """The image that this machine has for hosts, built if need be; another one by its `name`.

    Raises as `have` does, and StartupError if docker is needed here and cannot be used.
    """
    if name is not None and not build:
        return Image(name=name, content=docker.content_of(name))
    docker.facts_here()
    name = name or docker.IMAGE
    log = have(name, is_ours=True, build=build, say=say)
    if log is not None:
        os.unlink(log)
    return Image(name=name, content=docker.content_of(name))


def save(name: str, file: Path, meanwhile: Callable[[], None]) -> None:
    """Write an image to a file that `docker load` reads; `meanwhile` is called again and again.

    Raises StartupError if it cannot be saved.
    """
    with file.open("wb") as archive, tempfile.TemporaryFile() as said:
        saving = _start(("docker", "save", name), None, subprocess.PIPE, said)
        assert saving.stdout is not None
        # The fastest: over a link of 1 Gbit/s it is no slower than better ones, nor on a fast disk.
        packing = _start(("gzip", "-1"), saving.stdout, archive, said)
        saving.stdout.close()  # it is gzip's now
        try:
            while packing.poll() is None or saving.poll() is None:
                meanwhile()
        finally:
            for each in (saving, packing):
                each.kill()
                each.wait()
        if saving.returncode or packing.returncode:
            said.seek(0)
            words = docker.end_of(said.read().decode(errors="replace"), 3)
            raise StartupError(f"the image {name} cannot be saved to a file: {words}")


def _start(
    command: Sequence[str], source: IO[bytes] | None, sink: IO[bytes] | int, said: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=source if source is not None else subprocess.DEVNULL,
        stdout=sink,
        stderr=said,
        start_new_session=True,  # the terminal's Ctrl-C is for us to pass on
    )
