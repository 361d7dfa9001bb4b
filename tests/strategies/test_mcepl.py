"""MCE-PL against its specification, written down once more in stacked form, and its options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from p2p_dml.errors import ConfigError, WireError
from p2p_dml.kernels.masks import pack, unpack
from p2p_dml.strategies._mask_coding import DELTA, ENTROPY, Mode
from p2p_dml.strategies.mcepl import MCEPL, MCEPLState
from p2p_dml.strategies.supermask import Supermask
from p2p_dml.tables import build
from p2p_dml.types import Coded, Inbox, Neighbourhood, Payload, PeerId, Sent, Tensors

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy

Shapes = Mapping[str, tuple[int, ...]]
SHAPES: Shapes = {
    "conv.weight": (4, 2, 3, 3),
    "conv.bias": (4,),
    "fc.weight": (5, 8),
    "fc.bias": (5,),
}
MASKED = ("conv.weight", "fc.weight")
RING = {0: (1, 2), 1: (0, 2), 2: (0, 1)}


def bowl(bench: Bench, seed: int, shapes: Shapes = SHAPES) -> Toy:
    """L(x) = sum h (x - t)^2 / 2 with t drawn from `seed`; all have the same first weights."""
    t = bench.drawn(shapes, seed)

    def slope(at: Mapping[str, Tensor]) -> Tensors:
        return {n: 0.01 * (1 + t[n].abs()) * (x - t[n]) for n, x in at.items()}

    return bench.toy(bench.drawn(shapes, 0), slope)


def hood(me: PeerId) -> Neighbourhood:
    third = dict.fromkeys(RING[me], 1 / 3)
    return Neighbourhood(me, 1 / 3, third, third)


def play(
    bench: Bench,
    strategy: MCEPL,
    rounds: int,
    lost: Sequence[tuple[PeerId, PeerId]] = (),
    shapes: Shapes = SHAPES,
) -> tuple[list[Toy], list[MCEPLState], list[list[Sent]]]:
    """Three peers that all hear each other, but for the links (receiver, sender) in `lost`."""
    learners = [bowl(bench, 10 + i, shapes) for i in RING]
    states = [strategy.init(learner, seed=i) for i, learner in enumerate(learners)]
    log = []
    for round in range(1, rounds + 1):
        going = []
        for i, learner in enumerate(learners):
            learner.round = round
            going.append(strategy.round(states[i], learner, bench.links(hood(i))))
        sent = [next(each) for each in going]
        log.append(sent)
        for i, each in enumerate(going):
            mine = sent[i]
            assert isinstance(mine, Coded)
            heard = [j for j in RING[i] if (i, j) not in lost]
            inbox = Inbox(hood(i), {j: mine.read(j, outbox(sent[j])[i]) for j in heard})
            with pytest.raises(StopIteration) as end:
                each.send(inbox)
            states[i] = end.value.value
    return learners, states, log


def outbox(sent: Sent) -> Mapping[PeerId, Payload]:
    assert isinstance(sent, Coded)
    return sent.outbox


def top(x: Tensor, share: float) -> Tensor:
    """The largest of each peer's values, by sorting; rows are peers."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    kept = round(share * x[0].numel())
    order = x.flatten(1).argsort(dim=1, descending=True)[:, :kept]
    return mask.flatten(1).scatter(1, order, True).view(x.shape)


def specification(
    bench: Bench, rounds: int, shares: Mapping[str, float], first: MCEPLState, **options: Any
) -> dict[str, Tensor]:
    """Scores after some rounds, [3, *shape], as section 1 and 6 of the specification have them."""
    lr, tune, decay = 10.0, options.get("fine_tune", 10.0), 5e-4
    lam, fused = options.get("regulariser", 0.001), options.get("fused", True)
    z = {n: torch.stack([first.scores[n]] * 3) for n in MASKED}
    mean = {n: torch.stack([first.fused[n]] * 3) for n in MASKED}
    learners = [bowl(bench, 10 + i) for i in RING]
    others = (torch.ones(3, 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64)) / 2

    def absolute(n: str) -> Tensor:
        size = z[n].abs().flatten(1).mean(1).view(3, *[1] * (z[n].dim() - 1))
        return z[n].abs() + (size * mean[n] if fused else 0)

    for _ in range(rounds):
        worn = {n: top(absolute(n), shares[n]) for n in MASKED}
        g = {}
        for n in MASKED:
            w = first.weights[n]
            leaf = absolute(n).mul(z[n].sign()).requires_grad_()
            at = [{m: first.weights[m] * worn[m][i] for m in MASKED} for i in range(3)]
            full = [{**bench.drawn(SHAPES, 0), **a} for a in at]
            loss = torch.stack([learners[i].grad(full[i])[n] for i in range(3)])
            rows = leaf.reshape(3, leaf.shape[1], -1).norm(dim=2).sum() * lam
            (pull,) = torch.autograd.grad(rows, leaf)
            g[n] = loss * w * z[n].sign() + pull
        half = {}
        for n in MASKED:
            z[n] = z[n] - lr * (g[n] + decay * z[n])
        for n in MASKED:
            half[n] = top(absolute(n), shares[n]).double()
        for n in MASKED:
            mean[n] = torch.einsum("ij,j...->i...", others, half[n])
            by = mean[n]
            if options.get("fine_tune_by") == "share":
                by = by.flatten(1).mean(1).view(3, *[1] * (by.dim() - 1)).expand_as(by)
            z[n] = z[n] - tune * g[n] * by
    return z


KEEP = {"conv.weight": 0.3, "fc.weight": 0.9}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regulariser": 0.0},
        {"fine_tune": 0.0},
        {"fused": False},
        {"fine_tune_by": "share"},
        {"coding": "packed"},
        {"coding": "entropy"},
    ],
)
def test_rounds_are_those_of_the_specification(bench: Bench, options: dict[str, Any]) -> None:
    strategy = MCEPL(**options)
    learners, states, _ = play(bench, strategy, 6)
    expected = specification(bench, 6, KEEP, strategy.init(bowl(bench, 10), 0), **options)
    for i, (learner, state) in enumerate(zip(learners, states, strict=True)):
        for name in MASKED:
            torch.testing.assert_close(state.scores[name], expected[name][i], rtol=1e-9, atol=1e-12)
            kept = round(KEEP[name] * learner.x[name].numel())
            assert int(learner.x[name].count_nonzero()) == kept
        assert torch.equal(learner.x["conv.bias"], bench.drawn(SHAPES, 0)["conv.bias"])
        assert torch.equal(learner.x["fc.bias"], bench.drawn(SHAPES, 0)["fc.bias"])


def test_both_steps_together_are_one_that_is_larger_where_neighbours_keep_a_weight(
    bench: Bench,
) -> None:
    strategy = MCEPL(weight_decay=0.0, regulariser=0.0)
    before = strategy.init(bowl(bench, 10), 0)
    g = strategy._gradient(before, _worn(bench, strategy, before))
    _, states, _ = play(bench, strategy, 1)
    for name in MASKED:
        change = states[0].scores[name] - before.scores[name]
        expected = -10 * (1 + states[0].fused[name]) * g[name]
        torch.testing.assert_close(change, expected, rtol=1e-12, atol=1e-14)


def _worn(bench: Bench, strategy: MCEPL, state: MCEPLState) -> Toy:
    """The learner of peer 0 with the masks that its first round begins with."""
    learner = bowl(bench, 10)
    for name in MASKED:
        y = state.scores[name].abs() + state.scores[name].abs().mean() * state.fused[name]
        learner.x[name].mul_(top(y[None], KEEP[name])[0])
    return learner


def test_scores_and_first_masks_are_common_and_shares_are_the_peers_own(bench: Bench) -> None:
    strategy = MCEPL(keep_representation=(0.1, 0.3, 0.5))
    one, two = (strategy.init(bowl(bench, i), seed=i) for i in (1, 2))
    for name in MASKED:
        assert torch.equal(one.scores[name], two.scores[name])
        assert torch.equal(one.fused[name], two.fused[name])
        bound = 1 / math.sqrt(one.weights[name][0].numel())
        assert 0.8 * bound < float(one.scores[name].abs().max()) <= bound
    learners, _, _ = play(bench, strategy, 2)
    kept = [int(learner.x["conv.weight"].count_nonzero()) for learner in learners]
    assert kept == [7, 22, 36]  # of 72
    assert all(int(learner.x["fc.weight"].count_nonzero()) == 36 for learner in learners)  # of 40


def test_a_budget_lowers_all_shares_of_a_peer_alike(bench: Bench) -> None:
    learners, _, _ = play(bench, MCEPL(budget=(29, 1000, 1000)), 1)
    # 0.3 of 72 and 0.9 of 40 are 57.6 weights; peer 0 may keep half
    kept = [[int(learner.x[n].count_nonzero()) for n in MASKED] for learner in learners]
    assert kept == [[10, 18], [22, 36], [22, 36]]


@pytest.mark.parametrize("budget", [3, 10, 29, 57, 58, 1000])
def test_a_budget_is_never_exceeded(bench: Bench, budget: int) -> None:
    (learner, *_), _, _ = play(bench, MCEPL(budget=(budget, 1000, 1000)), 1)
    assert sum(int(learner.x[n].count_nonzero()) for n in MASKED) <= budget


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (MCEPL(budget=(1000, 2)), r"strategy\.budget = 2: nothing is left of conv\.weight"),
        (MCEPL(least_kept=18), r"strategy\.least_kept = 18: conv\.weight has 18 weights for"),
        (MCEPL(least_kept=8), r"strategy\.least_kept = 8: fc\.weight has 8 weights for each"),
        (Supermask(least_kept=8), r"strategy\.least_kept = 8: fc\.weight has 8 weights for each"),
    ],
)
def test_what_would_leave_nothing_of_a_layer_is_refused(
    bench: Bench, strategy: MCEPL | Supermask, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy.init(bowl(bench, 10), seed=0)


def test_outputs_with_few_kept_weights_are_taken_out_but_not_from_what_is_sent(
    bench: Bench,
) -> None:
    learners, states, log = play(bench, MCEPL(least_kept=6, coding="packed"), 1)
    for i, learner in enumerate(learners):
        bits = outbox(log[0][i])[RING[i][0]].tensors["mask"]
        sent, _ = unpack(bits, [SHAPES[name] for name in MASKED])
        assert int(sent.sum()) == 22
        filters = learner.x["conv.weight"].flatten(1).count_nonzero(1)
        assert all(n == 0 or n > 6 for n in filters.tolist())
    assert any(state.figures["share/empty outputs"] > 0 for state in states)


def test_shuffled_neighbours_have_the_same_distribution_at_other_places(bench: Bench) -> None:
    plain = play(bench, MCEPL(regulariser=0.0), 1)[1][0].fused
    shuffled = play(bench, MCEPL(regulariser=0.0, permuted=True), 1)[1][0].fused
    for name in MASKED:
        assert not torch.equal(plain[name], shuffled[name])
        assert torch.equal(
            plain[name].flatten().sort().values, shuffled[name].flatten().sort().values
        )


def test_a_peer_that_hears_nobody_keeps_the_mean_of_before(bench: Bench) -> None:
    lost = [(0, 1), (0, 2)]
    first = MCEPL().init(bowl(bench, 10), 0).fused
    _, states, _ = play(bench, MCEPL(), 2, lost)
    assert all(torch.equal(states[0].fused[name], first[name]) for name in MASKED)
    assert not torch.equal(states[1].fused["fc.weight"], first["fc.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bits: bits[:-1], "bytes: expected 14"),
        (lambda bits: torch.cat([bits, bits[:1]]), "bytes: expected 14"),
        (
            lambda bits: pack([torch.ones(112, dtype=torch.bool)]),
            "72 ones in layer 0, expected 22",
        ),
        (lambda bits: bits.float(), "expected uint8"),
    ],
)
def test_a_malformed_mask_is_refused(bench: Bench, change: Any, message: str) -> None:
    _, _, log = play(bench, MCEPL(coding="packed"), 1)
    sent = log[0][0]
    assert isinstance(sent, Coded)
    good = outbox(log[0][1])[0]
    assert sent.read(1, good).tensors["mask"].numel() == 14
    with pytest.raises(WireError, match=message):
        sent.read(1, Payload({"mask": change(good.tensors["mask"])}, good.scalars))


WIDE: Shapes = {**SHAPES, "conv.weight": (16, 8, 3, 3), "fc.weight": (10, 64)}
SPARSE = MCEPL(keep_representation=0.1, keep_decision=0.1)


@pytest.mark.parametrize(
    ("coding", "met"),
    [("entropy", {ENTROPY}), ("delta", {ENTROPY, DELTA}), ("eager", {ENTROPY, DELTA})],
)
def test_scores_do_not_depend_on_how_masks_travel(
    bench: Bench, coding: Mode, met: set[int]
) -> None:
    """In layers so wide that every way that a coding has is the shortest at times."""
    _, packed, _ = play(bench, replace(SPARSE, coding="packed"), 6, shapes=WIDE)
    _, states, log = play(bench, replace(SPARSE, coding=coding), 6, shapes=WIDE)
    payloads = [payload for sent in log for each in sent for payload in outbox(each).values()]
    assert {payload.scalars["coding"] for payload in payloads} == met
    for state, expected in zip(states, packed, strict=True):
        for name, z in expected.scores.items():
            assert torch.equal(state.scores[name], z)


def test_masks_cost_a_bit_for_each_weight_and_less_when_they_hardly_change(bench: Bench) -> None:
    strategy = MCEPL()
    _, states, _ = play(bench, strategy, 3)
    figures = strategy.report(states[0])
    assert figures["bytes/packed"] == 14
    assert figures["bytes/dense"] == 4 * 112
    assert figures["bytes/ones"] == (22 + 36) / 8
    assert figures["bytes/coded"] <= 14
    assert figures["share/kept"] == pytest.approx(58 / 112)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"keep_representation": 0.0}, r"keep_representation: expected shares above 0"),
        ({"keep_decision": [0.5, 1.5]}, r"keep_decision: expected shares above 0"),
        ({"keep_decision": []}, r"keep_decision: expected shares above 0"),
        ({"budget": 0}, r"budget = 0: expected numbers of at least 1"),
        ({"lr": 0.0}, r"lr = 0\.0: expected"),
        ({"fine_tune": -1.0}, r"fine_tune = -1\.0: expected at least 0"),
        ({"regulariser": -1.0}, r"regulariser = -1\.0: expected at least 0"),
        ({"coding": "zip"}, r"strategy\.coding: .*'packed', 'entropy', 'delta' or 'eager'"),
    ],
)
def test_a_bad_table_names_the_key(table: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(MCEPL, table, "strategy")
