"""What the parts of a report hand each other: a recorded run, its curve, its summary.

Absent figures are NaN in arrays and None elsewhere, so every consumer can leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from p2p_dml.types import PeerId

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Line: TypeAlias = dict[str, Any]
"""One event as written: `event`, `t`, `peer`, then the fields of its class."""

Fate = Literal["finished", "stopped", "lost"]
"""How a peer ended: exit code 0, exit code 5 (stopped after its checkpoint), anything else."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """`run.json`: what was run, by which command, when (`started`: seconds since the epoch).

    `clock` is "wall" or, of simulations at the pace of each peer, "virtual"; `evaluate_on` "all" or
    "own": then every accuracy is a personal one. `resumed`: when the run was taken up again.
    `peers` is the most that there may be, of which `first_peers` begin.
    """

    name: str
    digest: str
    version: str
    command: str
    mode: str
    pace: str
    stragglers: tuple[PeerId, ...]
    clock: str
    evaluate_on: str
    host: str
    started: float
    resumed: tuple[float, ...]
    strategy: str
    peers: int
    first_peers: int
    rounds: int
    seed: int
    params: int | None
    num_classes: int | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """One peer's finished rounds, in the order they were written; each array is [r].

    `missing` counts messages, `age` is in rounds, NaN in synchronous ones, `seconds` is [r, phases]
    in the order of `events.PHASES`. A round stands twice if the peer was started anew by itself: it
    did cost twice. Of a resumed run only what was not done again is here.
    """

    round: Ints
    t: Floats
    loss: Floats
    bytes_out: Ints
    bytes_in: Ints
    missing: Ints
    late: Ints
    age: Floats
    seconds: Floats
    reported: Mapping[str, Floats]
    metrics: Mapping[str, Floats]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """One peer's evaluations, each array [e], rounds ascending; a repeated round counts once."""

    round: Ints
    t: Floats
    accuracy: Floats
    loss: Floats
    sketch: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """All that one event file says.

    `joined` is the first time round 0 could begin (None if the peer came later), `last_t` the time
    of the last line (None if there is none). `happenings` are the lines of `load.HAPPENINGS`. All
    times leave out those in which nobody trained: from the last line of any peer until one had
    joined again in the resumed run. `incarnations`: starts between two resumptions, at most.
    """

    peer: PeerId
    samples: int | None
    class_counts: tuple[int, ...]
    incarnations: int
    joined: float | None
    last_t: float | None
    rounds: Rounds
    evaluations: Evaluations
    pss_mb: Floats
    rss_mb: Floats
    happenings: tuple[Line, ...]
    exit_code: int | None
    error: str | None

    @property
    def fate(self) -> Fate:
        """No last line (killed) and every error count as lost."""
        if self.exit_code == 0:
            return "finished"
        return "stopped" if self.exit_code == 5 else "lost"

    @property
    def last_round(self) -> int | None:
        """The last round the peer finished."""
        return int(self.rounds.round[-1]) if len(self.rounds.round) else None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder in memory: `config` is the text of `run.toml`, `peers` ascend.

    `peers` holds all peers of the run, without those that might have joined and did not; of one
    that was started peer by peer on several machines (`mode` "peer") only those whose events are in
    this folder, and always at least one.
    """

    folder: Path
    meta: Meta
    config: str
    peers: tuple[PeerRecord, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Figures over the evaluated rounds, one entry each [e]; the columns of `curve.csv`.

    Mean, population standard deviation, min and max are over the peers that evaluated the round
    (`peers` of them). `bytes_out` is cumulative over all peers, `seconds` since the start.
    """

    round: Ints
    accuracy_mean: Floats
    accuracy_std: Floats
    loss_mean: Floats
    consensus_distance: Floats
    bytes_out: Ints
    seconds: Floats
    accuracy_min: Floats
    accuracy_max: Floats
    train_loss_mean: Floats
    peers: Ints


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Figures over the time, one entry per instant [t]; the columns of `timeline.csv`.

    Accuracy is over the last evaluation of each peer at that time (`peers` of them), `rounds_mean`
    the mean number of rounds that they have finished, `seconds` since the start.
    """

    seconds: Floats
    accuracy_mean: Floats
    accuracy_std: Floats
    accuracy_min: Floats
    accuracy_max: Floats
    rounds_mean: Floats
    peers: Ints


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the peers; `std` is the population standard deviation."""

    mean: float
    std: float
    min: float
    max: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Quantiles of a figure over the peers, between two of them by linear interpolation."""

    p10: float
    p25: float
    p50: float
    p75: float
    p90: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LostPeer:
    """A peer that did not end well; `error` is None if it was killed before it could say why."""

    peer: PeerId
    last_round: int | None
    exit_code: int | None
    error: str | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsDone:
    """Fewest and most distinct rounds that a peer finished."""

    min: int
    max: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`summary.json`, field for field; see docs/outputs.md for what each one is."""

    strategy: str
    mode: str
    pace: str
    stragglers: tuple[PeerId, ...]
    clock: str
    evaluate_on: str
    version: str
    digest: str
    peers: int
    rounds: int
    seed: int
    params: int | None
    wall_s: float | None
    startup_s: float | None
    accuracy: Spread | None
    accuracy_quantiles: Quantiles | None
    worst_peer: PeerId | None
    best_accuracy: float | None
    best_round: int | None
    best_s: float | None
    loss_mean: float | None
    train_loss_mean: float | None
    consensus_distance: float | None
    bytes_out_total: int
    bytes_in_total: int
    seconds: Mapping[str, float]
    wait_share: Spread | None
    age_mean: float | None
    pss_mb_median: float | None
    pss_mb_max: float | None
    rss_mb_median: float | None
    rounds_done: RoundsDone
    missing_messages: int
    late_messages: int
    rejected: int
    isolated_rounds: int
    peers_finished: int
    peers_stopped: int
    peers_lost: int
    lost: tuple[LostPeer, ...]
    exit_code: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A rendered figure: `name` is its file name without suffix, `caption` one sentence."""

    name: str
    title: str
    caption: str
    png: bytes
