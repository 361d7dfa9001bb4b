"""A learned degree: the network behind it, the layer groups it is for, and how peers share one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch

from p2p_dml.hypernet import AnyDegreeModel, HyperNet, PaperNet
from p2p_dml.types import Inbox, Learner

Network = Literal["bounded", "paper"]
Grouping = Literal["parts", "layers"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedState:
    """The peer's network, and ln p of the degree that all share (empty if each has its own)."""

    net: Any
    agreed: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedDegree:
    """Degrees in [1, p_max] of `network`; `starts` are the first ones by part, None: drawn.

    `odd`: the nearest odd integers are used in their place, and the network learns as if they were
    its own (straight-through). `shared`: see `agree`.
    """

    network: AnyDegreeModel
    p_max: float
    starts: Mapping[str, float | None]
    grouping: Grouping = "parts"
    odd: bool = False
    shared: bool = False

    def init(self, learner: Learner, seed: int) -> LearnedState:
        """Draw the network from `seed`."""
        starts: dict[str, float | None] = {}
        for name, group in groups(learner, self.grouping).items():
            starts.setdefault(group, self.starts[learner.parts[name]])
        net = self.network.init(starts, torch.Generator().manual_seed(seed))
        return LearnedState(net=net, agreed=self._logs(net) if self.shared else {})

    def degrees(self, state: LearnedState) -> dict[str, float]:
        """The degree to use for each layer group."""
        if self.shared:
            found = {g: self._bounded(math.exp(u)) for g, u in state.agreed.items()}
        else:
            found = self.network.degrees(state.net)
        return {g: nearest_odd(p, self.p_max) for g, p in found.items()} if self.odd else found

    def step(self, state: LearnedState, signal: Mapping[str, float], inbox: Inbox) -> LearnedState:
        """Learn from `signal`, if there is one, and agree with those heard."""
        net = self.network.step(state.net, signal) if signal else state.net
        if not self.shared:
            return LearnedState(net=net)
        before, after = self._logs(state.net), self._logs(net)
        news = {group: after[group] - before[group] for group in after}
        return LearnedState(net=net, agreed=agree(state.agreed, inbox, news))

    def scalars(self, state: LearnedState) -> dict[str, float]:
        """What is sent with the model: nothing, unless the degree is shared."""
        return {f"ln_p/{group}": u for group, u in state.agreed.items()}

    def _logs(self, net: object) -> dict[str, float]:
        return {group: math.log(p) for group, p in self.network.degrees(net).items()}

    def _bounded(self, p: float) -> float:
        return min(max(p, 1.0), self.p_max)


def make_network(
    kind: Network, p_max: float, rate: float | None, memory: float | None
) -> AnyDegreeModel:
    """The network by name; None stands for its own default. Raises ValueError."""
    if kind == "bounded":
        default = HyperNet()
        return HyperNet(
            p_max=p_max,
            rate=default.rate if rate is None else rate,
            memory=default.memory if memory is None else memory,
        )
    if memory is not None:
        raise ValueError(
            f"memory = {memory}: the paper's network averages no signal; leave it out, or choose "
            "hypernet = 'bounded'"
        )
    return PaperNet(p_max=p_max, rate=PaperNet().rate if rate is None else rate)


def groups(learner: Learner, grouping: Grouping) -> dict[str, str]:
    """The layer group of each tensor: its part, or the layer that its weight and bias belong to."""
    if grouping == "parts":
        return dict(learner.parts)
    return {name: name.rpartition(".")[0] or name for name in learner.parts}


def agree(own: Mapping[str, float], inbox: Inbox, news: Mapping[str, float]) -> dict[str, float]:
    """ln p of the shared degree: u_i <- sum_j a_ij u_j + what the own network changed.

    Dynamic average consensus: with doubly stochastic weights the mean of all u is the mean of what
    the networks propose, at any time, and every u tends to it. No u is cut to the range of degrees,
    which would move the mean. Source: Zhu, Martínez 2010.
    """
    heard = {
        j: (payload.scalars, inbox.hood.in_weights[j]) for j, payload in inbox.messages.items()
    }
    heard[inbox.hood.me] = ({f"ln_p/{group}": u for group, u in own.items()}, inbox.self_weight)
    rows = [heard[j] for j in sorted(heard)]
    return {
        group: sum(a * scalars[f"ln_p/{group}"] for scalars, a in rows) + news[group]
        for group in own
    }


def nearest_odd(p: float, p_max: float) -> float:
    """The odd integer nearest p, of two the larger, that is not above p_max."""
    return min(2.0 * math.floor(p / 2) + 1, 2.0 * math.floor((p_max - 1) / 2) + 1)
