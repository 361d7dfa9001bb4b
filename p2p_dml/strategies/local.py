"""Training alone: the floor against which the worth of talking is measured."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

from p2p_dml.types import Inbox, Learner, Links, Need, Outbox


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Each peer trains on its own data and never exchanges anything."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @property
    def exchanges(self) -> int:
        return 0

    def init(self, learner: Learner, seed: int) -> None:
        """No state."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
        """Train."""
        learner.train()
        yield from ()

    def report(self, state: None) -> Mapping[str, float]:
        return {}
