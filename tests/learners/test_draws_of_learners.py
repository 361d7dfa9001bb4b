"""The randomness of a round: batches that repeat, and a torch generator left as it was."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from p2p_dml.learners._draws import RoundDraws, seeded

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (129, 128), (5, 64), (6, 2)])
def test_a_pass_sees_every_sample_once_in_batches_of_like_size(
    num_samples: int, batch_size: int
) -> None:
    pieces = math.ceil(num_samples / batch_size)
    draws = RoundDraws(1, 2, 3).batches(num_samples, batch_size)
    for _ in range(2):
        batches = list(islice(draws, pieces))
        assert sorted(np.concatenate(batches)) == list(range(num_samples))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def first_pass(seed: int, peer: int, round: int) -> list[int]:
    return [int(i) for i in next(RoundDraws(seed, peer, round).batches(50, 50))]


def test_batches_are_a_function_of_seed_peer_and_round() -> None:
    assert first_pass(1, 2, 3) == first_pass(1, 2, 3)
    places = [(1, 2, 3), (0, 2, 3), (1, 3, 3), (1, 2, 4), (2**63, 2, 3)]
    assert len({tuple(first_pass(*place)) for place in places}) == len(places)


def test_passes_differ() -> None:
    one, two = islice(RoundDraws(1, 2, 3).batches(50, 50), 2)
    assert one.tolist() != two.tolist()


def test_seeded_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (4, 4, 5):
        with seeded(seed, CPU):
            drawn.append(torch.rand(3).tolist())
    assert torch.equal(before, torch.get_rng_state())
    assert drawn[0] == drawn[1] != drawn[2]
