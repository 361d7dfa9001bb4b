"""Accuracy over time: what all peers had reached by each instant, whatever round each was in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from p2p_dml.report._values import Evaluations, Floats, PeerRecord, Run, Timeline

_MAX_INSTANTS = 1000


def measure_timeline(run: Run) -> Timeline:
    """Figures at the instants of evaluations, of which at most 1000 are kept, evenly chosen.

    Each peer counts with its last evaluation, a lost one until it was lost. It begins when all
    peers that ever evaluate have done so; empty if none does.
    """
    peers = [peer for peer in run.peers if len(peer.evaluations.t)]
    times = _instants([peer.evaluations for peer in peers])
    table = np.array([_held(peer, times) for peer in peers]).reshape(len(peers), len(times))
    known = np.isfinite(table).any(axis=0)
    table, times = table[:, known], times[known]
    return Timeline(
        seconds=times - run.meta.started,
        accuracy_mean=_columns(np.nanmean, table),
        accuracy_std=_columns(np.nanstd, table),
        accuracy_min=_columns(np.nanmin, table),
        accuracy_max=_columns(np.nanmax, table),
        rounds_mean=_columns(np.mean, np.array([_rounds(peer, times) for peer in peers])),
        peers=np.isfinite(table).sum(axis=0, dtype=np.int64),
    )


def _instants(evaluations: Sequence[Evaluations]) -> Floats:
    if not evaluations:
        return np.empty(0)
    begin = max(float(each.t.min()) for each in evaluations)
    times: Floats = np.unique(np.concatenate([each.t for each in evaluations]))
    times = times[times >= begin]
    chosen = np.linspace(0, len(times) - 1, min(len(times), _MAX_INSTANTS)).round().astype(np.int64)
    kept: Floats = times[chosen]
    return kept


def _held(peer: PeerRecord, times: Floats) -> Floats:
    """Accuracy of the peer's last evaluation at each of `times`; NaN after it was lost."""
    order = np.argsort(peer.evaluations.t, kind="stable")
    place = np.searchsorted(peer.evaluations.t[order], times, side="right") - 1
    accuracy: Floats = peer.evaluations.accuracy[order][place]
    if peer.fate == "lost" and peer.last_t is not None:
        accuracy = np.where(times <= peer.last_t, accuracy, np.nan)
    return accuracy


def _rounds(peer: PeerRecord, times: Floats) -> Floats:
    """Rounds that the peer has finished at each of `times`."""
    return np.searchsorted(np.sort(peer.rounds.t), times, side="right").astype(np.float64)


def _columns(figure: Callable[[Floats], np.floating], table: Floats) -> Floats:
    """A figure of each column [t]."""
    return np.array([figure(column) for column in table.T])
