"""Whether a line of an event file has what the class of its event says, of the right types.

A line may come from a damaged disk or an editor; who reads it may rely on what is found here. A
run has 100,000s of lines, so a field costs a look at its type and one call into C.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Check = Callable[[Any], bool]

_LATEST = 1e11
"""Seconds since the epoch, in the year 5138: later is no time."""

_INTEGERS, _NUMBERS = frozenset((int,)), frozenset((int, float))  # as they are: true is no number
_FIGURES = _NUMBERS | {type(None)}
_fits = range(-(1 << 63), 1 << 63).__contains__
"""Whether an integer is one of 64 bits, as the report's are."""


def checker(event: type[Any]) -> Callable[[Mapping[str, Any]], bool]:
    """What says whether a line has the fields of `event`; those with a default may be absent."""
    hints = get_type_hints(event)
    rules = [(each.name, _default(each), *_rule(hints[each.name])) for each in fields(event)]

    def is_right(line: Mapping[str, Any]) -> bool:
        try:
            for key, default, kinds, check in rules:
                value = line.get(key, default)
                if type(value) not in kinds:
                    return False
                if value and check and not check(value):  # nothing is wrong with 0, "" and []
                    return False
        except OverflowError:  # an integer with hundreds of digits, where a float may be
            return False
        return True

    return is_right


def is_time(value: object) -> bool:
    """Whether `value` may be when something happened, in seconds since the epoch."""
    return type(value) in _NUMBERS and 0 <= value < _LATEST  # type: ignore[operator]


def is_integer(value: object) -> bool:
    """Whether `value` is a whole number of 64 bits."""
    return type(value) is int and _fits(value)


def _default(each: Field[Any]) -> object:
    """What stands for an absent field; of no type that any has where there is no default."""
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def _rule(hint: Any) -> tuple[frozenset[type], Check | None]:
    """The types that a value may have, and what else is to be asked of it unless it is None."""
    if get_origin(hint) is Literal:
        return frozenset((str,)), frozenset(get_args(hint)).__contains__
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        kinds, check = _rule(inner)
        return kinds | {type(None)}, check
    return _RULES[hint]


def _are_integers(values: list[Any]) -> bool:
    return _INTEGERS.issuperset(map(type, values)) and all(map(_fits, values))


def _are_numbers(table: Mapping[str, Any]) -> bool:
    """Whether a table holds numbers; one may be missing (None)."""
    values = table.values()
    return _FIGURES.issuperset(map(type, values)) and all(map(isfinite, filter(None, values)))


_RULES: Mapping[Any, tuple[frozenset[type], Check | None]] = {
    int: (_INTEGERS, _fits),
    float: (_NUMBERS, isfinite),
    str: (frozenset((str,)), None),
    bool: (frozenset((bool,)), None),
    list[int]: (frozenset((list,)), _are_integers),
    Mapping[str, float]: (frozenset((dict,)), _are_numbers),
}
