"""DisPFL: densities, means and steps by hand, the mask search, and D-PSGD without any mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml.errors import WireError
from p2p_dml.kernels.mixing import neighbour_mean
from p2p_dml.links.static import Ring
from p2p_dml.strategies.dispfl import DisPFL, DisPFLState, kernel_densities
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Coded, Graph, Inbox, Neighbourhood, Payload, PeerId, Sent

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy

SHAPES = {"body": (6, 5, 2, 2), "bias": (6,), "head": (4, 10)}
HOOD = Neighbourhood(1, 0.5, {0: 0.3, 2: 0.2}, {0: 0.3, 2: 0.2})


def small(bench: Bench, x: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> Toy:
    """One weight tensor and a bias of 1."""
    weight, aim = (torch.tensor(values, dtype=torch.float64) for values in (x, target))
    bias = torch.ones(1, dtype=torch.float64)
    return bench.pulled({"head": weight, "bias": bias}, {"head": aim, "bias": 0 * bias})


def begun(strategy: DisPFL, learner: Toy, mask: Sequence[Sequence[bool]]) -> DisPFLState:
    """A state after one round, with a mask by hand."""
    return replace(strategy.init(learner, 0), masks={"head": torch.tensor(mask)}, rounds=1)


def message(values: Sequence[float], bits: int, bias: float) -> Payload:
    return Payload(
        {
            "values": torch.tensor(values, dtype=torch.float64),
            "mask": torch.tensor([bits], dtype=torch.uint8),
            "dense/bias": torch.tensor([bias], dtype=torch.float64),
        }
    )


def a_round(
    bench: Bench,
    strategy: DisPFL,
    state: DisPFLState,
    learner: Toy,
    heard: Mapping[PeerId, Payload] = {},
    hood: Neighbourhood = HOOD,
) -> DisPFLState:
    steps = strategy.round(state, learner, bench.links(hood))
    sent = coded(next(steps))
    read = {j: sent.read(j, payload) for j, payload in heard.items()}
    with pytest.raises(StopIteration) as end:
        steps.send(Inbox(hood, read))
    found: DisPFLState = end.value.value
    return found


def coded(sent: Sent) -> Coded:
    assert isinstance(sent, Coded)
    return sent


def lockstep(
    bench: Bench, strategy: DisPFL, learners: Sequence[Toy], graph: Graph, num_rounds: int
) -> list[DisPFLState]:
    """All peers with equal weights, every message through its code; returns their states."""
    hoods = [neighbour_mean(graph, me) for me in range(graph.num_peers)]
    states = [strategy.init(learner, seed=me) for me, learner in enumerate(learners)]
    for _ in range(num_rounds):
        going = [
            strategy.round(state, learner, bench.links(hood))
            for state, learner, hood in zip(states, learners, hoods, strict=True)
        ]
        sent = [coded(next(each)) for each in going]
        boxes = [{to: Payload(clone(p.tensors)) for to, p in each.outbox.items()} for each in sent]
        for me, (each, hood) in enumerate(zip(going, hoods, strict=True)):
            heard = {j: sent[me].read(j, boxes[j][me]) for j in hood.in_weights}
            with pytest.raises(StopIteration) as end:
                each.send(Inbox(hood, heard))
            states[me] = end.value.value
    return states


def ones(state: DisPFLState) -> list[int]:
    return [int(mask.sum()) for mask in state.masks.values()]


class TestDensities:
    def test_by_hand(self) -> None:
        """Sizes 20 + 10 of 200 weights and 2 + 10 of 20: factor 0.5 · 220 / 42."""
        weights = {"large": torch.zeros(20, 10), "small": torch.zeros(2, 10)}
        factor = 0.5 * 220 / 42
        found = kernel_densities(weights, 0.3)
        assert found["large"] == pytest.approx(0.6 * factor * 30 / 200)
        assert found["small"] == pytest.approx(0.6 * factor * 12 / 20)

    def test_what_would_be_above_1_is_dense_and_the_rest_makes_up_for_it(self) -> None:
        """Factor 0.5 · 220 / 42 would give the small tensor 1.57; 90 weights are then left."""
        weights = {"large": torch.zeros(20, 10), "small": torch.zeros(2, 10)}
        assert kernel_densities(weights, 0.5) == pytest.approx({"large": 90 / 200, "small": 1.0})

    @pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.8, 1.0])
    def test_the_share_of_all_weights_is_the_density(self, density: float) -> None:
        sizes = [(64, 3, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (192, 1024), (10, 192)]
        weights = {str(i): torch.empty(size, device="meta") for i, size in enumerate(sizes)}
        found = kernel_densities(weights, density)
        assert all(0 < each <= 1 for each in found.values())
        kept = sum(found[name] * x.numel() for name, x in weights.items())
        assert kept == pytest.approx(density * sum(x.numel() for x in weights.values()))


class TestRound:
    def test_means_are_taken_over_those_that_keep_a_weight(self, bench: Bench) -> None:
        """Half of 4 weights: own 0, 1; peer 0 has 1, 2 and peer 2 has 1, 3. No step worth it."""
        strategy = DisPFL(steps=1, lr=1e-12, prune=0.0)
        learner = small(bench, [[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
        state = begun(strategy, learner, [[True, True], [False, False]])
        heard = {0: message([6.0, 5.0], 0b0110, 2.0), 2: message([7.0, 9.0], 0b1010, 6.0)}
        a_round(bench, strategy, state, learner, heard)
        torch.testing.assert_close(
            learner.x["head"], torch.tensor([[1.0, 5.0], [0, 0]]).double(), rtol=0, atol=1e-9
        )
        assert learner.x["bias"].item() == pytest.approx(3.0)

    def test_a_lost_message_is_not_counted(self, bench: Bench) -> None:
        strategy = DisPFL(steps=1, lr=1e-12, prune=0.0)
        learner = small(bench, [[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
        state = begun(strategy, learner, [[True, True], [False, False]])
        a_round(bench, strategy, state, learner, {2: message([7.0, 9.0], 0b1010, 6.0)})
        assert learner.x["head"].tolist()[0] == pytest.approx([1.0, 4.5])
        assert learner.x["bias"].item() == pytest.approx(3.5)

    def test_steps_by_hand(self, bench: Bench) -> None:
        """Only kept weights move and decay; the bias moves; the third round's lr is lr · 0.5²."""
        strategy = DisPFL(
            steps=1, lr=0.4, lr_decay=0.5, weight_decay=0.1, clip_norm=math.inf, prune=0.0
        )
        learner = small(bench, [[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [0.0, 0.0]])
        state = begun(strategy, learner, [[True, False], [False, True]])
        a_round(bench, strategy, replace(state, rounds=2), learner)
        torch.testing.assert_close(
            learner.x["head"],
            torch.tensor([[1 - 0.1 * (-4 + 0.1), 0], [0, 4 - 0.1 * (4 + 0.4)]]).double(),
            rtol=1e-6,
            atol=0,
        )
        assert learner.x["bias"].item() == pytest.approx(1 - 0.1 * 1)

    @pytest.mark.parametrize(("clip_norm", "factor"), [(3.0, 3 / math.sqrt(27)), (6.0, 1.0)])
    def test_the_norm_is_clipped_before_the_mask(
        self, bench: Bench, clip_norm: float, factor: float
    ) -> None:
        """The gradient is (-4, 1, 0, -3) at (1, 0, 0, 4) and 1 for the bias: norm √27."""
        strategy = DisPFL(
            steps=1, lr=1.0, lr_decay=1.0, weight_decay=0.0, clip_norm=clip_norm, prune=0.0
        )
        learner = small(bench, [[1.0, 2.0], [3.0, 4.0]], [[5.0, -1.0], [0.0, 7.0]])
        state = begun(strategy, learner, [[True, False], [False, True]])
        a_round(bench, strategy, state, learner)
        assert learner.x["head"].flatten().tolist() == pytest.approx(
            [1 + 4 * factor, 0, 0, 4 + 3 * factor], rel=1e-5
        )
        assert learner.x["bias"].item() == pytest.approx(1 - factor, abs=1e-5)

    def test_peers_have_densities_in_turns_and_masks_of_their_own(self, bench: Bench) -> None:
        strategy = DisPFL(density=(0.2, 0.6), steps=1)
        learners = [bench.springs(SHAPES, i) for i in range(4)]
        states = lockstep(bench, strategy, learners, Ring(num_peers=4)(0), 1)
        assert [sum(ones(state)) for state in states] == [32, 96, 32, 96]
        assert ones(states[0]) == ones(states[2]) and ones(states[1]) == ones(states[3])
        assert not torch.equal(states[0].masks["body"], states[2].masks["body"])
        for state, learner in zip(states, learners, strict=True):
            assert all(bool((learner.x[n][~m] == 0).all()) for n, m in state.masks.items())
            assert strategy.report(state)["share/kept"] == sum(ones(state)) / 160

    def test_densities_may_differ_in_one_run_and_no_message_is_refused(self, bench: Bench) -> None:
        learners = [bench.springs(SHAPES, i) for i in range(5)]
        strategy = DisPFL(density=(0.2, 0.5, 1.0), steps=2, lr=0.3, prune_rounds=10)
        states = lockstep(bench, strategy, learners, Ring(num_peers=5)(0), 8)
        assert [sum(ones(state)) for state in states] == [32, 80, 160, 32, 80]

    def test_with_everything_kept_it_is_dpsgd(self, bench: Bench) -> None:
        """Equal weights; its rounds mix first, so the last training has no mixing after it."""
        graph, lr, steps = Ring(num_peers=5)(0), 0.2, 3
        strategy = DisPFL(
            density=1.0, steps=steps, lr=lr, lr_decay=1.0, weight_decay=0.0, clip_norm=math.inf
        )
        learners = [bench.springs(SHAPES, i) for i in range(5)]
        lockstep(bench, strategy, learners, graph, 6)
        others = [bench.springs(SHAPES, i) for i in range(5)]
        for round_ in range(6):
            if round_:
                models = [clone(each.x) for each in others]
                for me, each in enumerate(others):
                    near = [models[j] for j in (me, *graph.senders[me])]
                    each.params = {k: sum((m[k] for m in near), 0 * each.x[k]) / 3 for k in each.x}
            for each in others:
                for _ in range(steps):
                    each.params = tmap(lambda x, g: x - lr * g, each.x, each.grad(each.x))
        for one, two in zip(learners, others, strict=True):
            for name, x in one.x.items():
                torch.testing.assert_close(x, two.x[name], rtol=1e-12, atol=1e-13)


class TestSearch:
    def test_the_smallest_go_and_the_steepest_come(self, bench: Bench) -> None:
        """Of 4 kept weights half is dropped: 0.1 and -0.2; slopes elsewhere are 3, -9, 1, 5.

        Those of the dropped are 0.1 - 8 and -0.2: the first comes back, with its value.
        """
        strategy = DisPFL(prune=0.5, steps=1, lr=1e-12)
        learner = small(
            bench, [[1.0, 0.1, -0.2, 2.0], [0, 0, 0, 0]], [[1, 8, 0, 2], [-3, 9, -1, -5]]
        )
        state = begun(strategy, learner, [[True] * 4, [False] * 4])
        state = a_round(bench, strategy, state, learner)
        assert state.masks["head"].tolist() == [
            [True, True, False, True],
            [False, True, False, False],
        ]
        expected = torch.tensor([[1.0, 0.1, 0, 2.0], [0, 0, 0, 0]]).double()
        torch.testing.assert_close(learner.x["head"], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("rounds", "dropped"), [(1, 50), (51, 25), (101, 0), (400, 0)])
    def test_the_share_that_is_dropped_follows_the_cosine(
        self, bench: Bench, rounds: int, dropped: int
    ) -> None:
        """0.5, 0.25 and 0 of 100 weights after 0, T / 2 and T rounds; new places start from 0."""
        strategy = DisPFL(prune=0.5, prune_rounds=100, steps=1, lr=1e-12)
        mask = torch.arange(200).view(10, 20) % 2 == 0
        x = torch.linspace(1, 3, 200).double().view(10, 20) * mask
        learner = bench.pulled({"head": x.clone()}, {"head": x - 5.0 * ~mask})
        state = DisPFLState(masks={"head": mask}, seed=0, rounds=rounds)
        after = a_round(bench, strategy, state, learner).masks["head"]
        assert int(after.sum()) == 100
        assert int((mask & ~after).sum()) == dropped
        assert int((after & (learner.x["head"].abs() < 1e-6)).sum()) == dropped
        assert len(learner.asked) == 1 + (dropped > 0)

    @pytest.mark.parametrize("regrow", ["gradient", "random"])
    def test_counts_stay_and_masks_move(self, bench: Bench, regrow: str) -> None:
        strategy = DisPFL(
            density=0.3, regrow="random" if regrow == "random" else "gradient", steps=2, lr=0.1
        )
        learner = bench.springs(SHAPES, 1)
        state = strategy.init(learner, seed=9)
        seen = []
        for _ in range(6):
            state = a_round(bench, strategy, state, learner)
            seen.append(state)
        assert {tuple(ones(each)) for each in seen} == {tuple(ones(seen[0]))}
        assert sum(ones(seen[0])) == 48
        assert all(
            not torch.equal(old.masks["head"], new.masks["head"]) for old, new in pairwise(seen)
        )

    def test_random_places_ask_for_no_gradient_and_are_private(self, bench: Bench) -> None:
        strategy, found = DisPFL(regrow="random", steps=1, lr=1e-12), []
        for seed in (1, 1, 2):
            learner = small(bench, [[1.0] * 20, [2.0] * 20], [[0.0] * 20] * 2)
            state = replace(begun(strategy, learner, [[True] * 20, [False] * 20]), seed=seed)
            found.append(a_round(bench, strategy, state, learner).masks["head"])
            assert len(learner.asked) == 1
        assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])

    def test_without_pruning_masks_stay(self, bench: Bench) -> None:
        strategy, learner = DisPFL(prune=0.0, steps=1), bench.springs(SHAPES)
        first = a_round(bench, strategy, strategy.init(learner, 4), learner)
        second = a_round(bench, strategy, first, learner)
        assert all(torch.equal(m, second.masks[name]) for name, m in first.masks.items())


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (message([1.0, 2.0, 3.0], 0b0111, 1.0), r"expected torch.float64 \[2\]"),
        (message([1.0, 2.0], 0b0111, 1.0), r"\[3\] ones in the tensors, expected \[2\]"),
        (message([1.0, 2.0], 0b10000001, 1.0), "behind its 4 values"),
        (Payload({}), "missing"),
    ],
)
def test_messages_that_make_no_sense_are_refused(bench: Bench, payload: Payload, why: str) -> None:
    strategy, learner = DisPFL(), small(bench, [[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
    steps = strategy.round(strategy.init(learner, 0), learner, bench.links(HOOD))
    sent = coded(next(steps))
    with pytest.raises(WireError, match=why):
        sent.read(0, payload)


@pytest.mark.parametrize(
    "fields",
    [
        {"density": 0.0},
        {"density": ()},
        {"density": (0.5, 1.1)},
        {"prune": 1.0},
        {"prune_rounds": 0},
        {"steps": 0},
        {"lr": 0.0},
        {"lr_decay": 0.0},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        DisPFL(**fields)
