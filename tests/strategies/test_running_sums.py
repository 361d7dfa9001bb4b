"""Running sums: no loss, delay, repetition or restart makes mass or takes it away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml.kernels.mixing import push_uniform
from p2p_dml.links.random import Epidemic
from p2p_dml.links.static import Exponential, OnePeerExponential, Ring
from p2p_dml.strategies import SGP
from p2p_dml.strategies._running_sums import PATIENCE, Sum, Sums, deal, take
from p2p_dml.types import Inbox, LinkSchedule, Message, Payload, PeerId, Tag, Tensors

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Gossip

N = 8
EXACT = SGP(min_weight=0.0, running_sums=True)
UNEVEN = Epidemic(num_peers=N, fanout=2, seed=1, regular=False)
LINKS: list[LinkSchedule] = [
    Exponential(num_peers=N),
    OnePeerExponential(num_peers=N),
    Ring(num_peers=N),
    UNEVEN,
]
every_link = pytest.mark.parametrize("links", LINKS)
Fate = Callable[[Tag, PeerId, PeerId], int | None]


def shaky(loss: float, latest: int = 0) -> Fate:
    """A share of messages is lost, and the others are up to `latest` rounds late."""

    def fate(tag: Tag, sender: PeerId, receiver: PeerId) -> int | None:
        word = int(np.random.Philox(key=[tag.round, 100 * sender + receiver]).random_raw())
        return None if word % 1000 < 1000 * loss else (word >> 32) % (latest + 1)

    return fate


def mass(run: Gossip) -> tuple[float, Tensor]:
    """Sum of weights and of weighted models: of all peers, and what is under way between them."""
    weight = sum(state.weight for state in run.states)
    x = sum(state.weight * z for state, z in zip(run.states, run.models, strict=True))
    for sender, state in enumerate(run.states):
        for receiver, given in state.sums.given.items():
            taken = run.states[int(receiver)].sums.taken.get(str(sender))
            weight += given.weight - (taken.weight if taken else 0.0)
            x = x + given.x["x"] - (taken.x["x"] if taken else 0.0)
    return weight, x


def restart(run: Gossip, peer: PeerId, state: object, x: Tensor) -> None:
    """Let a peer go on from another state and model."""
    run.states[peer] = state
    run.learners[peer].x.copy_(x)


@every_link
def test_without_losses_it_is_plain_push_sum(bench: Bench, links: LinkSchedule) -> None:
    one, two = (
        bench.gossip(strategy, bench.learners(N), links, rule=push_uniform).advance(20)
        for strategy in (EXACT, SGP(min_weight=0.0))
    )
    torch.testing.assert_close(one.models, two.models, rtol=1e-12, atol=1e-12)
    for a, b in zip(one.states, two.states, strict=True):
        assert a.weight == pytest.approx(b.weight, abs=1e-13)


@every_link
@pytest.mark.parametrize(("loss", "latest"), [(0.3, 0), (0.6, 0), (0.0, 3), (0.3, 3)])
def test_mass_is_kept_and_the_plain_mean_is_found(
    bench: Bench, links: LinkSchedule, loss: float, latest: int
) -> None:
    run = bench.gossip(
        EXACT, bench.learners(N, lr=0.0), links, rule=push_uniform, fate=shaky(loss, latest)
    )
    mean = run.models.mean(0)
    for _ in range(30):
        weight, x = mass(run.advance())
        assert weight == pytest.approx(N, abs=1e-12)
        torch.testing.assert_close(x, N * mean, rtol=0, atol=1e-11)
    apart = (run.models - mean).abs().max()
    run.advance(300)
    assert (run.models - mean).abs().max() < apart / 100
    assert min(state.weight for state in run.states) > 0


def test_plain_shares_lose_mass_where_sums_do_not(bench: Bench) -> None:
    weights = [
        sum(
            state.weight
            for state in bench.gossip(
                strategy,
                bench.learners(N, lr=0.0),
                Ring(num_peers=N),
                rule=push_uniform,
                fate=shaky(0.3),
            )
            .advance(20)
            .states
        )
        for strategy in (SGP(min_weight=0.0), EXACT)
    ]
    assert weights[0] < 0.2 < N / 2 < weights[1]


@every_link
def test_a_peer_back_from_its_checkpoint_neither_makes_nor_takes_mass(
    bench: Bench, links: LinkSchedule
) -> None:
    """As if it had been deaf and dumb since: what it was sent comes again, what it sent counts."""
    run = bench.gossip(
        EXACT, bench.learners(N, lr=0.0), links, rule=push_uniform, fate=shaky(0.2)
    ).advance(6)
    mean = mass(run)[1] / N
    state, x = run.states[2], run.models[2]
    restart(run.advance(5), 2, state, x)
    for _ in range(10):
        weight, total = mass(run.advance())
        assert weight == pytest.approx(N, abs=1e-12)
        torch.testing.assert_close(total, N * mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(run.advance(300).models, mean.expand(N, -1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("links", "lost"),
    [
        (Exponential(num_peers=N), 3 / 4),
        (OnePeerExponential(num_peers=N), 3 / 2),
        (Ring(num_peers=N), 2 / 3),
        (UNEVEN, None),
    ],
)
def test_a_peer_that_begins_anew_is_not_given_the_past_again(
    bench: Bench, links: LinkSchedule, lost: float | None
) -> None:
    """It brings a weight of 1, and `lost` are the first shares, of each neighbour one."""
    run = bench.gossip(EXACT, bench.learners(N, lr=0.0), links, rule=push_uniform).advance(40)
    before = run.states[2].weight
    restart(run, 2, EXACT.init(run.learners[2], 0), run.models[2])
    weights = [sum(state.weight for state in run.advance().states) for _ in range(17)]
    assert run.states[2].sums.life == 41
    assert max(weights) < N + 1 - before + 1e-9
    assert weights[-5:] == pytest.approx(weights[-5:][:1] * 5, abs=1e-9)
    assert min(state.weight for state in run.states) > 0
    if lost is not None:
        assert weights[-1] == pytest.approx(N + 1 - before - lost, abs=1e-9)


def test_the_dead_are_dealt_no_more_than_a_few_shares(bench: Bench) -> None:
    """On a ring the weights of a dead peer's neighbours would sink to nothing."""

    def dead(tag: Tag, sender: PeerId, receiver: PeerId) -> int | None:
        return None if 3 in (sender, receiver) and tag.round > 4 else 0

    run = bench.gossip(
        EXACT, bench.learners(N, lr=0.0), Ring(num_peers=N), rule=push_uniform, fate=dead
    )
    run.advance(4)
    weights = [
        sum(state.weight for i, state in enumerate(run.advance().states) if i != 3)
        for _ in range(40)
    ]
    assert weights[0] > weights[1] > weights[2]
    assert weights[PATIENCE - 1 :] == pytest.approx([weights[PATIENCE - 1]] * 38, abs=1e-12)
    assert weights[-1] > N - 1 - 2 * PATIENCE / 3
    alive = [i for i in range(N) if i != 3]
    apart = run.advance(150).models[alive].std(0)
    assert (apart < 1e-3).all()


def test_who_comes_back_is_dealt_shares_again(bench: Bench) -> None:
    def away(tag: Tag, sender: PeerId, receiver: PeerId) -> int | None:
        return None if 3 in (sender, receiver) and 4 < tag.round <= 20 else 0

    run = bench.gossip(
        EXACT, bench.learners(N, lr=0.0), Ring(num_peers=N), rule=push_uniform, fate=away
    )
    mean = run.models.mean(0)
    counts = [
        [state.sums.given["3"].count for state in (run.states[2], run.states[4])]
        for run in (run.advance(rounds) for rounds in (4, 16, 10))
    ]
    assert counts == [[4, 4], [4 + PATIENCE, 4 + PATIENCE], [16, 16]]
    assert mass(run)[0] == pytest.approx(N, abs=1e-12)
    torch.testing.assert_close(run.advance(200).models, mean.expand(N, -1), rtol=1e-6, atol=1e-6)


def sums_of(sender: PeerId, rounds: int, dtype: torch.dtype = torch.float64) -> list[Payload]:
    """What a peer of a ring of three sends to the next in each round, with models of 1."""
    hood, sums, found = push_uniform(Ring(num_peers=3)(0), sender), Sums(), list[Payload]()
    for round in range(1, rounds + 1):
        sums, outbox, _ = deal(sums, hood, round, {"x": torch.ones(2, dtype=dtype)}, 1.0)
        found.append(outbox[(sender + 1) % 3])
    return found


def inbox_of(on_time: Payload, late: Sequence[Payload] = ()) -> Inbox:
    hood = push_uniform(Ring(num_peers=3)(0), 1)
    return Inbox(hood, {0: on_time}, [Message(0, Tag(i), p) for i, p in enumerate(late)])


def like() -> Tensors:
    return {"x": torch.zeros(2, dtype=torch.float64)}


def test_repeated_and_overtaken_messages_add_nothing() -> None:
    one, two, three = sums_of(0, 3)
    sums, shares = take(Sums(life=1), inbox_of(one), like())
    assert shares[0].scalars["weight"] == pytest.approx(1 / 3)
    sums, shares = take(sums, inbox_of(three, [one, two]), like())
    assert shares[0].scalars["weight"] == pytest.approx(2 / 3)
    torch.testing.assert_close(shares[0].tensors["x"], torch.full((2,), 2 / 3).double())
    for again in (one, two, three):
        sums, shares = take(sums, inbox_of(again, [three]), like())
        assert shares == {}


def test_receivers_of_one_history_share_one_payload() -> None:
    hood = push_uniform(Exponential(num_peers=8)(0), 0)
    sums, outbox, own = deal(Sums(), hood, 1, {"x": torch.ones(2)}, 1.0)
    assert len(outbox) == 3 and len({id(payload) for payload in outbox.values()}) == 1
    assert len({id(each) for each in sums.given.values()}) == 1
    assert own.scalars["weight"] == pytest.approx(1 / 4)


def test_what_rounding_keeps_out_of_a_large_sum_is_not_lost() -> None:
    """3,000 rounds in float32: all mass is in the sums or at home, each difference a fair share."""
    hood, sums = push_uniform(Ring(num_peers=3)(0), 0), Sums()
    x, home, taken, last = {"x": torch.full((2,), 0.7)}, 0.0, Sums(life=1), 0.0
    for round in range(1, 3001):
        sums, outbox, own = deal(sums, hood, round, x, 1.0)
        home += float(own.tensors["x"][0].double())
        taken, shares = take(taken, inbox_of(outbox[1]), {"x": torch.zeros(2)})
        last = float(shares[0].tensors["x"][0])
    away = 2 * float(sums.given["1"].x["x"][0].double())
    assert home + away == pytest.approx(3000 * float(x["x"][0].double()), rel=1e-7)
    assert last == pytest.approx(0.7 / 3, rel=5e-4)


GOOD = Sum(x=like(), weight=1.0, count=2, first=1, life=1).payload()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1.0},
        {"weight": float("inf")},
        {"weight": float("nan")},
        {"count": -1.0},
        {"count": 0.5},
        {"first": float("nan")},
        {"life": float("inf")},
        {"life": 2.0**60},
        {"other": 1.0},
    ],
)
def test_messages_that_are_no_sums_are_left_aside(wrong: dict[str, float]) -> None:
    payload = replace(GOOD, scalars=dict(GOOD.scalars) | wrong)
    assert take(Sums(life=1), inbox_of(payload), like())[1] == {}
    assert [*take(Sums(life=1), inbox_of(GOOD), like())[1]] == [0]
    odd = replace(GOOD, tensors={"x": torch.zeros(3)})
    assert take(Sums(life=1), inbox_of(GOOD, [odd]), like())[0].taken["0"].count == 2
