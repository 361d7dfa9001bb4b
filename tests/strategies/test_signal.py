"""What judges a degree: alignments by hand, scale taken out, verdicts pooled."""

from __future__ import annotations

import math

import pytest
import torch

from p2p_dml.strategies._signal import Alignment, alignments, pooled, remove_scale, verdicts
from p2p_dml.types import Inbox, Neighbourhood, Payload, Tensors

NUM = 20_000_001
GROUPS = {"conv": "representation", "fc.w": "decision", "fc.b": "decision"}
HOOD = Neighbourhood(0, 0.25, {1: 0.25, 2: 0.25, 3: 0.25}, {})


def draw(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(40, generator=generator, dtype=torch.float64) for name in GROUPS}


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
    changes, zeros = draw(2), {name: torch.zeros(40, dtype=torch.float64) for name in GROUPS}
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


def test_by_hand() -> None:
    a = {"conv": torch.tensor([1.0, 0.0]), "fc.w": torch.tensor([3.0]), "fc.b": torch.tensor([4.0])}
    b = {"conv": torch.tensor([1.0, 1.0]), "fc.w": torch.tensor([2.0]), "fc.b": torch.tensor([0.0])}
    found = alignments(a, b, GROUPS)
    assert found == {
        "decision": Alignment(6.0, 25.0, 4.0),
        "representation": Alignment(1.0, 1.0, 2.0),
    }
    assert found["decision"].cosine == pytest.approx(0.6)
    assert found["representation"].cosine == pytest.approx(0.5**0.5)


def test_the_cosine_does_not_depend_on_magnitudes() -> None:
    a, b = draw(1), draw(2)
    found = alignments(a, b, GROUPS)
    scaled = alignments(
        {n: 1e-6 * x for n, x in a.items()}, {n: 1e6 * x for n, x in b.items()}, GROUPS
    )
    assert all(scaled[g].cosine == pytest.approx(found[g].cosine, rel=1e-12) for g in found)


def test_large_tensors_are_summed_in_float64() -> None:
    """A float32 sum of ones stops at 2^24, which is below NUM."""
    ones = torch.ones(NUM)
    found = alignments({"x": ones}, {"x": ones}, {"x": "all"})["all"]
    assert found.dot == found.squared_a == found.squared_b == NUM


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_group_without_an_angle_is_left_out(bad: float) -> None:
    a = draw(1) | {"conv": torch.full((40,), bad, dtype=torch.float64)}
    assert set(alignments(a, draw(2), GROUPS)) == {"decision"}
    assert set(alignments(draw(2), a, GROUPS)) == {"decision"}
    assert math.isnan(Alignment(0.0, 0.0, 1.0).cosine)
