"""What strategies report of themselves, over the rounds: the mean over the peers."""

from __future__ import annotations

import numpy as np

from p2p_dml.report._csv import csv_of
from p2p_dml.report._values import Floats, Ints, Run


def reported_csv(run: Run) -> str:
    """The text of `reported.csv`: by round the mean of each figure over those that reported it."""
    rounds = np.unique(np.concatenate([peer.rounds.round for peer in run.peers]))
    names = dict.fromkeys(name for peer in run.peers for name in peer.rounds.reported)
    return csv_of({"round": rounds, **{name: _mean(run, rounds, name) for name in names}})


def _mean(run: Run, rounds: Ints, name: str) -> Floats:
    """Of finite values only; NaN where there is none."""
    total, count = np.zeros((2, len(rounds)))
    for peer in run.peers:
        if name in peer.rounds.reported:
            values = peer.rounds.reported[name]
            known = np.isfinite(values)
            places = np.searchsorted(rounds, peer.rounds.round[known])
            np.add.at(total, places, values[known])
            np.add.at(count, places, 1)
    mean: Floats = np.divide(total, count, out=np.full(len(rounds), np.nan), where=count > 0)
    return mean
