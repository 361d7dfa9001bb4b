"""What was computed for peers before they asked, and holds only if nothing has changed since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Ahead(Generic[T]):
    """Results by row, each for one round and one version of the row's parameters.

    `round`: the last one in which all rows were computed; -1 before the first.
    """

    def __init__(self) -> None:
        self.round = -1
        self._found: dict[int, tuple[int, int, T]] = {}

    def keep(self, rows: slice, round_: int, versions: Iterable[int], results: Iterable[T]) -> None:
        """Remember results of some rows; those that they already had are forgotten."""
        places = range(rows.start, rows.stop)
        for row, version, result in zip(places, versions, results, strict=True):
            self._found[row] = round_, version, result

    def take(self, row: int, round_: int, version: int) -> T | None:
        """A row's result, which is then forgotten; None if it has none or it does not hold."""
        kept_round, kept_version, result = self._found.pop(row, (-1, -1, None))
        return result if (kept_round, kept_version) == (round_, version) else None
