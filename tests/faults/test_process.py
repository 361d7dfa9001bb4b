"""What is planned happens in its phase and round, once, and is told; the rest goes through.

Kills and stops are in tests/chaos: they need a process to befall.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.checkpoint import Checkpoint, checkpoint_file, save
from p2p_dml.errors import StorageError, TrainingError
from p2p_dml.events import Event, Injected
from p2p_dml.faults import Agenda, Fault
from p2p_dml.faults.process import Injector
from p2p_dml.learners import FunctionLearner
from p2p_dml.pace import VirtualClock
from p2p_dml.types import Mail, Outbox, Payload, PeerId, Sent, Tag, Tensors, outbox_of

ROUND = 4
OUTBOX: Outbox = {j: Payload({"x": torch.ones(1)}) for j in (1, 2, 3)}


class Wire:
    """A transport that keeps what is posted."""

    elastic = True

    def __init__(self) -> None:
        self.posted: list[Outbox] = []
        self.is_closed = False
        self.expected: set[PeerId] = set()

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self.expected |= set(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        self.posted.append(outbox_of(sent))
        return 10 * len(outbox_of(sent))

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        return Mail({}, num_bytes=len(senders))

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """An injector of one fault around a module, a transport and checkpoints."""

    def __init__(self, folder: Path, phase: str, kind: str, uses: int = 3) -> None:
        fault = {"place": 6, "round": ROUND, "phase": phase, "kind": kind, "for_s": 2.5}
        self.folder = folder
        self.events: list[Event] = []
        self.clock = VirtualClock()
        self.module = nn.Linear(1, 1)
        self.used_at: list[float] = []
        self._uses = uses
        inner = FunctionLearner(self.module, self._train, peer=0)
        agenda = Agenda((Fault(**fault),), folder / "no log")  # type: ignore[arg-type]
        faults = Injector(0, agenda, self.events.append, self.clock, inner)
        self.learner, self.wire, self.write = faults.learner, Wire(), faults.write
        self.transport = faults.transport(self.wire)

    def _train(self, module: nn.Module, round: int) -> float:
        for _ in range(self._uses):
            module(torch.ones(1))
            self.used_at.append(self.clock.now())
        return 0.5

    def round(self, round: int) -> None:
        """Train, post, collect and save as a round does."""
        self.learner.seek(round)
        self.learner.train()
        self.transport.post(Tag(round), OUTBOX)
        self.transport.collect(Tag(round), (1, 2), 1.0)
        self.save(round)

    def save(self, round: int) -> None:
        tensors: Mapping[str, Tensor] = self.learner.state()
        save(self.folder, Checkpoint(0, round, "", "", dict(tensors)), self.write)


@pytest.mark.parametrize("phase", ["train", "send", "mix", "checkpoint"])
def test_a_hang_takes_its_time_once_and_changes_nothing_else(tmp_path: Path, phase: str) -> None:
    bench = Bench(tmp_path, phase, "hang")
    for round_ in (3, 4, 5):
        bench.round(round_)
    assert bench.clock.now() == 2.5
    assert bench.events == [Injected(ROUND, phase, "hang", 6)]

    assert [peer for outbox in bench.wire.posted for peer in outbox] == [1, 2, 3] * 3
    files = [tmp_path / checkpoint_file(0, round_) for round_ in (3, 4, 5)]
    assert len({file.read_bytes()[-8:] for file in files}) == 1  # the same tensors, whole


@pytest.mark.parametrize(("uses", "at"), [(3, [0.0, 2.5, 2.5]), (1, [0.0]), (0, [])])
def test_training_is_hit_in_its_middle(tmp_path: Path, uses: int, at: list[float]) -> None:
    """At the second use of the model; if there is none, at the end."""
    bench = Bench(tmp_path, "train", "hang", uses)
    bench.round(ROUND)
    assert (bench.used_at, bench.clock.now()) == (at, 2.5)
    bench.round(ROUND + 1)
    assert bench.clock.now() == 2.5


@pytest.mark.parametrize(
    ("phase", "receivers"), [("train", []), ("send", [1, 2]), ("mix", [1, 2, 3])]
)
def test_an_exit_is_an_error_that_names_its_plan(
    tmp_path: Path, phase: str, receivers: list[PeerId]
) -> None:
    bench = Bench(tmp_path, phase, "exit")
    with pytest.raises(TrainingError, match=r"peer 0, round 4: .*ended as faults\[6\] plans it"):
        bench.round(ROUND)
    assert [peer for outbox in bench.wire.posted for peer in outbox] == receivers


def test_half_of_the_receivers_are_sent_to_before_and_bytes_add_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "send", "hang")
    bench.learner.seek(ROUND)
    assert bench.transport.post(Tag(ROUND), OUTBOX) == 30
    assert [list(outbox) for outbox in bench.wire.posted] == [[1, 2], [3]]


def test_a_model_that_becomes_nan_is_sent_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "train", "nan")
    bench.round(ROUND)
    assert all(x.isnan().all() for x in bench.learner.params.values())


def test_messages_that_become_nan_leave_the_model_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "send", "nan")
    bench.round(ROUND)
    (outbox,) = bench.wire.posted
    assert [x.tensors["x"].isnan().item() for x in outbox.values()] == [True] * 3
    assert all(x.isfinite().all() for x in bench.learner.params.values())


@pytest.mark.parametrize(
    ("kind", "number"), [("full_disk", errno.ENOSPC), ("read_only", errno.EROFS)]
)
def test_a_disk_that_takes_nothing_is_a_storage_error_and_leaves_what_was(
    tmp_path: Path, kind: str, number: int
) -> None:
    bench = Bench(tmp_path, "checkpoint", kind)
    bench.round(ROUND - 1)
    with pytest.raises(StorageError, match=rf"round 4: cannot write .*\[Errno {number}\]"):
        bench.round(ROUND)
    folder = (tmp_path / checkpoint_file(0, ROUND)).parent
    assert [file.name for file in folder.iterdir()] == ["round-000003.safetensors"]


def test_all_else_is_the_learners_and_the_transports_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "train", "hang")
    bench.learner.seek(2)
    new: Tensors = {name: torch.full_like(x, 7.0) for name, x in bench.learner.params.items()}
    bench.learner.params = new
    assert bench.module.weight.item() == bench.module.bias.item() == 7.0
    assert bench.learner.round == 2
    assert (bench.learner.parts.keys(), bench.learner.metrics) == (new.keys(), {})
    assert bench.learner.evaluate().accuracy is None
    saved = bench.learner.state()
    bench.module.weight.data.zero_()
    bench.learner.load_state(saved)
    assert bench.module.weight.item() == 7.0
    with pytest.raises(TrainingError, match="asks for gradients"):
        bench.learner.grad(new)
    bench.transport.expect([4])
    bench.transport.close()
    assert (bench.transport.elastic, bench.wire.expected, bench.wire.is_closed) == (True, {4}, True)
