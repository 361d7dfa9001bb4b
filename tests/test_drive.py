"""One peer's loop over a blocking transport: the order of things, and who must be sent to."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from p2p_dml.drive import drive
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.learners import FunctionLearner
from p2p_dml.links import Walk
from p2p_dml.peer import PeerLoop, Plan
from p2p_dml.strategies import DPSGD
from p2p_dml.tensors import clone
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
    Tag,
    Tensors,
    outbox_of,
)

COMPLETE = Graph(((1, 2), (0, 2), (0, 1)))


def counting() -> FunctionLearner:
    """A learner whose parameter counts its trainings."""

    def train(module: nn.Module, round: int) -> float:
        next(module.parameters()).data.add_(1)
        return 0.0

    return FunctionLearner(nn.ParameterDict({"x": torch.zeros(1)}), train, peer=0)


@dataclass
class Echo:
    """A transport on which every neighbour sends back what it is sent; notes what is asked."""

    elastic: bool
    notes: list[str] = field(default_factory=list)
    last: Sent = field(default_factory=dict)

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self.notes.append("expect")

    def post(self, tag: Tag, sent: Sent) -> int:
        self.notes.append(f"post {tag.round}")
        self.last = sent
        return 0

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        self.notes.append(f"collect {tag.round}")
        outbox = outbox_of(self.last)
        return Mail({j: Payload(clone(outbox[j].tensors)) for j in senders if j in outbox})

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Forgetful:
    """Sends to peer 1 alone, whoever else awaits a message."""

    is_coded: bool = False
    needs: frozenset[Need] = frozenset()
    exchanges: int = 1

    def init(self, learner: Learner, seed: int) -> None:
        return None

    def round(self, state: None, learner: Learner, links: Links) -> Generator[Sent, Inbox, None]:
        outbox = {1: Payload(learner.params)}
        yield Coded(outbox, lambda sender, payload: payload) if self.is_coded else outbox

    def report(self, state: None) -> Mapping[str, float]:
        return {}


Kept = list[tuple[int, float]]


def _loop(strategy: AnyStrategy, kept: Kept | None = None) -> PeerLoop:
    def keep(round_: int, model: Tensors, state: object) -> None:
        if kept is not None:
            kept.append((round_, model["model/x"].item()))

    return PeerLoop(
        0,
        strategy,
        counting(),
        Walk(lambda tick: COMPLETE, metropolis, 0, 0, strategy.exchanges),
        Plan(rounds=3, seed=0),
        on_event=lambda event: None,
        save=lambda round, model, state: "",
        keep=keep,
    )


def test_rounds_go_one_after_another() -> None:
    transport, rounds = Echo(elastic=False), ["expect", "post {}", "collect {}", "mixed"]
    code = drive(_loop(DPSGD()), transport, 1.0, lambda: transport.notes.append("mixed"))
    assert code is ExitCode.DONE
    assert transport.notes == [note.format(round_) for round_ in (1, 2, 3) for note in rounds]


def test_the_run_can_be_stopped_between_rounds() -> None:
    loop, transport = _loop(DPSGD()), Echo(elastic=False)

    def stop() -> None:
        if loop.round == 2:
            loop.stop()

    assert drive(loop, transport, 1.0, stop) is ExitCode.STOPPED
    assert "post 3" not in transport.notes


def test_the_state_of_every_complete_round_is_kept() -> None:
    """The echo leaves the mean as it is: x counts the rounds."""
    kept: Kept = []
    drive(_loop(DPSGD(), kept), Echo(elastic=True), 1.0)
    assert kept == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("is_coded", [False, True])
def test_who_awaits_a_message_must_be_sent_one_unless_the_transport_is_elastic(
    is_coded: bool,
) -> None:
    assert drive(_loop(Forgetful(is_coded)), Echo(elastic=True), 1.0) is ExitCode.DONE
    rigid = Echo(elastic=False)
    with pytest.raises(ConfigError, match=r"peer 0, round 1, .* sends to peers \[1\].* \[1, 2\]"):
        drive(_loop(Forgetful(is_coded)), rigid, 1.0)
    assert rigid.notes == []
