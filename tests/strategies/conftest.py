"""Peers with heterogeneous quadratics, in lock step, with losses and delays by plan."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml.kernels.mixing import metropolis
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import (
    AnyStrategy,
    Coded,
    Graph,
    Inbox,
    Links,
    LinkSchedule,
    Message,
    MixingRule,
    Neighbourhood,
    Outbox,
    Part,
    Payload,
    PeerId,
    Sent,
    Tag,
    Tensors,
)

Fate = Callable[[Tag, PeerId, PeerId], int | None]
"""(tag, sender, receiver) -> rounds that the message is late, None if it is lost."""


@final
class Quadratic:
    """f(x) = x'Hx/2 - b'x over all data; training is `steps` gradient steps of size `lr`."""

    def __init__(self, h: Tensor, b: Tensor, x: Tensor, lr: float = 0.05, steps: int = 1) -> None:
        self.h, self.b, self.lr, self.steps = h, b, lr, steps
        self.x = x.clone()
        self.round = 0

    @property
    def params(self) -> Tensors:
        return {"x": self.x}

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self.x.copy_(new["x"])

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"x": "decision"}

    def train(self) -> float:
        for _ in range(self.steps):
            self.x.sub_(self.grad(self.params)["x"], alpha=self.lr)
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        return {"x": self.h @ at["x"] - self.b}


@final
@dataclass
class Toy:
    """A learner of the tensors `x`, with a gradient and a training of choice.

    `slope`: a model's gradient; `move`: what training does to `x`, in place. `asked`: the models
    whose gradient was asked for.
    """

    x: Tensors
    slope: Callable[[Mapping[str, Tensor]], Tensors]
    move: Callable[[Tensors], None] | None = None
    round: int = 1
    asked: list[Tensors] = field(default_factory=list)

    @property
    def params(self) -> Tensors:
        return dict(self.x)

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        for name, x in new.items():
            self.x[name].copy_(x)

    @property
    def parts(self) -> Mapping[str, Part]:
        """Tensors called `head…` and `fc…` decide."""
        return {
            name: "decision" if name.startswith(("head", "fc")) else "representation"
            for name in self.x
        }

    def train(self) -> float:
        assert self.move is not None, "this strategy trains by gradients only"
        self.move(self.x)
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        self.asked.append(clone(at))
        return self.slope(at)


@dataclass
class _Now:
    """Links of one peer, moved from outside."""

    now: Neighbourhood

    def shared_bits(self, stream: int, count: int) -> Sequence[int]:
        return [stream] * count


@final
class Gossip:
    """A running group of peers; `states`, `learners` and `models` may be read between rounds."""

    def __init__(
        self,
        strategy: AnyStrategy,
        learners: Sequence[Quadratic],
        schedule: LinkSchedule,
        *,
        rule: MixingRule = metropolis,
        fate: Fate = lambda tag, sender, receiver: 0,
    ) -> None:
        self.strategy, self.learners, self.fate = strategy, learners, fate
        self._schedule, self._rule = schedule, rule
        self._hoods: dict[Graph, list[Neighbourhood]] = {}
        self._post: list[tuple[int, PeerId, Message]] = []
        self.round = 0
        self.states = [strategy.init(each, seed=i) for i, each in enumerate(learners)]

    @property
    def models(self) -> Tensor:
        """All models [n, d]."""
        return torch.stack([each.x for each in self.learners])

    @property
    def under_way(self) -> list[Payload]:
        """Payloads that are late."""
        return [message.payload for _, _, message in self._post]

    def advance(self, num_rounds: int = 1) -> Gossip:
        for _ in range(num_rounds):
            self.round += 1
            self._advance_round()
        return self

    def _advance_round(self) -> None:
        views = [_Now(hood) for hood in self._hoods_at(0)]
        going: list[Generator[Sent, Inbox, object]] = []
        for state, learner, view in zip(self.states, self.learners, views, strict=True):
            learner.round = self.round
            going.append(self.strategy.round(state, learner, view))
        outboxes = [_plain(next(each)) for each in going]
        for exchange in range(self.strategy.exchanges):
            hoods = [view.now for view in views]
            inboxes = self._deliver(Tag(self.round, exchange), hoods, outboxes)
            for view, hood in zip(views, self._hoods_at(exchange + 1), strict=True):
                view.now = hood
            outboxes = list(self._answers(going, inboxes))

    def _answers(
        self, going: Sequence[Generator[Sent, Inbox, object]], inboxes: Sequence[Inbox]
    ) -> Iterator[Outbox]:
        for me, (each, inbox) in enumerate(zip(going, inboxes, strict=True)):
            try:
                yield _plain(each.send(inbox))
            except StopIteration as end:
                self.states[me] = end.value

    def _deliver(
        self, tag: Tag, hoods: Sequence[Neighbourhood], outboxes: Sequence[Outbox]
    ) -> list[Inbox]:
        for sender, outbox in enumerate(outboxes):
            for receiver, payload in outbox.items():
                delay = self.fate(tag, sender, receiver)
                if delay is not None:
                    copy = Payload(clone(payload.tensors), payload.scalars)
                    self._post.append((tag.round + delay, receiver, Message(sender, tag, copy)))
        here = [entry for entry in self._post if entry[0] <= tag.round]
        self._post = [entry for entry in self._post if entry[0] > tag.round]
        return [_inbox(hood, tag, [m for _, to, m in here if to == hood.me]) for hood in hoods]

    def _hoods_at(self, exchange: int) -> list[Neighbourhood]:
        graph = self._schedule((self.round - 1) * self.strategy.exchanges + exchange)
        if graph not in self._hoods:
            self._hoods[graph] = [self._rule(graph, me) for me in range(graph.num_peers)]
        return self._hoods[graph]


def _plain(sent: Sent) -> Outbox:
    assert not isinstance(sent, Coded)
    return sent


def _inbox(hood: Neighbourhood, tag: Tag, messages: Sequence[Message]) -> Inbox:
    on_time = {m.sender: m.payload for m in messages if m.tag == tag}
    return Inbox(hood, dict(sorted(on_time.items())), [m for m in messages if m.tag < tag])


@final
class Bench:
    """What the tests of the strategies are built from."""

    gossip, toy = Gossip, Toy

    def links(self, hood: Neighbourhood) -> Links:
        """Links of one peer that stay."""
        return _Now(hood)

    def drawn(
        self, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64
    ) -> Tensors:
        """Standard normal tensors of these shapes."""
        draws = torch.Generator().manual_seed(seed)
        return {n: torch.randn(shape, generator=draws, dtype=dtype) for n, shape in shapes.items()}

    def pulled(
        self, x: Tensors, targets: Tensors, move: Callable[[Tensors], None] | None = None
    ) -> Toy:
        """Every value is pulled to a target of its own: the gradient at x is x - target."""
        return Toy(x, lambda at: tmap(torch.sub, at, targets), move)

    def springs(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Toy:
        """Equal starts, pulled to targets of their own for each seed."""
        return self.pulled(self.drawn(shapes, 1000), self.drawn(shapes, seed))

    def learners(
        self, count: int, condition: float = 4.0, lr: float = 0.05, steps: int = 1, dim: int = 4
    ) -> list[Quadratic]:
        """Peers of different Hessians with eigenvalues in [1, condition], optima and starts."""
        draw = np.random.Generator(np.random.Philox(key=[7, count]))
        learners = []
        for _ in range(count):
            basis, _ = np.linalg.qr(draw.normal(size=(dim, dim)))
            spread = 1 + (condition - 1) * np.concatenate([[0, 1], draw.random(dim - 2)])
            h = torch.from_numpy((basis * spread) @ basis.T)
            b, x = (torch.from_numpy(draw.normal(size=dim)) for _ in range(2))
            learners.append(Quadratic(h, b, x, lr, steps))
        return learners

    def optimum(self, learners: Sequence[Quadratic]) -> Tensor:
        """Where the mean of all losses is least, [d]."""
        h = torch.stack([each.h for each in learners]).mean(0)
        best: Tensor = torch.linalg.solve(h, torch.stack([each.b for each in learners]).mean(0))
        return best

    def distance(self, run: Gossip) -> float:
        """Largest error of any value of any model."""
        return float((run.models - self.optimum(run.learners)).abs().max())

    def total(self, channel: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Sum over peers of one part of their states, [d]."""
        return torch.stack([each["x"] for each in channel]).sum(0)


@pytest.fixture
def bench() -> Bench:
    """Builders of peers, runs and figures."""
    return Bench()
