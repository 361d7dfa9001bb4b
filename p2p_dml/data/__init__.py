"""Data sets by name or from the user's own loader, and how they are dealt to the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from p2p_dml import plugins, tables
from p2p_dml.data._dataset import Dataset
from p2p_dml.data.cifar import cifar10
from p2p_dml.data.idx import fashion_mnist, mnist
from p2p_dml.data.partitioners import PARTITIONS, class_counts, partition
from p2p_dml.data.shared import open_shared, share
from p2p_dml.data.text import shakespeare
from p2p_dml.data.uci_digits import digits
from p2p_dml.errors import ConfigError

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "class_counts",
    "load",
    "open_shared",
    "partition",
    "share",
]

DATASETS: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "shakespeare": shakespeare,
}


def load(table: Mapping[str, object], where: str = "data") -> Dataset:
    """Read the data set that `table` names: a built-in reader or "package.module:loader".

    The other keys are the reader's parameters; of built-in sets `test_samples` keeps only the first
    so many for testing. Raises ConfigError for a set that is missing or damaged and for a loader
    that fails or returns something else.
    """
    name, rest = plugins.take_name(table, where)
    if not plugins.is_object_path(name):
        limit = rest.pop("test_samples", None)
        built_in = tables.build(tables.choose(DATASETS, name, f"{where}.name"), rest, where)
        return built_in if limit is None else _tested_on(built_in, limit, where)
    dataset = plugins.call(name, rest, where)
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"{where}: {name!r} must return a p2p_dml.data.Dataset, found {type(dataset).__name__}"
        )
    return dataset


def _tested_on(dataset: Dataset, limit: object, where: str) -> Dataset:
    """The set with the first `limit` of its test samples."""
    most = len(dataset.test_x)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= most:
        raise ConfigError(
            f"{where}.test_samples: expected a whole number from 1 to {most}, found {limit!r}"
        )
    return replace(dataset, test_x=dataset.test_x[:limit], test_y=dataset.test_y[:limit])
