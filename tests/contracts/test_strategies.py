"""One battery for every strategy, and what theory says of them on quadratics.

Peer i holds f_i(x) = |A_i x - b_i|^2 / 2. All peers run in lock step; `lost` names directed links
(receiver, sender) whose messages never arrive.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels.mixing import metropolis
from p2p_dml.links.static import Complete, Ring
from p2p_dml.strategies import STRATEGIES
from p2p_dml.tables import build
from p2p_dml.tensors import clone
from p2p_dml.types import (
    AnyStrategy,
    Graph,
    Inbox,
    Learner,
    Need,
    Neighbourhood,
    Outbox,
    Part,
    Payload,
    PeerId,
    Tensors,
)

Params = Mapping[str, object]
Link = tuple[PeerId, PeerId]

TRAINING: list[tuple[str, Params]] = [
    ("local", {}),
    ("dpsgd", {}),
    ("dpsgd", {"combine": "before"}),
    ("allreduce", {}),
    ("hyperprism", {}),
    ("hyperprism", {"signal": "own", "p_max": 9.0}),
    ("hyperprism", {"degree": {"representation": 9.0, "decision": 4.5}}),
    ("hyperprism", {"degree": {"start": 15.0, "end": 1.0, "time_constant": 2.0}}),
    ("hyperprism", {"degree": 1.0, "length": 9.0}),
    ("hyperprism", {"hypernet": "paper"}),
    ("hyperprism", {"groups": "layers", "odd": True}),
    ("hyperprism", {"degree_at": "sender"}),
    ("hyperprism", {"frozen": True}),
    ("hyperprism", {"shared": True, "hypernet": "paper"}),
    ("gradient_tracking", {"local": "training", "exchanges": 2}),
    ("swarm", {}),
    ("swarm", {"blocking": True}),
    ("swarm", {"bits": 8, "cell": 0.01}),
    ("swarm", {"bits": 16, "blocking": True}),
]
"""Local work is learner.train(), and whoever hears nobody does nothing else."""

PUSHING: list[tuple[str, Params]] = [("sgp", {}), ("sgp", {"min_weight": 0.0})]
"""As above, but what is sent is gone: a lost message is no longer the sender's."""

OWN_STEPS: list[tuple[str, Params]] = [
    ("hyperprism", {"gradient": "mirror"}),
    ("hyperprism", {"gradient": "both", "degree_at": "sender", "shared": True}),
    ("hyperprism", {"gradient": "both", "degree": 3.0, "mirror_lr": 1e-3}),
    ("gradient_tracking", {}),
    ("gradient_tracking", {"exchanges": 2}),
    ("mudag", {}),
    ("mudag", {"mu": 0.5, "smoothness": 5.0, "lambda2": 0.6}),
    ("adom", {}),
    ("adom_plus", {}),
    ("adom_plus", {"exchanges": 3, "chi": 1.5}),
    ("dfedavgm", {}),
    ("dfedavgm", {"bits": 8, "steps": 2}),
]
"""Steps are the strategy's own, along gradients that it asks for."""

CASES = TRAINING + PUSHING + OWN_STEPS
NUM_PEERS = 5
every_strategy = pytest.mark.parametrize(("name", "params"), CASES)
every_training_strategy = pytest.mark.parametrize(("name", "params"), TRAINING)


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in one vector, in the mapping's order."""
    return torch.cat([x.reshape(-1) for x in tensors.values()])


class QuadraticLearner:
    """Full-batch gradient descent on f_i; x is split into a `representation` and a `decision`."""

    def __init__(self, a: Tensor, b: Tensor, x: Tensor, lr: float, steps: int = 1) -> None:
        self.a, self.b, self.lr, self.steps = a, b, lr, steps
        self._x = {"body.weight": x[:3].clone(), "head.weight": x[3:].clone()}
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
            residual = self.a @ torch.cat(list(self._x.values())) - self.b
            loss += residual.square().sum().item() / 2 / self.steps
            for name, g in self.grad(self._x).items():
                self._x[name].sub_(g, alpha=self.lr)
        return loss

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        g = self.a.T @ (self.a @ torch.cat(list(at.values())) - self.b)
        return {"body.weight": g[:3], "head.weight": g[3:]}


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
    rounds: Generator[Outbox, Inbox, object], inbox: Inbox | None
) -> tuple[Outbox | None, object]:
    """The next outbox, or None and the new state at the end of the round."""
    try:
        return (next(rounds) if inbox is None else rounds.send(inbox)), None
    except StopIteration as end:
        return None, end.value


def snapshot(outbox: Outbox) -> dict[PeerId, Payload]:
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
    sent: list[list[list[Outbox]]] = [[] for _ in learners]
    received: list[tuple[Payload, Payload]] = []
    for round in range(1, num_rounds + 1):
        for learner in learners:
            learner.round = round
        going = [
            strategy.round(state, learner, FixedLinks(hood))
            for state, learner, hood in zip(states, learners, hoods, strict=True)
        ]
        for log in sent:
            log.append([])
        inboxes: list[Inbox | None] = [None] * len(learners)
        while True:
            steps = [advance(peer, inbox) for peer, inbox in zip(going, inboxes, strict=True)]
            outboxes = [snapshot(outbox) for outbox, _ in steps if outbox is not None]
            if len(outboxes) < len(learners):
                assert not outboxes, "peers disagree on the number of exchanges"
                states = [state for _, state in steps]
                break
            for log, outbox in zip(sent, outboxes, strict=True):
                log[-1].append(outbox)
            inboxes = [deliver(hood, outboxes, lost) for hood in hoods]
            given = [payload for outbox in outboxes for payload in outbox.values()]
            received += [(p, Payload(clone(p.tensors))) for p in given]
    return Run(learners, states, sent, received)


def deliver(hood: Neighbourhood, outboxes: Sequence[Outbox], lost: Collection[Link]) -> Inbox:
    heard = [j for j in hood.in_weights if (hood.me, j) not in lost and hood.me in outboxes[j]]
    return Inbox(hood, {j: outboxes[j][hood.me] for j in heard})


def make(name: str, params: Params) -> AnyStrategy:
    strategy: AnyStrategy = build(STRATEGIES[name], params, "strategy")
    return strategy


def leaves(value: object) -> list[object]:
    """Leaves of nested dataclasses and dicts."""
    if is_dataclass(value):
        return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [value]


def test_the_battery_covers_every_strategy() -> None:
    assert {name for name, _ in CASES} == set(STRATEGIES)


@every_strategy
def test_each_round_has_its_exchanges_and_addresses_out_neighbours(
    name: str, params: Params
) -> None:
    strategy = make(name, params)
    graph = graph_for(strategy)
    done = run(strategy, draw_learners(), graph)
    for peer, rounds in enumerate(done.outboxes):
        assert [len(exchanges) for exchanges in rounds] == [strategy.exchanges] * 3
        addressed = {to for exchanges in rounds for outbox in exchanges for to in outbox}
        assert addressed <= set(graph.receivers[peer])


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(name: str, params: Params, dtype: torch.dtype) -> None:
    strategy = make(name, params)
    done = run(strategy, draw_learners(dtype=dtype), graph_for(strategy))
    assert {x.dtype for learner in done.learners for x in learner.params.values()} == {dtype}
    sent = [p for peer in done.outboxes for rnd in peer for box in rnd for p in box.values()]
    floats = [x for p in sent for x in p.tensors.values() if x.is_floating_point()]
    assert all(x.dtype == dtype for x in floats)


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_runs_are_equal_bit_for_bit(name: str, params: Params, dtype: torch.dtype) -> None:
    strategy = make(name, params)
    graph = graph_for(strategy)
    one, two = (run(strategy, draw_learners(dtype=dtype), graph, num_rounds=6) for _ in range(2))
    assert torch.equal(one.models, two.models)


@every_strategy
def test_received_tensors_are_not_written(name: str, params: Params) -> None:
    strategy = make(name, params)
    done = run(strategy, draw_learners(), graph_for(strategy))
    for payload, before in done.received:
        assert all(torch.equal(x, before.tensors[key]) for key, x in payload.tensors.items())


@every_strategy
def test_missing_neighbours_are_survived(name: str, params: Params) -> None:
    strategy = make(name, params)
    done = run(strategy, draw_learners(), graph_for(strategy), lost={(0, 1), (2, 3), (2, 1)})
    assert done.models.isfinite().all()


@every_training_strategy
def test_a_peer_that_hears_nobody_only_trains(name: str, params: Params) -> None:
    strategy = make(name, params)
    graph = graph_for(strategy)
    all_links = {(i, j) for i, heard in enumerate(graph.senders) for j in heard}
    isolated = run(strategy, draw_learners(), graph, lost=all_links)
    alone = run(make("local", {}), draw_learners(), graph)
    assert torch.equal(isolated.models, alone.models)


@pytest.mark.parametrize(("name", "params"), TRAINING + PUSHING)
def test_equal_models_stay_equal_without_training(name: str, params: Params) -> None:
    strategy = make(name, params)
    learners = draw_learners(lr=0.0, same_start=True)
    start = flatten(learners[0].params)
    done = run(strategy, learners, graph_for(strategy), num_rounds=10)
    torch.testing.assert_close(done.models, start.expand(NUM_PEERS, -1), rtol=1e-13, atol=1e-15)


@every_strategy
def test_states_can_be_checkpointed(name: str, params: Params) -> None:
    strategy = make(name, params)
    learners = draw_learners()
    first = strategy.init(learners[0], 0)
    done = run(strategy, learners, graph_for(strategy))
    for state in (first, *done.states):
        assert all(isinstance(leaf, Tensor | int | float | None) for leaf in leaves(state))
        assert not any(leaf.requires_grad for leaf in leaves(state) if isinstance(leaf, Tensor))
        # A checkpoint is read into the shape of a fresh state.
        assert len(leaves(state)) == len(leaves(first))


@every_strategy
def test_reports_are_degrees_of_the_models_layer_groups(name: str, params: Params) -> None:
    strategy = make(name, params)
    done = run(strategy, draw_learners(), graph_for(strategy))
    parts = {"body", "head"} if "groups" in params else {"representation", "decision"}
    for report in (strategy.report(state) for state in done.states):
        assert set(report) == (parts if name == "hyperprism" else set())
        assert all(1 <= value <= 15 for value in report.values())


@pytest.mark.parametrize(
    ("name", "params", "lost"),
    [
        ("dpsgd", {}, ()),
        ("dpsgd", {}, {(0, 1), (1, 0)}),
        ("dpsgd", {"combine": "before"}, {(0, 1), (1, 0)}),
        ("allreduce", {}, ()),
        ("gradient_tracking", {"local": "training"}, {(0, 1), (1, 0)}),
        ("swarm", {"bits": 8, "cell": 0.1}, {(0, 1), (1, 0)}),
    ],
)
def test_linear_mixing_keeps_the_mean(name: str, params: Params, lost: Collection[Link]) -> None:
    learners = draw_learners(lr=0.0)
    start = torch.stack([flatten(learner.params) for learner in learners]).mean(0)
    strategy = make(name, params)
    done = run(strategy, learners, graph_for(strategy), num_rounds=5, lost=lost)
    torch.testing.assert_close(done.models.mean(0), start, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "degree", [1.0, 1, {"representation": 1.0}, {"start": 1.0, "time_constant": 3.0}]
)
def test_hyperprism_of_degree_1_is_dpsgd_bit_for_bit(degree: object, dtype: torch.dtype) -> None:
    graph, lost = Ring(num_peers=NUM_PEERS)(0), {(0, 1), (3, 2)}
    prism = make("hyperprism", {"degree": degree})
    linear = run(make("dpsgd", {}), draw_learners(dtype=dtype), graph, 8, lost)
    power = run(prism, draw_learners(dtype=dtype), graph, 8, lost)
    assert torch.equal(linear.models, power.models)


def test_a_learned_degree_bound_to_1_is_dpsgd_bit_for_bit() -> None:
    linear = run(make("dpsgd", {}), draw_learners(), Ring(num_peers=NUM_PEERS)(0), 8)
    power = run(
        make("hyperprism", {"p_max": 1.0}), draw_learners(), Ring(num_peers=NUM_PEERS)(0), 8
    )
    assert torch.equal(linear.models, power.models)


def test_allreduce_with_one_local_step_is_gradient_descent_on_the_mean() -> None:
    learners = draw_learners(10, same_start=True)
    x = flatten(learners[0].params)
    done = run(
        make("allreduce", {}), draw_learners(10, same_start=True), Complete(num_peers=10)(0), 50
    )
    for _ in range(50):
        gradients = [q.a.T @ (q.a @ x - q.b) for q in learners]
        x = x - 0.1 * torch.stack(gradients).mean(0)
    torch.testing.assert_close(done.models, x.expand(10, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_allreduce_leaves_all_peers_bit_identical(dtype: torch.dtype) -> None:
    done = run(make("allreduce", {}), draw_learners(7, dtype=dtype), Complete(num_peers=7)(0), 4)
    assert torch.equal(done.models, done.models[:1].expand(7, -1))


def test_learners_of_the_battery_satisfy_the_protocol() -> None:
    learner: Learner = draw_learners(1)[0]
    assert learner.train() > 0
