"""A soak from its start to its verdict, around a run as `p2p-dml run` makes it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from p2p_dml import config as run_files
from p2p_dml.config import RunConfig
from p2p_dml.launchers import local
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.soak import judge
from p2p_dml.launchers.soak.inject import Injector
from p2p_dml.launchers.soak.plan import Fault, plan, quiet_s
from p2p_dml.launchers.soak.usage import Ledger, Life, num_files, scratch_of, usage_of
from p2p_dml.launchers.soak.verdict import Findings, Verdict, by_kind
from p2p_dml.launchers.soak.watch import Watch

_ROUND_S, _ROUND_S_PER_PEER = 0.2, 0.025
"""Above eight peers rounds are longer: all of them together do no more in a second than eight."""

BOUND_S = 30.0
"""For so long a peer that no fault befell may do no round, and one that is back may take."""

DEFAULT: Mapping[str, Any] = {
    "name": "soak",
    "peers": 8,
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "model": "mlp",
    "links": {"kind": "k_regular", "degree": 2},
    "strategy": "dpsgd",
    "train": {"lr": 0.05, "steps": 2},
    "stragglers": {"round_s": _ROUND_S},
    "evaluate_every": 25,
    "checkpoint_every": 25,
    "max_isolated_rounds": 1_000_000,
    "transport": {"heartbeat_s": 2.0, "straggler_s": 5.0, "startup_s": 120.0},
}
"""The run of a soak without a run file: two neighbours each, drawn anew in every round."""

FOREVER: Mapping[str, Any] = {"rounds": 10**9, "restarts": 10**6}
"""What every soak's run is given: it ends when the time is over, and whoever is lost comes back."""

_TRANSPORT = {"scheme": "tcp", "encryption": "curve"}  # strangers come over the network

_READ_S, _SAMPLE_S = 0.2, 3.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for: `duration_s` from the first round, a fault each `every_s`."""

    config: RunConfig
    duration_s: float
    every_s: float
    seed: int

    @property
    def plan(self) -> list[Fault]:
        """Its faults."""
        return plan(self.config.peers, self.duration_s, self.every_s, self.seed)


def config_of(file: Path | None, peers: int | None) -> RunConfig:
    """The run of a soak: that of a file, or the default one; ConfigError if it cannot be."""
    number = {"peers": peers} if peers else {}
    if file is None:
        transport = {**DEFAULT["transport"], **_TRANSPORT}
        pace = {"stragglers": {"round_s": max(_ROUND_S, _ROUND_S_PER_PEER * (peers or 0))}}
        tables = {**DEFAULT, **FOREVER, **number, **pace, "transport": transport}
        return run_files.parse(tables, Path())
    changes = {**FOREVER, **number, **{f"transport.{key}": x for key, x in _TRANSPORT.items()}}
    return run_files.load(file, [f"{key}={value}" for key, value in changes.items()])


def soak(wish: Wish, out: Path | None, say: Callable[[str], None]) -> tuple[Path, Verdict]:
    """Run peers under faults and see what holds; returns the run folder, too.

    Raises as `local.run`, and ConfigError if there is no time for faults.
    """
    faults, findings = wish.plan, Findings()
    watching: list[Soak] = []

    def begin(folder: Path, started: float) -> Callable[[], None]:
        watching.append(Soak(wish, faults, folder, findings, say))
        return watching[0].update

    try:
        outcome = local.run(wish.config, out, begin)
    finally:
        for each in watching:
            each.close()
    return outcome.folder, watching[0].conclude(outcome)


@final
class Soak:
    """Called often while the run goes on: does faults, looks, and ends it when time is over."""

    def __init__(
        self,
        wish: Wish,
        faults: list[Fault],
        folder: Path,
        findings: Findings,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._wish = wish
        self._faults = faults
        self._folder = folder
        self._findings = findings
        self._say = say
        self._clock = clock
        self._watch = Watch(folder, wish.config.peers, BOUND_S, findings.broken)
        self._ledger = Ledger()
        self._lives: set[Life] = set()
        self._scratch: set[Path] = set()
        self._files: list[int] = []
        self._injector: Injector | None = None
        self._begin = 0.0
        self._next_read = self._next_sample = 0.0
        self._ended_at: float | None = None

    def update(self) -> None:
        """Go on as far as it is time for."""
        now = self._clock()
        if self._ended_at is not None or now < self._next_read:
            return
        self._next_read = now + _READ_S
        self._watch.read(now)
        if self._injector is None:
            self._begin_if_all_are_there(now)
            return
        self._injector.turn(now)
        for injection, peer in self._injector.late(now, BOUND_S):
            self._findings.broken(
                "who was faulted goes on",
                f"peer {peer}: no round for {BOUND_S:g} s after {injection.fault.kind} at "
                f"{injection.at - self._begin:.0f} s",
            )
        if now >= self._next_sample:
            self._sample(now)
        if now >= self._begin + self._wish.duration_s:
            self._end(now)

    def close(self) -> None:
        """Leave no peer halted, and nobody who attacks."""
        if self._injector is not None:
            self._injector.close()

    def _begin_if_all_are_there(self, now: float) -> None:
        views = self._watch.views.values()
        if all(view.done_at is not None for view in views):
            self._begin = now
            self._next_sample = now + quiet_s(self._wish.duration_s) / 2
            self._injector = Injector(self._faults, self._watch, now, self._say)

    def _sample(self, now: float) -> None:
        """Look what the processes hold, more often where the soak is short."""
        self._next_sample = now + min(_SAMPLE_S, quiet_s(self._wish.duration_s) / 12)
        for view in self._watch.views.values():
            usage = usage_of(view.life.pid) if view.life else None
            if view.life and usage:
                self._lives.add(view.life)
                self._ledger.take(view.life, usage)
                self._scratch |= scratch_of(view.life.pid)
        self._files.append(num_files(self._scratch))

    def _end(self, now: float) -> None:
        """Stop the run as a user would: peers finish a round and save."""
        self.close()
        self._ended_at = now
        self._say(f"{self._wish.duration_s:6.0f} s  the time is over: all peers stop")
        signal.raise_signal(signal.SIGTERM)

    # ---- when the run is over -------------------------------------------------------------

    def conclude(self, outcome: Outcome) -> Verdict:
        """Take in the rest and judge."""
        now, config = self._clock(), self._wish.config
        self._watch.read(now)
        judge.endings(self._findings, outcome, self._watch, is_early=self._ended_at is None)
        judge.progress(self._findings, self._watch, BOUND_S)
        if self._ended_at is not None and _hears_all(config):
            since = self._ended_at - quiet_s(self._wish.duration_s) / 2
            judge.healing(self._findings, self._watch, since, self._ended_at)
        judge.leaks(self._findings, self._watch, self._ledger, self._files)
        judge.what_is_left(self._findings, self._lives, self._scratch)
        judge.models(self._findings, self._watch, self._folder)
        injections = self._injector.injections if self._injector else []
        run = {
            "seed": self._wish.seed,
            "peers": config.peers,
            "seconds": round(now - self._begin, 1) if self._begin else 0.0,
            "every_s": self._wish.every_s,
            "rounds": max(view.round for view in self._watch.views.values()),
        }
        return Verdict(run=run, kinds=by_kind(injections), invariants=tuple(self._findings.rows))


def _hears_all(config: RunConfig) -> bool:
    """Whether every message comes in time when nothing goes wrong."""
    return config.pace["name"] == "synchronous" and not config.network.is_emulated
