"""Run folders whose every figure is known by construction.

`write_run` writes three peers and four rounds: peer i sends 100 (i + 1) bytes a round and
receives 50, joins 2 + i seconds after the start, ends round r at second 10 (r + 1), evaluates
rounds 1 and 3. Peer 2 can be killed after round 1. All peers' models lie on one coordinate.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml.events import (
    Evaluated,
    Event,
    EventLog,
    Finished,
    Isolated,
    Joined,
    Memory,
    NeighbourChanged,
    Rejected,
    RoundDone,
    Started,
    event_file,
)
from p2p_dml.kernels.sketch import WIDTH, encode

STARTED = 1_700_000_000.0
ACCURACY = {0: (0.4, 0.8), 1: (0.5, 0.6), 2: (0.6, 0.1)}
PLACE = {0: (0.0, 1.0), 1: (3.0, 5.0), 2: (6.0, 7.0)}
HOSTILE = "<script>alert('x')</script> & \"quotes\""


def write_meta_file(folder: Path, **changed: object) -> Path:
    """`run.json` and `run.toml` of three peers and four rounds, with keys changed at will."""
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, object] = {
        "digest": "d1",
        "version": "0.0",
        "command": "p2p-dml run x.toml",
        "mode": "run",
        "host": "here",
        "started": STARTED,
        "strategy": "dpsgd",
        "peers": 3,
        "rounds": 4,
        "seed": 7,
        "params": 10,
        "num_classes": 2,
    }
    (folder / "run.json").write_text(json.dumps(meta | changed))
    (folder / "run.toml").write_text('[strategy]\nname = "dpsgd"\n')
    return folder


def append_events(folder: Path, peer: int, *timed: tuple[float, Event]) -> None:
    """Append events at the given seconds since the start to one peer's file."""
    now = STARTED
    log = EventLog(event_file(folder, peer), peer, lambda: now)
    for seconds, event in timed:
        now = STARTED + seconds
        log.write(event)
    log.close()


def started(samples: int) -> Started:
    return Started(
        pid=1,
        incarnation=0,
        endpoint="tcp://127.0.0.1:1",
        parameters=10,
        samples=samples,
        class_counts=[samples - 10, 10],
    )


def done(round: int, bytes_out: int, misses_peer_2: bool) -> RoundDone:
    return RoundDone(
        round=round,
        loss=1.0,
        bytes_out=bytes_out,
        bytes_in=50,
        neighbours=2,
        missing=[2] if misses_peer_2 else [],
        late=1 if misses_peer_2 else 0,
        seconds={"train": 1.0, "send": 0.1, "wait": 0.5, "mix": 0.2, "evaluate": 0.0},
        reported={"degree/representation": 1.0 + round, "degree/decision": 5.0},
    )


def evaluated(round: int, accuracy: float, place: float) -> Evaluated:
    sketch = encode(np.array([place] + [0.0] * (WIDTH - 1), dtype=np.float32))
    return Evaluated(round=round, accuracy=accuracy, loss=0.5, seconds=0.1, sketch=sketch)


def write_peer(folder: Path, peer: int, killed: bool, evaluate: bool) -> None:
    timed: list[tuple[float, Event]] = [
        (1, started(30 + 10 * peer)),
        (2 + peer, Joined(after_s=1.0 + peer)),
    ]
    for round in range(2 if killed else 4):
        end = 10.0 * (round + 1)
        timed.append((end, done(round, 100 * (peer + 1), round >= 2 and peer == 0)))
        if evaluate and round % 2:
            place = round // 2
            timed.append((end + peer, evaluated(round, ACCURACY[peer][place], PLACE[peer][place])))
        timed.append((end + peer, Memory(round=round, pss_mb=30.0 + peer, rss_mb=100.0)))
    if not killed:
        timed.append((45.0 + peer, Finished(round=3, exit_code=0)))
    append_events(folder, peer, *timed)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Call with `killed=True` to kill peer 2, with `evaluate=False` for a loop without metrics.

    Other keywords change `run.json`.
    """

    def write(
        name: str = "run", killed: bool = False, evaluate: bool = True, **changed: object
    ) -> Path:
        folder = write_meta_file(tmp_path / name, **changed)
        for peer in range(3):
            write_peer(folder, peer, killed and peer == 2, evaluate)
        if killed:
            append_events(
                folder,
                1,
                (46, NeighbourChanged(neighbour=2, state="dead", round=2, why=HOSTILE)),
                (46, Rejected(sender=0, round=2, why=HOSTILE)),
                (46, Isolated(round=3, heard=0)),
                (47, Finished(round=3, exit_code=0)),
            )
            with event_file(folder, 2).open("a") as torn:
                torn.write('{"event": "round_done", "t": 1700000030.0, "pee')
        return folder

    return write


@pytest.fixture
def write_meta() -> Callable[..., Path]:
    """Writes `run.json` and `run.toml` only: `write_meta(folder, peers=1)`."""
    return write_meta_file


@pytest.fixture
def append() -> Callable[..., None]:
    """Appends events: `append(folder, peer, (seconds, event), …)`."""
    return append_events
