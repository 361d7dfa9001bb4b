"""Any graphs, any losses: averaging keeps the mean, push-sum with running sums keeps all mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.kernels.mixing import metropolis, push_uniform
from p2p_dml.links import Walk
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.peer import Metrics, PeerLoop, Plan
from p2p_dml.simulate import lockstep
from p2p_dml.strategies import STRATEGIES
from p2p_dml.strategies.sgp import SGPState
from p2p_dml.tables import build
from p2p_dml.transports.memory import Drop, Hub, MemoryTransport
from p2p_dml.types import AnyStrategy, Graph, Part, PeerId, Tag, Tensors

PEERS, ROUNDS = 5, 4
Links = frozenset[tuple[PeerId, PeerId]]
"""Directed: (sender, receiver)."""

PAIRS = [(i, j) for i in range(PEERS) for j in range(PEERS) if i != j]
ONE_WAY = st.lists(st.frozensets(st.sampled_from(PAIRS)), min_size=ROUNDS, max_size=ROUNDS)
TWO_WAY = ONE_WAY.map(lambda rounds: [x | {(j, i) for i, j in x} for x in rounds])

KEEP_THE_MEAN: list[tuple[str, Mapping[str, object]]] = [
    ("dpsgd", {}),
    ("dpsgd", {"combine": "before"}),
    ("hyperprism", {"degree": 1.0}),
    ("gradient_tracking", {"local": "training", "exchanges": 1}),
    ("swarm", {}),
    ("swarm", {"blocking": True}),
    ("swarm", {"bits": 16, "cell": 0.01}),
]


class Still:
    """A learner that learns nothing, so that only mixing moves its model."""

    def __init__(self, me: PeerId) -> None:
        self.x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * (me + 1) + me * me
        self.round = 0
        self.metrics: Mapping[str, float] = {}
        self.accuracy: float | None = None
        self.loss: float | None = None

    @property
    def params(self) -> Tensors:
        return {"x": self.x}

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self.x.copy_(new["x"])

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"x": "decision"}

    def seek(self, round: int) -> None:
        self.round = round

    def train(self) -> float:
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        return {"x": torch.zeros_like(at["x"])}

    def evaluate(self) -> Metrics:
        return self

    def state(self) -> Tensors:
        return {"x": self.x.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.params = dict(state)


def graph_of(links: Links) -> Graph:
    return Graph(tuple(tuple(sorted(i for i, j in links if j == me)) for me in range(PEERS)))


def gossip(
    strategy: AnyStrategy, graphs: Sequence[Graph], drop: Drop
) -> tuple[list[Tensor], list[object]]:
    """Models and states of all peers after as many rounds as there are graphs."""
    rule = metropolis if all(graph.is_symmetric for graph in graphs) else push_uniform
    learners, states = [Still(me) for me in range(PEERS)], dict[PeerId, object]()
    hub = Hub(drop)

    def loop(me: PeerId) -> PeerLoop:
        def save(round: int, model: Tensors, state: object) -> str:
            states[me] = state
            return ""

        return PeerLoop(
            me,
            strategy,
            learners[me],
            Walk(lambda tick: graphs[min(tick, len(graphs) - 1)], rule, me, 0, strategy.exchanges),
            Plan(rounds=len(graphs), seed=me, evaluate_every=0, max_isolated_rounds=99),
            on_event=lambda event: None,
            save=save,
        )

    loops = [loop(me) for me in range(PEERS)]
    lockstep(loops, [MemoryTransport(me, hub, TaggedMailbox(99)) for me in range(PEERS)])
    return [learner.x for learner in learners], [states[me] for me in range(PEERS)]


def start() -> Tensor:
    return torch.stack([Still(me).x for me in range(PEERS)])


@pytest.mark.parametrize(("name", "params"), KEEP_THE_MEAN)
@given(graphs=TWO_WAY, lost=TWO_WAY)
@settings(max_examples=25)
def test_what_is_lost_at_both_ends_leaves_the_mean_where_it_was(
    name: str, params: Mapping[str, object], graphs: list[Links], lost: list[Links]
) -> None:
    def drop(tag: Tag, sender: PeerId, receiver: PeerId) -> bool:
        return (sender, receiver) in lost[tag.round - 1]

    strategy = build(STRATEGIES[name], params, "strategy")
    models, _ = gossip(strategy, [graph_of(links) for links in graphs], drop)
    torch.testing.assert_close(torch.stack(models).mean(0), start().mean(0), rtol=0, atol=1e-12)


@given(graphs=ONE_WAY, lost=ONE_WAY)
@settings(max_examples=60)
def test_running_sums_keep_all_mass_whatever_is_lost(
    graphs: list[Links], lost: list[Links]
) -> None:
    def drop(tag: Tag, sender: PeerId, receiver: PeerId) -> bool:
        return (sender, receiver) in lost[tag.round - 1]

    strategy = build(STRATEGIES["sgp"], {"running_sums": True, "min_weight": 0.0}, "strategy")
    models, states = gossip(strategy, [graph_of(links) for links in graphs], drop)
    weight, x = 0.0, torch.zeros(3, dtype=torch.float64)
    for me, state in enumerate(states):
        assert isinstance(state, SGPState)
        assert state.weight > 0
        weight, x = weight + state.weight, x + state.weight * models[me]
        for sign, sums in ((1, state.sums.given), (-1, state.sums.taken)):
            for each in sums.values():
                weight, x = weight + sign * each.weight, x + sign * each.x["x"]
    assert weight == pytest.approx(PEERS, abs=1e-12)
    torch.testing.assert_close(x, start().sum(0), rtol=0, atol=1e-11)
