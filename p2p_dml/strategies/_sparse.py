"""Sparse models: how they travel, as kept values and a bitmap, and what is reported of them.

Sparse are the tensors of two or more dimensions; all others travel as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels.masks import has_padding, ones, pack, packed_bytes, unpack
from p2p_dml.strategies._masked import maskable
from p2p_dml.tensors import join, mismatch, part
from p2p_dml.types import Payload, PeerId, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SparseCode:
    """Codes models that look like `like`; `kept`: how many weights of each tensor a sender keeps.

    A payload has `values`, the kept weights tensor after tensor, `mask`, their places as packed
    bits, and `dense/…`. It is longer than the model where less than 1 in 32 weights is dropped.
    """

    like: Tensors
    kept: Callable[[PeerId], Sequence[int]]

    def payload(self, model: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Payload:
        """The model where bool `masks`, in the order of `like`, are set."""
        values = torch.cat([model[name].detach()[mask] for name, mask in masks.items()])
        dense = {name: x for name, x in model.items() if name not in masks}
        mask = pack(list(masks.values()))
        return Payload({"values": values, "mask": mask, **join(dense=dense)})

    def read(self, sender: PeerId, payload: Payload) -> Payload:
        """The model as `x/…`, 0 where its bool masks `m/…` are not set.

        Raises WireError unless names, dtypes, shapes and numbers of ones are what they must be.
        """
        self._check(sender, payload)
        shapes = [x.shape for x in self._weights.values()]
        masks = dict(zip(self._weights, unpack(payload.tensors["mask"], shapes), strict=True))
        values = torch.split(payload.tensors["values"], list(self.kept(sender)))
        filled = {
            name: torch.zeros_like(self.like[name]).masked_scatter_(mask, each)
            for (name, mask), each in zip(masks.items(), values, strict=True)
        }
        given = filled | part(payload.tensors, "dense")
        return Payload(join(x={name: given[name] for name in self.like}, m=masks))

    @property
    def _weights(self) -> Tensors:
        return maskable(self.like)

    def _check(self, sender: PeerId, payload: Payload) -> None:
        """Lengths follow from the sender's shares, so there is one layout that is right."""
        kept, weights = self.kept(sender), self._weights
        numels = [x.numel() for x in weights.values()]
        dtype = next(iter(weights.values())).dtype
        dense = {name: x for name, x in self.like.items() if name not in weights}
        expected = {
            "values": torch.empty(sum(kept), dtype=dtype, device="meta"),
            "mask": torch.empty(packed_bytes(sum(numels)), dtype=torch.uint8, device="meta"),
            **join(dense=dense),
        }
        if wrong := mismatch(payload.tensors, expected):
            raise WireError(wrong)
        if payload.scalars:
            raise WireError(f"scalars {sorted(payload.scalars)}: expected none")
        if has_padding(payload.tensors["mask"], sum(numels)):
            raise WireError(f"mask: bits are set behind its {sum(numels)} values")
        if (found := ones(payload.tensors["mask"], numels)) != list(kept):
            raise WireError(f"mask: {found} ones in the tensors, expected {list(kept)}")
