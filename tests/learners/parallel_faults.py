"""A program for torchrun with three ranks: teams that break, one after another.

python parallel_faults.py FOLDER writes what each rank was told to FOLDER/RANK-FAULT.json. Ranks
that are to be lost leave with code 0, so that torchrun lets the others go on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from p2p_dml.data import Dataset
from p2p_dml.errors import P2PError, TransportError
from p2p_dml.learners import Training
from p2p_dml.learners._parallel_share import Share
from p2p_dml.learners.parallel import ParallelLearner, Team, follow

FOLDER: Final = Path(sys.argv[1])
PEER, PATIENCE_S = 3, 60.0
TOY = Dataset(
    name="toy",
    train_x=np.ones((6, 4), np.float32),
    train_y=np.arange(6) % 3,
    test_x=np.ones((3, 4), np.float32),
    test_y=np.arange(3),
    num_classes=3,
)
Parts = tuple[Dataset, Any, Training, Team]


def parts(team: Team) -> Parts:
    return TOY, np.arange(6), Training(parallel="ddp"), team


def told(fault: str, act: Callable[[], object]) -> None:
    """Write down with what error `act` ends."""
    try:
        act()
    except P2PError as error:
        blames = (error.peer, error.is_late) if isinstance(error, TransportError) else None
        found = [type(error).__name__, str(error), blames]
        (FOLDER / f"{dist.get_rank()}-{fault}.json").write_text(json.dumps(found), encoding="utf-8")


def signal(what: str) -> None:
    dist.distributed_c10d._get_default_store().set(what, "")


def wait_for(what: str) -> None:
    dist.distributed_c10d._get_default_store().wait([what])


def leader_of(team: Team) -> ParallelLearner:
    return ParallelLearner(nn.Linear(4, 3), *parts(team), seed=1)


def follower_of(team: Team, patience_s: float = PATIENCE_S) -> None:
    follow(nn.Linear(4, 3), *parts(team), seed=1, patience_s=patience_s)


def hears_an_order(team: Team) -> None:
    """A follower that has heard what to do, and does not."""
    Share(nn.Linear(4, 3), *parts(team), seed=1)
    team.await_order(PATIENCE_S)


def fault_leader_fails(team: Team) -> None:
    if team.place:
        told("leader_fails", lambda: follower_of(team))
        return
    learner = leader_of(team)
    learner.params = {name: x * torch.nan for name, x in learner.params.items()}
    told("leader_fails", learner.train)
    learner.close(is_done=False)


def fault_leader_is_silent(team: Team) -> None:
    if team.place:
        told("leader_is_silent", lambda: follower_of(team, 0.3))
        signal("heard nothing")
        return
    leader_of(team)
    wait_for("heard nothing")


def fault_follower_hangs(team: Team) -> None:
    if team.place:
        hears_an_order(team)
        wait_for("gave up waiting")
        return
    learner = leader_of(team)
    told("follower_hangs", learner.train)
    learner.close(is_done=False)
    signal("gave up waiting")


def fault_follower_is_killed(team: Team) -> None:
    if team.place:
        hears_an_order(team)
        os._exit(0)
    learner = leader_of(team)
    told("follower_is_killed", learner.train)
    told("follower_is_killed_again", learner.evaluate)
    learner.close(is_done=False)


def fault_leader_is_killed(team: Team) -> None:
    if team.place:
        told("leader_is_killed", lambda: follower_of(team))
        return
    leader_of(team)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    faults: list[tuple[Callable[[Team], None], list[int], float]] = [
        (fault_leader_fails, [0, 1], PATIENCE_S),
        (fault_leader_is_silent, [0, 1], PATIENCE_S),
        (fault_follower_hangs, [0, 1], 1.0),
        (fault_follower_is_killed, [1, 2], PATIENCE_S),
        (fault_leader_is_killed, [0, 1], PATIENCE_S),
    ]
    groups = [dist.new_group(ranks, timedelta(seconds=s), "gloo") for _, ranks, s in faults]
    for (fault, ranks, _), group in zip(faults, groups, strict=True):
        if dist.get_rank() in ranks:
            fault(Team(peer=PEER, control=group, compute=group))


if __name__ == "__main__":
    main()
