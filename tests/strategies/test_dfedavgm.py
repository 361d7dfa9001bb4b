"""DFedAvgM: heavy ball from rest by hand, its reductions, its coded form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.links.static import Complete, Ring
from p2p_dml.strategies import DPSGD, DFedAvgM

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench


def test_local_steps_are_those_of_torchs_momentum_fresh_in_each_round(bench: Bench) -> None:
    run = bench.gossip(
        DFedAvgM(lr=0.02, momentum=0.8, steps=4), bench.learners(4), Complete(num_peers=4)
    )
    learners = bench.learners(4)
    for _ in range(3):
        for each in learners:
            x = torch.nn.Parameter(each.x.clone())
            optimiser = torch.optim.SGD([x], lr=0.02, momentum=0.8)
            for _ in range(4):
                x.grad = each.grad({"x": x.detach()})["x"]
                optimiser.step()
            each.x.copy_(x.detach())
        mean = torch.stack([each.x for each in learners]).mean(0)
        for each in learners:
            each.x.copy_(mean)
        torch.testing.assert_close(run.advance().models, mean.expand(4, -1), rtol=1e-12, atol=1e-13)


def test_without_momentum_it_is_dpsgd(bench: Bench) -> None:
    ring = Ring(num_peers=6)
    own = DFedAvgM(lr=0.03, momentum=0.0, steps=3)
    one = bench.gossip(own, bench.learners(6), ring).advance(6).models
    two = bench.gossip(DPSGD(), bench.learners(6, lr=0.03, steps=3), ring).advance(6).models
    torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)


def test_the_coded_form_stays_within_the_cells(bench: Bench) -> None:
    ring = Ring(num_peers=6)
    dense, coded = (
        bench.gossip(strategy, bench.learners(6), ring).advance(20)
        for strategy in (DFedAvgM(), DFedAvgM(bits=16, cell=1e-3))
    )
    assert not torch.equal(dense.models, coded.models)
    torch.testing.assert_close(dense.models, coded.models, rtol=0, atol=2e-2)


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"momentum": 1.0}, {"steps": 0}, {"cell": 0.0}])
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        DFedAvgM(**fields)  # type: ignore[arg-type]
