"""HyperPrism: the weighted power mean, with a degree for each layer group of the model."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, final

import torch

from p2p_dml.kernels.means import mix_power_mean
from p2p_dml.strategies._checks import check_positive
from p2p_dml.strategies._degree import DegreeSchedule, read_degree
from p2p_dml.strategies._heard import with_numbers
from p2p_dml.strategies._learned import (
    Grouping,
    LearnedDegree,
    LearnedState,
    Network,
    groups,
    make_network,
)
from p2p_dml.strategies._length import power_mean_lengths, stretch
from p2p_dml.strategies._mapped import SENT, mix_mapped
from p2p_dml.strategies._signal import (
    VERDICT,
    alignments,
    mix_with_secant,
    pooled,
    remove_scale,
    verdicts,
)
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload, Tensors

Signal = Literal["neighbourhood", "own", "paper"]

ONLY_LEARNED = {"signal", "hypernet", "groups", "odd", "frozen", "shared", "degree_at"}
"""Fields that would do nothing for a degree set beforehand, which is the same at every peer."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperPrismState:
    """Degrees by layer group; when learned also what they come from and what the last ones did.

    `degrees` are those of the last mix, or of the next if peers send theirs (`degree_at`).
    `change`: what these degrees changed in the last mix, in the shapes of the model.
    """

    degrees: Mapping[str, float]
    learned: LearnedState | None = None
    change: Tensors = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperPrism:
    """Power-mean gossip: w̄ = (sum_j a_ij w_j^p)^(1/p), sign-preserving; p = 1 is D-PSGD.

    Source: Du et al. 2024, algorithm 1. As in its figure 1 the gradient step is taken once, before
    the mixing; raw models travel and each receiver raises them to its own degrees.

    `degree` is a number of at least 1; a table {representation, decision}; a table {start, end,
    time_constant} (exponential decay in rounds); or "learned" by a network of the peer's own, for
    which most other fields are: degrees stay in [1, p_max] and begin at the `start_…` values
    (representation: 1, decision: p_max); `rate` and `memory` are those of `hypernet`, None its own
    default. Local training after a mix judges its degree: "own" `signal` is the cosine of what
    training and the degree changed, "neighbourhood" pools those of all that are heard (one more
    number on the wire for each layer group), "paper" is the plain -<Δ, dw̄/dp>. None: as `hypernet`
    learns best, "neighbourhood" for "bounded" and "paper" for "paper".

    `length`: every tensor of the mix is stretched to the length that its power mean of this degree
    has, so that the degree itself decides on the direction only; "own" leaves lengths alone. None:
    p_max for a degree learned by the "bounded" network in a model of several layers, else "own".

    Variants: `hypernet` "paper": softmax over odd degrees, starting as drawn (see `PaperNet`).
    `groups` "layers": a degree for each layer. `odd`: the nearest odd degree is used. `frozen`:
    degrees are drawn and stay. `shared`: all peers tend to one degree, by gossip. `degree_at`
    "sender": w_j is raised to its sender's degree p_j and the root is the receiver's (line 9 as
    printed); what a round teaches then counts from the next round on. `gradient` "mirror": eq. (6)
    to the letter, φ⁻¹(sum_j a_ij φ(w_j) - `mirror_lr` ∇f(w_i)), in place of local training; "both":
    after it, as algorithm 1 says.
    """

    degree: float | str | Mapping[str, object] = "learned"
    p_max: float = 15.0
    start_representation: float | None = None
    start_decision: float | None = None
    rate: float | None = None
    memory: float | None = None
    length: float | Literal["own"] | None = None
    signal: Signal | None = None
    hypernet: Network = "bounded"
    groups: Grouping = "parts"
    odd: bool = False
    frozen: bool = False
    shared: bool = False
    degree_at: Literal["receiver", "sender"] = "receiver"
    gradient: Literal["primal", "mirror", "both"] = "primal"
    mirror_lr: float = 0.01

    def __post_init__(self) -> None:
        learns = read_degree(self.degree) is None
        check_positive(mirror_lr=self.mirror_lr)
        if isinstance(self.length, int | float) and not 1 <= self.length < math.inf:
            raise ValueError(f"length: expected 'own' or a degree of at least 1, got {self.length}")
        self._learned.network.init(self._starts, torch.Generator())
        for item in fields(self) if not learns else ():
            value = getattr(self, item.name)
            if item.name in ONLY_LEARNED and value != item.default:
                raise ValueError(f"{item.name} = {value!r}: only for degree = 'learned'")
        if self.frozen and not (self.start_representation is self.start_decision is None):
            raise ValueError("frozen: the degrees are drawn; leave out start_…, or set degree")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> HyperPrismState:
        """Degrees of the first mix; a learned one's network is drawn from `seed`."""
        schedule = read_degree(self.degree)
        if schedule is not None:
            return HyperPrismState(degrees=_scheduled(schedule, learner, 1))
        learned = self._learned.init(learner, seed)
        change = tmap(torch.zeros_like, self._room(learner))
        degrees = self._learned.degrees(learned)
        return HyperPrismState(degrees=degrees, learned=learned, change=change)

    def round(
        self, state: HyperPrismState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, HyperPrismState]:
        """Train, exchange raw models, take their power mean."""
        schedule = read_degree(self.degree)
        if schedule is not None:
            return self._scheduled_round(schedule, learner, links)
        return self._learned_round(state, learner, links)

    def report(self, state: HyperPrismState) -> Mapping[str, float]:
        """The degree of each layer group."""
        return {f"degree/{group}": p for group, p in state.degrees.items()}

    def _scheduled_round(
        self, schedule: DegreeSchedule, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, HyperPrismState]:
        pull = self._descend(learner)
        inbox = yield links.now.broadcast(Payload(learner.params))
        degrees = _scheduled(schedule, learner, learner.round)
        self._mix(learner, inbox, degrees, pull, {})
        return HyperPrismState(degrees=degrees)

    def _learned_round(
        self, state: HyperPrismState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, HyperPrismState]:
        assert state.learned is not None
        last = clone(learner.params)
        pull = self._descend(learner)  # line 6
        signal = self._judge(state, last, pull, learner)
        payload = Payload(learner.params, self._scalars(state, signal))
        inbox = yield links.now.broadcast(payload)  # lines 9-10
        # A peer may have no verdict on a group, but has a degree for each.
        inbox = with_numbers(inbox, [x for x in payload.scalars if not x.startswith(VERDICT)])
        if self._signal == "neighbourhood":
            signal = pooled(signal, inbox)
        learned = self._learned.step(state.learned, signal, inbox)  # line 14, for the last mix
        degrees = self._learned.degrees(learned)  # line 7
        change = self._room(learner)
        used = degrees if self.degree_at == "receiver" else state.degrees
        self._mix(learner, inbox, used, pull, change)  # lines 8, 11-13; eq. (2), or (6)
        return HyperPrismState(degrees=degrees, learned=learned, change=change)

    def _descend(self, learner: Learner) -> Tensors:
        """The primal step, if there is one; returns the mirror step η∇f, empty if there is none."""
        if self.gradient != "mirror":
            learner.train()
        if self.gradient == "primal":
            return {}
        return tmap(lambda g: self.mirror_lr * g, learner.grad(learner.params))

    def _judge(
        self, state: HyperPrismState, last: Tensors, pull: Tensors, learner: Learner
    ) -> dict[str, float]:
        """Chain rule, -dL/dp of each layer group: how descent lies to what the degree changed."""
        if self.frozen:
            return {}
        primal = self.gradient != "mirror"
        descent = tmap(torch.sub, learner.params, last) if primal else tmap(torch.neg, pull)
        group_of = groups(learner, self.groups)
        if self._signal == "paper":
            return {g: a.dot for g, a in alignments(descent, state.change, group_of).items()}
        return verdicts(descent, state.change, group_of)

    def _mix(
        self,
        learner: Learner,
        inbox: Inbox,
        degrees: Mapping[str, float],
        pull: Tensors,
        change: Tensors,
    ) -> None:
        group_of = groups(learner, self.groups)
        per_tensor = {name: degrees[group] for name, group in group_of.items()}
        lengths = self._lengths(learner, inbox, per_tensor)
        if self.degree_at == "sender" or pull:
            at_sender = {name: SENT + group for name, group in group_of.items()}
            sent = at_sender if self.degree_at == "sender" else {}
            mix_mapped(learner.params, inbox, per_tensor, sent, pull, change)
        elif self._signal == "paper" or not change:
            mix_power_mean(learner.params, inbox, per_tensor, change or None)
        else:
            mix_with_secant(learner.params, inbox, per_tensor, change)
        stretch(learner.params, lengths)
        if change and self._signal != "paper":
            remove_scale(change, learner.params, group_of)

    def _lengths(
        self, learner: Learner, inbox: Inbox, degrees: Mapping[str, float]
    ) -> dict[str, float]:
        length = self.length
        if length is None:
            learns = read_degree(self.degree) is None and self.hypernet == "bounded"
            several = len(set(groups(learner, "layers").values())) > 1
            length = self.p_max if learns and several else "own"
        if length == "own":
            return {}
        return power_mean_lengths(learner.params, inbox, degrees, float(length))

    def _scalars(self, state: HyperPrismState, signal: Mapping[str, float]) -> dict[str, float]:
        assert state.learned is not None
        scalars = self._learned.scalars(state.learned)
        if self._signal == "neighbourhood":
            scalars |= {VERDICT + group: c for group, c in signal.items()}
        if self.degree_at == "sender":
            scalars |= {SENT + group: p for group, p in state.degrees.items()}
        return scalars

    def _room(self, learner: Learner) -> Tensors:
        """Room for what the degrees of the next mix change; none if nobody learns from it."""
        if self.frozen:
            return {}
        return tmap(
            lambda x: torch.empty_like(x, memory_format=torch.contiguous_format), learner.params
        )

    @property
    def _signal(self) -> Signal:
        return self.signal or ("paper" if self.hypernet == "paper" else "neighbourhood")

    @property
    def _learned(self) -> LearnedDegree:
        return LearnedDegree(
            network=make_network(self.hypernet, self.p_max, self.rate, self.memory),
            p_max=self.p_max,
            starts=self._starts,
            grouping=self.groups,
            odd=self.odd,
            shared=self.shared,
        )

    @property
    def _starts(self) -> dict[str, float | None]:
        """First degrees by part; None: as the network is drawn."""
        given = {"representation": self.start_representation, "decision": self.start_decision}
        if self.frozen or self.hypernet == "paper":
            return given
        default = {"representation": 1.0, "decision": self.p_max}
        return {part: default[part] if start is None else start for part, start in given.items()}


def _scheduled(schedule: DegreeSchedule, learner: Learner, at_round: int) -> dict[str, float]:
    return {part: schedule(part, at_round) for part in sorted(set(learner.parts.values()))}
