"""What a run needs on every host besides the package and the data: files named in its run file."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import tomli_w

from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.plugins import is_object_path
from p2p_dml.tables import read_toml

RUN_FILE = "run.toml"
_PLUGIN_TABLES = ("strategy", "data", "model", "partition", "train")
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
    for key in ("links", "network"):
        if key in tables:
            tables[key] = _taken_along(tables[key], config.folder, files)
    modules = set(_modules_named(tables))
    elsewhere = []
    for name in sorted(modules):
        if not _take_module(name, (Path.cwd(), config.folder), files):
            elsewhere.append(name)
    files[RUN_FILE] = tomli_w.dumps(tables).encode()
    return Bundle(files=files, elsewhere=tuple(elsewhere))


def _taken_along(table: Any, folder: Path, files: dict[str, bytes]) -> Any:
    """`table` with the `file` entries of it and of nested ones renamed; `files` gets the contents.

    A topology file may name files itself, which start at its own folder.
    """
    if isinstance(table, list):
        return [_taken_along(entry, folder, files) for entry in table]
    if not isinstance(table, Mapping):
        return table
    return {
        key: _take_file(folder / value, files)
        if key == "file" and isinstance(value, str)
        else _taken_along(value, folder, files)
        for key, value in table.items()
    }


def _take_file(path: Path, files: dict[str, bytes]) -> str:
    """Add a file to `files`; the name it has there."""
    if path.suffix == ".toml":
        tables = _taken_along(read_toml(path, "topology file"), path.parent, files)
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


def _modules_named(tables: Mapping[str, Any]) -> Iterator[str]:
    """Modules of "package.module:name" choices."""
    for key in _PLUGIN_TABLES:
        table = tables[key]
        for entry in ("name", "function", "evaluate"):
            value = table.get(entry)
            if isinstance(value, str) and is_object_path(value):
                yield value.partition(":")[0]


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
