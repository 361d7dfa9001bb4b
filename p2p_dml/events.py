"""What happened at a peer, as typed events; one JSON object per line in `events/peer-003.jsonl`.

Every line has `event` (the name below, in snake case), `t` (seconds since the epoch) and `peer`,
then the fields of its class. The report, the live view and `summary.json` are made from these
lines and nothing else, so they can be made again at any time.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal, final, get_args

from p2p_dml.errors import StorageError, TrainingError
from p2p_dml.event_fields import checker, is_integer, is_time
from p2p_dml.types import PeerId

PHASES = ("train", "send", "wait", "mix", "evaluate")


@dataclass(frozen=True, slots=True)
class Started:
    """The peer has model, data and sockets; `samples` is the size of its own training shard."""

    pid: int
    incarnation: int
    endpoint: str
    parameters: int
    samples: int
    class_counts: list[int]


@dataclass(frozen=True, slots=True)
class Resumed:
    """The peer goes on from its checkpoint of `round`; 0: from the beginning, for want of one.

    What it wrote before of later rounds, and its evaluation of this one, are done again and no
    longer count. Stands next after `started`.
    """

    round: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rounds `first` to `last` are not run: neighbours, who were out of reach, are past them."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Rejoined:
    """The peer comes into a run that is under way, in `round`, with the model of `model_round`.

    `source`: its own checkpoint, a neighbour's model (`neighbour`: whose), or the initial one.
    """

    round: int
    source: Literal["checkpoint", "neighbour", "beginning"]
    model_round: int
    neighbour: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """All neighbours of the first rounds have said hello; round 0 begins. `after_s` since start."""

    after_s: float


@dataclass(frozen=True, slots=True)
class RoundDone:
    """One round is over.

    `bytes_out`/`bytes_in` are payload bytes. `neighbours` counts whom the peer should have heard,
    `missing` those it did not (their weights sum to `lost_weight`, returned to self). `age` is the
    mean age in rounds of the models mixed, None where each is used once. `seconds` holds the
    `PHASES`. `reported` is what the strategy says of itself (HyperPrism: `degree/decision`).
    """

    round: int
    loss: float | None
    bytes_out: int
    bytes_in: int
    neighbours: int
    missing: list[PeerId] = field(default_factory=list)
    late: int = 0
    lost_weight: float = 0.0
    age: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reported: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Test metrics after `round`; `sketch` is a base64 random projection of the parameters.

    See `p2p_dml.kernels.sketch` for how the consensus distance comes from the sketches.
    """

    round: int
    accuracy: float | None
    loss: float | None
    seconds: float
    sketch: str


@dataclass(frozen=True, slots=True)
class NeighbourChanged:
    """A neighbour became alive, slow, dead, or left; `why` in words."""

    neighbour: PeerId
    state: Literal["alive", "slow", "stuck", "dead", "left"]
    round: int
    why: str


@dataclass(frozen=True, slots=True)
class NotShared:
    """A neighbour on this machine is reached through sockets alone; `why` its memory is of no use.

    Of the two, that one tells which cannot read the other's.
    """

    neighbour: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something was refused and its sender treated as missing; `sender` None if it is unknown.

    Told once per sender and reason, and again in the end if there was more: `times` add up.
    """

    sender: PeerId | None
    round: int
    why: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Isolated:
    """Fewer than `min_neighbours` neighbours were heard: the round was local only."""

    round: int
    heard: int


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault of the run file's `faults[fault]` befalls the peer now; not again when it is back."""

    round: int
    phase: str
    kind: str
    fault: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """The peer has been in one phase of a round for longer than its watchdog allows.

    `phase`: "train", "send", "mix", "evaluate", "checkpoint" or "log" (writing an event). Told
    again when that is over, with the `seconds` that it took in all.
    """

    round: int
    phase: str
    seconds: float
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """Parameters and state after `round` are safe in `file` (relative to the run folder)."""

    round: int
    file: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional and resident set size of the process, in MB (10^6 bytes)."""

    round: int
    pss_mb: float
    rss_mb: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last line of a peer that ended by itself; `error` is None for success."""

    round: int
    exit_code: int
    error: str | None = None


Event = (
    Started
    | Resumed
    | Rejoined
    | Joined
    | RoundDone
    | Evaluated
    | NeighbourChanged
    | NotShared
    | Rejected
    | Isolated
    | Skipped
    | Injected
    | Stuck
    | Checkpointed
    | Memory
    | Finished
)


def event_name(event: type[Any]) -> str:
    """Snake-case name of an event class, as written in the `event` field."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()


_NAMES_AND_KEYS = {
    each: (event_name(each), tuple(key.name for key in fields(each))) for each in get_args(Event)
}
_CHECKS = {event_name(each): checker(each) for each in get_args(Event)}


class EventLog:
    """Appends events to one peer's file, a line each, flushed at once.

    A half line that a killed peer left is ended first. Raises StorageError, naming the file and the
    reason, when a line cannot be written.
    """

    def __init__(self, path: Path, peer: PeerId, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.peer = peer
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)
            if _is_torn(path):
                self._file.write("\n")
        except OSError as error:
            raise StorageError(f"peer {peer}: cannot open {path}: {error.strerror}") from error

    def write(self, event: Event) -> None:
        """Append one line; TrainingError if a figure in it is not finite."""
        name, keys = _NAMES_AND_KEYS[type(event)]
        line = {"event": name, "t": round(self._clock(), 6), "peer": self.peer}
        line |= {key: getattr(event, key) for key in keys}
        try:
            text = json.dumps(line, allow_nan=False)
        except ValueError as error:
            raise TrainingError(
                f"peer {self.peer}, round {line.get('round', 0)}: {', '.join(_not_finite(line))}; "
                "the training diverged: a lower learning rate may help"
            ) from error
        try:
            self._file.write(text + "\n")
        except OSError as error:
            raise StorageError(
                f"peer {self.peer}: cannot write {self.path}: {error.strerror}; "
                "free some space or choose another folder with --out"
            ) from error

    def close(self) -> None:
        """Free the file; what could not be written was reported by `write`."""
        with suppress(OSError):
            self._file.close()


def _not_finite(figures: Mapping[str, object], path: str = "") -> list[str]:
    """`key = value` of each NaN or infinity, which JSON cannot hold, those of inner tables too."""
    found: list[str] = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            found += _not_finite(value, f"{path}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(f"{path}{key} = {value}")
    return found


def _is_torn(path: Path) -> bool:
    """Whether the file's last line lacks its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return size > 0 and file.read() != b"\n"


def event_file(run: Path, peer: PeerId) -> Path:
    """Where a peer's events live in a run folder."""
    return run / "events" / f"peer-{peer:03d}.jsonl"


def standing(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of one file that count: without those of rounds that were done again later."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line["event"] == "resumed":
            kept = [each for each in kept if not _is_superseded(each, line["round"])]
        kept.append(line)
    return kept


def _is_superseded(line: Mapping[str, Any], round: int) -> bool:
    """Whether a line written before its peer resumed after `round` no longer counts."""
    if line["event"] == "evaluated":  # of the round itself too, as it was the last one only then
        return bool(line["round"] >= round)
    happened = line["event"] in ("resumed", "injected")  # to the peer, whatever its rounds
    return not happened and bool(line.get("round", 0) > round)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of one file; lines that `parse` makes nothing of are left out.

    Raises StorageError if the file cannot be read.
    """
    with _reading(path), path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n") and (event := parse(line)) is not None:
                yield event


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot read the events in {path}: {error.strerror}") from error


# How EventLog begins each line. Quotes inside strings are escaped, so it is nowhere else.
_BEGIN = b'{"event": '
_DECODER = json.JSONDecoder()


def parse(line: bytes) -> dict[str, Any] | None:
    """The event in one line; None for one that is torn, no event, or has a field of a wrong type.

    A peer that was killed while writing and came back appends to its half line: what follows the
    torn half is still read.
    """
    try:
        text = line[max(0, line.rfind(_BEGIN)) :].decode().strip()
        event, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and end == len(text) and _is_sound(event) else None


def _is_sound(event: Mapping[str, Any]) -> bool:
    """Whether readers find what they expect; events of other names are of no concern to them."""
    name = event.get("event")
    if not (isinstance(name, str) and is_time(event.get("t"))):
        return False
    check = _CHECKS.get(name)
    return check is None or (is_integer(event.get("peer")) and check(event))


@final
class EventTail:
    """An event file that grows, read in instalments; costs one `stat` if nothing was appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._half_line = b""

    def lines(self) -> list[bytes]:
        """Lines completed since the last call; one without its end waits for the next."""
        with _reading(self._path):
            try:
                if self._path.stat().st_size <= self._offset:
                    return []
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    fresh = file.read()
            except FileNotFoundError:
                return []
        self._offset += len(fresh)
        *lines, self._half_line = (self._half_line + fresh).split(b"\n")
        return lines

    def read(self) -> list[dict[str, Any]]:
        """The events in these lines, whatever state a killed peer left them in."""
        return [event for event in map(parse, self.lines()) if event is not None]
