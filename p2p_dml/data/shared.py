"""One copy of a data set for all processes of a machine: files that each of them maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from p2p_dml.data._dataset import Array, Dataset
from p2p_dml.errors import ConfigError, StorageError

_FACTS = "dataset.json"


def share(dataset: Dataset, folder: Path) -> None:
    """Write `dataset` below `folder` for `open_shared`; the facts last, so a set is whole.

    Raises StorageError if the folder cannot be written.
    """
    arrays = {
        "train_x": dataset.train_x,
        "train_y": dataset.train_y,
        "test_x": dataset.test_x,
        "test_y": dataset.test_y,
    }
    if dataset.groups is not None:
        arrays["groups"] = dataset.groups
    facts = {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "arrays": list(arrays),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot share the data set in {folder}: {error.strerror}") from error


def open_shared(folder: Path) -> Dataset:
    """Map what `share` wrote: read-only pages, the same memory in every process that opens it.

    Raises ConfigError if the folder does not hold a shared data set.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        arrays = {name: _map(folder / f"{name}.npy") for name in facts["arrays"]}
        return Dataset(
            name=facts["name"],
            train_x=arrays["train_x"],
            train_y=arrays["train_y"],
            test_x=arrays["test_x"],
            test_y=arrays["test_y"],
            num_classes=facts["num_classes"],
            mean=facts["mean"] and tuple(facts["mean"]),
            std=facts["std"] and tuple(facts["std"]),
            groups=arrays.get("groups"),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} holds no shared data set: {error}") from error


def _map(file: Path) -> Array:
    # asarray: a plain view of the map; the subclass numpy.memmap slows every slice down
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
