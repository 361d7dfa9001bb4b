"""From a table of a run file to an object: names, keys and values checked, errors that help.

Every choice a user makes by name (strategy, links, partition, model, …) is a frozen dataclass or
a function; its signature is the schema, so there is one place to read and nothing to register.
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from p2p_dml.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError naming path and reason. `what` is "run file", …"""
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; ConfigError at `where` if it is none."""
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    return tables


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the nearest valid word, then all of them."""
    known = sorted(valid)
    if not known:
        return "there is nothing to set here"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(known)}"


def keys_of(section: type[BaseModel]) -> list[str]:
    """The keys that a file may have in a section."""
    return [name for name, field in section.model_fields.items() if not field.exclude]


def explain(error: ValidationError, where: str, sections: Mapping[str, type[BaseModel]]) -> str:
    """Pydantic's errors as lines: file, path, what was expected, what was found.

    `sections`: by their path without indices, the whole file's under "".
    """
    return "\n".join(_explain(each, where, sections) for each in error.errors())


def _explain(error: Any, where: str, sections: Mapping[str, type[BaseModel]]) -> str:
    *parents, key = error["loc"]
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section = sections[".".join(x for x in parents if isinstance(x, str))]
        return f"{where}: {path}: unknown key; {nearest(str(key), keys_of(section))}"
    if error["type"] == "missing":
        return f"{where}: {path}: missing; this key has no default"
    found = error["input"]
    return f"{where}: {path}: {error['msg'].lower()}; found {type(found).__name__} {found!r}"


def choose(choices: Mapping[str, T], name: object, where: str) -> T:
    """The choice called `name`; ConfigError naming the nearest valid one otherwise."""
    if isinstance(name, str) and name in choices:
        return choices[name]
    raise ConfigError(f"{where}: unknown name {name!r}; {nearest(str(name), choices)}")


def build(
    factory: Callable[..., T],
    table: Mapping[str, object],
    where: str,
    *,
    fixed: Iterable[str] = (),
    **given: object,
) -> T:
    """Call `factory` with the keys of `table`, each checked against its annotation.

    `given` are arguments the program supplies; the table may override one that `factory` names,
    and those it does not name are left out. No hint names those that are `fixed`: the caller has
    refused them. Raises ConfigError with the path `where.key`, what was
    expected and what was found. A ValueError of the factory becomes a ConfigError at `where`.
    """
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    target = factory if inspect.isfunction(factory) else getattr(factory, "__init__")  # noqa: B009
    hints = get_type_hints(target)
    arguments = {key: value for key, value in given.items() if key in parameters}
    for key, value in table.items():
        if key not in parameters:
            raise ConfigError(
                f"{where}.{key}: unknown key; {nearest(key, parameters.keys() - {*fixed})}"
            )
        arguments[key] = check(hints.get(key, Any), value, f"{where}.{key}")
    for key, parameter in parameters.items():
        if key not in arguments and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}.{key}: missing; this key has no default")
    try:
        return factory(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def check(annotation: Any, value: object, where: str) -> Any:
    """`value` as the annotated type; no silent conversion but int → float and list → tuple.

    Raises ConfigError with the path, what was expected and what was found.
    """
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=config)
    try:
        if isinstance(value, list | dict):  # as JSON: there an array may become a tuple
            return adapter.validate_json(json.dumps(value, default=str))
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{step}]" for step in first["loc"] if isinstance(step, int))
        found = first["input"]
        raise ConfigError(
            f"{where}{path}: {first['msg'].lower()}; found {type(found).__name__} {found!r}"
        ) from error
