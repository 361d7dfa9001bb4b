"""What a peer has refused: told once for each sender and reason, counted all along."""

from __future__ import annotations

from collections import Counter
from typing import final

from p2p_dml.events import Rejected
from p2p_dml.types import PeerId

_MAX_KINDS = 200
_OTHERS = "for further reasons, which are too many to be told one by one"


@final
class Refusals:
    """Counts of what was refused, by sender and reason; a flood does not fill the log."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[PeerId | None, str]] = Counter()
        self._told: Counter[tuple[PeerId | None, str]] = Counter()

    def add(self, sender: PeerId | None, why: str, round: int, times: int = 1) -> list[Rejected]:
        """Count a refusal; the event that is to be told, if it is the first of its kind."""
        kind = (sender, why)
        if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
            kind = (None, _OTHERS)
        self._counts[kind] += times
        return [] if self._told[kind] else [self._tell(kind, round)]

    def rest(self, round: int) -> list[Rejected]:
        """Events for all that was counted and not told."""
        due = [kind for kind, count in self._counts.items() if count > self._told[kind]]
        return [self._tell(kind, round) for kind in due]

    def _tell(self, kind: tuple[PeerId | None, str], round: int) -> Rejected:
        times = self._counts[kind] - self._told[kind]
        self._told[kind] = self._counts[kind]
        return Rejected(kind[0], round, kind[1], times)

    def reasons(self) -> list[str]:
        """What was refused, in words, without doubles."""
        return sorted({why for _, why in self._counts})
