"""The figures of a run: its curve over the evaluated rounds and the one-page summary."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

from p2p_dml.errors import WORST_FIRST, ExitCode
from p2p_dml.events import PHASES
from p2p_dml.kernels.sketch import consensus_distance, decode
from p2p_dml.report._csv import csv_of
from p2p_dml.report._timeline import measure_timeline
from p2p_dml.report._values import (
    Curve,
    Floats,
    Ints,
    LostPeer,
    PeerRecord,
    Quantiles,
    RoundsDone,
    Run,
    Spread,
    Summary,
    Timeline,
)
from p2p_dml.types import PeerId


def measure_curve(run: Run) -> Curve:
    """Figures of every round that some peer evaluated; empty arrays if none did."""
    rounds = np.unique(np.concatenate([peer.evaluations.round for peer in run.peers]))
    accuracy = _table(run, rounds, lambda peer: peer.evaluations.accuracy)
    seconds = _table(run, rounds, lambda peer: peer.evaluations.t) - run.meta.started
    return Curve(
        round=rounds,
        accuracy_mean=_over_peers(np.mean, accuracy),
        accuracy_std=_over_peers(np.std, accuracy),
        loss_mean=_over_peers(np.mean, _table(run, rounds, lambda peer: peer.evaluations.loss)),
        consensus_distance=_distances(run.peers, rounds),
        bytes_out=_bytes_until(run.peers, rounds),
        seconds=_over_peers(np.mean, seconds),
        accuracy_min=_over_peers(np.min, accuracy),
        accuracy_max=_over_peers(np.max, accuracy),
        train_loss_mean=_over_peers(np.mean, _train_losses(run.peers, rounds)),
        peers=np.isfinite(seconds).sum(axis=0, dtype=np.int64),
    )


def summarise(run: Run, curve: Curve) -> Summary:
    """The figures of `summary.json`.

    Accuracy, loss and consensus distance are over each remaining peer's last evaluation; the peers
    that were lost count only if every peer was.
    """
    peers, meta = run.peers, run.meta
    lost = tuple(peer for peer in peers if peer.fate == "lost")
    remaining = tuple(peer for peer in peers if peer.fate != "lost") or peers
    evaluated = [peer.evaluations for peer in remaining if len(peer.evaluations.round)]
    final = {
        p.peer: float(p.evaluations.accuracy[-1]) for p in remaining if p.evaluations.round.size
    }
    best = _best_of(run, curve, len(evaluated))
    return Summary(
        strategy=meta.strategy,
        mode=meta.mode,
        pace=meta.pace,
        stragglers=meta.stragglers,
        clock=meta.clock,
        evaluate_on=meta.evaluate_on,
        version=meta.version,
        digest=meta.digest,
        peers=meta.peers if meta.first_peers == meta.peers else len(peers),
        rounds=meta.rounds,
        seed=meta.seed,
        params=meta.params,
        wall_s=_since(meta.started, [peer.last_t for peer in peers]),
        startup_s=_since(meta.started, [peer.joined for peer in peers]),
        accuracy=_spread(list(final.values())),
        accuracy_quantiles=_quantiles(list(final.values())),
        worst_peer=_worst_peer(final),
        best_accuracy=best.accuracy,
        best_round=best.round,
        best_s=best.seconds,
        loss_mean=_mean([float(e.loss[-1]) for e in evaluated]),
        train_loss_mean=_mean([float(p.rounds.loss[-1]) for p in remaining if p.rounds.loss.size]),
        consensus_distance=_known(_distance([e.sketch[-1] for e in evaluated])),
        bytes_out_total=sum(int(peer.rounds.bytes_out.sum()) for peer in peers),
        bytes_in_total=sum(int(peer.rounds.bytes_in.sum()) for peer in peers),
        seconds=_phase_seconds(peers),
        wait_share=_spread([_wait_share(peer) for peer in peers]),
        age_mean=_mean(np.concatenate([peer.rounds.age for peer in peers]).tolist()),
        pss_mb_median=_median([float(np.median(p.pss_mb)) for p in peers if p.pss_mb.size]),
        pss_mb_max=max((float(p.pss_mb.max()) for p in peers if p.pss_mb.size), default=None),
        rss_mb_median=_median([float(np.median(p.rss_mb)) for p in peers if p.rss_mb.size]),
        rounds_done=_rounds_done(peers),
        missing_messages=sum(int(peer.rounds.missing.sum()) for peer in peers),
        late_messages=sum(int(peer.rounds.late.sum()) for peer in peers),
        rejected=_num_happenings(peers, "rejected"),
        isolated_rounds=_num_happenings(peers, "isolated"),
        peers_finished=sum(peer.fate == "finished" for peer in peers),
        peers_stopped=sum(peer.fate == "stopped" for peer in peers),
        peers_lost=len(lost),
        lost=tuple(
            LostPeer(peer=p.peer, last_round=p.last_round, exit_code=p.exit_code, error=p.error)
            for p in lost
        ),
        exit_code=_worst_exit_code(peers),
    )


def summary_json(summary: Summary) -> str:
    """The text of `summary.json`; unknown figures are null."""
    return json.dumps(dataclasses.asdict(summary), indent=2, allow_nan=False) + "\n"


def curve_csv(curve: Curve | Timeline) -> str:
    """The text of `curve.csv` or `timeline.csv`, a row per entry; unknown figures are empty."""
    return csv_of({field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)})


def _table(run: Run, rounds: Ints, pick: Callable[[PeerRecord], Floats]) -> Floats:
    """One row per peer, one column per round [n, e]; NaN where a peer did not evaluate."""
    table = np.full((len(run.peers), len(rounds)), np.nan)
    for row, peer in zip(table, run.peers, strict=True):
        row[np.searchsorted(rounds, peer.evaluations.round)] = pick(peer)
    return table


def _train_losses(peers: Sequence[PeerRecord], rounds: Ints) -> Floats:
    """Training loss at the evaluated rounds [n, e]."""
    table = np.full((len(peers), len(rounds)), np.nan)
    for row, peer in zip(table, peers, strict=True):
        newest = dict(zip(peer.rounds.round.tolist(), peer.rounds.loss.tolist(), strict=True))
        row[:] = [newest.get(round, np.nan) for round in rounds.tolist()]
    return table


def _over_peers(figure: Callable[[Floats], np.floating], table: Floats) -> Floats:
    """A figure of each column's known values; NaN for a column without any."""
    columns = (column[np.isfinite(column)] for column in table.T)
    return np.array([figure(known) if known.size else np.nan for known in columns])


def _distances(peers: Sequence[PeerRecord], rounds: Ints) -> Floats:
    by_round: dict[int, list[str]] = {round: [] for round in rounds.tolist()}
    for peer in peers:
        for round, sketch in zip(
            peer.evaluations.round.tolist(), peer.evaluations.sketch, strict=True
        ):
            by_round[round].append(sketch)
    return np.array([_distance(sketches) for sketches in by_round.values()], dtype=np.float64)


def _distance(sketches: Sequence[str]) -> float:
    decoded = [values for text in sketches if (values := decode(text)) is not None]
    return consensus_distance(np.stack(decoded)) if decoded else math.nan


def _bytes_until(peers: Sequence[PeerRecord], rounds: Ints) -> Ints:
    done = np.concatenate([peer.rounds.round for peer in peers])
    order = np.argsort(done, kind="stable")
    total = np.cumsum(np.concatenate([peer.rounds.bytes_out for peer in peers])[order])
    until = np.searchsorted(done[order], rounds, side="right")
    return np.concatenate([[0], total])[until].astype(np.int64)


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The largest mean accuracy, in which round (None if peers are in different ones) and when."""

    accuracy: float | None = None
    round: int | None = None
    seconds: float | None = None


def _best_of(run: Run, curve: Curve, at_least: int) -> _Best:
    """The best round, or in asynchronous rounds the best instant.

    Only where `at_least` so many peers were evaluated: otherwise a run that was stopped early could
    win by its one fastest peer.
    """
    is_synchronous = run.meta.pace == "synchronous"
    line = curve if is_synchronous else measure_timeline(run)
    eligible = np.where(line.peers >= at_least, line.accuracy_mean, np.nan)
    if not np.isfinite(eligible).any():
        return _Best()
    place = int(np.nanargmax(eligible))
    return _Best(
        accuracy=float(line.accuracy_mean[place]),
        round=int(curve.round[place]) if is_synchronous else None,
        seconds=_known(line.seconds[place]),
    )


def _wait_share(peer: PeerRecord) -> float:
    """Share of the time of its rounds that a peer has waited."""
    seconds = peer.rounds.seconds.sum(axis=0)
    return float(seconds[PHASES.index("wait")] / seconds.sum()) if seconds.sum() else math.nan


def _phase_seconds(peers: Sequence[PeerRecord]) -> dict[str, float]:
    totals = [peer.rounds.seconds.sum(axis=0) for peer in peers if len(peer.rounds.round)]
    means = np.mean(totals, axis=0).tolist() if totals else [0.0] * len(PHASES)
    return dict(zip(PHASES, means, strict=True))


def _rounds_done(peers: Sequence[PeerRecord]) -> RoundsDone:
    done = [len(np.unique(peer.rounds.round)) for peer in peers]
    return RoundsDone(min=min(done, default=0), max=max(done, default=0))


def _num_happenings(peers: Sequence[PeerRecord], event: str) -> int:
    lines = [line for peer in peers for line in peer.happenings if line["event"] == event]
    return sum(line.get("times", 1) for line in lines)


def _worst_exit_code(peers: Sequence[PeerRecord]) -> int:
    codes = {ExitCode.FAILED if peer.exit_code is None else peer.exit_code for peer in peers}
    known = [code for code in WORST_FIRST if code in codes]
    # A code that is none of ours (a signal's) is a failure.
    return int(known[0]) if codes <= set(WORST_FIRST) and known else int(ExitCode.FAILED)


def _since(started: float, times: Sequence[float | None]) -> float | None:
    latest = max((t for t in times if t is not None), default=None)
    return None if latest is None else latest - started


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float | None:
    known = _finite(values)
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float]) -> float | None:
    known = _finite(values)
    return float(np.median(known)) if known else None


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    known = _finite(values)
    if not known:
        return None
    p10, p25, p50, p75, p90 = np.quantile(known, [0.1, 0.25, 0.5, 0.75, 0.9]).tolist()
    return Quantiles(p10=p10, p25=p25, p50=p50, p75=p75, p90=p90)


def _worst_peer(accuracies: Mapping[PeerId, float]) -> PeerId | None:
    """The peer of the lowest accuracy, the first of equals; None if none is known."""
    known = [(value, peer) for peer, value in accuracies.items() if math.isfinite(value)]
    return min(known)[1] if known else None


def _spread(values: Sequence[float]) -> Spread | None:
    known = _finite(values)
    if not known:
        return None
    return Spread(
        mean=float(np.mean(known)),
        std=float(np.std(known)),
        min=float(min(known)),
        max=float(max(known)),
    )
