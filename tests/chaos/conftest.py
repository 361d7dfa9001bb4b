"""Runs on real processes with faults, and what is left of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load, saved_rounds
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local, simulated
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.types import Tensors

KILLED = -int(signal.SIGKILL)

BASE: Mapping[str, object] = {
    "peers": 6,
    "rounds": 8,
    "seed": 3,
    "links": "ring",
    "strategy": "dpsgd",
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"lr": 0.1, "momentum": 0.9, "steps": 4},
    "evaluate_every": 0,
}

Fault = Mapping[str, object]
Watch = Callable[[Path, float], Callable[[], None]]
"""Folder and start of a run -> what its launcher calls meanwhile."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What a run with faults left behind."""

    run: config.RunConfig
    outcome: Outcome

    @property
    def survivors(self) -> list[int]:
        """Who finished, ascending."""
        return sorted(peer for peer, code in self.outcome.exit_codes.items() if code == 0)

    def log(self, peer: int) -> list[dict[str, Any]]:
        """All that a peer wrote."""
        return list(read_events(event_file(self.outcome.folder, peer)))

    def events(self, peer: int, name: str) -> list[dict[str, Any]]:
        """What a peer's log has under this name."""
        return [line for line in self.log(peer) if line["event"] == name]

    def missing(self, peer: int) -> list[list[int]]:
        """Whom a peer did not hear, round by round."""
        return [event["missing"] for event in self.events(peer, "round_done")]

    def told(self, peer: int, state: str) -> list[int]:
        """Of which neighbours a peer said that they are dead, left, …"""
        lines = self.events(peer, "neighbour_changed")
        return [event["neighbour"] for event in lines if event["state"] == state]

    def saved(self, peer: int) -> dict[int, Tensors]:
        """A peer's checkpoints by round."""
        folder = self.outcome.folder
        rounds = saved_rounds(folder, peer)
        return {r: load(folder / checkpoint_file(peer, r)).tensors for r in rounds}

    def words(self) -> str:
        """What the peers' processes wrote."""
        return "".join(f.read_text("utf-8") for f in (self.outcome.folder / "logs").iterdir())

    def expect_all_well(self, peers: Collection[int]) -> None:
        """These finished all rounds, with models of numbers."""
        for peer in peers:
            assert self.outcome.exit_codes[peer] == 0
            assert [e["exit_code"] for e in self.events(peer, "finished")] == [0]
            assert self.run.rounds in self.saved(peer)
            for tensors in self.saved(peer).values():
                assert all(bool(x.isfinite().all()) for x in tensors.values())

    def expect_untouched(self, peers: Collection[int]) -> None:
        """These are well and missed nothing, and nobody was dead to them."""
        self.expect_all_well(peers)
        for peer in peers:
            assert self.missing(peer) == [[]] * self.run.rounds
            assert self.told(peer, "dead") == []

    def expect_same_as(self, other: Aftermath, peers: Collection[int]) -> None:
        """The checkpoints of these are those of another run, every bit."""
        for peer in peers:
            ours, theirs = self.saved(peer), other.saved(peer)
            assert ours.keys() == theirs.keys() != set()
            for round_, tensors in theirs.items():
                for name, x in tensors.items():
                    assert torch.equal(x, ours[round_][name]), f"{peer}, round {round_}: {name}"


@final
class Chaos:
    """Makes runs in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, *faults: Fault, **tables: object) -> Aftermath:
        """Run `BASE`, as changed by `tables`, on processes."""
        return self.watched(_ignore, *faults, **tables)

    def watched(self, watch: Watch, *faults: Fault, **tables: object) -> Aftermath:
        """The same, with something to do meanwhile."""
        given = self._config(faults, tables)
        outcome = local.run(given, self._folder / "processes", watch)
        return Aftermath(run=given, outcome=outcome)

    def simulate(self, *faults: Fault, **tables: object) -> Aftermath:
        """The same in the simulator."""
        given = self._config(faults, tables)
        outcome = simulated.simulate(given, self._folder / "simulated", _ignore)
        return Aftermath(run=given, outcome=outcome)

    def _config(self, faults: Collection[Fault], tables: Mapping[str, object]) -> config.RunConfig:
        return config.parse({**BASE, **tables, "faults": list(faults)}, self._folder)


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture
def chaos(tmp_path: Path) -> Chaos:
    """Runs in the test's folder."""
    return Chaos(tmp_path)
