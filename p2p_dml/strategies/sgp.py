"""SGP: push-sum over one-way links, with a weight beside the model that undoes the bias."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from p2p_dml.kernels.means import weighted_mean
from p2p_dml.strategies._checks import check_share
from p2p_dml.strategies._running_sums import Sums, deal, take
from p2p_dml.tensors import clone, mismatch, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Neighbourhood, Outbox, Payload, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SGPState:
    """`weight`: w_i; the peer's mass is w_i z_i, with z_i the learner's parameters.

    `sums`: of the shares that went over each link; empty without `running_sums`.
    """

    weight: float = 1.0
    sums: Sums = field(default_factory=Sums)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SGP:
    """Stochastic gradient push. The learner's parameters are the de-biased z_i = x_i / w_i.

    Each peer deals (x_i, w_i) out in shares of its column of W, its own included, and adds up the
    shares it gets. Late shares are added when they come: the w_i and what is under way sum to the
    number of peers. Without losses a regular graph has w_i = 1.

    Shares that are lost or sent to the dead are gone, from x and w alike: z stays a mean of models,
    but local training, added to x, weighs 1 / w_i in z. A weight therefore never falls below
    `min_weight`, which bounds that factor; 0 is the paper's algorithm.

    `running_sums`: instead of a share the sum of all shares of its link travels, so that the next
    message makes a lost one good, at the cost of the memory of a model per neighbour that is heard
    (see `_running_sums`); the w_i and what is under way then sum to the number of peers with losses
    too. Without losses it equals plain shares up to rounding.
    Source: Assran et al. 2019, algorithm 1; late shares as in its overlap variant.
    """

    min_weight: float = 0.25
    running_sums: bool = False

    def __post_init__(self) -> None:
        check_share(min_weight=self.min_weight)

    @property
    def needs(self) -> frozenset[Need]:
        # A share is told as the difference of two sums, each many times as large.
        exact = {Need.EXACT} if self.running_sums else set()
        return frozenset({Need.COLUMN_STOCHASTIC, Need.EVERY_MESSAGE} | exact)

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> SGPState:
        """Weight 1."""
        return SGPState()

    def round(
        self, state: SGPState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, SGPState]:
        """x_i <- w_i z_i + (training from z_i); deal out, add up, z_i = x_i / w_i."""
        w, z = state.weight, clone(learner.params)
        learner.train()
        x = tmap(lambda trained, z: trained + (w - 1) * z, learner.params, z)
        if self.running_sums:
            sums, outbox, own = deal(state.sums, links.now, learner.round, x, w)
            inbox = yield outbox
            sums, found = take(sums, inbox, x)
            shares = [own, *found.values()]
        else:
            sums = state.sums
            inbox = yield _deal(links.now, x, w)
            shares = _shares(inbox, x, w)
        w = math.fsum(share.scalars["weight"] for share in shares)
        if w > 0:
            total = weighted_mean([share.tensors for share in shares], [1.0] * len(shares))
            learner.params = tmap(lambda x: x / w, total)
        return SGPState(weight=max(w, self.min_weight), sums=sums)

    def report(self, state: SGPState) -> Mapping[str, float]:
        return {}


def _deal(hood: Neighbourhood, x: Tensors, w: float) -> Outbox:
    """One payload for each distinct share, as it is copied once for each."""
    payloads = {p: _share(p, x, w) for p in set(hood.out_weights.values())}
    return {peer: payloads[p] for peer, p in hood.out_weights.items()}


def _share(p: float, x: Mapping[str, Tensor], w: float) -> Payload:
    return Payload(tmap(lambda x: p * x, x), {"weight": p * w})


def _shares(inbox: Inbox, x: Tensors, w: float) -> list[Payload]:
    """All shares to be added up: this exchange's by peer, then late ones by tag and peer."""
    shares = {j: payload for j, payload in inbox.messages.items() if _is_share(payload, x)}
    shares[inbox.hood.me] = _share(inbox.hood.self_weight, x, w)
    late = sorted(inbox.late, key=lambda message: (message.tag, message.sender))
    fitting = [m.payload for m in late if _is_share(m.payload, x)]
    return [shares[j] for j in sorted(shares)] + fitting


def _is_share(payload: Payload, x: Tensors) -> bool:
    """Whether a payload can be added up; a stranger to the rules may send anything."""
    is_weighed = 0 <= payload.scalars.get("weight", -1.0) < math.inf
    return is_weighed and mismatch(payload.tensors, x) is None
