"""What a run needs on every host besides the package and the data: files named in its run file."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import tomli_w

from p2p_dml.config import RunConfig, map_files, map_link_files
from p2p_dml.errors import ConfigError
from p2p_dml.plugins import modules_named
from p2p_dml.tables import read_toml

RUN_FILE = "run.toml"
_PUBLIC = 0o600


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files by their names on the host, and modules that must be installed there already."""

    files: Mapping[str, bytes]
    elsewhere: tuple[str, ...]


def bundle(config: RunConfig) -> Bundle:
    """The run file, the topology files and traces it names, and modules beside it, or here.

    Paths in it are rewritten to names beside the run file. ConfigError if a file cannot be read.
    """
    files: dict[str, bytes] = {}
    tables = config.model_dump(exclude_none=True)
    map_link_files(tables, lambda file: _take_file(config.folder / file, files))
    elsewhere = []
    for name in modules_named(tables):
        if not _take_module(name, (Path.cwd(), config.folder), files):
            elsewhere.append(name)
    files[RUN_FILE] = tomli_w.dumps(tables).encode()
    return Bundle(files=files, elsewhere=tuple(elsewhere))


def _take_file(path: Path, files: dict[str, bytes]) -> str:
    """Add a file to `files`, and those that a topology file names; the name it has there."""
    if path.suffix == ".toml":
        inner = read_toml(path, "topology file")
        tables = map_files(inner, lambda file: _take_file(path.parent / file, files))
        content = tomli_w.dumps(tables).encode()
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    name, number = path.name, 1
    while files.get(name, content) != content:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    files[name] = content
    return name


def _take_module(name: str, folders: Sequence[Path], files: dict[str, bytes]) -> bool:
    """Add a module, or its whole package, and what these import beside them; False if elsewhere.

    The first folder that has it counts, as for peers on this machine.
    """
    top = name.partition(".")[0]
    for folder in folders:
        if found := _sources(folder, top):
            for path in found:
                _take_source(path, path.relative_to(folder).as_posix(), folders, files)
            return True
    return False


def _take_source(path: Path, key: str, folders: Sequence[Path], files: dict[str, bytes]) -> None:
    if key in files:
        return
    files[key] = path.read_bytes()
    if path.suffix == ".py":
        for other in _imported(files[key], path):
            _take_module(other, folders, files)


def _sources(folder: Path, top: str) -> Sequence[Path]:
    if (module := folder / f"{top}.py").is_file():
        return [module]
    package = folder / top
    if not (package / "__init__.py").is_file():
        return []
    hidden = ("__pycache__", ".pyc")
    return [
        path
        for path in sorted(package.rglob("*"))
        if path.is_file() and not any(each in str(path) for each in hidden)
    ]


def _imported(source: bytes, path: Path) -> Iterator[str]:
    """Modules that a source imports, in functions too."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from error
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            yield statement.module
