"""The loop of one peer, driven by hand: isolation, durations, slowness."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.checkpoint import Checkpoint
from p2p_dml.errors import ConfigError, ExitCode, IsolationError, TrainingError, WireError
from p2p_dml.events import Evaluated, Event, Isolated, Rejected, RoundDone, Skipped
from p2p_dml.exchange import Delivery
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.learners import FunctionLearner
from p2p_dml.links import Walk
from p2p_dml.pace import Slowness, VirtualClock
from p2p_dml.peer import PeerLoop, Plan
from p2p_dml.strategies import DPSGD, SGP, Local
from p2p_dml.types import (
    AnyStrategy,
    Coded,
    Graph,
    Inbox,
    Learner,
    Links,
    Mail,
    Need,
    Payload,
    PeerId,
    Sent,
)


class Driven:
    """Peer 0 of three that all hear each other, with every delivery made by the test."""

    def __init__(
        self,
        plan: Plan,
        strategy: AnyStrategy | None = None,
        *,
        work_s: float = 0.0,
        start: Checkpoint | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.clock = VirtualClock()
        complete = Graph(((1, 2), (0, 2), (0, 1)))
        chosen = strategy or DPSGD()

        def train(module: nn.Module, round: int) -> float:
            self.clock.sleep(work_s)
            return 0.0

        self.learner = FunctionLearner(nn.ParameterDict({"x": torch.zeros(1)}), train, peer=0)
        self.loop = PeerLoop(
            0,
            chosen,
            self.learner,
            Walk(lambda tick: complete, metropolis, 0, 0, chosen.exchanges),
            plan,
            on_event=self.events.append,
            save=lambda round, model, state: "",
            start=start,
            clock=self.clock,
        )

    def run(self, *mails: Mail) -> ExitCode | None:
        """Answer exchanges by `mails`, the last one again and again; the exit code."""
        waiting = list(mails)
        steps = self.loop.run()
        delivery = None
        while True:
            try:
                exchange = steps.send(delivery)
            except StopIteration as end:
                code: ExitCode = end.value
                return code
            delivery = None
            if exchange is not None:
                mail = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                delivery = Delivery(mail, 0)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


def mail(*senders: int, silent: int = 0, value: float = 1.0) -> Mail:
    payload = Payload({"x": torch.full((1,), value)}, {"weight": 1.0})
    return Mail(dict.fromkeys(senders, payload), silent=silent)


NOBODY = mail()


def test_who_waits_and_hears_nobody_is_isolated_also_if_they_are_connected() -> None:
    driven = Driven(Plan(rounds=9, seed=0, max_isolated_rounds=3))
    with pytest.raises(IsolationError, match="round 3: heard 0 neighbours"):
        driven.run(mail(silent=2))
    assert driven.count(Isolated) == 3


@pytest.mark.parametrize(
    ("min_neighbours", "silent", "is_isolated"), [(1, 2, False), (1, 0, True), (2, 1, True)]
)
def test_who_waits_for_nobody_is_isolated_when_too_few_may_still_come(
    min_neighbours: int, silent: int, is_isolated: bool
) -> None:
    plan = Plan(rounds=5, seed=0, waits=False, min_neighbours=min_neighbours, max_isolated_rounds=3)
    driven = Driven(plan)
    if is_isolated:
        with pytest.raises(IsolationError):
            driven.run(mail(silent=silent))
    else:
        assert driven.run(mail(silent=silent)) is ExitCode.DONE
        assert driven.count(Isolated) == 0


@pytest.mark.parametrize(
    ("ahead", "rounds", "skipped"),
    [
        (0, [1, 2, 3, 4, 5, 6, 7, 8, 9], None),
        (2, [1, 2, 3, 4, 5, 6, 7, 8, 9], None),  # one ahead is how it is between neighbours
        (6, [1, 6, 7, 8, 9], (2, 5)),
        (99, [1, 9], (2, 8)),
    ],
)
def test_who_was_out_of_reach_goes_on_in_the_round_of_the_others(
    ahead: int, rounds: list[int], skipped: tuple[int, int] | None
) -> None:
    driven = Driven(Plan(rounds=9, seed=0))
    assert driven.run(replace(mail(1), ahead=ahead), mail(1, 2)) is ExitCode.DONE
    assert [each.round for each in driven.events if isinstance(each, RoundDone)] == rounds
    found = [(each.first, each.last) for each in driven.events if isinstance(each, Skipped)]
    assert found == ([skipped] if skipped else [])


def test_an_isolated_round_is_local_but_for_messages_that_must_be_counted() -> None:
    """One neighbour is heard where two are asked for: D-PSGD ignores it, push-sum may not."""
    plan = Plan(rounds=1, seed=0, waits=False, min_neighbours=2)
    mixing, pushing = Driven(plan), Driven(plan, SGP())
    for driven in (mixing, pushing):
        assert driven.run(mail(1)) is ExitCode.DONE
        assert driven.count(Isolated) == 1
    assert mixing.learner.params["x"].item() == 0.0
    # w = 1/3 kept + 1 heard, x = 0 + 1: z = 1 / (4/3).
    assert pushing.learner.params["x"].item() == pytest.approx(0.75)


@pytest.mark.parametrize(("duration_s", "rounds"), [(0.5, 1), (2.0, 1), (2.1, 2), (100.0, 5)])
def test_a_run_ends_after_the_round_in_which_its_time_is_over(
    duration_s: float, rounds: int
) -> None:
    driven = Driven(Plan(rounds=5, seed=0, duration_s=duration_s), Local(), work_s=2.0)
    assert driven.run(NOBODY) is ExitCode.DONE
    assert driven.count(RoundDone) == rounds
    assert driven.clock.now() == 2.0 * rounds


@pytest.mark.parametrize(("work_s", "seconds"), [(0.0, 6.0), (2.0, 6.0), (4.0, 12.0)])
@pytest.mark.parametrize("strategy", [Local(), DPSGD()])
def test_slowness_is_training_time(strategy: AnyStrategy, work_s: float, seconds: float) -> None:
    slowness = Slowness(factor=3.0, round_s=2.0)
    driven = Driven(Plan(rounds=2, seed=0, slowness=slowness), strategy, work_s=work_s)
    driven.run(mail(1, 2))
    trained = [event.seconds["train"] for event in driven.events if isinstance(event, RoundDone)]
    assert trained == [seconds, seconds]


@dataclass(frozen=True)
class Signed:
    """Sends nothing; adds up the absolute values that it hears and refuses what is below 0."""

    needs: frozenset[Need] = frozenset()
    exchanges: int = 1

    def init(self, learner: Learner, seed: int) -> None:
        return None

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Sent, Inbox, None]:
        inbox = yield Coded({}, self._read)
        for payload in inbox.messages.values():
            learner.params["x"].add_(payload.tensors["absolute"])

    def report(self, state: None) -> Mapping[str, float]:
        return {}

    def _read(self, sender: PeerId, payload: Payload) -> Payload:
        if payload.tensors["signed"].item() < 0:
            raise WireError(f"below 0 from {sender}")
        return Payload({"absolute": payload.tensors["signed"].abs()})


def test_a_coded_message_is_read_as_the_strategy_says_and_missing_if_it_cannot_be() -> None:
    driven = Driven(Plan(rounds=1, seed=0), Signed())
    given = {j: Payload({"signed": torch.tensor([x])}) for j, x in ((1, 3.0), (2, -5.0))}
    assert driven.run(Mail(given)) is ExitCode.DONE
    assert driven.learner.params["x"].item() == 3.0
    refused = [event for event in driven.events if isinstance(event, Rejected)]
    assert [(each.sender, each.why) for each in refused] == [(2, "below 0 from 2")]
    assert [e.missing for e in driven.events if isinstance(e, RoundDone)] == [[2]]


class Careless(Signed):
    """Adds up in the memory of what it received."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Sent, Inbox, None]:
        inbox = yield links.now.broadcast(Payload(learner.params))
        inbox.messages[2].tensors["x"].add_(1.0)


def test_a_strategy_that_changes_what_it_received_is_told() -> None:
    driven = Driven(Plan(rounds=1, seed=0), Careless())
    mail = Mail({j: Payload({"x": torch.zeros(1)}) for j in (1, 2)})
    with pytest.raises(ConfigError, match=r"peer 0, round 1: .* changed tensor 'x' of peer 2"):
        driven.run(mail)


class Diverging(Signed):
    """Finds that its numbers are none any more."""

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Sent, Inbox, None]:
        yield links.now.broadcast(Payload(learner.params))
        raise FloatingPointError("body.weight: not all numbers")


def test_numbers_that_are_none_any_more_end_the_run_with_peer_and_round() -> None:
    driven = Driven(Plan(rounds=1, seed=0), Diverging())
    with pytest.raises(TrainingError, match=r"^peer 0, round 1: body\.weight: not all numbers; .*"):
        driven.run(Mail({}))


# ---- going on from a checkpoint ---------------------------------------------------------------


def _start(outline: str | None, **tensors: Tensor) -> Checkpoint:
    return Checkpoint(
        0, 4, "", "", {name.replace("_", "/"): x for name, x in tensors.items()}, outline
    )


def test_who_goes_on_begins_after_the_round_of_its_checkpoint() -> None:
    start = _start("null", model_x=torch.full((1,), 5.0))
    driven = Driven(Plan(rounds=6, seed=0, evaluate_every=2), Local(), start=start)
    assert driven.loop.round == 4
    assert driven.run(NOBODY) is ExitCode.DONE
    evaluated = [event.round for event in driven.events if isinstance(event, Evaluated)]
    done = [event.round for event in driven.events if isinstance(event, RoundDone)]
    assert (evaluated, done) == ([4, 6], [5, 6])
    assert driven.learner.params["x"].item() == 5.0


@pytest.mark.parametrize(("every", "expected"), [(0, [3]), (1, [0, 1, 2, 3]), (2, [0, 2, 3])])
def test_models_are_evaluated_before_the_first_round_too_unless_at_the_end_only(
    every: int, expected: list[int]
) -> None:
    driven = Driven(Plan(rounds=3, seed=0, evaluate_every=every), Local())
    driven.run(NOBODY)
    assert [event.round for event in driven.events if isinstance(event, Evaluated)] == expected


def test_an_evaluation_that_was_due_at_the_end_only_is_not_done_again() -> None:
    start = _start("null", model_x=torch.zeros(1))
    driven = Driven(Plan(rounds=6, seed=0, evaluate_every=3), Local(), start=start)
    driven.run(NOBODY)
    assert [event.round for event in driven.events if isinstance(event, Evaluated)] == [6]


def test_without_rounds_to_do_nothing_is_saved() -> None:
    start = _start("null", model_x=torch.zeros(1))
    driven = Driven(Plan(rounds=4, seed=0, evaluate_every=0), Local(), start=start)
    assert driven.run(NOBODY) is ExitCode.DONE
    assert driven.events == []


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (_start(None, model_x=torch.zeros(1)), "its checkpoint is too old"),
        (_start("null", model_y=torch.zeros(1)), "does not fit the model"),
        (
            _start(
                '["class","SGPState",["weight","float"],["sums","null"]]', model_x=torch.zeros(1)
            ),
            "strategy/weight: missing",
        ),
        (
            _start('["class","Other",["weight","float"]]', model_x=torch.zeros(1)),
            "strategy: found a Other and cannot tell which class that is",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_named(start: Checkpoint, message: str) -> None:
    driven = Driven(Plan(rounds=6, seed=0), SGP(), start=start)
    with pytest.raises(ConfigError, match=f"peer 0, .*round 4: .*{message}"):
        driven.run(NOBODY)
