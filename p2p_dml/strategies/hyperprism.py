"""HyperPrism: the weighted power mean, with a degree for each part of the model."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from p2p_dml.hypernet import HyperNet, HyperNetState
from p2p_dml.kernels.means import mix_power_mean, weighted_mean
from p2p_dml.strategies._degree import DegreeSchedule, read_degree
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Part, Payload, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperPrismState:
    """Degrees of the last mix by part; when learned also the network and d(w̄)/dp at that mix."""

    degrees: Mapping[str, float]
    net: HyperNetState | None = None
    slope: Tensors = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperPrism:
    """Power-mean gossip: w̄ = (sum_j a_ij w_j^p)^(1/p), sign-preserving; p = 1 is D-PSGD.

    Source: Du et al. 2024, algorithm 1. As in its figure 1 the gradient step is taken once, before
    the mixing; raw models travel and each receiver raises them to its own degrees.

    `degree` is a number of at least 1; a table {representation, decision}; a table {start, end,
    time_constant} (exponential decay in rounds); or "learned" by a network of the peer's own, for
    which alone the other fields are: degrees stay in [1, p_max] and begin at the `start_…` values
    (decision: p_max if None); `rate` and `memory` are those of `HyperNet`. `signal` says whose
    descent direction judges the last degree: "own" local training's, as in the paper, or the
    "neighbourhood"'s, the step from the last w̄ to the plain mean of the models now heard. The
    latter costs no traffic and is less biased by the peer's own data.
    """

    degree: float | str | Mapping[str, object] = "learned"
    p_max: float = 15.0
    start_representation: float = 1.0
    start_decision: float | None = None
    rate: float = 8.0
    memory: float = 0.5
    signal: Literal["neighbourhood", "own"] = "neighbourhood"

    def __post_init__(self) -> None:
        read_degree(self.degree)
        self._hypernet.init(self._start, torch.Generator())

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> HyperPrismState:
        """Degrees of the first mix; a learned one's network is drawn from `seed`."""
        parts = _parts(learner)
        schedule = read_degree(self.degree)
        if schedule is not None:
            return HyperPrismState(degrees={part: schedule(part, 1) for part in parts})
        start = {part: self._start[part] for part in parts}
        net = self._hypernet.init(start, torch.Generator().manual_seed(seed))
        return HyperPrismState(degrees=start, net=net, slope=tmap(torch.zeros_like, learner.params))

    def round(
        self, state: HyperPrismState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, HyperPrismState]:
        """Train, exchange models, take their power mean."""
        schedule = read_degree(self.degree)
        if schedule is not None:
            return _scheduled_round(schedule, learner, links)
        return self._learned_round(state, learner, links)

    def report(self, state: HyperPrismState) -> Mapping[str, float]:
        """The degree of each part of the model."""
        return state.degrees

    def _learned_round(
        self, state: HyperPrismState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, HyperPrismState]:
        last = clone(learner.params)
        learner.train()  # line 6
        inbox = yield links.now.broadcast(Payload(learner.params))  # lines 9-10, raw models
        net = self._learn(state, last, learner, inbox)  # line 14, for the mix of the last round
        degrees = self._hypernet.degrees(net)  # line 7
        per_tensor = {name: degrees[part] for name, part in learner.parts.items()}
        slope = tmap(torch.empty_like, learner.params)
        mix_power_mean(learner.params, inbox, per_tensor, slope)  # lines 8, 11-13; eq. (2)
        return HyperPrismState(degrees=degrees, net=net, slope=slope)

    def _learn(
        self, state: HyperPrismState, last: Tensors, learner: Learner, inbox: Inbox
    ) -> HyperNetState:
        """Chain rule: dL/dp = -<descent, dw̄/dp>, as a cosine, for each part."""
        assert state.net is not None
        if not inbox.messages:
            return state.net
        here = learner.params
        ahead = here if self.signal == "own" else weighted_mean(*inbox.with_own(here))
        descent = tmap(torch.sub, ahead, last)
        return self._hypernet.step(state.net, cosines(descent, state.slope, learner.parts))

    @property
    def _hypernet(self) -> HyperNet:
        return HyperNet(p_max=self.p_max, rate=self.rate, memory=self.memory)

    @property
    def _start(self) -> dict[str, float]:
        decision = self.p_max if self.start_decision is None else self.start_decision
        return {"representation": self.start_representation, "decision": decision}


def _scheduled_round(
    schedule: DegreeSchedule, learner: Learner, links: Links
) -> Generator[Outbox, Inbox, HyperPrismState]:
    learner.train()
    inbox = yield links.now.broadcast(Payload(learner.params))
    degrees = {part: schedule(part, learner.round) for part in _parts(learner)}
    per_tensor = {name: degrees[part] for name, part in learner.parts.items()}
    mix_power_mean(learner.params, inbox, per_tensor)
    return HyperPrismState(degrees=degrees)


def _parts(learner: Learner) -> list[str]:
    return sorted(set(learner.parts.values()))


def cosines(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], parts: Mapping[str, Part]
) -> dict[str, float]:
    """Cosine of the angle between a and b for each part; a part where one of them is 0 is left out.

    Summed in float64; a part with values that are not finite is left out as well.
    """
    sums: dict[str, list[float]] = {}
    for name, part in parts.items():
        x, y = (t[name].detach().reshape(-1).double() for t in (a, b))
        new = (torch.dot(x, y).item(), torch.dot(x, x).item(), torch.dot(y, y).item())
        sums[part] = [old + term for old, term in zip(sums.get(part, [0.0] * 3), new, strict=True)]
    found = {
        part: dot / (math.sqrt(xx) * math.sqrt(yy) or math.inf)
        for part, (dot, xx, yy) in sums.items()
    }
    return {part: c for part, c in sorted(found.items()) if c != 0 and math.isfinite(c)}
