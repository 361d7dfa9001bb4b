"""What the parts of a sweep hand each other: its plan, its cases, what to measure and to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from p2p_dml.config import RunConfig

Mode = Literal["simulate", "run"]
Fate = Literal["done", "failed", "stopped"]
Labels = Mapping[str, str]
"""What a case has on each axis, in the order of the sweep file."""

FIXED_METRICS = (
    "best_accuracy",
    "best_round",
    "final_accuracy",
    "mean_accuracy",
    "worst_accuracy",
    "p10_accuracy",
    "rounds_to_converge",
    "bytes_to_converge",
    "seconds_per_round",
    "wall_s",
    "bytes_total",
)


def title_of(labels: Labels, seed: int | None = None) -> str:
    """Labels and seed in words, without the axes that have no label."""
    pairs = [(axis, label) for axis, label in labels.items() if label]
    ending = [] if seed is None else [("seed", str(seed))]
    return ", ".join(f"{axis} = {label}" for axis, label in [*pairs, *ending])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of a sweep. Equal configurations have equal digests, whatever they are called."""

    labels: Labels
    seed: int
    config: RunConfig
    digest: str

    @property
    def title(self) -> str:
        """The case in words."""
        return title_of(self.labels, self.seed)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the process of a case is told, as JSON.

    `path` is the folder of the case, which holds case.toml; modules of the user's own are looked
    for in `folder`. A simulation computes on `device`.
    """

    path: str
    folder: str
    mode: Mode
    with_report: bool
    device: str = "cpu"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """`[metrics]`: what is measured of each case, by its mean accuracy over the peers.

    A case has converged in the first evaluated round that reaches `threshold` times the best
    accuracy of its reference: the case that differs only in what `reference` says (axis = label),
    with the same seed; itself if `reference` is empty. `targets` are accuracies, each a metric
    rounds_to_P, bytes_to_P and seconds_to_P with P in per cent. `window` are the first and last
    round of mean_accuracy; the default is all but round 0. `small` adds the metric small_share:
    the share of the final parameters whose absolute value is at most that. `reported` are figures
    that strategies report: each a metric of its name, mean over `window`, and one of the last round
    it was reported in.
    """

    threshold: float = 0.99
    reference: dict[str, object] = field(default_factory=dict)
    targets: tuple[float, ...] = ()
    window: tuple[int, int] | None = None
    small: float | None = None
    reported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 2:
            raise ValueError(f"threshold: expected above 0 and at most 2, found {self.threshold}")
        if any(not 0 < target <= 1 for target in self.targets):
            raise ValueError(f"targets: expected shares in (0, 1], found {list(self.targets)}")
        if self.window and not 0 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window: expected first and last round, found {list(self.window)}")
        if self.small is not None and not self.small > 0:
            raise ValueError(f"small: expected above 0, such as 0.01, found {self.small}")

    @property
    def named_targets(self) -> Mapping[str, float]:
        """The targets by what they are called in metrics: 0.8 is "80"."""
        return {f"{100 * target:.6g}": target for target in self.targets}

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric, in the order of the CSV file."""
        by_target = (f"{what}_to_{name}" for name in self.named_targets for what in _TO)
        figures = (name for figure in self.reported for name in (figure, f"final {figure}"))
        return (*FIXED_METRICS, *by_target, *(("small_share",) if self.small else ()), *figures)


_TO = ("rounds", "bytes", "seconds")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`[table]`: axes whose labels head rows and columns, and the metrics in the cells.

    Axes that are in neither make a table for each of their combinations.
    """

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    metric: str | tuple[str, ...] = "best_accuracy"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else self.metric


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep file, read: `axes` are the labels of each axis, `cases` in the order to run.

    `jobs` is None where the file leaves it to the machine; `reference` says in what the case that
    convergence is measured by differs from each. Of all `cases` only the `chosen` are run.
    """

    name: str
    text: str
    mode: Mode
    jobs: int | None
    axes: Mapping[str, tuple[str, ...]]
    cases: tuple[Case, ...]
    chosen: tuple[Case, ...]
    measures: Measures
    reference: Labels
    layouts: tuple[Layout, ...]
