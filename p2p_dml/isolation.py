"""When a peer is alone: exchanges in which it heard too few, and how many of them are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from p2p_dml.errors import IsolationError
from p2p_dml.events import Event, Isolated
from p2p_dml.types import PeerId


@final
@dataclass(slots=True, kw_only=True)
class Isolation:
    """Counts the exchanges in a row in which fewer than `least` neighbours were heard."""

    me: PeerId
    least: int
    most: int
    on_event: Callable[[Event], None]
    in_a_row: int = 0

    def is_on(self, round_: int, expected: int, heard: int, silent: int) -> bool:
        """Whether the exchange is local only; `silent` of the `expected` may still be heard.

        Raises IsolationError if it is the last that this peer goes on for.
        """
        if heard + silent >= min(self.least, expected):
            if expected:
                self.in_a_row = 0
            return False
        self.in_a_row += 1
        self.on_event(Isolated(round_, heard))
        if self.in_a_row >= self.most:
            raise IsolationError(
                f"peer {self.me}, round {round_}: heard {heard} neighbours, fewer than "
                f"min_neighbours = {self.least}, in {self.in_a_row} exchanges in a row; the others "
                "are gone or unreachable"
            )
        return True
