"""A peer of several ranks: every case of `parallel_cases.py`, every fault of `parallel_faults.py`.

Three ranks started by torchrun, once each; what needs no second process is tested here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from p2p_dml.errors import ConfigError
from p2p_dml.learners._parallel_shards import blocks
from p2p_dml.learners._parallel_share import check_slices, noise_seed, placement_of, slice_of
from p2p_dml.learners.parallel import Team, ranks_per_peer

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("parallel_cases.py")
FAULTS = Path(__file__).with_name("parallel_faults.py")
NAMES = re.findall(r"^def (case_\w+)", CASES.read_text(encoding="utf-8"), re.MULTILINE)

Outcomes = list[dict[str, str | None]]


def torchrun(num_ranks: int, *program: str) -> None:
    """Run a program in so many ranks; all must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    ended = subprocess.run(
        [*command, *program],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr


# --- with real processes ---------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
    ids=str,
)
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What went wrong at each rank, by kind and case; on GPUs, one rank on each."""
    folder = tmp_path_factory.mktemp("ranks")
    num_ranks = 3 if request.param == "cpu" else torch.cuda.device_count()
    torchrun(num_ranks, str(CASES), str(folder), request.param)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_ranks)]


@pytest.mark.parametrize(("kind", "name"), list(product(("ddp", "fsdp"), NAMES)))
def test_at_every_rank(outcomes: Outcomes, kind: str, name: str) -> None:
    for rank, found in enumerate(outcomes):
        assert found[f"{kind} {name}"] is None, f"rank {rank}: {found[f'{kind} {name}']}"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what ranks of broken teams were told."""
    folder = tmp_path_factory.mktemp("faults")
    torchrun(3, str(FAULTS), str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "fault", "message", "blames"),
    [
        (0, "leader_fails", "peer 3, round 0: loss is nan", None),
        (1, "leader_fails", "the leader of peer 3, rank 0, failed", [3, False]),
        (1, "leader_is_silent", "the leader of peer 3, rank 0, did not answer in", [3, True]),
        (1, "leader_is_killed", "the leader of peer 3, rank 0, is gone: ", [3, False]),
        (0, "follower_hangs", "rank 1 of peer 3 did not answer in time: ", [3, True]),
        (1, "follower_is_killed", "rank 2 of peer 3 is gone: ", [3, False]),
        (1, "follower_is_killed_again", "rank 2 of peer 3 is gone: ", [3, False]),
    ],
)
def test_who_is_left_is_told(
    told: Path, rank: int, fault: str, message: str, blames: list[object] | None
) -> None:
    kind, why, found = json.loads((told / f"{rank}-{fault}.json").read_text())
    assert why.startswith(message)
    assert (kind, found) == ("TransportError" if blames else "TrainingError", blames)


# --- in this process -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "ranks", "sizes"), [(7, 3, [3, 2, 2]), (6, 3, [2, 2, 2]), (2, 3, [1, 1, 0])]
)
def test_slices_are_the_batch_in_order(batch: int, ranks: int, sizes: list[int]) -> None:
    positions = np.arange(batch) * 10
    slices = [slice_of(positions, place, ranks) for place in range(ranks)]
    assert [len(each) for each in slices] == sizes
    assert np.array_equal(np.concatenate(slices), positions)


def test_noise_differs_by_rank_and_by_seed() -> None:
    """Seeds of consecutive gradients are consecutive numbers: no rank's may be another's next."""
    seeds = {noise_seed(1000 + seed, place) for seed in range(50) for place in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert noise_seed(1000, 0) == 1000


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "ranks", "is_fine"),
    [
        (100, 4, 2, True),
        (100, 3, 2, False),
        (9, 8, 2, True),  # batches of 5 and 4
        (9, 8, 3, False),  # 4 = 2 + 1 + 1
        (6, 100, 3, True),
    ],
)
def test_batch_norm_needs_two_samples(
    num_samples: int, batch_size: int, ranks: int, is_fine: bool
) -> None:
    check_slices(nn.Linear(2, 2), num_samples, batch_size, ranks)
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    if is_fine:
        check_slices(module, num_samples, batch_size, ranks)
    else:
        with pytest.raises(ConfigError, match=rf"expected batches of {2 * ranks} or more"):
            check_slices(module, num_samples, batch_size, ranks)


def test_blocks_are_the_parts_that_share_nothing() -> None:
    a, b, c, d = (nn.Linear(2, 2) for _ in range(4))
    b.weight = a.weight
    module = nn.ModuleDict({"a": a, "list": nn.ModuleList([b, c]), "deep": nn.Sequential(d)})
    module.update({"free": nn.ReLU(), "twice": d})
    assert blocks(module) == [c]
    del module["twice"]
    assert blocks(module) == [c, module["deep"]]


def test_ways_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = cast(Any, None)
    team = Team(peer=0, control=nobody, compute=nobody)
    with pytest.raises(ConfigError, match="expected 'ddp' or 'fsdp' where peers have several"):
        placement_of("none", team)
    # As if this torch were older.
    monkeypatch.setitem(sys.modules, "p2p_dml.learners._parallel_shards", nobody)
    with pytest.raises(ConfigError, match=r"'fsdp' needs torch 2\.6 or newer, found .* 'ddp'"):
        placement_of("fsdp", team)


@pytest.mark.parametrize(
    ("num_ranks", "peers", "train", "expected"),
    [
        (4, 4, {}, 1),
        (4, 4, {"function": "own:train"}, 1),
        (4, 4, {"parallel": "ddp"}, 1),
        (8, 4, {"parallel": "ddp"}, 2),
        (3, 1, {"parallel": "fsdp"}, 3),
    ],
)
def test_ranks_per_peer(num_ranks: int, peers: int, train: dict[str, Any], expected: int) -> None:
    assert ranks_per_peer(num_ranks, peers, train) == expected


@pytest.mark.parametrize(
    ("num_ranks", "peers", "train", "message"),
    [
        (
            6,
            4,
            {},
            r"has 4 and torchrun started 6 .* every rank is a peer: set peers=6, or start 4",
        ),
        (8, 4, {}, r"or let several train each: train\.parallel = 'ddp' or 'fsdp'"),
        (2, 4, {}, r"set peers=2, or start 4 ranks \(--nproc-per-node, --nnodes\)$"),
        (6, 4, {"parallel": "ddp"}, "expected a multiple of 4 ranks"),
        (2, 4, {"parallel": "ddp"}, "expected a multiple of 4 ranks"),
        (8, 4, {"function": "own:train"}, "a training function of one's own has one rank"),
    ],
)
def test_ranks_that_cannot_be_shared_out(
    num_ranks: int, peers: int, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ranks_per_peer(num_ranks, peers, train)
