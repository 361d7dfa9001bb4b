"""One battery for every strategy, and what theory says of them on quadratics."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from p2p_dml.links.static import Complete, Ring
from p2p_dml.strategies import STRATEGIES
from p2p_dml.tables import build
from p2p_dml.types import AnyStrategy, Learner, PeerId

if TYPE_CHECKING:
    from tests.contracts.conftest import Battery

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

SUMMING: tuple[str, Params] = ("sgp", {"running_sums": True})
PUSHING: list[tuple[str, Params]] = [("sgp", {}), ("sgp", {"min_weight": 0.0}), SUMMING]
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

MASKED: list[tuple[str, Params]] = [
    ("mcepl", {}),
    ("mcepl", {"keep_representation": (0.4, 0.7), "coding": "packed", "least_kept": 1}),
    ("mcepl", {"coding": "entropy", "fine_tune": 0.0, "budget": 8}),
    ("supermask", {}),
    ("supermask", {"steps": 2, "momentum": 0.9, "least_kept": 1}),
    ("fedpm", {}),
    ("fedpm", {"optimiser": "sgd", "combine": "weights", "evaluated": "mean", "coding": "packed"}),
    ("dispfl", {}),
    ("dispfl", {"density": [0.4, 1.0], "regrow": "random", "clip_norm": 1.0}),
    ("magnitude", {}),
    ("magnitude", {"absent": "own", "momentum": 0.9, "keep_representation": [0.4, 0.7]}),
    ("mcepl", {"coding": "eager", "keep_decision": 0.5}),
    ("mcepl", {"permuted": True, "fused": False, "fine_tune_by": "share", "regulariser": 0.0}),
]
"""Steps are the strategy's own, on a model that is masked; states remember what links have seen."""

CASES = TRAINING + PUSHING + OWN_STEPS + MASKED
every_strategy = pytest.mark.parametrize(("name", "params"), CASES)
every_training_strategy = pytest.mark.parametrize(("name", "params"), TRAINING)


def make(name: str, params: Params) -> AnyStrategy:
    strategy: AnyStrategy = build(STRATEGIES[name], params, "strategy")
    return strategy


def test_the_battery_covers_every_strategy() -> None:
    assert {name for name, _ in CASES} == set(STRATEGIES)


@every_strategy
def test_each_round_has_its_exchanges_and_addresses_out_neighbours(
    battery: Battery, name: str, params: Params
) -> None:
    strategy = make(name, params)
    graph = battery.graph_for(strategy)
    done = battery.run(strategy, battery.draw_learners(), graph)
    for peer, rounds in enumerate(done.outboxes):
        assert [len(exchanges) for exchanges in rounds] == [strategy.exchanges] * 3
        addressed = {to for exchanges in rounds for outbox in exchanges for to in outbox}
        assert addressed <= set(graph.receivers[peer])


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(battery: Battery, name: str, params: Params, dtype: torch.dtype) -> None:
    strategy = make(name, params)
    done = battery.run(strategy, battery.draw_learners(dtype=dtype), battery.graph_for(strategy))
    assert {x.dtype for learner in done.learners for x in learner.params.values()} == {dtype}
    sent = [p for peer in done.outboxes for rnd in peer for box in rnd for p in box.values()]
    floats = [x for p in sent for x in p.tensors.values() if x.is_floating_point()]
    assert all(x.dtype == dtype for x in floats)


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_runs_are_equal_bit_for_bit(
    battery: Battery, name: str, params: Params, dtype: torch.dtype
) -> None:
    strategy = make(name, params)
    graph = battery.graph_for(strategy)
    one, two = (
        battery.run(strategy, battery.draw_learners(dtype=dtype), graph, num_rounds=6)
        for _ in range(2)
    )
    assert torch.equal(one.models, two.models)


@every_strategy
def test_received_tensors_are_not_written(battery: Battery, name: str, params: Params) -> None:
    strategy = make(name, params)
    done = battery.run(strategy, battery.draw_learners(), battery.graph_for(strategy))
    for payload, before in done.received:
        assert all(torch.equal(x, before.tensors[key]) for key, x in payload.tensors.items())


@every_strategy
def test_missing_neighbours_are_survived(battery: Battery, name: str, params: Params) -> None:
    strategy = make(name, params)
    done = battery.run(
        strategy,
        battery.draw_learners(),
        battery.graph_for(strategy),
        lost={(0, 1), (2, 3), (2, 1)},
    )
    assert done.models.isfinite().all()


@every_training_strategy
def test_a_peer_that_hears_nobody_only_trains(battery: Battery, name: str, params: Params) -> None:
    strategy = make(name, params)
    graph = battery.graph_for(strategy)
    all_links = {(i, j) for i, heard in enumerate(graph.senders) for j in heard}
    isolated = battery.run(strategy, battery.draw_learners(), graph, lost=all_links)
    alone = battery.run(make("local", {}), battery.draw_learners(), graph)
    assert torch.equal(isolated.models, alone.models)


@pytest.mark.parametrize(("name", "params"), TRAINING + PUSHING)
def test_equal_models_stay_equal_without_training(
    battery: Battery, name: str, params: Params
) -> None:
    strategy = make(name, params)
    learners = battery.draw_learners(lr=0.0, same_start=True)
    start = battery.flatten(learners[0].params)
    done = battery.run(strategy, learners, battery.graph_for(strategy), num_rounds=10)
    torch.testing.assert_close(
        done.models, start.expand(battery.num_peers, -1), rtol=1e-13, atol=1e-15
    )


@every_strategy
def test_states_can_be_checkpointed(battery: Battery, name: str, params: Params) -> None:
    strategy = make(name, params)
    learners = battery.draw_learners()
    first = strategy.init(learners[0], 0)
    done = battery.run(strategy, learners, battery.graph_for(strategy))
    for state in (first, *done.states):
        assert all(isinstance(leaf, Tensor | int | float | None) for leaf in battery.leaves(state))
        assert not any(
            leaf.requires_grad for leaf in battery.leaves(state) if isinstance(leaf, Tensor)
        )
        if (name, params) not in [
            *MASKED,
            SUMMING,
        ]:  # a checkpoint is read into the shape of a fresh state
            assert len(battery.leaves(state)) == len(battery.leaves(first))


@every_strategy
def test_a_resumed_run_has_every_bit_of_an_uninterrupted_one(
    battery: Battery, name: str, params: Params, tmp_path: Path
) -> None:
    expected = battery.go(make(name, params), 6, tmp_path / "whole")
    battery.go(make(name, params), 3, tmp_path / "parts")
    resumed = battery.go(make(name, params), 6, tmp_path / "parts", resumed_at=3)
    for ours, theirs in zip(resumed, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, x in theirs.items():
            assert x.dtype == ours[key].dtype and torch.equal(x, ours[key]), key
    files = sorted(path.relative_to(tmp_path / "whole") for path in tmp_path.glob("whole/*/*/*"))
    assert len(files) == 2 * battery.num_peers
    for file in files:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "params"), [case for case in CASES if case[0] in ("dpsgd", "hyperprism")]
)
def test_a_resumed_run_with_messages_under_way_has_every_bit(
    battery: Battery, name: str, params: Params, tmp_path: Path
) -> None:
    expected = battery.go(make(name, params), 6, tmp_path / "whole", overlap=True)
    battery.go(make(name, params), 3, tmp_path / "parts", overlap=True)
    resumed = battery.go(make(name, params), 6, tmp_path / "parts", resumed_at=3, overlap=True)
    for ours, theirs in zip(resumed, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(x, ours[key]) for key, x in theirs.items())
    plain = battery.go(make(name, params), 6, tmp_path / "plain")
    assert any(
        not torch.equal(x, theirs[key])
        for ours, theirs in zip(plain, expected, strict=True)
        for key, x in ours.items()
        if key in theirs
    )


@every_strategy
def test_reports_are_degrees_of_the_models_layer_groups(
    battery: Battery, name: str, params: Params
) -> None:
    strategy = make(name, params)
    done = battery.run(strategy, battery.draw_learners(), battery.graph_for(strategy))
    parts = {"body", "head"} if "groups" in params else {"representation", "decision"}
    degrees = {f"degree/{part}" for part in parts}
    for report in (strategy.report(state) for state in done.states):
        if (name, params) in MASKED:
            assert all(math.isfinite(value) for value in report.values())
        else:
            assert set(report) == (degrees if name == "hyperprism" else set())
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
def test_linear_mixing_keeps_the_mean(
    battery: Battery, name: str, params: Params, lost: Collection[Link]
) -> None:
    learners = battery.draw_learners(lr=0.0)
    start = torch.stack([battery.flatten(learner.params) for learner in learners]).mean(0)
    strategy = make(name, params)
    done = battery.run(strategy, learners, battery.graph_for(strategy), num_rounds=5, lost=lost)
    torch.testing.assert_close(done.models.mean(0), start, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "degree", [1.0, 1, {"representation": 1.0}, {"start": 1.0, "time_constant": 3.0}]
)
def test_hyperprism_of_degree_1_is_dpsgd_bit_for_bit(
    battery: Battery, degree: object, dtype: torch.dtype
) -> None:
    graph, lost = Ring(num_peers=battery.num_peers)(0), {(0, 1), (3, 2)}
    prism = make("hyperprism", {"degree": degree})
    linear = battery.run(make("dpsgd", {}), battery.draw_learners(dtype=dtype), graph, 8, lost)
    power = battery.run(prism, battery.draw_learners(dtype=dtype), graph, 8, lost)
    assert torch.equal(linear.models, power.models)


def test_a_learned_degree_bound_to_1_is_dpsgd_bit_for_bit(battery: Battery) -> None:
    linear = battery.run(
        make("dpsgd", {}), battery.draw_learners(), Ring(num_peers=battery.num_peers)(0), 8
    )
    power = battery.run(
        make("hyperprism", {"p_max": 1.0}),
        battery.draw_learners(),
        Ring(num_peers=battery.num_peers)(0),
        8,
    )
    assert torch.equal(linear.models, power.models)


def test_allreduce_with_one_local_step_is_gradient_descent_on_the_mean(battery: Battery) -> None:
    learners = battery.draw_learners(10, same_start=True)
    x = battery.flatten(learners[0].params)
    done = battery.run(
        make("allreduce", {}),
        battery.draw_learners(10, same_start=True),
        Complete(num_peers=10)(0),
        50,
    )
    for _ in range(50):
        gradients = [q.a.T @ (q.a @ x - q.b) for q in learners]
        x = x - 0.1 * torch.stack(gradients).mean(0)
    torch.testing.assert_close(done.models, x.expand(10, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_allreduce_leaves_all_peers_bit_identical(battery: Battery, dtype: torch.dtype) -> None:
    done = battery.run(
        make("allreduce", {}), battery.draw_learners(7, dtype=dtype), Complete(num_peers=7)(0), 4
    )
    assert torch.equal(done.models, done.models[:1].expand(7, -1))


def test_learners_of_the_battery_satisfy_the_protocol(battery: Battery) -> None:
    learner: Learner = battery.draw_learners(1)[0]
    assert learner.train() > 0
