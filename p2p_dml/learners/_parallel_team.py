"""The ranks of one peer: the orders that its leader gives, and how a broken group is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from p2p_dml.errors import TransportError
from p2p_dml.types import PeerId

_FAREWELL_S = 2.0
"""How long followers may take to hear the last order; they may be lost themselves."""


class What(IntEnum):
    """What all ranks of a peer do together; after an END or a GIVE_UP they do no more."""

    TRAIN = 0
    GRAD = 1
    EVALUATE = 2
    SAVE = 3
    LOAD = 4
    END = 5
    GIVE_UP = 6


@final
@dataclass(frozen=True, slots=True)
class Order:
    """`round` is that of TRAIN and GRAD, `index` counts the gradients of a round from 0."""

    what: What
    round: int = 0
    index: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The ranks that train peer `peer` together; the first of them leads.

    Two process groups of the same ranks in the same order: `control` (gloo) carries orders and
    whatever lies on the CPU, `compute` all else: gloo, perhaps the same group, or NCCL. Their
    timeouts bound how long a rank waits for another in the middle of an order. Once anything has
    failed, a team is of no more use.
    """

    peer: PeerId
    control: dist.ProcessGroup
    compute: dist.ProcessGroup

    @property
    def ranks(self) -> list[int]:
        """Their numbers in the world, the leader's first."""
        return dist.get_process_group_ranks(self.control)

    @property
    def size(self) -> int:
        return self.control.size()

    @property
    def place(self) -> int:
        """This process's among them, 0 for the leader."""
        return self.control.rank()

    @property
    def leader(self) -> int:
        """The leader's number in the world."""
        return self.ranks[0]

    def group_for(self, x: Tensor) -> dist.ProcessGroup:
        """The one that can carry `x`."""
        return self.control if x.device.type == "cpu" else self.compute

    def give(self, order: Order) -> None:
        """Tell all followers what to do next; TransportError if one is gone. The leader's."""
        with self.united():
            for work in [self._send(order, rank) for rank in self.ranks[1:]]:
                work.wait()

    def dismiss(self, order: Order) -> None:
        """Give the last order to those who are left, and listen within 2 s. The leader's."""
        works, deadline = [], time.monotonic() + _FAREWELL_S
        for rank in self.ranks[1:]:
            with suppress(RuntimeError):
                works.append(self._send(order, rank))
        for work in works:
            with suppress(RuntimeError):
                work.wait(timedelta(seconds=max(deadline - time.monotonic(), 0.001)))

    def await_order(self, patience_s: float) -> Order:
        """What the leader wants next; a follower calls this.

        Raises TransportError if the leader is gone or says nothing for `patience_s`.
        """
        words = torch.zeros(3, dtype=torch.int64)
        with self.united():
            work = dist.irecv(words, self.leader, self.control)
            assert work is not None  # None is for processes outside the group
            work.wait(timedelta(seconds=patience_s))
        what, round_, index = words.tolist()
        return Order(What(what), round_, index)

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of the `x` of all ranks, at all of them."""
        total = x.contiguous()
        dist.all_reduce(total, group=self.group_for(total))
        return total

    @contextmanager
    def united(self) -> Iterator[None]:
        """Turn what torch raises when a rank is gone, or late, into a TransportError.

        It names the ranks whose connections are broken, where that can be told, and blames `peer`.
        Other errors pass.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_of_group(error):
                raise
            is_late = "imed out" in str(error)
            raise TransportError(
                f"{self._missing()} {'did not answer in time' if is_late else 'is gone'}: "
                f"{_brief(error)}",
                self.peer,
                is_late=is_late,
            ) from error

    def _missing(self) -> str:
        """Who broke the group, in words."""
        others = [rank for rank in self.ranks if rank != dist.get_rank()]
        lost = [rank for rank in others if self._is_broken(rank)] or others
        if lost == [self.leader]:
            return f"the leader of peer {self.peer}, rank {self.leader},"
        if len(lost) == 1:
            return f"rank {lost[0]} of peer {self.peer}"
        return f"one of the ranks {', '.join(map(str, lost))} of peer {self.peer}"

    def _send(self, order: Order, rank: int) -> dist.Work:
        words = torch.tensor([order.what, order.round, order.index])
        work = dist.isend(words, rank, self.control)
        assert work is not None  # None is for processes outside the group
        return work

    def _is_broken(self, rank: int) -> bool:
        """Whether nothing can be sent to it; to be asked only of a group that is lost anyway."""
        try:
            self._send(Order(What.GIVE_UP), rank)
        except RuntimeError:
            return True
        return False


def _is_of_group(error: RuntimeError) -> bool:
    """Whether a backend raised it. gloo has no type of its own, but names the file."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _brief(error: RuntimeError) -> str:
    """The first sentence, without the place in the source of the backend."""
    text = str(error).partition("] ")[2] if str(error).startswith("[") else str(error)
    return text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
