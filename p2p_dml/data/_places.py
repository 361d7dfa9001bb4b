"""Where data files are looked for, and what is said when they are missing or damaged."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from p2p_dml.errors import ConfigError

VARIABLE = "P2P_DML_DATA"


def roots() -> tuple[Path, ...]:
    """Folders to search, in order: $P2P_DML_DATA if set, then ../shared/data."""
    named = os.environ.get(VARIABLE)
    return (*([Path(named)] if named else []), Path("../shared/data"))


def resolve(path: Path) -> Path | None:
    """The file `path`, or its compressed sibling `path.gz`, or None."""
    packed = path.with_name(path.name + ".gz")
    return next((file for file in (path, packed) if file.is_file()), None)


def holder(files: Iterable[str]) -> Path | None:
    """The first root that has every one of `files` (plain or `.gz`), or None."""
    wanted = tuple(files)
    return next((root for root in roots() if all(resolve(root / file) for file in wanted)), None)


def locate(name: str, files: Iterable[str]) -> list[Path]:
    """The `files` of data set `name`, all from one root.

    Raises ConfigError naming the set, the places looked at and the command that fetches it.
    """
    wanted = tuple(files)
    root = holder(wanted)
    if root is None:
        places = ", ".join(str(root.absolute()) for root in roots())
        unset = "" if os.environ.get(VARIABLE) else f" ({VARIABLE} is not set)"
        raise ConfigError(
            f"data set {name!r} is not here: looked for {', '.join(wanted)} in {places}{unset}; "
            f"get it with: p2p-dml data fetch {name}"
        )
    return [found for file in wanted if (found := resolve(root / file))]


def damaged(name: str, file: Path, why: str) -> ConfigError:
    """The error for a file that is there but cannot be what it should be."""
    return ConfigError(
        f"data set {name!r}: {file}: {why}; replace the file: p2p-dml data fetch {name}"
    )


def read(name: str, file: Path) -> bytes:
    """Content of `file`, decompressed in memory if it is a `.gz`; ConfigError if it cannot be."""
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(name, file, f"cannot be read ({error})") from error
