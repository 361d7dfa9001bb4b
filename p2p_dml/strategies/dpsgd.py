"""D-PSGD: average with the neighbours of the round."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

from p2p_dml.kernels.means import mix_mean
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DPSGD:
    """Decentralised parallel SGD with local steps, adapt-then-combine.

    Source: Lian et al. 2017, algorithm 1, with the gradient step before the mixing, as in most
    code. A missing neighbour's weight returns to self.
    """

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> None:
        """No state but the model itself."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
        """x_i <- sum_j w_ij x_j, after local training."""
        learner.train()
        inbox = yield links.now.broadcast(Payload(learner.params))
        mix_mean(learner.params, inbox)

    def report(self, state: None) -> Mapping[str, float]:
        return {}
