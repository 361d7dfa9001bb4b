"""What strategies report of themselves, over the rounds: the mean over the peers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from p2p_dml.report._values import Floats, Ints, Run


def measure_reported(run: Run) -> tuple[Ints, Mapping[str, Floats]]:
    """Rounds [r], and by name the mean [r] over the peers that reported the figure in a round."""
    rounds = np.unique(np.concatenate([peer.rounds.round for peer in run.peers]))
    names = dict.fromkeys(name for peer in run.peers for name in peer.rounds.reported)
    return rounds, {name: _mean(run, rounds, name) for name in names}


def reported_csv(run: Run) -> str:
    """The text of `reported.csv`, a row per round; unknown figures are empty."""
    rounds, means = measure_reported(run)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["round", *means])
    for place, number in enumerate(rounds.tolist()):
        row = [float(column[place]) for column in means.values()]
        writer.writerow([number, *(f"{x:.8g}" if np.isfinite(x) else "" for x in row)])
    return text.getvalue()


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
