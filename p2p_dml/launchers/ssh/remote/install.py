"""A virtual environment with the launcher's own package, made once per host and package.

The work is done by commands, one after another; whoever runs them can end them at any time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import zipfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_COMPLETE = ".complete"
_LAST_LINES = 12


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    output: str


Steps = Generator["Sequence[str] | None", "Done | None", "dict[str, Any]"]
"""Yields commands to run, or None to be asked again a little later; returns the answer."""


class InstallError(Exception):
    """A command failed; the message has its last lines."""


class Places:
    """Where on a host things are, or will be: an environment, and beside it the package.

    What the package needs changes rarely and takes minutes; the package itself is small, and of
    every state of it there may be one.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        version = f"py{sys.version_info[0]}.{sys.version_info[1]}"
        inherited = "-inherit" if request["inherit"] else ""
        self.env = folder / "envs" / f"{request['needs']}-{version}{inherited}"
        self.package = folder / "packages" / str(request["package"])
        self.python = self.env / "bin" / "python"

    @property
    def has_env(self) -> bool:
        """Whether the environment was made to its end, and its Python is still there."""
        return (self.env / _COMPLETE).exists() and self.python.exists()

    @property
    def has_package(self) -> bool:
        return (self.package / _COMPLETE).exists()

    @property
    def answer(self) -> dict[str, Any]:
        return {"python": str(self.python), "path": str(self.package)}


class Lock:
    """Held by one at a time of all that share `folder`, which may be several hosts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(folder / "install.lock", os.O_RDWR | os.O_CREAT, 0o600)

    def take(self) -> bool:
        """Whether it is ours now. Where the file system has no locks, it always is."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def free(self) -> None:
        os.close(self._file)


def prepare(request: Mapping[str, Any], folder: Path, lock: Lock) -> Steps:
    """Wait for our turn; the answer says where all is, or which files are `missing` to install it.

    The lock stays taken in the latter case.
    """
    while not lock.take():
        yield None
    places = Places(folder, request)
    if places.has_env and places.has_package:
        lock.free()
        return places.answer
    wanted = [request["wheel"]] if not places.has_package else []
    wanted += request["wheels"] if not places.has_env else []
    missing = [name for name, size in wanted if _size(folder / name) != size]
    return {"missing": missing, "has_env": places.has_env}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def install(request: Mapping[str, Any], folder: Path, lock: Lock) -> Steps:
    """Make what is not there yet, from the files that are now; the answer says where all is.

    Raises InstallError.
    """
    places = Places(folder, request)
    if not places.has_package:
        _unpack(folder / request["wheel"][0], places.package)
    if not places.has_env:
        yield from _make(places, request, folder)
    lock.free()
    return places.answer


def _unpack(wheel: Path, package: Path) -> None:
    shutil.rmtree(package, ignore_errors=True)  # of an installation that was cut off
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    wheel.unlink()
    (package / _COMPLETE).touch()


def _make(
    places: Places, request: Mapping[str, Any], folder: Path
) -> Generator[Sequence[str], Done | None, None]:
    """Make the environment. With `inherit` it also sees the packages of the Python that makes it.

    That Python may be one of an environment itself.
    """
    shutil.rmtree(places.env, ignore_errors=True)
    yield from _do("make a virtual environment", [sys.executable, "-m", "venv", str(places.env)])
    if request["inherit"]:
        _let_see(places.env, [path for path in sys.path if path.endswith("-packages")])
    pip = [str(places.python), "-m", "pip", "install", "--quiet", "--no-input"]
    pip.append("--disable-pip-version-check")
    if request["wheels"]:
        pip += ["--no-index", "--find-links", str(folder / "wheels")]
    yield from _do("install what the package needs", [*pip, *request["requirements"]])
    test = f"import sys; sys.path.insert(0, {str(places.package)!r}); import p2p_dml.launchers.crew"
    yield from _do("use the package", [str(places.python), "-c", test])
    (places.env / _COMPLETE).touch()


def _let_see(env: Path, paths: Sequence[str]) -> None:
    """Have packages in `paths` found by an environment, after its own."""
    (site,) = (env / "lib").glob("python*/site-packages")
    (site / "inherited.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")


def _do(what: str, command: Sequence[str]) -> Generator[Sequence[str], Done | None, None]:
    done = yield command
    assert done is not None
    if done.code != 0:
        last = "\n".join(done.output.strip().splitlines()[-_LAST_LINES:])
        raise InstallError(f"cannot {what} (exit code {done.code}):\n{last}")
