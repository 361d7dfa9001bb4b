"""Lengths of a mix's tensors, apart from their direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pytest
import torch

from p2p_dml.kernels.means import weighted_power_mean
from p2p_dml.strategies._length import power_mean_lengths, stretch
from p2p_dml.strategies.hyperprism import HyperPrism
from p2p_dml.tensors import tmap
from p2p_dml.types import Inbox, Neighbourhood, Payload, Tensors

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

WEIGHTS = [0.25, 0.25, 0.5]
HOOD = Neighbourhood(0, 0.25, {1: 0.25, 2: 0.5}, {1: 0.25, 2: 0.5})
ONE_LAYER = ("fc.weight", "fc.bias")
TWO_LAYERS = ("conv.weight", "fc.weight")


def draw(seed: int, names: Sequence[str]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(30, generator=generator, dtype=torch.float64) for name in names}


def mixed(bench: Bench, strategy: HyperPrism, names: Sequence[str] = TWO_LAYERS) -> Tensors:
    """The model after a round among three; the mix has degree p in both parts."""
    learner = bench.toy(draw(0, names), lambda at: tmap(torch.zeros_like, at), lambda x: None)
    steps = strategy.round(strategy.init(learner, 0), learner, bench.links(HOOD))
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(Inbox(HOOD, {j: Payload(draw(j, names)) for j in (1, 2)}))
    return learner.params


def power_means(p: float, names: Sequence[str] = TWO_LAYERS) -> Tensors:
    models = [draw(seed, names) for seed in (0, 1, 2)]
    return {name: weighted_power_mean([m[name] for m in models], WEIGHTS, p) for name in names}


def test_by_hand() -> None:
    own, heard = {"w": torch.tensor([8.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    hood = Neighbourhood(0, 0.125, {1: 0.875}, {1: 0.875})
    inbox = Inbox(hood, {1: Payload(heard)})
    # degree 3: ((512 / 8) ** (1/3), (7 / 8) ** (1/3)) = (4, 0.9565)
    lengths = power_mean_lengths(own, inbox, {"w": 1.0}, 3.0)
    assert lengths == pytest.approx({"w": math.hypot(4.0, 0.875 ** (1 / 3))}, rel=1e-6)
    assert power_mean_lengths(own, inbox, {"w": 3.0}, 3.0) == {}
    assert power_mean_lengths(own, Inbox(hood, {}), {"w": 1.0}, 3.0) == {}


def test_what_has_no_direction_stays() -> None:
    values = {"zero": [0.0, 0.0], "nan": [math.nan, 1.0], "short": [3.0, 4.0], "to_nan": [1.0, 1.0]}
    model = {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}
    stretch(model, {"zero": 1.0, "nan": 1.0, "short": 10.0, "to_nan": math.nan})
    assert model["zero"].tolist() == [0.0, 0.0]
    assert model["nan"][1] == 1.0
    assert model["short"].tolist() == [6.0, 8.0]
    assert model["to_nan"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("degree", "length"), [(1.0, 9.0), (9.0, 1.0), (3.0, 4.5)])
def test_the_degree_gives_the_direction_and_length_the_length(
    bench: Bench, degree: float, length: float
) -> None:
    result = mixed(bench, HyperPrism(degree=degree, length=length))
    along, long = power_means(degree), power_means(length)
    for name, x in result.items():
        assert x.norm() == pytest.approx(float(long[name].norm()), rel=1e-12)
        assert torch.allclose(x / x.norm(), along[name] / along[name].norm(), rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "length", "expected"),
    [
        (TWO_LAYERS, None, 15.0),
        (TWO_LAYERS, "own", 1.0),
        (TWO_LAYERS, 4.0, 4.0),
        (ONE_LAYER, None, 1.0),  # weight and bias of one layer: its length is only scale
        (ONE_LAYER, 4.0, 4.0),
    ],
)
def test_a_learned_degree_leaves_the_length_to_p_max_in_a_network_of_several_layers(
    bench: Bench, names: Sequence[str], length: float | Literal["own"] | None, expected: float
) -> None:
    strategy = HyperPrism(length=length, start_decision=1.0)
    result, along, long = (
        mixed(bench, strategy, names),
        power_means(1, names),
        power_means(expected, names),
    )
    for name, x in result.items():
        assert x.norm() == pytest.approx(float(long[name].norm()), rel=1e-12)
        assert torch.allclose(x / x.norm(), along[name] / along[name].norm(), rtol=1e-12)


@pytest.mark.parametrize("strategy", [HyperPrism(degree=3.0), HyperPrism(hypernet="paper")])
def test_others_keep_the_length_of_their_own_degree(bench: Bench, strategy: HyperPrism) -> None:
    own = HyperPrism(degree=strategy.degree, hypernet=strategy.hypernet, length="own")
    assert all(
        torch.equal(x, mixed(bench, own)[name]) for name, x in mixed(bench, strategy).items()
    )
