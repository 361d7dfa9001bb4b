"""When a peer is held to hang, what it says then, and that it ends if it shall."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from p2p_dml.config import WatchdogConfig
from p2p_dml.errors import ExitCode, StorageError
from p2p_dml.events import Event, Finished, Memory, Stuck
from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.peer import LocalLearner, Metrics
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import Part, Payload, PeerId, Tag, Tensors
from p2p_dml.watchdog import Phase, Watchdog

STEP_S, STORAGE_S = 10.0, 4.0
NOTHING = Memory(0, 0.0, 0.0)


@dataclass
class Scene:
    """A watchdog with a clock of its own; `events` are those written, `ends` its last words."""

    action: Literal["report", "end"] = "report"
    now: float = 100.0
    events: list[Event] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def watchdog(self) -> Watchdog:
        config = WatchdogConfig(step_s=STEP_S, storage_s=STORAGE_S, action=self.action)
        return Watchdog(3, config, self.events.append, lambda: self.now, self.ends.append)


@pytest.mark.parametrize(
    ("phase", "seconds", "is_told"),
    [
        ("train", 10.0, False),
        ("train", 10.5, True),
        ("send", 10.5, True),
        ("evaluate", 10.5, True),
        ("mix", 10.5, True),
        ("checkpoint", 4.0, False),
        ("checkpoint", 4.5, True),
        ("log", 4.5, True),
        ("wait", 1e6, False),
    ],
)
def test_a_phase_that_lasts_too_long_is_told_once_and_when_it_is_over(
    phase: Phase, seconds: float, is_told: bool
) -> None:
    scene = Scene()
    dog = scene.watchdog()
    dog.seek(7)
    with dog.during(phase):
        scene.now += seconds
        dog.look()
        dog.look()
        told = [Stuck(7, phase, seconds)] if is_told else []
        assert scene.events == told
        scene.now += 2.0
    over = [Stuck(7, phase, seconds + 2.0, is_over=True)] if is_told else []
    assert scene.events == told + over
    assert scene.ends == []


def test_what_is_between_the_phases_is_mixing_and_judged_from_the_last_one_on() -> None:
    scene = Scene()
    dog = scene.watchdog()
    for _ in range(3):
        scene.now += 6.0
        with dog.during("wait"):
            scene.now += 1e3
        dog.look()
    assert scene.events == []
    scene.now += 11.0
    dog.look()
    with dog.during("send"):
        pass
    assert scene.events == [Stuck(0, "mix", 11.0), Stuck(0, "mix", 11.0, is_over=True)]


def test_an_event_written_on_the_way_does_not_hide_what_it_is_written_in() -> None:
    scene = Scene()
    dog = scene.watchdog()
    with dog.during("train"):
        scene.now += 6.0
        dog.log(NOTHING)
        scene.now += 6.0
        dog.look()
    assert scene.events[1:] == [Stuck(0, "train", 12.0), Stuck(0, "train", 12.0, is_over=True)]


def test_a_phase_that_is_told_again_is_told_of_each() -> None:
    scene = Scene()
    dog = scene.watchdog()
    for _ in range(2):
        with dog.during("train"):
            scene.now += 11.0
            dog.look()
    assert [event.is_over for event in scene.events if isinstance(event, Stuck)] == [
        *(False, True, False, True)
    ]


def test_a_peer_that_is_to_end_says_why_and_with_which_code() -> None:
    scene = Scene(action="end")
    dog = scene.watchdog()
    dog.seek(2)
    with dog.during("train"):
        scene.now += 11.0
        dog.look()
    stuck, finished, _ = scene.events
    assert stuck == Stuck(2, "train", 11.0)
    assert isinstance(finished, Finished)
    assert (finished.round, finished.exit_code) == (2, ExitCode.STUCK)
    assert scene.ends == [finished.error]
    assert "peer 3, round 2: stuck in 'train' for 11.0 s, watchdog.step_s = 10" in scene.ends


def test_a_log_that_hangs_is_told_where_errors_go(capfd: pytest.CaptureFixture[str]) -> None:
    """A pipe that nobody reads, as a disk that takes nothing more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 65536)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    scene = Scene()
    begun = threading.Event()

    def report(event: Event) -> None:
        begun.set()
        if isinstance(event, Memory):
            os.write(writing, b"line")
        scene.events.append(event)

    config = WatchdogConfig(step_s=STEP_S, storage_s=STORAGE_S)
    dog = Watchdog(3, config, report, lambda: scene.now, scene.ends.append)
    peer = threading.Thread(target=lambda: dog.log(NOTHING))
    peer.start()
    assert begun.wait(10)
    scene.now += 5.0
    dog.look()
    assert scene.events == []
    assert (
        "peer 3, round 0: stuck in 'log' for 5.0 s, watchdog.storage_s = 4" in capfd.readouterr()[1]
    )
    os.read(reading, 1 << 16)
    peer.join(10)
    assert scene.events == [NOTHING, Stuck(0, "log", 5.0, is_over=True)]
    os.close(reading)
    os.close(writing)


def test_a_full_disk_is_left_to_whoever_writes_next() -> None:
    def full(event: Event) -> None:
        raise StorageError("no space")

    scene = Scene(action="end")
    config = WatchdogConfig(step_s=STEP_S, action="end")
    dog = Watchdog(3, config, full, lambda: scene.now, scene.ends.append)
    scene.now += 11.0
    dog.look()
    assert len(scene.ends) == 1


@dataclass
class Slow:
    """A learner that calls `work` with every deed."""

    work: Callable[[], None]
    x: Tensors = field(default_factory=lambda: {"x": torch.zeros(1)})
    parts: dict[str, Part] = field(default_factory=dict)
    round: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    loss: float | None = None

    @property
    def params(self) -> Tensors:
        return self.x

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self.x = dict(new)

    def seek(self, round: int) -> None:
        self.round = round

    def train(self) -> float:
        self.work()
        return 0.5

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        self.work()
        return self.x

    def evaluate(self) -> Metrics:
        self.work()
        return self

    def state(self) -> Tensors:
        return self.x

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.metrics = {"loaded": 1.0}


def look_later(scene: Scene, dog: Watchdog) -> Callable[[], None]:
    """Let eleven seconds pass and the watchdog look."""

    def act() -> None:
        scene.now += 11.0
        dog.look()

    return act


def told(scene: Scene) -> list[str]:
    """The phases that were told to have been too long since the last call."""
    found = [e.phase for e in scene.events if isinstance(e, Stuck) and not e.is_over]
    scene.events.clear()
    return found


def test_training_and_evaluation_are_watched_and_all_else_is_the_learners() -> None:
    scene = Scene()
    dog = scene.watchdog()
    learner: LocalLearner = dog.learner(Slow(look_later(scene, dog)))
    assert learner.train() == 0.5 and told(scene) == ["train"]
    assert learner.grad({})["x"] is learner.params["x"] and told(scene) == ["train"]
    assert learner.evaluate().accuracy is None and told(scene) == ["evaluate"]
    learner.seek(5)
    learner.params = {"x": torch.ones(1)}
    learner.load_state({})
    assert (learner.round, learner.metrics, learner.parts) == (5, {"loaded": 1.0}, {})
    assert learner.state()["x"] == learner.params["x"] == 1
    assert told(scene) == []


def test_sending_and_checkpoints_are_watched(tmp_path: Path) -> None:
    scene = Scene()
    dog = scene.watchdog()
    act = look_later(scene, dog)

    def drop(tag: Tag, sender: PeerId, receiver: PeerId) -> bool:
        act()
        return False

    def write(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        act()

    transport = dog.transport(MemoryTransport(0, Hub(drop), TaggedMailbox(2)))
    assert transport.elastic
    transport.expect([1])
    assert transport.post(Tag(1), {0: Payload({"x": torch.zeros(1)})}) == 4
    assert told(scene) == ["send"]
    assert [*transport.collect(Tag(1), [0], 1.0).on_time] == [0]
    dog.writer(write)({}, tmp_path, {})
    assert told(scene) == ["checkpoint"]
    transport.close()


HANGS = """
import threading
from p2p_dml.config import WatchdogConfig
from p2p_dml.watchdog import Watchdog

dog = Watchdog(5, WatchdogConfig(step_s=0.05, action="end"), lambda event: print(event, flush=True))

def never_ends():
    threading.Event().wait(60)

with dog, dog.during("train"):
    never_ends()
"""


def test_a_process_that_hangs_ends_at_once_and_shows_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.STUCK
    assert "Stuck(round=0, phase='train'" in done.stdout and "Finished(" in done.stdout
    assert "peer 5, round 0: stuck in 'train'" in done.stderr
    assert "in never_ends" in done.stderr and "thread MainThread" in done.stderr
