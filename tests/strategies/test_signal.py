"""What judges a degree: scale taken out, verdicts pooled, nothing from those who are no cosine."""

from __future__ import annotations

import math

import pytest
import torch

from p2p_dml.strategies._signal import pooled, remove_scale, verdicts
from p2p_dml.types import Inbox, Neighbourhood, Payload, Tensors

GROUPS = {"conv": "representation", "fc.w": "decision", "fc.b": "decision"}
HOOD = Neighbourhood(0, 0.25, {1: 0.25, 2: 0.25, 3: 0.25}, {})


def draw(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(30, generator=generator, dtype=torch.float64) for name in GROUPS}


def test_without_scale_growing_a_group_is_no_merit_of_its_degree() -> None:
    models, changes = draw(1), draw(2)
    before = {name: x.clone() for name, x in changes.items()}
    remove_scale(changes, models, GROUPS)
    assert verdicts(models, before, GROUPS).keys() == {"representation", "decision"}
    assert all(abs(c) < 1e-14 for c in verdicts(models, changes, GROUPS).values())
    taken = {name: before[name] - changes[name] for name in GROUPS}
    for names in (["conv"], ["fc.w", "fc.b"]):  # one multiple of the model for a whole group
        ratios = torch.cat([taken[name] / models[name] for name in names])
        assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-9)


def test_a_model_of_zeros_has_no_scale_to_take() -> None:
    changes, zeros = draw(2), {name: torch.zeros(30, dtype=torch.float64) for name in GROUPS}
    remove_scale(changes, zeros, GROUPS)
    assert all(torch.equal(changes[name], x) for name, x in draw(2).items())


@pytest.mark.parametrize(
    ("own", "heard", "expected"),
    [
        ({"g": 0.5}, [], {"g": 0.5}),
        ({"g": 0.5}, [{"verdict/g": 0.5}] * 3, {"g": 1.0}),
        ({"g": 0.5}, [{"verdict/g": -0.5}, {}], {"g": 0.0}),
        ({}, [{"verdict/g": 0.25, "ln_p/g": 2.0}, {"verdict/h": -1.0}], {"g": 0.25, "h": -1.0}),
        ({"g": 0.5}, [{"verdict/g": 1e9}, {"verdict/g": math.nan}], {"g": 0.5}),
        ({}, [{}], {}),
    ],
)
def test_k_verdicts_are_summed_over_the_root_of_k(
    own: dict[str, float], heard: list[dict[str, float]], expected: dict[str, float]
) -> None:
    messages = {j + 1: Payload({}, scalars) for j, scalars in enumerate(heard)}
    assert pooled(own, Inbox(HOOD, messages)) == pytest.approx(expected)
