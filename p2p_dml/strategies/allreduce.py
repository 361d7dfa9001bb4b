"""Exact averaging over all peers: the reference that decentralised methods are compared with."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

from p2p_dml.kernels.means import weighted_mean
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Every peer takes the mean of all models, summed in peer order: all end bit-identical.

    Mixing weights play no part. If peers are missing, it is the mean over those heard and oneself:
    peers that miss different ones then differ until the next complete round.
    """

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.COMPLETE, Need.SYNCHRONOUS})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> None:
        """No state but the model itself."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
        """x_i <- (1/n) sum_j x_j, after local training."""
        learner.train()
        inbox = yield links.now.broadcast(Payload(learner.params))
        models, _ = inbox.with_own(learner.params)
        learner.params = weighted_mean(models, [1 / len(models)] * len(models))

    def report(self, state: None) -> Mapping[str, float]:
        return {}
