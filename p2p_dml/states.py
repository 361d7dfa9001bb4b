"""A strategy's state as named tensors and an outline, and back again, exactly.

Tensors and numbers go by path. What a path cannot say (which entries a mapping had and in what
order, what was a number, what was None, of which class a part was) stands in the outline, a line of
JSON. Classes are never made from what a file says: they are those of a fresh state, or named by the
annotations of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, TypeAlias, Union, final, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.types import AnyStrategy, Tensors

Outline: TypeAlias = Any
"""null, the kind of a leaf, `["map", [key, outline] …]`, `["class", name, [field, outline] …]`."""

_NUMBERS: Mapping[str, type[bool] | type[int] | type[float]] = {
    "bool": bool,
    "int": int,
    "float": float,
}
_HERE, _AWAY = "tensor", "tensor elsewhere"  # in the memory of the processor, or of a device


def leaves(value: object, path: str) -> Tensors:
    """All tensors and numbers of a nested state by path; numbers become 0-d tensors.

    Raises TypeError, naming the path, for anything else than dataclass, mapping, tensor, number,
    None, and for two entries with one path.
    """
    if isinstance(value, Tensor):
        return {path: value.detach().cpu().contiguous()}
    if isinstance(value, int | float):
        return {path: torch.tensor(value, dtype=torch.float64 if type(value) is float else None)}
    found: Tensors = {}
    for key, child in _children(value, path):
        below = leaves(child, f"{path}/{key}")
        if twice := found.keys() & below.keys():
            raise TypeError(f"{min(twice)}: two entries of a state have this path")
        found |= below
    return found


def outline(value: object, path: str) -> str:
    """The outline of a state, one line of JSON; TypeError as `leaves`."""
    return json.dumps(_outline(value, path), separators=(",", ":"))


def _outline(value: object, path: str) -> Outline:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return _HERE if value.device.type == "cpu" else _AWAY
    for name, kind in _NUMBERS.items():
        if isinstance(value, kind):
            return name
    head: list[Any] = ["map"] if isinstance(value, Mapping) else ["class", type(value).__name__]
    return head + [[key, _outline(child, f"{path}/{key}")] for key, child in _children(value, path)]


def _children(value: object, path: str) -> Iterator[tuple[str | int, object]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{path}: expected keys of text or int, found {key!r}")
            yield key, child
    elif is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    elif value is not None:
        raise TypeError(f"{path}: a state cannot hold a {type(value).__name__}")


def restore(
    strategy: AnyStrategy, fresh: object, tensors: Mapping[str, Tensor], text: str, away: str
) -> Any:
    """The state of which `tensors` are the `leaves` at "strategy", and `text` the outline.

    `fresh` is a state that `strategy.init` has just made. A tensor lands where the fresh state has
    its own of that path; if it has none, in the memory it was in: of the processor, or the device
    `away`. Raises ConfigError, naming the path, if the state is none of this strategy's.
    """
    hint = _hints(type(strategy).init).get("return", Any)
    return _Restoring(tensors, away).value(json.loads(text), fresh, hint, "strategy")


@final
@dataclass(frozen=True, slots=True)
class _Restoring:
    """Makes the parts of a state; `fresh` is what stands at the same path of a fresh one."""

    tensors: Mapping[str, Tensor]
    away: str

    def value(self, outline: Outline, fresh: object, hint: Any, path: str) -> Any:
        if outline is None:
            return None
        if isinstance(outline, str):
            return self._leaf(outline, fresh, path)
        kind, *rest = outline
        if kind == "class":
            name, *entries = rest
            return self._object(_class_of(name, fresh, hint, path), entries, fresh, path)
        inner, known = _value_hint(hint), fresh if isinstance(fresh, Mapping) else {}
        return {
            key: self.value(child, known.get(key), inner, f"{path}/{key}") for key, child in rest
        }

    def _object(self, made: type[Any], entries: Outline, fresh: object, path: str) -> Any:
        own, found = [field.name for field in fields(made)], [name for name, _ in entries]
        if own != found:
            raise ConfigError(
                f"{path}: expected {made.__name__} with the fields {', '.join(own)}, found "
                f"{', '.join(found)}: the strategy is no longer the one that wrote this state"
            )
        state, hints = object.__new__(made), _hints(made)
        for name, child in entries:
            inner = self.value(
                child, getattr(fresh, name, None), hints.get(name, Any), f"{path}/{name}"
            )
            object.__setattr__(state, name, inner)
        return state

    def _leaf(self, kind: str, fresh: object, path: str) -> Any:
        if path not in self.tensors:
            raise ConfigError(f"{path}: missing; the state's outline has it")
        x = self.tensors[path]
        if kind in _NUMBERS:
            return _NUMBERS[kind](x.item())
        away = fresh.device if isinstance(fresh, Tensor) else self.away if kind == _AWAY else "cpu"
        # A copy, as every tensor of torch's own is aligned, which may show in the bits of products.
        return x.to(away, copy=True)


def _class_of(name: str, fresh: object, hint: Any, path: str) -> type[Any]:
    """The class of that name: the fresh state's, or one that the annotation allows."""
    allowed = [each for each in _alternatives(hint) if isinstance(each, type)]
    for made in (type(fresh), *allowed):
        if made.__name__ == name and is_dataclass(made):
            return made
    raise ConfigError(
        f"{path}: found a {name} and cannot tell which class that is; expected it in the "
        "annotation of the field, such as `Mapping[str, Name]` or `Name | None`"
    )


def _value_hint(hint: Any) -> Any:
    """What the annotation of a mapping says of its values."""
    for each in _alternatives(hint):
        origin = get_origin(each)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return get_args(each)[1]
    return Any


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _hints(annotated: Any) -> Mapping[str, Any]:
    """Annotations as objects; none if they name what cannot be found."""
    try:
        return get_type_hints(annotated)
    except (NameError, TypeError):
        return {}
