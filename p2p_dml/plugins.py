"""The user's own objects, named in a run file as `package.module:attribute`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from p2p_dml import tables
from p2p_dml.errors import ConfigError, P2PError

_TABLES = ("strategy", "data", "model", "partition", "train")
_ENTRIES = ("name", "function", "evaluate")


def last_frame(error: BaseException) -> str:
    """Where `error` was raised, as `file.py:12 in function`; for messages without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "unknown place"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"


def take_name(table: Mapping[str, object], where: str) -> tuple[str, dict[str, object]]:
    """Split a table into its `name` and its other keys; ConfigError without a usable name."""
    name = table.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name: expected a name in quotes, found {name!r}")
    return name, {key: value for key, value in table.items() if key != "name"}


def is_object_path(name: str) -> bool:
    """Whether `name` means a user's object and not a built-in choice."""
    return ":" in name


def modules_named(tables: Mapping[str, Any]) -> list[str]:
    """The modules of all `package.module:name` choices in a run's tables, each once."""
    values = (tables[key].get(entry) for key in _TABLES for entry in _ENTRIES)
    paths = (value for value in values if isinstance(value, str) and is_object_path(value))
    return sorted({path.partition(":")[0] for path in paths})


def load_object(path: str, where: str) -> object:
    """Import `package.module:attribute`, looking in the current folder first.

    The current folder stays on `sys.path`, so that the module's own imports work later too.
    Raises ConfigError at `where` for a malformed path, a module that is not there or fails to
    import, and a missing attribute.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f'{where}: expected "package.module:name", found {path!r}')
    look_in(Path.cwd())
    target: Any = _import(module_name, path, where)
    for step in attribute.split("."):
        try:
            target = getattr(target, step)
        except AttributeError as error:
            close = difflib.get_close_matches(step, dir(target), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{where}: {path!r}: there is no {step!r}{hint}") from error
    return cast(object, target)


def look_in(folder: Path) -> None:
    """Have modules of the user's found in `folder` too (that of the run file)."""
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def load_function(path: str, where: str) -> Callable[..., object]:
    """`load_object` for something to be called; ConfigError if it is not callable."""
    found = load_object(path, where)
    if not callable(found):
        raise ConfigError(f"{where}: {path!r} is of type {type(found).__name__}, not a function")
    return found


def call(path: str, table: Mapping[str, object], where: str) -> object:
    """Call the user's factory or loader `path` with the keys of `table` and nothing else.

    Raises ConfigError for a key that it does not take or of the wrong type, and for whatever it
    raises itself, with the place in the user's file.
    """
    factory = load_function(path, where)
    try:
        return tables.build(factory, table, where)
    except P2PError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{where}: {path!r} raised {type(error).__name__}: {error} ({last_frame(error)})"
        ) from error


def _import(module_name: str, path: str, where: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}: {path!r}: no module named {error.name!r}; looked in {os.getcwd()} and the "
            "installed packages"
        ) from error
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise ConfigError(
            f"{where}: importing {module_name!r} raised {type(error).__name__}: {error} "
            f"({last_frame(error)})"
        ) from error
