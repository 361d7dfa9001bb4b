"""Partitioners: what holds for every split, what each one promises, and impossible ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from p2p_dml.data import PARTITIONS, Dataset, class_counts, partition
from p2p_dml.errors import ConfigError

Table = dict[str, object]
COVERING = ["iid", "dirichlet", "shards", "quantity", "by_group"]


def labelled(labels: NDArray[np.int64], num_classes: int = 10, num_groups: int = 20) -> Dataset:
    x = np.zeros((len(labels), 1), np.float32)
    return Dataset(
        name="toy",
        train_x=x,
        train_y=labels,
        test_x=x[:1],
        test_y=np.zeros(1, np.int64),
        num_classes=num_classes,
        groups=np.arange(len(labels)) % num_groups,
    )


def balanced(num_samples: int, num_classes: int = 10) -> Dataset:
    return labelled(np.arange(num_samples) % num_classes, num_classes)


def split_sizes(split: list[NDArray[np.int64]]) -> list[int]:
    return [len(share) for share in split]


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(PARTITIONS)),
    num_peers=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    labels=st.lists(st.integers(0, 9), min_size=300, max_size=500),
)
def test_every_split(name: str, num_peers: int, seed: int, labels: list[int]) -> None:
    """Disjoint, ascending, in range, none empty, the same again; all samples where promised."""
    dataset = labelled(np.array(labels))
    table: Table = {"name": name}
    if name == "dirichlet":
        table["alpha"] = 1.0
    if name == "classes_per_peer":
        table["classes"] = 1
    try:
        split = partition(table, dataset, num_peers, seed)
    except ConfigError as error:  # a class of few samples may have too many holders
        assert name == "classes_per_peer" and "fewer than 1" in str(error)
        return
    joined = np.concatenate(split)
    assert len(split) == num_peers
    assert min(split_sizes(split)) >= 1
    assert len(np.unique(joined)) == len(joined)
    assert joined.min() >= 0 and joined.max() < len(labels)
    assert all(np.array_equal(share, np.sort(share)) for share in split)
    assert name not in COVERING or len(joined) == len(labels)
    again = partition(table, dataset, num_peers, seed)
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_seed_matters(name: str) -> None:
    dataset = balanced(400)
    one, other = (np.concatenate(partition({"name": name}, dataset, 4, seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)


def digest() -> str:
    """All splits of a data set of this file, as one number."""
    dataset = balanced(400)
    joined = [np.concatenate(partition({"name": n}, dataset, 4, 7)) for n in sorted(PARTITIONS)]
    return hashlib.sha256(np.concatenate(joined).tobytes()).hexdigest()


def test_other_processes_make_the_same_split() -> None:
    program = (
        "import runpy, sys; from p2p_dml.data import partition;"
        f"print(runpy.run_path({__file__!r})['digest']())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == digest()


def test_iid_shares_are_equal() -> None:
    assert split_sizes(partition({"name": "iid"}, balanced(10), 4, 0)) == [3, 3, 2, 2]


def test_large_alpha_is_near_uniform() -> None:
    dataset = balanced(4000)
    for share in partition({"name": "dirichlet", "alpha": 1e6}, dataset, 8, 3):
        assert all(abs(count - 50) <= 2 for count in class_counts(dataset, share))


def test_small_alpha_gives_a_class_to_one_peer() -> None:
    dataset = balanced(4000, num_classes=100)
    split = partition({"name": "dirichlet", "alpha": 1e-3}, dataset, 4, 3)
    held = np.array([class_counts(dataset, share) for share in split])
    assert (held.max(axis=0) >= 39).mean() > 0.95


def test_min_samples_is_kept() -> None:
    dataset = balanced(2000)
    for name in ("dirichlet", "quantity"):
        split = partition({"name": name, "alpha": 0.3, "min_samples": 60}, dataset, 10, 0)
        assert min(split_sizes(split)) >= 60, name


def test_each_peer_holds_its_number_of_classes_in_equal_shares() -> None:
    dataset = balanced(5000)
    split = partition({"name": "classes_per_peer", "classes": 3}, dataset, 12, 5)
    held = np.array([class_counts(dataset, share) for share in split])
    assert ((held > 0).sum(axis=1) == 3).all()
    for counts in held.T:
        shares = counts[counts > 0]
        assert len(shares) == 0 or (shares.sum() == 500 and np.ptp(shares) <= 1)


@pytest.mark.parametrize("classes", [3, 4, 5, [3, 4, 5]])
@pytest.mark.parametrize("seed", [0, 1234])
def test_the_split_of_mcepl(classes: int | list[int], seed: int) -> None:
    """CIFAR-10's labels, 20 peers: each class in equal shares, of which a fifth is used."""
    dataset = balanced(50_000)
    table: Table = {"name": "classes_per_peer", "classes": classes, "fraction": 0.2}
    split = partition(table, dataset, 20, seed)
    held = np.array([class_counts(dataset, share) for share in split])
    turns = classes if isinstance(classes, list) else [classes]
    assert (held > 0).sum(axis=1).tolist() == [turns[peer % len(turns)] for peer in range(20)]
    for counts in held.T:
        used = counts[counts > 0]
        assert np.abs(used - 0.2 * 5000 / max(1, len(used))).max(initial=0) <= 1
    assert len(np.unique(np.concatenate(split))) == held.sum()


def test_a_peer_of_mcepl_has_about_499_images() -> None:
    dataset = balanced(50_000)
    table: Table = {"name": "classes_per_peer", "classes": 4, "fraction": 0.2}
    sizes = split_sizes(partition(table, dataset, 20, 1234))
    assert np.mean(sizes) == pytest.approx(499, abs=2)
    assert min(sizes) > 300 and max(sizes) < 800


def test_samples_per_peer_is_an_upper_bound_that_is_met() -> None:
    table: Table = {"name": "classes_per_peer", "samples_per_peer": 30}
    assert split_sizes(partition(table, balanced(2000), 6, 0)) == [30] * 6


def test_shards_hold_few_classes() -> None:
    dataset = balanced(1000)
    split = partition({"name": "shards"}, dataset, 10, 0)
    assert split_sizes(split) == [100] * 10
    assert max(np.count_nonzero(class_counts(dataset, share)) for share in split) <= 2


def test_power_law_of_sizes() -> None:
    """The k-th largest of 4 shares of 2,500 samples is 2500 / k / (1 + 1/2 + 1/3 + 1/4)."""
    table: Table = {"name": "quantity", "law": "power", "alpha": 1.0}
    sizes = sorted(split_sizes(partition(table, balanced(2500), 4, 0)), reverse=True)
    assert sizes == pytest.approx([1200, 600, 400, 300], abs=2)


def test_groups_stay_whole() -> None:
    dataset = balanced(200)
    assert dataset.groups is not None
    split = partition({"name": "by_group"}, dataset, 6, 0)
    owners = [{int(group) for group in dataset.groups[share]} for share in split]
    assert sorted(map(len, owners)) == [3, 3, 3, 3, 4, 4]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 20


@pytest.mark.parametrize(
    ("table", "num_peers", "message"),
    [
        ({"name": "iid"}, 41, "peer 40 of 41 would have 0 of the 40 samples.*fewer peers"),
        ({"name": "dirichlet", "min_samples": 9}, 5, "5 peers need 45.*has 40.*min_samples"),
        ({"name": "dirichlet", "alpha": 0.01, "min_samples": 8}, 5, "100 draws.*raise alpha"),
        ({"name": "classes_per_peer", "classes": 11}, 2, "a peer wants 11 classes.*has 10"),
        ({"name": "classes_per_peer", "classes": [1, 11]}, 2, "a peer wants 11 classes.*has 10"),
        ({"name": "classes_per_peer", "classes": [3, 0]}, 2, "classes: expected a positive"),
        ({"name": "classes_per_peer", "classes": []}, 2, "a list of at least one"),
        ({"name": "classes_per_peer", "classes": [2.5]}, 2, r"partition\.classes"),
        ({"name": "classes_per_peer", "samples_per_peer": 9}, 2, "fewer than 9; lower samples"),
        ({"name": "classes_per_peer", "classes": 10}, 41, "fewer than 1"),
        ({"name": "shards", "shards_per_peer": 5}, 9, "9 peers need 45 samples.*shards_per_peer"),
        ({"name": "quantity", "min_samples": 5}, 9, "9 peers need 45 samples.*min_samples"),
        ({"name": "by_group"}, 21, "21 peers for the 20 groups"),
        ({"name": "dirichlet", "alpha": 0.0}, 2, "alpha: expected a positive number, found 0.0"),
        ({"name": "dirichlet", "min_samples": 0}, 2, "min_samples: expected a positive"),
        ({"name": "classes_per_peer", "fraction": 1.5}, 2, "fraction: expected 0 to 1"),
        ({"name": "quantity", "law": "zipf"}, 2, r"partition\.law: .*'dirichlet' or 'power'"),
        ({"name": "dirichelt"}, 2, r"partition\.name: .*did you mean 'dirichlet'"),
        ({"name": "iid", "alpha": 1.0}, 2, r"partition\.alpha: unknown key"),
        ({}, 2, r"partition\.name"),
    ],
)
def test_impossible_splits(table: Table, num_peers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(table, balanced(40), num_peers, 0)


@pytest.mark.parametrize("name", ["dirichlet", "classes_per_peer", "shards"])
def test_text_has_no_classes_to_go_by(name: str) -> None:
    tokens = np.zeros((8, 5), np.int64)
    dataset = Dataset(
        name="text", train_x=tokens, train_y=tokens, test_x=tokens, test_y=tokens, num_classes=3
    )
    with pytest.raises(ConfigError, match=f"{name} goes by class.*by_group"):
        partition({"name": name}, dataset, 2, 0)
    with pytest.raises(ConfigError, match="'text' has no groups"):
        partition({"name": "by_group"}, dataset, 2, 0)
    assert split_sizes(partition({"name": "quantity"}, dataset, 1, 0)) == [8]
    assert class_counts(dataset, np.arange(2)) == [10, 0, 0]
