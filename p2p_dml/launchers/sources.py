"""The files of this very package, from wherever it is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import p2p_dml


def package_files(suffixes: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Names below the package's folder, in order, and contents of files with these suffixes."""
    root = Path(p2p_dml.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            yield path.relative_to(root).as_posix(), path.read_bytes()
