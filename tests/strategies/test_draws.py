"""Private draws: a pure function of seed and round, uniform, with the right probabilities."""

from __future__ import annotations

import pytest
import torch

from p2p_dml.strategies._draws import PrivateDraws

SEED = (1 << 63) - 1


def test_seed_and_round_say_everything() -> None:
    like = torch.zeros(3, 5)
    first, again = (PrivateDraws(SEED, 7).uniform(like) for _ in range(2))
    assert torch.equal(first, again)
    for other in (PrivateDraws(SEED, 8), PrivateDraws(SEED - 1, 7)):
        assert not torch.equal(first, other.uniform(like))


def test_numbers_go_on() -> None:
    draws, whole = PrivateDraws(1, 2), PrivateDraws(1, 2).uniform(torch.zeros(10))
    parts = [draws.uniform(torch.zeros(4)), draws.uniform(torch.zeros(3, 2)).view(-1)]
    assert torch.equal(torch.cat(parts), whole)


def test_numbers_are_uniform() -> None:
    """Mean 1/2 and variance 1/12, within 5 standard errors."""
    x = PrivateDraws(4, 1).uniform(torch.zeros(100_000))
    assert x.dtype == torch.float64
    assert bool(((x >= 0) & (x < 1)).all())
    assert float(x.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / 1e5) ** 0.5)
    assert float(x.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180 / 1e5) ** 0.5)


def test_samples_are_set_as_often_as_asked() -> None:
    shares = torch.tensor([0.0, 0.2, 1.0]).expand(10_000, 3)
    often = PrivateDraws(2, 3).sample({"w": shares})["w"].double().mean(0).tolist()
    assert (often[0], often[2]) == (0, 1)
    assert often[1] == pytest.approx(0.2, abs=5 * (0.16 / 1e4) ** 0.5)
