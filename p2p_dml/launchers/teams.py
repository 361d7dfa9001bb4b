"""Process groups of torch.distributed, also where several ranks train a peer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from p2p_dml.errors import TransportError
from p2p_dml.launchers.ranks import Ranks, Role
from p2p_dml.learners.parallel import Team

Backend = Literal["gloo", "nccl"]

_CONNECT_S = 20.0
"""How long connecting may take at least; all ranks are there by then."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Teams:
    """`own` is that of this rank's peer; `leaders` are one per peer, the lowest peer's first."""

    own: Team
    leaders: dist.ProcessGroup


def connect(
    backend: Backend, device: torch.device, store: Store, rank: int, size: int, timeout_s: float
) -> None:
    """Make torch's default group of `size` ranks; TransportError if one is gone or too late."""
    if backend == "nccl":
        torch.cuda.set_device(device)
        # So that waiting for a batch ends with an error, not with the process.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    timeout = timedelta(seconds=max(timeout_s, _CONNECT_S))
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        raise TransportError(f"cannot connect to all peers: {error}") from error


def form(
    backend: Backend,
    device: torch.device,
    store: Store,
    world: range,
    place: Ranks,
    role: Role,
    timeout_s: float,
) -> Teams:
    """Connect the ranks in `world`: those of each peer, and the first ones of all.

    All of them call this at the same time. TransportError as above.
    """
    me = world.index(place.rank)
    own_store = PrefixStore(f"ranks from {world[0]}", store)
    connect(backend, device, own_store, me, len(world), timeout_s)
    timeout = timedelta(seconds=max(timeout_s, _CONNECT_S))
    teams = [[*range(i, i + role.each)] for i in range(0, len(world), role.each)]
    try:
        controls = [dist.new_group(team, timeout, "gloo") for team in teams]
        computes = controls
        if backend != "gloo":
            computes = [dist.new_group(team, timeout, backend) for team in teams]
        leaders = dist.new_group([team[0] for team in teams], timeout, backend)
    except RuntimeError as error:
        raise TransportError(f"cannot connect to all ranks: {error}") from error
    mine = me // role.each
    own = Team(peer=role.me, control=controls[mine], compute=computes[mine])
    return Teams(own=own, leaders=leaders)
