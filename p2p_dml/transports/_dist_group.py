"""The process group of torch.distributed: every wait has a deadline, every error its peer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from p2p_dml.errors import TransportError
from p2p_dml.types import PeerId

_POLL_S = 0.0002


@final
class Group:
    """Peers in a row, a rank each. Once anything has failed, it is of no more use."""

    def __init__(
        self, wire: torch.device, first: PeerId = 0, group: dist.ProcessGroup | None = None
    ) -> None:
        """Around `group`, torch's default one if None, whose rank 0 is peer `first`.

        `wire`: where what is sent must lie, the CPU for gloo.
        """
        self.peers = range(first, first + dist.get_world_size(group))
        self.me = self.peers[dist.get_rank(group)]
        self.wire = wire
        self._group = group or dist.group.WORLD
        self._rank_of = dict(
            zip(self.peers, dist.get_process_group_ranks(self._group), strict=True)
        )

    def exchange(
        self, outgoing: Mapping[PeerId, Tensor], incoming: Mapping[PeerId, Tensor], deadline: float
    ) -> None:
        """Send and receive flat buffers in one batch, by `deadline` (of time.monotonic).

        At both ends of a link the batch holds the same transfers in the same order. Raises
        TransportError naming the first peer with which one failed, if torch can tell.
        """
        ops = [
            ((peer, self.me > peer), dist.P2POp(dist.isend, x, self._rank_of[peer], self._group))
            for peer, x in outgoing.items()
        ]
        ops += [
            ((peer, peer > self.me), dist.P2POp(dist.irecv, x, self._rank_of[peer], self._group))
            for peer, x in incoming.items()
        ]
        if not ops:
            return
        ops.sort(key=lambda each: each[0])
        peers = [peer for (peer, _), _ in ops]
        try:
            works = dist.batch_isend_irecv([op for _, op in ops])
        except RuntimeError as error:
            suspects = ops if self.wire.type == "cpu" else []  # NCCL breaks as a whole
            who = next((peer for (peer, _), op in suspects if _is_broken(op)), None)
            raise _gone(who, error) from error
        culprits = peers if len(works) == len(peers) else [None] * len(works)  # NCCL: one for all
        for peer, work in zip(culprits, works, strict=True):
            self._finish(work, peer, deadline)

    def gather(self, x: Tensor, deadline: float) -> list[Tensor]:
        """The `x` of every peer, in order; all peers must call this. TransportError as above."""
        own = x.to(self.wire)
        found = [torch.empty_like(own) for _ in self.peers]
        try:
            work = dist.all_gather(found, own, self._group, async_op=True)
        except RuntimeError as error:
            raise _gone(None, error) from error
        self._finish(work, None, deadline)
        return [each.cpu() for each in found]

    def gather_bytes(self, data: bytes, deadline: float) -> list[bytes]:
        """The `data` of every peer, of any lengths."""
        sizes = [int(n) for n in self.gather(torch.tensor([len(data)]), deadline)]
        if not max(sizes):
            return [b""] * len(sizes)
        padded = torch.frombuffer(bytearray(data.ljust(max(sizes), b"\0")), dtype=torch.uint8)
        found = self.gather(padded, deadline)
        return [bytes(x.numpy())[:n] for x, n in zip(found, sizes, strict=True)]

    def _finish(self, work: dist.Work | None, peer: PeerId | None, deadline: float) -> None:
        if work is None:
            return
        if self.wire.type == "cuda":  # here Python waits, so that a signal can end the wait
            while not work.is_completed() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        left_s = max(deadline - time.monotonic(), 0.001)
        try:
            work.wait(timeout=timedelta(seconds=left_s))
        except RuntimeError as error:
            if time.monotonic() < deadline:
                raise _gone(peer, error) from error
            why = f"no answer of {_name(peer)} in time"
            raise TransportError(why, peer, is_late=True) from error


def _is_broken(op: dist.P2POp) -> bool:
    """Whether a transfer cannot even begin; to be asked only of a group that is lost anyway."""
    try:
        op.op(op.tensor, op.peer, op.group)
    except RuntimeError:
        return True
    return False


def _gone(peer: PeerId | None, error: Exception) -> TransportError:
    return TransportError(f"the connection to {_name(peer)} broke: {_brief(error)}", peer)


def _name(peer: PeerId | None) -> str:
    return "a peer" if peer is None else f"peer {peer}"


def _brief(error: Exception) -> str:
    """The first sentence, without the place in the source of the backend."""
    text = str(error).partition("] ")[2] if str(error).startswith("[") else str(error)
    return text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
