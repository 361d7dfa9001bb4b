"""Who trains on what: ways to deal the training samples of a data set to the peers.

Every way is a pure function of (data set, number of peers, seed) and gives the same split in
every process. A split is a list of ascending, disjoint index arrays, one for each peer, none
empty; a split that cannot be made is a ConfigError that says what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, final

import numpy as np

from p2p_dml import tables
from p2p_dml.data._dataset import Array, Dataset
from p2p_dml.data._draws import Draws, largest_remainder
from p2p_dml.errors import ConfigError
from p2p_dml.plugins import take_name

Split = list[Array]
_ATTEMPTS = 100


class Partitioner(Protocol):
    """Deals the training samples of a data set to `num_peers` peers."""

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Iid:
    """A random equal share for each peer (sizes differ by at most one); covers all samples."""

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        order = Draws(seed).order(dataset.num_samples)
        return _checked(np.array_split(order, num_peers), dataset, 1, "take fewer peers")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet:
    """Each class is divided between the peers by Dirichlet(alpha) proportions; covers all.

    Small alpha: a class belongs to few peers. Large alpha: equal shares. Drawn again, at most 100
    times, until every peer has `min_samples`. Source: Hsu et al. 2019; Yurochkin et al. 2019.
    """

    alpha: float = 0.1
    min_samples: int = 1

    def __post_init__(self) -> None:
        _positive("alpha", self.alpha)
        _positive("min_samples", self.min_samples)

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        by_class = _by_class(dataset, "dirichlet")
        advice = "raise alpha, lower min_samples or take fewer peers"
        _enough(dataset, num_peers * self.min_samples, num_peers, advice)
        best: Split = []
        for attempt in range(_ATTEMPTS):
            split = self._draw(by_class, num_peers, Draws(seed, attempt))
            if _smallest(split) >= self.min_samples:
                return _checked(split, dataset, self.min_samples, advice)
            best = max(best, split, key=_smallest)
        return _checked(best, dataset, self.min_samples, f"{_ATTEMPTS} draws were tried: {advice}")

    def _draw(self, by_class: Split, num_peers: int, draws: Draws) -> Split:
        pieces = [_cut(m, draws, draws.dirichlet(self.alpha, num_peers)) for m in by_class]
        return [np.concatenate(mine) for mine in zip(*pieces, strict=True)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesPerPeer:
    """Each peer holds `classes` classes; a class's samples are split equally among its holders.

    Of several numbers of `classes` peer i has number i, from the first again after the last. Of its
    share of each class a peer keeps `fraction`, then at most `samples_per_peer` samples of all. A
    class that nobody draws is not used. `fraction = 0.2` with 4 classes and 20 peers is the split
    of Tian et al. 2025 (MCE-PL).
    """

    classes: int | tuple[int, ...] = 2
    fraction: float = 1.0
    samples_per_peer: int | None = None

    def __post_init__(self) -> None:
        if not self._turns:
            raise ValueError("classes: expected a number, or a list of at least one, found []")
        _positive("classes", min(self._turns))
        _positive("samples_per_peer", self.samples_per_peer or 1)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected 0 to 1, found {self.fraction}")

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        by_class = _by_class(dataset, "classes_per_peer")
        wanted = [self._turns[peer % len(self._turns)] for peer in range(num_peers)]
        if max(wanted) > len(by_class):
            raise ConfigError(
                f"partition: classes_per_peer: a peer wants {max(wanted)} classes, but data set "
                f"{dataset.name!r} has {len(by_class)}; lower classes"
            )
        draws = Draws(seed)
        held = [draws.order(len(by_class))[:count] for count in wanted]
        mine: list[list[Array]] = [[] for _ in range(num_peers)]
        for number, members in enumerate(by_class):
            holders = [peer for peer in range(num_peers) if number in held[peer]]
            for peer, share in zip(holders, _deal(members, draws, len(holders)), strict=True):
                mine[peer].append(share[: max(1, round(len(share) * self.fraction))])
        split = [self._limit(np.concatenate(parts), draws) for parts in mine]
        needed = self.samples_per_peer or 1
        return _checked(split, dataset, needed, "lower samples_per_peer or take fewer peers")

    @property
    def _turns(self) -> tuple[int, ...]:
        return (self.classes,) if isinstance(self.classes, int) else self.classes

    def _limit(self, share: Array, draws: Draws) -> Array:
        return share[draws.order(len(share))[: self.samples_per_peer]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Samples sorted by class, cut into equal shards, `shards_per_peer` dealt to each; covers all.

    Source: McMahan et al. 2017 (FedAvg), section 3, with 2 shards of 300 samples each.
    """

    shards_per_peer: int = 2

    def __post_init__(self) -> None:
        _positive("shards_per_peer", self.shards_per_peer)

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        by_class = _by_class(dataset, "shards")
        num_shards = num_peers * self.shards_per_peer
        advice = "lower shards_per_peer or take fewer peers"
        _enough(dataset, num_shards, num_peers, advice)
        draws = Draws(seed)
        shuffled = [members[draws.order(len(members))] for members in by_class]
        shards = np.array_split(np.concatenate(shuffled), num_shards)
        dealt = draws.order(num_shards).reshape(num_peers, self.shards_per_peer)
        split = [np.concatenate([shards[shard] for shard in mine]) for mine in dealt]
        return _checked(split, dataset, 1, advice)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """Shares of unequal size, each like the whole (iid); every peer has `min_samples`; covers all.

    `law = "dirichlet"`: sizes are Dirichlet(alpha) proportions, smaller alpha is more unequal.
    `law = "power"`: the k-th largest share is proportional to k^-alpha, larger is more unequal.
    """

    law: Literal["dirichlet", "power"] = "dirichlet"
    alpha: float = 0.5
    min_samples: int = 1

    def __post_init__(self) -> None:
        _positive("alpha", self.alpha)
        _positive("min_samples", self.min_samples)

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        advice = "lower min_samples or take fewer peers"
        _enough(dataset, num_peers * self.min_samples, num_peers, advice)
        draws = Draws(seed)
        spare = dataset.num_samples - num_peers * self.min_samples
        sizes = self.min_samples + largest_remainder(self._proportions(draws, num_peers), spare)
        split = np.split(draws.order(dataset.num_samples), np.cumsum(sizes)[:-1])
        return _checked(split, dataset, self.min_samples, advice)

    def _proportions(self, draws: Draws, num_peers: int) -> Array:
        if self.law == "dirichlet":
            return draws.dirichlet(self.alpha, num_peers)
        weights = (draws.order(num_peers) + 1.0) ** -self.alpha
        return np.asarray(weights / weights.sum())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ByGroup:
    """Whole natural groups (speakers, writers) dealt to the peers in turn; covers all samples."""

    def __call__(self, dataset: Dataset, num_peers: int, seed: int) -> Split:
        if dataset.groups is None:
            raise ConfigError(
                f"partition: by_group: data set {dataset.name!r} has no groups; choose another "
                f"partition: {', '.join(sorted(PARTITIONS))}"
            )
        groups = np.unique(dataset.groups)
        if len(groups) < num_peers:
            raise ConfigError(
                f"partition: by_group: {num_peers} peers for the {len(groups)} groups of data set "
                f"{dataset.name!r}; take fewer peers"
            )
        order = groups[Draws(seed).order(len(groups))]
        split = [
            np.flatnonzero(np.isin(dataset.groups, order[i::num_peers])) for i in range(num_peers)
        ]
        return _checked(split, dataset, 1, "take fewer peers")


PARTITIONS: Mapping[str, Callable[..., Partitioner]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "classes_per_peer": ClassesPerPeer,
    "shards": Shards,
    "quantity": Quantity,
    "by_group": ByGroup,
}


def partition(
    table: Mapping[str, object],
    dataset: Dataset,
    num_peers: int,
    seed: int,
    where: str = "partition",
) -> Split:
    """Split the training samples as `table` says: `name`, and the fields of that partitioner."""
    name, rest = take_name(table, where)
    partitioner = tables.build(tables.choose(PARTITIONS, name, f"{where}.name"), rest, where)
    return partitioner(dataset, num_peers, seed)


def class_counts(dataset: Dataset, indices: Array) -> list[int]:
    """How many labels of each class the samples `indices` have, [num_classes]."""
    labels = dataset.train_y[indices].reshape(-1)
    return [int(count) for count in np.bincount(labels, minlength=dataset.num_classes)]


def _by_class(dataset: Dataset, name: str) -> Split:
    """Samples of each class that occurs, ascending by class."""
    if dataset.train_y.ndim != 1:
        raise ConfigError(
            f"partition: {name} goes by class, but data set {dataset.name!r} labels every "
            "character; choose by_group, iid or quantity"
        )
    return [np.flatnonzero(dataset.train_y == label) for label in np.unique(dataset.train_y)]


def _deal(members: Array, draws: Draws, num_shares: int) -> Split:
    """Equal random shares; none if nobody wants one."""
    return np.array_split(members[draws.order(len(members))], num_shares) if num_shares else []


def _cut(members: Array, draws: Draws, proportions: Array) -> Split:
    """Random shares of the sizes nearest to `proportions`."""
    sizes = largest_remainder(proportions, len(members))
    return np.split(members[draws.order(len(members))], np.cumsum(sizes)[:-1])


def _smallest(split: Split) -> int:
    return min(map(len, split), default=-1)


def _enough(dataset: Dataset, needed: int, num_peers: int, advice: str) -> None:
    if dataset.num_samples < needed:
        raise ConfigError(
            f"partition: {num_peers} peers need {needed} samples, but data set {dataset.name!r} "
            f"has {dataset.num_samples}; {advice}"
        )


def _checked(split: Iterable[Array], dataset: Dataset, min_samples: int, advice: str) -> Split:
    """The split in ascending order; ConfigError if a peer has fewer than `min_samples`."""
    shares = [np.sort(share) for share in split]
    for peer, share in enumerate(shares):
        if len(share) < min_samples:
            raise ConfigError(
                f"partition: peer {peer} of {len(shares)} would have {len(share)} of the "
                f"{dataset.num_samples} samples of data set {dataset.name!r}, fewer than "
                f"{min_samples}; {advice}"
            )
    return shares


def _positive(field: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{field}: expected a positive number, found {value}")
