"""D-PSGD: average with the neighbours of the round."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, final

from p2p_dml.kernels.means import mix_mean
from p2p_dml.strategies._displacement import mix_and_add
from p2p_dml.tensors import clone
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DPSGD:
    """Decentralised parallel SGD with local steps. A missing neighbour's weight returns to self.

    `combine` "after": train, then mix the trained models, as in most code. "before": mix the
    models that the round began with and add the own training to the mix, as in the paper, so that
    gradients are those at the un-mixed model. Source: Lian et al. 2017, algorithm 1.
    """

    combine: Literal["after", "before"] = "after"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> None:
        """No state but the model itself."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
        """x_i <- sum_j w_ij x_j, after local training or with its displacement added."""
        if self.combine == "before":
            return _mix_untrained(learner, links)
        return _mix_trained(learner, links)

    def report(self, state: None) -> Mapping[str, float]:
        return {}


def _mix_trained(learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
    learner.train()
    inbox = yield links.now.broadcast(Payload(learner.params))
    mix_mean(learner.params, inbox)


def _mix_untrained(learner: Learner, links: Links) -> Generator[Outbox, Inbox, None]:
    start = clone(learner.params)
    learner.train()
    inbox = yield links.now.broadcast(Payload(start))
    mix_and_add(start, learner, inbox)
