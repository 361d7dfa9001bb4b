"""Every rank of a peer has some rows of each parameter: torch's FSDP2, `fully_shard`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from p2p_dml.learners._forward import Forward
from p2p_dml.learners._parallel_copies import Copies
from p2p_dml.learners._parallel_team import Team


@final
class Shards:
    """How tensors of which every rank has a shard are spread from the leader, and come back.

    Rank r of R has the rows r c to (r + 1) c - 1 of n, c = ceil(n / R); the last ones may have
    fewer, or none. Buffers are not sharded: every rank has a copy.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._copies = Copies(team)

    def wrap(self, module: nn.Module, x: Tensor) -> Forward:
        """Shard the parameters of `module` and return it; each rank keeps its own rows only.

        The parameters of a block (see `blocks`) are whole while the block computes, no longer. A
        backward leaves the mean of all ranks' gradients, sharded. Tries it on samples `x`;
        ValueError if it uses parameters of a block without calling that.
        """
        kind = next(module.parameters()).device.type
        mesh = DeviceMesh.from_group(self._team.compute, kind)
        for part in (*blocks(module), module):
            part.register_forward_hook(_without_views)
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        module.eval()
        try:
            with torch.no_grad():
                module(x)
        except RuntimeError as error:
            if "DTensor" not in str(error):
                raise
            raise ValueError("it uses parameters of a layer without calling the layer") from error
        return module

    def spread(self, own: Tensor, whole: Tensor | None) -> None:
        """Write the leader's `whole` into all ranks' shards `own`; `whole` is None at followers."""
        if not isinstance(own, DTensor):
            self._copies.spread(own, whole)
        elif own.numel():
            team, shard = self._team, own.to_local()
            rows = -(-len(own) // team.size)
            part = shard.new_empty((rows, *own.shape[1:]))
            parts = None
            if whole is not None:
                ready = whole.to(shard)
                begins = range(0, rows * team.size, rows)
                parts = [_filled(ready[begin : begin + rows], rows) for begin in begins]
            dist.scatter(part, parts, team.leader, group=team.compute)
            shard.copy_(part[: len(shard)])

    def collect(self, own: Tensor, whole: Tensor | None) -> None:
        """Write all ranks' shards `own` into the leader's `whole`, None at followers."""
        if not isinstance(own, DTensor):
            self._copies.collect(own, whole)
        elif own.numel():
            team, shard = self._team, own.to_local()
            part = _filled(shard, -(-len(own) // team.size))
            parts = None if whole is None else [torch.empty_like(part) for _ in range(team.size)]
            dist.gather(part, parts, team.leader, group=team.compute)
            if whole is not None and parts is not None:
                whole.copy_(torch.cat(parts)[: len(whole)])


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers or groups of layers of `module` that are sharded each by itself.

    They are its children; of a mere container, which is never called, the children's children.
    Those that share parameters go with the model as a whole, for a parameter must lie in one place.
    """
    uses = Counter(map(id, _parameters(module)))
    return [
        child
        for child in _called(module)
        if (own := Counter(map(id, _parameters(child)))) and all(uses[p] == own[p] for p in own)
    ]


def _called(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _called(child)
        else:
            yield child


def _without_views(module: nn.Module, inputs: object, output: Any) -> Any:
    """Copies of a block's outputs that are views: torch cannot see if they are changed in place.

    It would then not gather the block's parameters for the backward.
    """
    if type(output) is tuple:
        return tuple(_without_views(module, inputs, each) for each in output)
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """All parameters, a shared one as often as it is used."""
    return [p for _, p in module.named_parameters(remove_duplicate=False)]


def _filled(x: Tensor, rows: int) -> Tensor:
    """`x` with rows of zeros behind it, for scatter and gather want equal shapes."""
    if len(x) == rows:
        return x.contiguous()
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
