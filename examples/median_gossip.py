"""A strategy of your own: `strategy = "median_gossip:MedianGossip"` in a run file near it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MedianGossip:
    """Train, exchange models, move to the coordinate-wise median (Yin et al. 2018, Algorithm 1)."""

    step: float = 1.0  # how far towards the median, 0 to 1
    needs = frozenset[Need]()
    exchanges = 1

    def init(self, learner: Learner, seed: int) -> None:
        return None

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
        learner.train()
        inbox = yield links.now.broadcast(Payload(learner.params))
        models, _ = inbox.with_own(learner.params)
        medians = {k: torch.stack([x[k] for x in models]).quantile(0.5, 0) for k in models[0]}
        learner.params = {k: x.lerp(medians[k], self.step) for k, x in learner.params.items()}

    def report(self, state: None) -> Mapping[str, float]:
        return {}
