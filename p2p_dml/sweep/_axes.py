"""The axes of a grid: from the values in a sweep file to labels and the keys that they set."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from p2p_dml.config import Table, assign
from p2p_dml.errors import ConfigError
from p2p_dml.sweep._values import Labels
from p2p_dml.tables import nearest

_CHOOSING = ("name", "kind", "file", "function")
"""Keys that make a table of a run file a choice, which is replaced as a whole."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value of an axis: what it is called, and the dotted keys of the run file that it sets."""

    label: str
    settings: Mapping[str, object]


Axes = Mapping[str, Sequence[Value]]
Pick = Mapping[str, Value]
"""One value on each axis."""


def read_axes(grid: Mapping[str, object], where: str) -> Axes:
    """The axes of a `[grid]` table; ConfigError with the path of what cannot be one."""
    return {axis: _read_axis(axis, values, where) for axis, values in _leaves(grid)}


def combinations(axes: Axes) -> list[Pick]:
    """Every pick, the last axis changing fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def labels_of(pick: Pick, axes: Sequence[str]) -> Labels:
    """What a pick has on all `axes`; an axis that it leaves to the base is empty."""
    return {axis: pick[axis].label if axis in pick else "" for axis in axes}


def apply(pick: Pick, tables: Table) -> None:
    """Set in a run file's tables what a pick says, axis by axis."""
    for value in pick.values():
        apply_settings(value.settings, tables)


def apply_settings(settings: Mapping[str, object], tables: Table) -> None:
    """Set dotted keys in a run file's tables; the values are copied."""
    for key, value in settings.items():
        assign(tables, key, copy.deepcopy(value))


def read_settings(table: Mapping[str, object]) -> Mapping[str, object]:
    """The dotted keys of a `set` table; a table in it that chooses nothing by name is merged."""
    return dict(_leaves(table, _CHOOSING))


def read_condition(
    table: Mapping[str, object], axes: Mapping[str, Sequence[str]], where: str
) -> Mapping[str, frozenset[str]]:
    """The labels that a table (axis = label, or a list of them) asks for.

    Raises ConfigError naming the nearest valid axis or label.
    """
    found = {}
    for axis, wanted in _leaves(table):
        if axis not in axes:
            raise ConfigError(f"{where}.{axis}: no axis of the grid; {nearest(axis, axes)}")
        labels = [_text(each) for each in (wanted if isinstance(wanted, list) else [wanted])]
        for label in labels:
            if label not in axes[axis]:
                hint = nearest(label, axes[axis])
                raise ConfigError(f"{where}.{axis}: no such value {label!r}; {hint}")
        found[axis] = frozenset(labels)
    return found


def meets(labels: Labels, condition: Mapping[str, frozenset[str]]) -> bool:
    """Whether a case is one of those that a condition asks for; an empty one asks for all."""
    return all(labels[axis] in wanted for axis, wanted in condition.items())


def _leaves(
    table: Mapping[str, object], choosing: Sequence[str] = (), prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted keys and values: TOML reads an unquoted `a.b = 1` as a table within a table."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value and not value.keys() & set(choosing):
            yield from _leaves(value, choosing, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read_axis(axis: str, values: object, where: str) -> tuple[Value, ...]:
    path = f"{where}.{axis}"
    if axis == "seed":
        raise ConfigError(f"{path}: seeds are no axis; set seeds = [0, 1, 2] beside [grid]")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: expected a list of values, found {values!r}")
    found = tuple(_read_value(axis, raw, f"{path}[{i}]") for i, raw in enumerate(values))
    labels = [value.label for value in found]
    double = next((label for label in labels if labels.count(label) > 1), None)
    if double is not None:
        raise ConfigError(
            f"{path}: two values are called {double!r}; "
            'give each its own name: { label = "…", value = … }'
        )
    return found


def _read_value(axis: str, raw: object, where: str) -> Value:
    """A plain value; or a table with a `label` and a `value`, a `set`, or the keys of its own."""
    if not isinstance(raw, Mapping):
        return Value(label=_text(raw), settings={axis: raw})
    rest: dict[str, Any] = {key: value for key, value in raw.items() if key != "label"}
    label = raw.get("label", next((rest[key] for key in _CHOOSING if key in rest), None))
    if not isinstance(label, str) or not label:
        raise ConfigError(f'{where}: expected label = "…" to call the table by, found {label!r}')
    if rest.keys() == {"value"}:
        return Value(label=label, settings={axis: rest["value"]})
    if rest.keys() != {"set"}:
        return Value(label=label, settings={axis: rest})
    if not isinstance(rest["set"], Mapping):
        raise ConfigError(f"{where}.set: expected a table of keys, found {rest['set']!r}")
    return Value(label=label, settings=read_settings(rest["set"]))


def _text(value: object) -> str:
    """A value as TOML shows it, texts without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
