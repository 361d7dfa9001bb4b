"""Models that are mixed a round after they were sent: by hand, conserved sums, limits, who may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.assemble import blueprint
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.checks import check_needs
from p2p_dml.config import parse
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.events import Event, Isolated, RoundDone, Skipped
from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.kernels.mixing import metropolis, mixing_matrix
from p2p_dml.learners import FunctionLearner
from p2p_dml.links import Walk
from p2p_dml.links.random import ErdosRenyi
from p2p_dml.links.static import Ring
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.overlap import Overlap, UnderWay
from p2p_dml.pace import Slowness, VirtualClock
from p2p_dml.peer import PeerLoop, Plan
from p2p_dml.simulate import lockstep
from p2p_dml.states import leaves, outline
from p2p_dml.strategies import DPSGD, STRATEGIES, HyperPrism
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import (
    AnyStrategy,
    Coded,
    Graph,
    LinkSchedule,
    Mail,
    Message,
    Neighbourhood,
    Payload,
    Tag,
    Tensors,
    outbox_of,
)

STAR = Graph(((1, 2, 3), (0,), (0,), (0,)))
TRIANGLE_AND_TAIL = Graph(((1, 2), (0, 2), (0, 1, 3), (2,)))
PLAIN = ("dpsgd", "hyperprism", "dfedavgm")
"""Who may; all others have a reason not to."""


class Peers:
    """Peers of given numbers, each adding `step` to its own in a round, and what came of it."""

    def __init__(
        self,
        models: Sequence[float],
        schedule: LinkSchedule,
        rounds: int,
        *,
        step: float = 0.0,
        overlap: bool = True,
        strategy: AnyStrategy | None = None,
        round_s: float = 0.0,
    ) -> None:
        self.models: list[list[float]] = [[x] for x in models]
        self.events: list[list[Event]] = [[] for _ in models]
        self.clocks = [VirtualClock() for _ in models]
        hub = Hub()
        learners: list[FunctionLearner] = []
        loops: list[PeerLoop] = []
        for me, x in enumerate(models):
            module = nn.ParameterDict({"x": torch.tensor([x], dtype=torch.float64)})

            def train(module: nn.Module, round: int) -> float:
                with torch.no_grad():
                    module["x"].add_(step)  # type: ignore[index]
                return 0.0

            learner = FunctionLearner(module, train, peer=me)
            plan = Plan(
                rounds=rounds,
                seed=me,
                overlap=overlap,
                evaluate_every=0,
                slowness=Slowness(factor=1.0, round_s=round_s),
            )

            def keep(round: int, model: Tensors, state: object, me: int = me) -> None:
                self.models[me].append(learners[me].params["x"].item())

            learners.append(learner)
            chosen = strategy or DPSGD()
            loops.append(
                PeerLoop(
                    me,
                    chosen,
                    learner,
                    Walk(schedule, metropolis, me, 0, chosen.exchanges),
                    plan,
                    on_event=self.events[me].append,
                    save=lambda round, model, state: "",
                    keep=keep,
                    clock=self.clocks[me],
                )
            )
        transports = [MemoryTransport(me, hub) for me in range(len(models))]
        assert lockstep(loops, transports, self.clocks) == [ExitCode.DONE] * len(models)

    @property
    def history(self) -> Tensor:
        """[rounds + 1, peers], what the models were after each round."""
        return torch.tensor(self.models, dtype=torch.float64).T


def matrix(graph: Graph) -> Tensor:
    return torch.as_tensor(mixing_matrix(graph, metropolis), dtype=torch.float64)


def by_hand(models: Sequence[float], schedule: LinkSchedule, rounds: int, step: float) -> Tensor:
    """The recursion itself: x(r) = diag(W) x'(r) + (W - diag(W)) x'(r - 1), W that of r - 1."""
    x = torch.tensor(models, dtype=torch.float64)
    history, before = [x], None
    for r in range(1, rounds + 1):
        trained = x = x + step
        if before is not None:
            w = matrix(schedule(r - 2))  # round 1 has tick 0
            x = w.diag() * trained + (w - w.diag().diag()) @ before
        before = trained
        history.append(x)
    return torch.stack(history)


@pytest.mark.parametrize("schedule", [lambda tick: STAR, Ring(num_peers=4)])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_models_are_those_of_the_recursion(schedule: LinkSchedule, step: float) -> None:
    models = [1.0, -2.0, 7.0, 3.0]
    found = Peers(models, schedule, 12, step=step).history
    torch.testing.assert_close(found, by_hand(models, schedule, 12, step), rtol=1e-13, atol=1e-13)


def test_links_that_are_redrawn_are_those_of_the_round_before() -> None:
    schedule = ErdosRenyi(num_peers=6, seed=5, density=0.4)
    assert len({schedule(tick) for tick in range(8)}) > 5
    models = [float(x) for x in range(6)]
    found = Peers(models, schedule, 8, step=0.25).history
    torch.testing.assert_close(found, by_hand(models, schedule, 8, 0.25), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("graph", [STAR, TRIANGLE_AND_TAIL, Ring(num_peers=4)(0)])
def test_a_sum_never_changes_and_says_where_all_models_go(graph: Graph) -> None:
    """sum_i [x_i(r) + sum_j w_ij x_j(r - 1)], j not i; in the limit (2 - w_ii) weigh the models."""
    models = torch.tensor([4.0, -1.0, 2.0, 9.0], dtype=torch.float64)
    found = Peers(models.tolist(), lambda tick: graph, 400).history
    w = matrix(graph)
    others = w - w.diag().diag()
    sums = (found[1:] + found[:-1] @ others.T).sum(1)
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-12, atol=1e-12)
    weights = 2 - w.diag()
    limit = (weights * models).sum() / weights.sum()
    torch.testing.assert_close(found[-1], limit.expand(4), rtol=1e-9, atol=1e-9)
    is_regular = len(set(w.diag().tolist())) == 1
    assert torch.isclose(limit, models.mean()).item() == is_regular


@pytest.mark.parametrize("graph", [STAR, Ring(num_peers=4)(0), Ring(num_peers=9)(0)])
def test_training_counts_for_less(graph: Graph) -> None:
    """A step of every peer moves the sum by n steps, and models by n / sum_i (2 - w_ii) of one."""
    count = graph.num_peers
    found = Peers([0.0] * count, lambda tick: graph, 400, step=0.5).history
    speed = 0.5 * count / (2 - matrix(graph).diag()).sum()
    torch.testing.assert_close(found[-1] - found[-2], speed.expand(count), rtol=1e-9, atol=1e-9)


def test_equal_models_stay_what_they_are_as_without_overlap() -> None:
    still = [Peers([3.0] * 4, lambda tick: STAR, 9, overlap=o).history for o in (False, True)]
    assert torch.equal(*still)


def test_nothing_is_mixed_in_the_first_round_and_nobody_is_isolated() -> None:
    peers = Peers([1.0, 2.0, 3.0, 4.0], lambda tick: STAR, 3)
    assert peers.history[1].tolist() == [1.0, 2.0, 3.0, 4.0]
    for events, degree in zip(peers.events, (3, 1, 1, 1), strict=True):
        assert not any(isinstance(each, Isolated) for each in events)
        rounds = [each for each in events if isinstance(each, RoundDone)]
        assert [each.neighbours for each in rounds] == [0, degree, degree]
        assert [each.age for each in rounds] == [None, 1.0, 1.0]
        assert not any(each.missing or each.late or each.lost_weight for each in rounds)


def test_hyperprism_of_degree_1_is_dpsgd_bit_for_bit() -> None:
    schedule = ErdosRenyi(num_peers=5, seed=1, density=0.5)
    models = [0.1, 0.7, -0.3, 2.9, 0.01]
    runs = [
        Peers(models, schedule, 9, step=0.3, strategy=strategy).history
        for strategy in (DPSGD(), HyperPrism(degree=1.0))
    ]
    assert torch.equal(*runs)


def test_clocks_wait_for_what_was_posted_a_round_ago() -> None:
    """Peers of equal pace never wait: the models of the last round have long been posted."""
    peers = Peers([1.0, 2.0, 3.0, 4.0], lambda tick: STAR, 5, round_s=2.0)
    assert [clock.now() for clock in peers.clocks] == [10.0] * 4


# ---- one loop, driven by hand -----------------------------------------------------------------


def loop(
    start: Checkpoint | None = None, strategy: AnyStrategy | None = None, rounds: int = 9
) -> tuple[PeerLoop, list[Event], list[tuple[Tensors, object]]]:
    """Peer 0 of three that all hear each other; its events, and what it saves."""
    events: list[Event] = []
    saved: list[tuple[Tensors, object]] = []
    complete = Graph(((1, 2), (0, 2), (0, 1)))
    learner = FunctionLearner(nn.ParameterDict({"x": torch.zeros(1)}), lambda m, round: 0.0, peer=0)

    def save(round: int, model: Tensors, state: object) -> str:
        saved.append((model, state))
        return ""

    made = PeerLoop(
        0,
        strategy or DPSGD(),
        learner,
        Walk(lambda tick: complete, metropolis, 0, 0, 1),
        Plan(rounds=rounds, seed=0, overlap=True, evaluate_every=0, checkpoint_every=1),
        on_event=events.append,
        save=save,
        start=start,
        clock=VirtualClock(),
    )
    return made, events, saved


def exchanges(made: PeerLoop, *mails: Mail) -> list[Exchange]:
    """What the loop asks for while it is answered by these mails."""
    found: list[Exchange] = []
    steps, answers, delivery = made.run(), list(mails), None
    while True:
        try:
            step = steps.send(delivery)
        except StopIteration:
            return found
        delivery = None
        if step is not None:
            if not answers:
                return found
            found.append(step)
            answer = answers.pop(0)
            heard = {j: x for j, x in answer.on_time.items() if j in step.senders}
            delivery = Delivery(replace(answer, on_time=heard), 0)


def mail(value: float, **rest: Any) -> Mail:
    return Mail({j: Payload({"x": torch.tensor([value])}) for j in (1, 2)}, **rest)


def test_what_is_posted_and_what_is_awaited() -> None:
    made, _, _ = loop()
    found = exchanges(made, *[mail(1.0)] * 3)
    assert [(e.tag, e.receivers, e.awaited, e.senders) for e in found] == [
        (Tag(1), (1, 2), Tag(0), ()),
        (Tag(2), (1, 2), Tag(1), (1, 2)),
        (Tag(3), (1, 2), Tag(2), (1, 2)),
    ]


def test_in_the_last_round_nothing_is_sent() -> None:
    """Nobody would mix it; a run that is made longer has it in its checkpoints."""
    made, _, saved = loop(rounds=2)
    found = exchanges(made, Mail({}), mail(3.0))
    assert [list(outbox_of(e.sent)) for e in found] == [[1, 2], []]
    state = saved[1][1]
    assert isinstance(state, UnderWay) and list(state.outbox) == [1, 2]


@pytest.mark.parametrize(
    ("ahead", "rounds", "skipped"),
    [
        (0, [1, 2, 3, 4], None),
        (4, [1, 2, 3, 4], None),  # two ahead is how it is between neighbours
        (5, [1, 2, 4, 5], (3, 3)),
        (8, [1, 2, 7, 8], (3, 6)),
        (99, [1, 2, 8, 9], (3, 7)),
    ],
)
def test_who_was_out_of_reach_goes_on_where_its_messages_are_awaited(
    ahead: int, rounds: list[int], skipped: tuple[int, int] | None
) -> None:
    made, events, _ = loop()
    found = exchanges(made, Mail({}), mail(1.0, ahead=ahead), mail(1.0), mail(1.0))
    assert [e.tag.round for e in found] == rounds
    told = [(each.first, each.last) for each in events if isinstance(each, Skipped)]
    assert told == ([skipped] if skipped else [])
    if skipped:  # of the round before it was told nothing, and asks for nothing
        assert found[2].senders == () and found[3].senders == (1, 2)


def test_a_checkpoint_holds_what_is_under_way_and_it_is_sent_again() -> None:
    made, _, saved = loop(rounds=3)
    exchanges(made, Mail({}), mail(3.0), mail(6.0))
    model, state = saved[1]
    # Round 2: a third of 0 and two of 3; what went out before is still 0.
    assert model["model/x"].item() == pytest.approx(2.0)
    held = leaves(state, "strategy")
    assert held["strategy/tensors/0/x"].item() == 0.0
    start = Checkpoint(0, 2, "", "", model | held, outline(state, "strategy"))
    again, _, _ = loop(start, rounds=3)
    first, second = exchanges(again, Mail({}), mail(6.0))
    assert (first.tag, first.receivers, first.senders) == (Tag(2), (1, 2), ())
    assert {j: p.tensors["x"].item() for j, p in outbox_of(first.sent).items()} == {1: 0.0, 2: 0.0}
    assert (second.tag, second.awaited, second.senders) == (Tag(3), Tag(2), (1, 2))


def test_who_comes_into_a_run_under_way_sends_nothing_of_old_rounds() -> None:
    made, _, saved = loop(rounds=3)
    exchanges(made, Mail({}), mail(3.0), mail(6.0))
    model, state = saved[0]
    start = Checkpoint(0, 1, "", "", model | leaves(state, "strategy"), outline(state, "strategy"))
    made, _, _ = loop()
    made.enter(6, start)
    found = exchanges(made, Mail({}), mail(1.0))
    assert [(e.tag, e.senders) for e in found] == [(Tag(6), ()), (Tag(7), (1, 2))]


def test_each_receiver_gets_again_what_it_was_sent() -> None:
    shared = Payload({"x": torch.ones(2)}, {"weight": 0.5})
    sent = {1: shared, 4: Payload({"x": torch.zeros(2)}), 6: shared}
    overlap = Overlap(0)
    overlap.turn(Tag(3), Neighbourhood(0, 1.0, {}, {}), sent)
    shared.tensors["x"].fill_(9.0)
    again = overlap.held(None).outbox
    assert list(again) == [1, 4, 6] and again[1] is again[6]
    assert again[1].tensors["x"].tolist() == [1.0, 1.0] and again[1].scalars == {"weight": 0.5}
    assert again[4].tensors["x"].tolist() == [0.0, 0.0]


def test_a_strategy_that_reads_by_what_it_sends_is_told() -> None:
    with pytest.raises(ConfigError, match="peer 2, round 5: overlap = true mixes messages a round"):
        Overlap(2).turn(
            Tag(5), Neighbourhood(2, 1.0, {}, {}), Coded({}, lambda sender, payload: payload)
        )


# ---- who may ----------------------------------------------------------------------------------


def parts(strategy: object, **changes: object) -> Any:
    tables = {"peers": 4, "rounds": 2, "links": "complete", "strategy": strategy, "overlap": True}
    mixing = "push_uniform" if strategy == "sgp" else "metropolis"
    return blueprint(parse({**tables, "mixing": mixing, **changes}, Path()))


@pytest.mark.parametrize("name", PLAIN)
def test_who_may_overlap(name: str) -> None:
    check_needs(parts(name))


@pytest.mark.parametrize(
    "strategy",
    [*sorted(set(STRATEGIES) - {*PLAIN}), {"name": "dfedavgm", "bits": 8}],
    ids=str,
)
def test_who_may_not_is_told_why_and_what_to_do(strategy: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_needs(parts(strategy))
    for said in ("overlap: strategy", "cannot mix messages", "because", "leave it out", "dpsgd"):
        assert said in str(caught.value)
    check_needs(parts(strategy, overlap=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pace": "asynchronous"}, r"overlap: asynchronous rounds wait for nobody.*leave it out"),
        ({"transport": {"queue_messages": 1}}, r"queue_messages: expected at least 2.*found 1"),
    ],
)
def test_what_else_does_not_go_with_it(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_needs(parts("dpsgd", **changes))


def test_a_mailbox_keeps_the_messages_of_two_more_rounds() -> None:
    for overlap, kept in ((False, 4), (True, 6)):
        mailbox = parts("dpsgd", overlap=overlap).mailbox(4)
        assert isinstance(mailbox, TaggedMailbox)
        refused = [mailbox.put(Message(1, Tag(r), Payload({})), 0) for r in range(1, 9)]
        assert [why is None for why in refused] == [True] * kept + [False] * (8 - kept)


def test_runs_with_and_without_are_different_runs() -> None:
    assert parts("dpsgd").config.canonical() != parts("dpsgd", overlap=False).config.canonical()
