"""Kill a whole run at random instants, resume it each time, compare it with an undisturbed one.

python -m benchmarks.resume [--points 100] [--seed 0] [--peers 8]

Everything is killed at once by SIGKILL: launcher, nursery, peers. Some instants are in the start-up
of the command, others in its rounds; a run that was resumed is killed again. In the end every
tensor of every peer's last checkpoint must have the bits of the run that was left alone.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, final

import numpy as np
import tomli_w
import torch
import typer

from p2p_dml.checkpoint import checkpoint_file, load, saved_rounds
from p2p_dml.events import event_file, read_events

ROUNDS = 120
KILLS_PER_RUN = 10
RUN: Mapping[str, object] = {
    "name": "resume",
    "rounds": ROUNDS,
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "model": "mlp",
    "links": {"kind": "k_regular", "degree": 2},
    "strategy": {"name": "gradient_tracking", "lr": 0.05},
    "train": {"lr": 0.05, "batch_size": 16},
    "stragglers": {"round_s": 0.03},
    "evaluate_every": 0,
    "checkpoint_every": 1,
    "transport": {"startup_s": 120.0},
}

_EARLY = 0.25
"""So many of the instants are in the start-up, up to `_START_S` after the command begins."""
_START_S, _ROUNDS_S = 3.0, 0.4
_DEADLINE_S = 600.0
_VARIABLE = "P2P_DML_CAMPAIGN"


def main(
    points: Annotated[int, typer.Option(min=1, help="how many kills")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="of the instants")] = 0,
    peers: Annotated[int, typer.Option(min=4)] = 8,
) -> None:
    """Kill, resume, compare; print a JSON line, and end with code 1 if a bit differs."""
    with tempfile.TemporaryDirectory(prefix="p2p-resume-") as folder:
        result = campaign(Path(folder), points, seed, peers)
    print(json.dumps(asdict(result)))
    raise typer.Exit(0 if result.equal == result.checkpoints else 1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of a campaign: kills (`early`: in the start-up), and how many last checkpoints are equal."""

    points: int
    early: int
    runs: int
    checkpoints: int
    equal: int
    seconds: float


def campaign(folder: Path, points: int, seed: int, peers: int) -> Result:
    """Run, kill and resume in `folder`; RuntimeError if a run cannot go on or hangs."""
    begin = time.monotonic()
    (folder / "run.toml").write_text(tomli_w.dumps({**RUN, "peers": peers}), encoding="utf-8")
    reference = folder / "reference"
    with Command(folder, "run.toml", "--out", str(reference)) as command:
        command.must_end_well()
    instants, early, runs, equal, left = _instants(seed), 0, 0, 0, points
    while left:
        out, kills = folder / f"run-{runs}", 0
        while kills < min(KILLS_PER_RUN, left) and not _is_done(out, peers):
            instant = next(instants)
            if _kill_one(folder, out, peers, instant):
                kills, early = kills + 1, early + instant.is_early
        _finish(folder, out, peers)
        left, runs = left - kills, runs + 1
        found = sum(_is_equal(out, reference, peer) for peer in range(peers))
        equal += found
        words = f"run {runs}: killed {kills} times, {found} of {peers} equal; {left} points left"
        print(words, file=sys.stderr)
    return Result(
        points=points,
        early=early,
        runs=runs,
        checkpoints=runs * peers,
        equal=equal,
        seconds=round(time.monotonic() - begin, 1),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """When to kill: after the command begins, if early, or else after its first new round."""

    is_early: bool
    delay_s: float


def _instants(seed: int) -> Iterator[Instant]:
    bits = np.random.Philox(key=[seed, 0])
    while True:
        which, share = ((int(word) >> 11) * 2.0**-53 for word in bits.random_raw(2))
        is_early = which < _EARLY
        yield Instant(is_early=is_early, delay_s=share * (_START_S if is_early else _ROUNDS_S))


def _kill_one(folder: Path, out: Path, peers: int, instant: Instant) -> bool:
    """Begin or go on, and kill all after a while; whether it was still going on then.

    A run without a checkpoint of every peer could not be resumed, so it is first let come so far.
    """
    can_resume, before = _has_all(out, peers), _num_rounds(out)
    with Command(folder, *_words(out, can_resume)) as command:
        if not (can_resume and instant.is_early):
            while not (_has_all(out, peers) and _num_rounds(out) > before):
                command.pause(0.05)
        command.pause(instant.delay_s)
        return command.kill()


def _words(out: Path, can_resume: bool) -> tuple[str, ...]:
    return ("--resume", str(out)) if can_resume else ("run.toml", "--out", str(out))


def _has_all(out: Path, peers: int, rounds: int = 1) -> bool:
    """Whether all peers have a checkpoint of one round, `rounds` or later."""
    saved = [set(saved_rounds(out, peer)) for peer in range(peers)]
    return max(set.intersection(*saved), default=0) >= rounds


def _is_done(out: Path, peers: int) -> bool:
    return _has_all(out, peers, ROUNDS)


def _num_rounds(out: Path) -> int:
    file = event_file(out, 0)
    return sum(x["event"] == "round_done" for x in read_events(file)) if file.exists() else 0


def _finish(folder: Path, out: Path, peers: int) -> None:
    """Let a run come to its end."""
    if not _is_done(out, peers):
        with Command(folder, *_words(out, _has_all(out, peers))) as command:
            command.must_end_well()


def _is_equal(out: Path, reference: Path, peer: int) -> bool:
    ours, theirs = (load(run / checkpoint_file(peer, ROUNDS)).tensors for run in (out, reference))
    return ours.keys() == theirs.keys() and all(
        torch.equal(x.view(-1).view(torch.uint8), theirs[name].view(-1).view(torch.uint8))
        for name, x in ours.items()
    )


@final
class Command:
    """`p2p-dml run`, with all processes that come of it; none is left when it is closed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        mark = secrets.token_hex(8)
        self._mark = f"{_VARIABLE}={mark}".encode()
        self._deadline = time.monotonic() + _DEADLINE_S
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "p2p_dml", "run", *arguments, "--quiet"),
                cwd=folder,
                env=os.environ | {_VARIABLE: mark},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def must_end_well(self) -> None:
        """Wait for its end; RuntimeError with what it said if that is not success."""
        while self._process.poll() is None:
            self.pause(1.0)
        if self._process.returncode:
            raise RuntimeError(self._log.read_text(encoding="utf-8"))

    def pause(self, seconds: float) -> None:
        """Let it go on for a while; RuntimeError if it ends badly, or has gone on for too long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self.must_end_well()
            return
        if time.monotonic() > self._deadline:
            raise RuntimeError(f"it hangs: {self._log.read_text(encoding='utf-8')}")

    def kill(self) -> bool:
        """Kill launcher, nursery and peers; whether it was still going on."""
        goes_on = self._process.poll() is None
        while pids := list(self._pids()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        return goes_on

    def _pids(self) -> Iterator[int]:
        """Living processes with our mark in their environment."""
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or another user's
                if self._mark in (entry / "environ").read_bytes():
                    yield int(entry.name)


if __name__ == "__main__":
    typer.run(main)
