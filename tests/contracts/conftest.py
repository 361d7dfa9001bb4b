"""Peers with quadratics of their own, in lock step, for the battery that every strategy passes.

Peer i holds f_i(x) = |A_i x - b_i|^2 / 2. `lost` names directed links (receiver, sender) whose
messages never arrive.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml import checkpoint
from p2p_dml.checkpoint import Checkpoint, checkpoint_file
from p2p_dml.data import Dataset
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.learners import SupervisedLearner, Training
from p2p_dml.links import Walk
from p2p_dml.links.static import Complete, Ring
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.models import build_model
from p2p_dml.peer import PeerLoop, Plan
from p2p_dml.simulate import lockstep
from p2p_dml.states import leaves as state_leaves
from p2p_dml.states import outline
from p2p_dml.tensors import clone
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import (
    AnyStrategy,
    Coded,
    Graph,
    Inbox,
    Need,
    Neighbourhood,
    Outbox,
    Part,
    Payload,
    PeerId,
    Sent,
    Tensors,
)

Link = tuple[PeerId, PeerId]
NUM_PEERS = 5
MOMENTUM = Training(lr=0.05, batch_size=4, steps=2, momentum=0.9)


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in one vector, in the mapping's order."""
    return torch.cat([x.reshape(-1) for x in tensors.values()])


class QuadraticLearner:
    """Full-batch gradient descent on f_i; x is split into a `representation` and a `decision`."""

    def __init__(self, a: Tensor, b: Tensor, x: Tensor, lr: float, steps: int = 1) -> None:
        self.a, self.b, self.lr, self.steps = a, b, lr, steps
        self._x = {"body.weight": x[:3].reshape(1, 3).clone(), "head.weight": x[3:].clone()}
        self.round = 0

    @property
    def params(self) -> Tensors:
        return dict(self._x)

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        for name, x in new.items():
            self._x[name].copy_(x)

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"body.weight": "representation", "head.weight": "decision"}

    def train(self) -> float:
        loss = 0.0
        for _ in range(self.steps):
            residual = self.a @ flatten(self._x) - self.b
            loss += residual.square().sum().item() / 2 / self.steps
            for name, g in self.grad(self._x).items():
                self._x[name].sub_(g, alpha=self.lr)
        return loss

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        g = self.a.T @ (self.a @ flatten(at) - self.b)
        return {"body.weight": g[:3].reshape(1, 3), "head.weight": g[3:]}


@dataclass
class FixedLinks:
    """The same neighbourhood in every exchange."""

    now: Neighbourhood

    def shared_bits(self, stream: int, count: int) -> Sequence[int]:
        return [stream] * count


@dataclass
class Run:
    """What a lock-step run leaves behind: states, and each peer's outboxes, round by round."""

    learners: list[QuadraticLearner]
    states: list[object]
    outboxes: list[list[list[Outbox]]]
    received: list[tuple[Payload, Payload]]
    """Payloads that were received, each with a copy from before."""

    @property
    def models(self) -> Tensor:
        return torch.stack([flatten(learner.params) for learner in self.learners])


def draw_learners(
    count: int = NUM_PEERS,
    lr: float = 0.1,
    steps: int = 1,
    dtype: torch.dtype = torch.float64,
    same_start: bool = False,
) -> list[QuadraticLearner]:
    """Peers of different data; `same_start` gives them one initial model."""
    generator = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(5)
    return [
        QuadraticLearner(normal(4, 5) / 2, normal(4), x if same_start else normal(5), lr, steps)
        for _ in range(count)
    ]


def graph_for(strategy: AnyStrategy, count: int = NUM_PEERS) -> Graph:
    kind = Complete if Need.COMPLETE in strategy.needs else Ring
    return kind(num_peers=count)(0)


def advance(
    rounds: Generator[Sent, Inbox, object], inbox: Inbox | None
) -> tuple[Sent | None, object]:
    """What is sent next, or None and the new state at the end of the round."""
    try:
        return (next(rounds) if inbox is None else rounds.send(inbox)), None
    except StopIteration as end:
        return None, end.value


def snapshot(sent: Sent) -> dict[PeerId, Payload]:
    outbox = sent.outbox if isinstance(sent, Coded) else sent
    return {to: Payload(clone(p.tensors), dict(p.scalars)) for to, p in outbox.items()}


def run(
    strategy: AnyStrategy,
    learners: list[QuadraticLearner],
    graph: Graph,
    num_rounds: int = 3,
    lost: Collection[Link] = (),
) -> Run:
    """All peers in lock step with Metropolis weights."""
    hoods = [metropolis(graph, i) for i in range(graph.num_peers)]
    states = [strategy.init(learner, seed=i) for i, learner in enumerate(learners)]
    log: list[list[list[Outbox]]] = [[] for _ in learners]
    received: list[tuple[Payload, Payload]] = []
    for round in range(1, num_rounds + 1):
        for learner in learners:
            learner.round = round
        going = [
            strategy.round(state, learner, FixedLinks(hood))
            for state, learner, hood in zip(states, learners, hoods, strict=True)
        ]
        for rounds in log:
            rounds.append([])
        inboxes: list[Inbox | None] = [None] * len(learners)
        while True:
            steps = [advance(peer, inbox) for peer, inbox in zip(going, inboxes, strict=True)]
            sendings = [sent for sent, _ in steps if sent is not None]
            outboxes = [snapshot(sent) for sent in sendings]
            if len(outboxes) < len(learners):
                assert not outboxes, "peers disagree on the number of exchanges"
                states = [state for _, state in steps]
                break
            for rounds, outbox in zip(log, outboxes, strict=True):
                rounds[-1].append(outbox)
            inboxes = [
                deliver(hood, outboxes, lost, sent)
                for hood, sent in zip(hoods, sendings, strict=True)
            ]
            given = [payload for outbox in outboxes for payload in outbox.values()]
            received += [(p, Payload(clone(p.tensors))) for p in given]
    return Run(learners, states, log, received)


def deliver(
    hood: Neighbourhood, outboxes: Sequence[Outbox], lost: Collection[Link], sent: Sent
) -> Inbox:
    """What peer `hood.me`, which has `sent` that, finds in its inbox."""
    heard = [j for j in hood.in_weights if (hood.me, j) not in lost and hood.me in outboxes[j]]
    payloads = {j: outboxes[j][hood.me] for j in heard}
    if isinstance(sent, Coded):
        payloads = {j: sent.read(j, payload) for j, payload in payloads.items()}
    return Inbox(hood, payloads)


def leaves(value: object) -> list[object]:
    """Leaves of nested dataclasses and dicts."""
    if is_dataclass(value):
        return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [value]


def words(count: int) -> Dataset:
    """Samples of four numbers in three classes."""
    raw = np.random.Philox(key=[4, 2]).random_raw(4 * count)
    x = (raw >> 56).astype(np.uint8).reshape(count, 4)
    y = np.arange(count) % 3
    return Dataset(
        name="words",
        train_x=x,
        train_y=y,
        test_x=x[:7],
        test_y=y[:7],
        num_classes=3,
        mean=(120.0,),
        std=(70.0,),
    )


def go(
    strategy: AnyStrategy,
    rounds: int,
    run: Path,
    resumed_at: int = 0,
    *,
    overlap: bool = False,
    training: Training = MOMENTUM,
) -> list[Tensors]:
    """Networks in lock step to the end of `rounds`, saved in the folder `run` every third round.

    Returns what each has sketched and saved, by name; `resumed_at`: of a run that goes on there.
    """
    graph, dataset, hub = graph_for(strategy), words(60), Hub()
    saved: list[Tensors] = [{} for _ in graph.senders]

    def loop(me: PeerId) -> PeerLoop:
        model = build_model({"name": "mlp", "hidden": [5]}, (4,), 3, 7, torch.float64)
        shard = np.arange(me, 60, 1 + NUM_PEERS)

        def save(round_: int, learner: Tensors, state: object) -> str:
            saved[me] = learner | state_leaves(state, "strategy")
            text = outline(state, "strategy")
            return checkpoint.save(run, Checkpoint(me, round_, "", "", saved[me], text))

        start = checkpoint.load(run / checkpoint_file(me, resumed_at)) if resumed_at else None
        return PeerLoop(
            me,
            strategy,
            SupervisedLearner(model, dataset, shard, training, seed=3, peer=me),
            Walk(lambda tick: graph, metropolis, me, 0, strategy.exchanges),
            Plan(rounds=rounds, seed=me, checkpoint_every=3, overlap=overlap),
            on_event=lambda event: None,
            save=save,
            start=start,
        )

    loops = [loop(me) for me in range(graph.num_peers)]
    transports = [MemoryTransport(each.me, hub, TaggedMailbox(9)) for each in loops]
    lockstep(loops, transports)
    return saved


@final
class Battery:
    """What the tests are built from."""

    num_peers = NUM_PEERS
    flatten = staticmethod(flatten)
    draw_learners = staticmethod(draw_learners)
    graph_for = staticmethod(graph_for)
    run = staticmethod(run)
    go = staticmethod(go)
    leaves = staticmethod(leaves)


@pytest.fixture
def battery() -> Battery:
    """Peers, their runs, and figures of them."""
    return Battery()
