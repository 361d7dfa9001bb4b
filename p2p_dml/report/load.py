"""Reads a run folder into a `Run`: `run.json`, `run.toml` and every peer's events."""

from __future__ import annotations

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np

from p2p_dml.errors import ConfigError
from p2p_dml.event_fields import is_time
from p2p_dml.events import PHASES, EventTail, event_file, standing
from p2p_dml.report._values import Evaluations, Floats, Ints, Line, Meta, PeerRecord, Rounds, Run
from p2p_dml.tables import check, read_toml
from p2p_dml.types import PeerId

HAPPENINGS = (
    "neighbour_changed",
    "not_shared",
    "rejected",
    "isolated",
    "skipped",
    "rejoined",
    "stuck",
    "resumed",
    "injected",
)


def load(folder: Path) -> Run:
    """Read a run folder; peers without events are there with empty records.

    Raises ConfigError if it is not a run folder or its `run.json` cannot be understood.
    """
    meta = _read_meta(folder)
    config = _config(folder / "run.toml", meta.peers)
    lines = {peer: EventTail(event_file(folder, peer)).read() for peer in _peers_here(folder, meta)}
    pauses = _pauses(meta, lines.values())
    return Run(
        folder=folder,
        meta=meta,
        config=config,
        peers=tuple(_record(peer, own, pauses) for peer, own in lines.items()),
    )


def _config(path: Path, peers: int) -> str:
    """The text of `run.toml`, "" if there is none; ConfigError if it is of other peers."""
    if not path.is_file():
        return ""
    found = read_toml(path, "run file").get("peers", peers)
    if found != peers:
        raise ConfigError(
            f"{path.with_name('run.json')}: peers: expected {found!r} as in {path.name}, found "
            f"{peers}"
        )
    return path.read_text(encoding="utf-8")


def _peers_here(folder: Path, meta: Meta) -> Sequence[PeerId]:
    here = [peer for peer in range(meta.peers) if event_file(folder, peer).exists()]
    if meta.mode == "peer":
        return here or range(meta.peers)
    return sorted({*range(meta.first_peers), *here})


def _read_meta(folder: Path) -> Meta:
    path = folder / "run.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder}: not a run folder: looked for {path.name} ({error.strerror}); "
            "expected the folder that `p2p-dml run` or `p2p-dml simulate` wrote"
        ) from error
    try:
        table = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON; {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(table).__name__}")
    meta = _meta(table, path)
    for key, number in (("peers", meta.peers), ("rounds", meta.rounds)):
        if number < 1:
            raise ConfigError(f"{path}: {key}: expected at least 1, found {number}")
    return meta


def _meta(table: Mapping[str, Any], path: Path) -> Meta:
    command = table.get("command", "")
    return Meta(
        name=str(table.get("name", path.parent.resolve().name)),
        digest=str(table.get("digest", "")),
        version=str(table.get("version", "")),
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        mode=str(table.get("mode", "run")),
        pace=str(table.get("pace", "synchronous")),
        stragglers=check(tuple[PeerId, ...], table.get("stragglers", []), f"{path}: stragglers"),
        clock=str(table.get("clock", "wall")),
        evaluate_on=str(table.get("evaluate_on", "all")),
        host=str(table.get("host", "")),
        started=_time(table.get("started"), f"{path}: started"),
        resumed=_resumptions(table.get("resumed", []), f"{path}: resumed"),
        strategy=check(str, table.get("strategy"), f"{path}: strategy"),
        peers=check(int, table.get("peers"), f"{path}: peers"),
        first_peers=check(
            int, table.get("first_peers", table.get("peers")), f"{path}: first_peers"
        ),
        rounds=check(int, table.get("rounds"), f"{path}: rounds"),
        seed=check(int, table.get("seed"), f"{path}: seed"),
        params=check(int | None, table.get("params"), f"{path}: params"),
        num_classes=check(int | None, table.get("num_classes"), f"{path}: num_classes"),
    )


def _resumptions(entries: object, where: str) -> tuple[float, ...]:
    tables = check(list[dict[str, Any]], entries, where)
    return tuple(sorted(_time(table.get("at"), f"{where}: at") for table in tables))


def _time(value: object, where: str) -> float:
    found: float = check(float, value, where)
    if not is_time(found):
        raise ConfigError(f"{where}: expected seconds since the epoch, found {found!r}")
    return found


@final
@dataclass(frozen=True, slots=True)
class _Pause:
    """Nobody trained from `since`, a last line, `until` a peer joined again; resumed `at`."""

    since: float
    at: float
    until: float


def _pauses(meta: Meta, files: Collection[Sequence[Line]]) -> list[_Pause]:
    """Before each time that the run was resumed."""
    times = np.sort([line["t"] for lines in files for line in lines])
    joined = np.sort([x["t"] for lines in files for x in lines if x["event"] == "joined"])
    pauses = []
    for at, following in pairwise([*meta.resumed, math.inf]):
        before, after = times[times < at], times[(times >= at) & (times < following)]
        again = joined[(joined >= at) & (joined < following)]
        since = max(float(before.max(initial=0.0)), meta.started)
        until = float(again[0]) if again.size else float(after.max(initial=at))
        pauses.append(_Pause(since, at, until))
    return pauses


def _without_pauses(lines: list[Line], pauses: Sequence[_Pause]) -> list[Line]:
    if not pauses:
        return lines
    return [{**line, "t": line["t"] - _paused_until(line["t"], pauses)} for line in lines]


def _paused_until(t: float, pauses: Sequence[_Pause]) -> float:
    return sum(max(0.0, min(t, pause.until) - pause.since) for pause in pauses)


def _most_starts(lines: Sequence[Line], pauses: Sequence[_Pause]) -> int:
    """Starts of a peer between two resumptions, where it was started most often."""
    times = [line["t"] for line in lines if line["event"] == "started"]
    sessions = np.searchsorted([pause.at for pause in pauses], times, side="right")
    return int(np.bincount(sessions).max()) if times else 0


def _record(peer: PeerId, written: Sequence[Line], pauses: Sequence[_Pause]) -> PeerRecord:
    lines = _without_pauses(standing(written), pauses)
    by_name: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_name[line["event"]].append(line)
    started = by_name["started"]
    names = [line["event"] for line in lines]
    is_late = "rejoined" in names[: names.index("joined")] if "joined" in names else False
    # A finished line before the last start belongs to an earlier incarnation.
    ended = lines[-1] if lines and lines[-1]["event"] == "finished" else {}
    return PeerRecord(
        peer=peer,
        samples=started[-1].get("samples") if started else None,
        class_counts=tuple(started[-1].get("class_counts", ())) if started else (),
        incarnations=_most_starts(written, pauses),
        joined=by_name["joined"][0]["t"] if by_name["joined"] and not is_late else None,
        last_t=lines[-1]["t"] if lines else None,
        rounds=_rounds(by_name["round_done"]),
        evaluations=_evaluations(by_name["evaluated"]),
        pss_mb=_floats(by_name["memory"], "pss_mb"),
        rss_mb=_floats(by_name["memory"], "rss_mb"),
        happenings=tuple(line for line in lines if line["event"] in HAPPENINGS),
        exit_code=ended.get("exit_code"),
        error=ended.get("error"),
    )


def _rounds(lines: Sequence[Line]) -> Rounds:
    seconds = [[line.get("seconds", {}).get(phase, 0.0) for phase in PHASES] for line in lines]
    return Rounds(
        round=_ints(lines, "round"),
        t=_floats(lines, "t"),
        loss=_floats(lines, "loss"),
        bytes_out=_ints(lines, "bytes_out"),
        bytes_in=_ints(lines, "bytes_in"),
        missing=np.array([len(line.get("missing", ())) for line in lines], dtype=np.int64),
        late=_ints(lines, "late"),
        age=_floats(lines, "age"),
        seconds=np.array(seconds, dtype=np.float64).reshape(len(lines), len(PHASES)),
        reported=_named(lines, "reported"),
        metrics=_named(lines, "metrics"),
    )


def _evaluations(lines: Sequence[Line]) -> Evaluations:
    # A peer that came back from a checkpoint evaluates some rounds again: the last one holds.
    newest = {line["round"]: line for line in lines}
    ordered = [newest[round] for round in sorted(newest)]
    return Evaluations(
        round=_ints(ordered, "round"),
        t=_floats(ordered, "t"),
        accuracy=_floats(ordered, "accuracy"),
        loss=_floats(ordered, "loss"),
        sketch=tuple(line.get("sketch") or "" for line in ordered),
    )


def _named(lines: Sequence[Line], field: str) -> dict[str, Floats]:
    tables = [line.get(field, {}) for line in lines]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: _floats(tables, name) for name in names}


def _floats(lines: Sequence[Mapping[str, Any]], key: str) -> Floats:
    # numpy turns None into NaN when the type is float64.
    return np.array([line.get(key) for line in lines], dtype=np.float64)


def _ints(lines: Sequence[Mapping[str, Any]], key: str) -> Ints:
    return np.array([line.get(key, 0) for line in lines], dtype=np.int64)
