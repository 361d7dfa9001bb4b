"""What stands around a degree's network: layer groups, odd degrees, one degree for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch

from p2p_dml.hypernet import HyperNet, PaperNet
from p2p_dml.strategies._learned import (
    Grouping,
    LearnedDegree,
    agree,
    groups,
    make_network,
    nearest_odd,
)
from p2p_dml.types import Inbox, Neighbourhood, Part, Payload, Tensors

HOOD = Neighbourhood(1, 0.25, {0: 0.25, 2: 0.5}, {0: 0.25, 2: 0.5})
PARTS: Mapping[str, Part] = {
    "conv.weight": "representation",
    "conv.bias": "representation",
    "head.0.weight": "decision",
    "head.0.bias": "decision",
    "head.2.weight": "decision",
    "scale": "representation",
}


@dataclass
class Layered:
    """A learner of which only the names matter."""

    round: int = 1

    @property
    def params(self) -> Tensors:
        return {name: torch.ones(2) for name in PARTS}

    @params.setter
    def params(self, new: Mapping[str, torch.Tensor]) -> None:
        raise AssertionError("nobody sets these")

    @property
    def parts(self) -> Mapping[str, Part]:
        return PARTS

    def train(self) -> float:
        return 0.0

    def grad(self, at: Mapping[str, torch.Tensor]) -> Tensors:
        return dict(at)


def heard(**ln_p: Sequence[float]) -> Inbox:
    """Peers 0 and 2 are heard with these values."""
    return Inbox(
        HOOD,
        {
            j: Payload({}, {f"ln_p/{g}": u[row] for g, u in ln_p.items()})
            for row, j in ((0, 0), (1, 2))
        },
    )


def test_weight_and_bias_of_a_layer_are_one_group() -> None:
    assert groups(Layered(), "parts") == PARTS
    assert list(groups(Layered(), "layers").values()) == [
        "conv", "conv", "head.0", "head.0", "head.2", "scale",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        ("parts", {"representation": 2.0, "decision": 9.0}),
        ("layers", {"conv": 2.0, "head.0": 9.0, "head.2": 9.0, "scale": 2.0}),
    ],
)
def test_layers_start_at_the_degree_of_their_part(
    grouping: Grouping, expected: Mapping[str, float]
) -> None:
    starts: dict[str, float | None] = {"representation": 2.0, "decision": 9.0}
    for network in (HyperNet(), PaperNet()):
        learned = LearnedDegree(network=network, p_max=15.0, starts=starts, grouping=grouping)
        assert learned.degrees(learned.init(Layered(), 0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("p", "p_max", "expected"),
    [
        (1.0, 15.0, 1.0),
        (1.99, 15.0, 1.0),
        (2.0, 15.0, 3.0),
        (3.9, 15.0, 3.0),
        (4.1, 15.0, 5.0),
        (15.0, 15.0, 15.0),
        (15.9, 16.0, 15.0),
        (16.0, 16.0, 15.0),
        (2.5, 2.5, 1.0),
    ],
)
def test_nearest_odd(p: float, p_max: float, expected: float) -> None:
    assert nearest_odd(p, p_max) == expected


def test_odd_degrees_are_used_and_the_network_learns_below_them() -> None:
    starts: dict[str, float | None] = {"representation": 2.5, "decision": 9.9}
    plain, odd = (
        LearnedDegree(network=HyperNet(), p_max=15.0, starts=starts, odd=odd)
        for odd in (False, True)
    )
    state = odd.init(Layered(), 0)
    assert odd.degrees(state) == {"representation": 3.0, "decision": 9.0}
    assert plain.degrees(state) == pytest.approx({"representation": 2.5, "decision": 9.9})


def test_agreeing_by_hand() -> None:
    inbox = heard(a=(1.0, 2.0), b=(0.0, 4.0))
    assert agree({"a": 3.0, "b": 8.0}, inbox, {"a": 0.5, "b": 0.0}) == {
        "a": 0.25 * 1 + 0.25 * 3 + 0.5 * 2 + 0.5,
        "b": 0.25 * 8 + 0.5 * 4,
    }
    alone = Inbox(HOOD, {})
    assert agree({"a": 3.0}, alone, {"a": 0.5}) == {"a": 3.5}


def test_a_shared_degree_is_kept_in_its_range_where_it_is_used() -> None:
    starts: dict[str, float | None] = {"representation": 1.0, "decision": 15.0}
    learned = LearnedDegree(network=HyperNet(), p_max=15.0, starts=starts, shared=True)
    state = learned.init(Layered(), 0)
    assert learned.scalars(state) == pytest.approx(
        {"ln_p/representation": 0.0, "ln_p/decision": math.log(15)}, abs=1e-12
    )
    far = learned.step(state, {}, heard(representation=(-1.0, -1.0), decision=(5.0, 5.0)))
    assert learned.degrees(far) == {"representation": 1.0, "decision": 15.0}
    assert far.agreed["representation"] == pytest.approx(-0.75)


def test_networks_by_name_have_defaults_of_their_own() -> None:
    assert make_network("bounded", 9.0, None, None) == HyperNet(p_max=9.0)
    assert make_network("bounded", 9.0, 2.0, 0.1) == HyperNet(p_max=9.0, rate=2.0, memory=0.1)
    assert make_network("paper", 9.0, None, None) == PaperNet(p_max=9.0)
    assert make_network("paper", 9.0, 0.5, None) == PaperNet(p_max=9.0, rate=0.5)
