"""How soon a fault is noticed, what it costs the others, and how soon its peer is back.

python -m benchmarks.faults [--peers 8 --peers 32] [--repeats 5] [--only kill]

Runs on processes of this machine, one fault in each run, medians and worst cases over all
repeats and neighbours. Everybody else's work on the machine is in the figures. `half` needs MNIST,
and `closing` the right to a real-time priority.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, final

import typer

from p2p_dml import config
from p2p_dml.assemble import schedule_of
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local, simulated
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.report import load

Line = dict[str, Any]

VICTIM, ROUND = 3, 15
LOCAL_WORK_S = 0.1
LARGE = 200_000  # numbers: more than the sockets of two processes hold between them
SMALL: Mapping[str, object] = {"name": "p2p_dml.learners.still:vector", "size": 2_000}
VECTOR: Mapping[str, object] = {
    "links": {"kind": "static", "of": {"kind": "k_regular", "degree": 2}},
    "strategy": "dpsgd",
    "model": {"name": "p2p_dml.learners.still:vector", "size": LARGE},
    "train": "p2p_dml.learners.still:rest",
    "evaluate_every": 0,
    "stragglers": {"round_s": LOCAL_WORK_S},
}
MNIST: Mapping[str, object] = {
    "data": "mnist",
    "model": {"name": "mlp", "hidden": [64]},
    "links": {"kind": "static", "of": {"kind": "k_regular", "degree": 6}},
    "strategy": "dpsgd",
    "train": {"lr": 0.05, "momentum": 0.5, "steps": 20},
    "evaluate_every": 0,
    "min_neighbours": 0,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault of one peer, for `for_s` if it has an end, and what the run file says besides."""

    kind: str
    for_s: float = 4.0
    rounds: int = 100
    tables: Mapping[str, object] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "kill": Case(kind="kill", rounds=30),
    "restart": Case(kind="kill", tables={"restarts": 1, "checkpoint_every": 5}),
    "stop": Case(kind="stop", tables={"transport": {"heartbeat_s": 1.0}, "model": SMALL}),
    "stop, large messages": Case(kind="stop", tables={"transport": {"heartbeat_s": 1.0}}),
    "stop, default heartbeat": Case(kind="stop", for_s=12.0, rounds=150),
}


def main(
    peers: Annotated[list[int], typer.Option(min=6)] = [8, 32],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    only: Annotated[str, typer.Option(help="one case; half: 16 of 32, accuracy; or closing")] = "",
) -> None:
    """Print a JSON line for each number of peers and each fault."""
    for name, case in CASES.items():
        for count in peers if only in ("", name) else ():
            found = [_figures(count, case, seed) for seed in range(repeats)]
            _tell({"fault": name, "peers": count, "runs": repeats} | _merged(found))
    for count in peers if only in ("", "closing") else ():
        closed = [_closed_ms(count, seed) for seed in range(repeats)]
        _tell({"fault": "closing", "peers": count, "runs": repeats} | _merged([{"ms": closed}]))
    if only in ("", "half"):
        _tell({"fault": "half", "peers": 32, "runs": repeats} | _half(repeats))


def _tell(line: Mapping[str, object]) -> None:
    print(json.dumps(line), flush=True)


@contextmanager
def _done(
    run: config.RunConfig, act: Callable[..., Outcome] = local.run
) -> Iterator[tuple[Outcome, list[list[Line]]]]:
    """A run that is over, with the lines of each peer's log; its folder goes at the end."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = act(run, Path(folder, "run"), _ignore)
        files = [event_file(outcome.folder, peer) for peer in range(run.peers)]
        yield outcome, [list(read_events(file)) for file in files]


def _simulate(
    run: config.RunConfig, out: Path, watch: Callable[[Path, float], Callable[[], None]]
) -> Outcome:
    return simulated.simulate(run, out, watch, batched=None)


def _ignore(path: Path, started: float) -> Callable[[], None]:
    return lambda: None


# ---- one fault ---------------------------------------------------------------------------------


def _figures(count: int, case: Case, seed: int) -> dict[str, list[float]]:
    """What one run with the fault shows, a list of figures by name."""
    fault = {"peers": [VICTIM], "round": ROUND, "kind": case.kind, "for_s": case.for_s}
    shape = {"name": "faults", "peers": count, "rounds": case.rounds, "seed": seed}
    run = config.parse({**VECTOR, **case.tables, **shape, "faults": [fault]}, Path())
    with _done(run) as (_, logs):
        neighbours = set(schedule_of(run)(0).senders[VICTIM])
        bystanders = set(range(count)) - neighbours - {VICTIM}
        (injected,) = _named(logs[VICTIM], "injected")
        found: dict[str, list[float]] = {
            "noticed_ms": [_noticed_s(logs[j], injected["t"]) * 1e3 for j in neighbours],
            "round_over_ms": [_round_over_s(logs[j], injected["t"]) * 1e3 for j in neighbours],
            "bystanders_missed": [
                sum(len(e["missing"]) for e in _named(logs[j], "round_done")) for j in bystanders
            ],
        }
        if (back := _back_at(logs[VICTIM], injected["t"], case)) is not None:
            found["rounds_until_heard"] = [_rounds_until_heard(logs[j], back) for j in neighbours]
    return found


def _named(lines: Sequence[Line], name: str) -> list[Line]:
    return [line for line in lines if line["event"] == name]


def _noticed_s(lines: Sequence[Line], at: float) -> float:
    dead = [e["t"] for e in _named(lines, "neighbour_changed") if e["state"] == "dead"]
    return min((t for t in dead if t >= at), default=float("inf")) - at


def _round_over_s(lines: Sequence[Line], at: float) -> float:
    """Seconds from the fault until a neighbour has ended the round of it."""
    (end,) = [e["t"] for e in _named(lines, "round_done") if e["round"] == ROUND]
    return float(end - at)


def _back_at(lines: Sequence[Line], at: float, case: Case) -> float | None:
    """When the victim is back: writes again, or is in the run again; None if it is not."""
    if case.kind == "stop":
        return float(next(line["t"] for line in lines if line["t"] > at + case.for_s / 2))
    return next((line["t"] for line in _named(lines, "rejoined")), None)


def _rounds_until_heard(lines: Sequence[Line], back: float) -> int:
    """The place of the first round that ends after `back` in which the victim is heard."""
    after = [e for e in _named(lines, "round_done") if e["t"] > back]
    return next((i for i, e in enumerate(after, 1) if VICTIM not in e["missing"]), len(after) + 1)


def _merged(found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, object]:
    """Median and worst of each figure over all runs."""
    names = dict.fromkeys(name for each in found for name in each)
    every = {name: [x for each in found for x in each.get(name, ())] for name in names}
    return {
        name: {"median": round(statistics.median(xs), 1), "worst": round(max(xs), 1)}
        for name, xs in every.items()
    }


# ---- when the connections of a killed peer close -----------------------------------------------


def _closed_ms(count: int, seed: int) -> float:
    """Milliseconds from SIGKILL until a connection to the peer ends: nobody can know sooner."""
    shape = {"name": "closing", "peers": count, "rounds": 30, "seed": seed}
    observer = _Observer()
    with _done(config.parse({**VECTOR, **shape}, Path()), observer.run):
        assert observer.closed_s is not None
        return observer.closed_s * 1e3


@final
class _Observer:
    """Kills the victim from outside, and is always given its turn to see what comes of it."""

    def __init__(self) -> None:
        self.closed_s: float | None = None

    def run(
        self, run: config.RunConfig, out: Path, watch: Callable[[Path, float], Callable[[], None]]
    ) -> Outcome:
        return local.run(run, out, lambda folder, started: lambda: self._look(folder))

    def _look(self, folder: Path) -> None:
        file = event_file(folder, VICTIM)
        lines = list(read_events(file)) if file.exists() else []
        if self.closed_s is None and len(_named(lines, "round_done")) >= ROUND:
            self.closed_s = _kill(lines[0]["pid"], lines[0]["endpoint"].removeprefix("ipc://"))


def _kill(pid: int, address: str) -> float:
    """Kill a process that listens on a Unix socket; seconds until a connection there ends."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30.0)
        line.connect(address)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        with suppress(ConnectionError):
            while line.recv(4096):  # what it said before
                pass
        seconds = time.perf_counter() - begin
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return seconds


# ---- 16 of 32 at one instant -------------------------------------------------------------------


def _half(repeats: int) -> dict[str, object]:
    """Accuracy in per cent of those left, of runs on processes, and without the others' data."""
    with_data, without = [], []
    for seed in range(repeats):
        with_data.append(_accuracy(seed, 20, local.run))
        without.append(_accuracy(seed, 1, _simulate))
    differences = [a - b for a, b in zip(with_data, without, strict=True)]
    return {
        "accuracy": [round(x, 2) for x in with_data],
        "accuracy_without_their_data": [round(x, 2) for x in without],
        "difference": {
            "median": round(statistics.median(differences), 2),
            "least": round(min(differences), 2),
        },
    }


def _accuracy(seed: int, round_: int, act: Callable[..., Outcome]) -> float:
    """Mean over those left at the end, of a run in which half of the peers go in `round_`."""
    fault = {"peers": {"share": 0.5}, "round": round_, "kind": "kill"}
    shape = {"name": "half", "peers": 32, "rounds": 40, "seed": seed, "faults": [fault]}
    with _done(config.parse({**MNIST, **shape}, Path()), act) as (outcome, _):
        left = [peer for peer, code in outcome.exit_codes.items() if code == 0]
        assert len(left) == 16
        records = load(outcome.folder).peers
        return 100 * statistics.fmean(float(records[p].evaluations.accuracy[-1]) for p in left)


if __name__ == "__main__":
    typer.run(main)
