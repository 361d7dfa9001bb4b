"""Every rank of a peer has the whole model: torch's DistributedDataParallel."""

from __future__ import annotations

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from p2p_dml.learners._forward import Forward
from p2p_dml.learners._parallel_team import Team


@final
class Copies:
    """How tensors of which every rank has a copy are spread from the leader, and come back."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def wrap(self, module: nn.Module, x: Tensor) -> Forward:
        """Calls `module`; a backward then leaves the mean of all ranks' gradients in it.

        Tries it on samples `x`: to look in every batch for parameters that it does without costs
        time, and not to look where there are some is an error.
        """
        module.eval()
        used = [p for p in module.parameters() if p.requires_grad]
        with torch.backends.cudnn.flags(enabled=False):  # its LSTMs have gradients in training only
            grads = torch.autograd.grad(module(x).sum(), used, allow_unused=True)
        return DistributedDataParallel(
            module,
            process_group=self._team.compute,
            find_unused_parameters=any(grad is None for grad in grads),
        )

    def spread(self, own: Tensor, whole: Tensor | None) -> None:
        """Write the leader's `whole` into every rank's `own`; `whole` is None at followers."""
        if whole is not None:
            own.copy_(whole)
        if own.numel():
            data = own.contiguous()
            # As bytes: a backend need not know the type of a buffer.
            raw = data.reshape(-1).view(torch.uint8)
            dist.broadcast(raw, self._team.leader, group=self._team.group_for(own))
            if data is not own:
                own.copy_(data)

    def collect(self, own: Tensor, whole: Tensor | None) -> None:
        """Write the leader's `own` into its `whole`; nobody else does anything."""
        if whole is not None:
            whole.copy_(own)
