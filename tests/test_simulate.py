"""Peers of different pace on virtual clocks: times and models by hand, reductions, invariants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml import config, report
from p2p_dml.checkpoint import saved_rounds
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.events import Event, RoundDone
from p2p_dml.kernels.mixing import RULES
from p2p_dml.launchers import simulated
from p2p_dml.links import Walk
from p2p_dml.mailbox import EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.pace import Slowness, VirtualClock
from p2p_dml.peer import PeerLoop, Plan
from p2p_dml.simulate import free_running, lockstep
from p2p_dml.strategies import DPSGD, SGP
from p2p_dml.strategies.sgp import SGPState
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import (
    AnyStrategy,
    Graph,
    LinkSchedule,
    Mailbox,
    Part,
    PeerId,
    Tag,
    Tensors,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "asynchronous" / "mnist.toml"


@dataclass
class Nothing:
    """No metrics."""

    accuracy: float | None = None
    loss: float | None = None


class Still:
    """A learner of one number, which its training leaves alone."""

    def __init__(self, x: float) -> None:
        self._x = {"x": torch.tensor([x], dtype=torch.float64)}
        self.round = 0
        self.metrics: Mapping[str, float] = {}

    @property
    def params(self) -> Tensors:
        return dict(self._x)

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self._x["x"].copy_(new["x"])

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"x": "decision"}

    @property
    def value(self) -> float:
        return float(self._x["x"].item())

    def seek(self, round: int) -> None:
        self.round = round

    def train(self) -> float:
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        raise NotImplementedError

    def evaluate(self) -> Nothing:
        return Nothing()

    def state(self) -> Tensors:
        return self.params

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.params = dict(state)


@dataclass
class Ensemble:
    """Peers of given models and slowness, 1 s per round for a normal one."""

    models: Sequence[float]
    factors: Sequence[float]
    strategy: AnyStrategy
    schedule: LinkSchedule
    mailbox: Callable[[], Mailbox]
    rule: str = "metropolis"
    rounds: int = 1000
    duration_s: float | None = None
    events: dict[PeerId, list[Event]] = field(default_factory=dict)
    states: dict[PeerId, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        peers = range(len(self.models))
        hub = Hub()
        self.learners = [Still(x) for x in self.models]
        self.clocks = [VirtualClock() for _ in peers]
        self.mailboxes = [self.mailbox() for _ in peers]
        self.transports = [MemoryTransport(i, hub, self.mailboxes[i]) for i in peers]
        self.loops = [self._loop(i) for i in peers]

    def _loop(self, me: PeerId) -> PeerLoop:
        plan = Plan(
            rounds=self.rounds,
            seed=0,
            duration_s=self.duration_s,
            slowness=Slowness(factor=self.factors[me], round_s=1.0),
            waits=isinstance(self.mailboxes[me], TaggedMailbox),
            evaluate_every=0,
        )

        def save(round_: int, model: Tensors, state: object) -> str:
            self.states[me] = state
            return ""

        return PeerLoop(
            me,
            self.strategy,
            self.learners[me],
            Walk(self.schedule, RULES[self.rule], me, 0, self.strategy.exchanges),
            plan,
            on_event=self.events.setdefault(me, []).append,
            save=save,
            clock=self.clocks[me],
        )

    def run_free(self) -> list[float]:
        """The models at the end."""
        codes = free_running(self.loops, self.transports, self.clocks)
        assert codes == [ExitCode.DONE] * len(self.models)
        return [learner.value for learner in self.learners]

    def rounds_of(self, me: PeerId) -> list[RoundDone]:
        return [event for event in self.events[me] if isinstance(event, RoundDone)]


def pair(tick: int) -> Graph:
    return Graph(((1,), (0,)))


def uneven(mailbox: Callable[[], Mailbox], **plan: float) -> Ensemble:
    """Peer 0 holds 0 and takes 1 s a round, peer 1 holds 1 and takes 3 s; both weights are 1/2."""
    duration_s = plan.get("duration_s")
    rounds = int(plan.get("rounds", 1000))
    return Ensemble(
        [0.0, 1.0], [1.0, 3.0], DPSGD(), pair, mailbox, rounds=rounds, duration_s=duration_s
    )


@pytest.mark.parametrize(
    ("max_age", "after_6_s", "ages"),
    [
        # Until 3 s peer 0 has heard nobody; there both go to 1/2, and peer 0 on towards 1 as long
        # as it may use the 1 that peer 1 sent: 3/4, 7/8. At 6 s they meet again.
        (0, 1 / 2, [None, None, 0, None, None, 0]),
        (1, (3 / 4 + 1 / 2) / 2, [None, None, 0, 1, None, 0]),
        (2, (7 / 8 + 1 / 2) / 2, [None, None, 0, 1, 2, 0]),
    ],
)
def test_two_paces_by_hand(max_age: int, after_6_s: float, ages: list[float | None]) -> None:
    fleet = uneven(lambda: NewestMailbox(max_age), duration_s=6.0)
    assert fleet.run_free() == pytest.approx([after_6_s, after_6_s])
    assert [len(fleet.rounds_of(me)) for me in (0, 1)] == [6, 2]
    assert [clock.now() for clock in fleet.clocks] == [6.0, 6.0]
    assert [done.age for done in fleet.rounds_of(0)] == ages
    assert all(done.seconds["wait"] == 0.0 for me in (0, 1) for done in fleet.rounds_of(me))


def test_a_neighbour_that_has_finished_stays_with_its_last_model() -> None:
    """Peer 0 ends after three rounds, having sent 0; peer 1 halves its own in rounds 1, 2 and 3."""
    fleet = uneven(lambda: NewestMailbox(0), rounds=3)
    assert fleet.run_free() == pytest.approx([1 / 2, 1 / 8])


def test_the_missing_count_as_lost_weight_and_not_as_isolation() -> None:
    fleet = uneven(lambda: NewestMailbox(0), duration_s=6.0)
    fleet.run_free()
    lost = [done.lost_weight for done in fleet.rounds_of(0)]
    assert lost == [0.5, 0.5, 0.0, 0.5, 0.5, 0.0]
    names = {type(event).__name__ for event in fleet.events[0]}
    assert names == {"Evaluated", "RoundDone", "Checkpointed"}


def test_in_lock_step_a_clock_waits_for_the_slowest_it_hears() -> None:
    """Peers 0 - 1 - 2 in a line, 1, 2 and 4 s a round: who is how far after each round, by hand."""
    line = Graph(((1,), (0, 2), (1,)))
    fleet = Ensemble(
        [0.0] * 3, [1.0, 2.0, 4.0], DPSGD(), lambda t: line, lambda: TaggedMailbox(4), rounds=2
    )
    lockstep(fleet.loops, fleet.transports, fleet.clocks)
    waited = [[done.seconds["wait"] for done in fleet.rounds_of(me)] for me in range(3)]
    # After round 1 they stand at 2, 4, 4; training takes them to 3, 6, 8.
    assert waited == [[1, 3], [2, 2], [0, 0]]
    assert [clock.now() for clock in fleet.clocks] == [6, 8, 8]


# ---- push-sum --------------------------------------------------------------------------------

NUM_PUSHERS = 5


def one_way(tick: int) -> Graph:
    """Each peer hears one or two others, redrawn in each tick: links that go one way."""
    words = np.random.Philox(key=[7, tick]).random_raw(2 * NUM_PUSHERS).reshape(-1, 2)
    drawn = [sorted({int(w) % NUM_PUSHERS for w in row} - {i}) for i, row in enumerate(words)]
    return Graph(tuple(map(tuple, drawn)))


def pushers(rounds: int) -> Ensemble:
    return Ensemble(
        [3.0, -1.0, 4.0, 1.0, -5.0],
        [1.0, 1.0, 2.5, 4.0, 1.0],
        SGP(min_weight=0.0),
        one_way,
        EveryMailbox,
        rule="push_uniform",
        duration_s=float(rounds),
    )


@pytest.mark.parametrize("rounds", [1, 2, 5, 17])
def test_push_sum_keeps_its_mass_at_any_pace(rounds: int) -> None:
    """Weights and weighted models, of the peers and under way, sum to what they began with."""
    fleet = pushers(rounds)
    models = fleet.run_free()
    weights, mass = [], []
    for me, z in enumerate(models):
        state = fleet.states[me]
        assert isinstance(state, SGPState)
        fleet.mailboxes[me].begin(Tag(1000))
        under_way = [message.payload for message in fleet.mailboxes[me].take([]).late]
        weights += [state.weight, *(p.scalars["weight"] for p in under_way)]
        mass += [state.weight * z, *(p.tensors["x"].item() for p in under_way)]
    assert math.fsum(weights) == pytest.approx(NUM_PUSHERS, abs=1e-12)
    assert math.fsum(mass) == pytest.approx(sum(fleet.models), abs=1e-12)


def test_push_sum_agrees_on_the_mean_at_any_pace() -> None:
    assert pushers(200).run_free() == pytest.approx([0.4] * NUM_PUSHERS, abs=1e-9)


# ---- whole runs ------------------------------------------------------------------------------

PLAIN: Mapping[str, object] = {
    "peers": 4,
    "rounds": 3,
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "strategy": "dpsgd",
    "stragglers": {"round_s": 1.0},
}


def simulate(folder: Path, **changes: object) -> Path:
    run = config.parse({**PLAIN, **changes}, folder)
    outcome = simulated.simulate(run, folder / "out", lambda path, started: lambda: None)
    assert outcome.exit_code is ExitCode.DONE
    return outcome.folder


def models_of(run: Path) -> dict[str, bytes]:
    files = sorted(run.glob("checkpoints/*/*.safetensors"))
    return {str(file.relative_to(run)): _values(file) for file in files}


def _values(file: Path) -> bytes:
    """The tensors, without the header that names the run."""
    data = file.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    "strategy",
    ["local", "dpsgd", "hyperprism", {"name": "dfedavgm", "steps": 2}, "sgp", "mcepl"],
    ids=str,
)
def test_peers_of_equal_pace_are_synchronous_bit_for_bit(tmp_path: Path, strategy: object) -> None:
    mixing = "push_uniform" if strategy == "sgp" else "metropolis"
    runs = [
        models_of(simulate(tmp_path / pace, pace=pace, strategy=strategy, mixing=mixing))
        for pace in ("synchronous", "asynchronous")
    ]
    assert len(runs[0]) == 4
    assert runs[0] == runs[1]


def test_an_asynchronous_simulation_repeats_bit_for_bit(tmp_path: Path) -> None:
    uneven = {"share": 0.5, "factor": 2.5, "round_s": 0.1}
    runs = [
        simulate(tmp_path / name, pace="asynchronous", stragglers=uneven, rounds=8, duration_s=0.7)
        for name in ("one", "two")
    ]
    assert models_of(runs[0]) == models_of(runs[1])
    recorded = report.load(runs[0])
    slow = set(recorded.meta.stragglers)
    assert len(slow) == 2
    assert [peer.last_round for peer in recorded.peers] == [3 if i in slow else 7 for i in range(4)]
    assert (recorded.meta.clock, recorded.meta.pace) == ("virtual", "asynchronous")
    started = recorded.meta.started
    times = [np.round(peer.evaluations.t - started, 3).tolist() for peer in recorded.peers]
    assert times == [
        [0.0, 0.25, 0.5, 0.75] if i in slow else [0.0, *np.arange(1, 8) / 10] for i in range(4)
    ]


@pytest.mark.parametrize("pace", ["synchronous", "asynchronous"])
def test_virtual_time_needs_a_length(tmp_path: Path, pace: str) -> None:
    stragglers = {"share": 0.5}
    with pytest.raises(ConfigError, match=r"stragglers\.round_s: missing"):
        simulate(tmp_path, pace=pace, stragglers=stragglers)
    assert not (tmp_path / "out").exists()


def test_peers_of_their_own_pace_cannot_be_batched(tmp_path: Path) -> None:
    run = config.parse({**PLAIN, "pace": "asynchronous"}, tmp_path)
    with pytest.raises(ConfigError, match="--batched: each has a pace of its own"):
        simulated.simulate(run, tmp_path / "out", lambda *_: lambda: None, batched=True)


def test_batched_peers_have_the_clocks_of_lock_step(tmp_path: Path) -> None:
    """Half the peers take 2 s: on complete links every round takes 2 s, whoever computes it."""
    run = config.parse(
        {**PLAIN, "links": "complete", "stragglers": {"share": 0.5, "factor": 2.0, "round_s": 1.0}},
        tmp_path,
    )
    simulated.simulate(run, tmp_path / "out", lambda *_: lambda: None, batched=True)
    recorded = report.load(tmp_path / "out")
    for peer in recorded.peers:
        seconds = peer.evaluations.t - recorded.meta.started
        np.testing.assert_allclose(seconds, [0, 2, 4, 6], atol=1e-5)


def test_the_example_runs(tmp_path: Path) -> None:
    run = config.load(EXAMPLE, ["duration_s=5", "data=digits", "train.steps=1"])
    outcome = simulated.simulate(run, tmp_path / "out", lambda path, started: lambda: None)
    recorded = report.load(outcome.folder)
    done = {peer.peer: len(peer.rounds.round) for peer in recorded.peers}
    slow = recorded.meta.stragglers
    assert len(slow) == 4
    assert done == {i: 2 if i in slow else 10 for i in range(16)}


STRIKE = """
import signal
from torch import nn

def network():
    return nn.Linear(2, 1)

def train(model, round, peer):
    if (peer, round) == (2, 3):
        signal.raise_signal(signal.SIGINT)
    return 0.5
"""


def test_a_signal_ends_all_peers_after_the_same_round(tmp_path: Path) -> None:
    """It comes while some have trained the round and others have not."""
    (tmp_path / "strike.py").write_text(STRIKE, encoding="utf-8")
    tables = {
        "peers": 4,
        "rounds": 9,
        "strategy": "dpsgd",
        "links": "ring",
        "model": "strike:network",
        "train": "strike:train",
    }
    run = config.parse(tables, tmp_path)
    outcome = simulated.simulate(run, tmp_path / "out", lambda path, started: lambda: None)
    assert outcome.exit_codes == dict.fromkeys(range(4), int(ExitCode.STOPPED))
    saved = [saved_rounds(tmp_path / "out", peer) for peer in range(4)]
    assert saved == [[3]] * 4
