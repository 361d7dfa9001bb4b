"""Degrees that are set beforehand: fixed for each part of the model, or decaying over rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol, final

from p2p_dml.errors import ConfigError
from p2p_dml.tables import build, nearest


class DegreeSchedule(Protocol):
    """The degree of a part of the model in a round; a pure function."""

    def __call__(self, part: str, at_round: int) -> float: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FixedDegree:
    """A degree for each part, at least 1; a part that is not named has 1, the plain mean."""

    representation: float = 1.0
    decision: float = 1.0

    def __post_init__(self) -> None:
        _check_degree("representation", self.representation)
        _check_degree("decision", self.decision)

    def __call__(self, part: str, at_round: int) -> float:
        return self.decision if part == "decision" else self.representation


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DecayingDegree:
    """`start` in round 1, then exponentially towards `end`; `time_constant` in rounds, > 0."""

    start: float
    time_constant: float
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_degree("start", self.start)
        _check_degree("end", self.end)
        if not 0 < self.time_constant < math.inf:
            raise ValueError(f"time_constant = {self.time_constant}: expected rounds, above 0")

    def __call__(self, part: str, at_round: int) -> float:
        left = math.exp(-(at_round - 1) / self.time_constant)
        return self.end + (self.start - self.end) * left


def read_degree(degree: float | str | Mapping[str, object]) -> DegreeSchedule | None:
    """The schedule that a run file's `degree` stands for; None for "learned".

    Raises ValueError naming the key and what was expected.
    """
    if isinstance(degree, Mapping):
        return _read_table(degree)
    if isinstance(degree, str):
        if degree != "learned":
            raise ValueError(
                f"degree = {degree!r}: unknown word; {nearest(degree, ['learned'])}, or a number "
                "of at least 1, or a table"
            )
        return None
    _check_degree("degree", degree)
    return FixedDegree(representation=degree, decision=degree)


def _read_table(table: Mapping[str, object]) -> DegreeSchedule:
    decaying, fixed = _keys(DecayingDegree), _keys(FixedDegree)
    unknown = sorted(table.keys() - decaying - fixed)
    if unknown:
        hint = nearest(unknown[0], decaying | fixed)
        raise ValueError(f"degree.{unknown[0]}: unknown key; {hint}")
    if not table:
        raise ValueError("degree: an empty table; expected representation and decision, or start")
    try:
        if table.keys() & decaying:
            return build(DecayingDegree, table, "degree")
        return build(FixedDegree, table, "degree")
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _keys(kind: type[FixedDegree | DecayingDegree]) -> set[str]:
    return {item.name for item in fields(kind)}


def _check_degree(name: str, degree: float) -> None:
    if not 1 <= degree < math.inf:
        raise ValueError(
            f"{name} = {degree}: expected a degree of at least 1 (1 is the plain mean)"
        )
