"""One module with many peers' parameters: its outputs for all of them at once, if it can be."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from p2p_dml.learners._forward import compiled, in_precision
from p2p_dml.learners._training import Training
from p2p_dml.types import Tensors

_SLOW = "There is a performance drop"  # how torch warns of an operation that it runs one by one
_PROBE_SCALES = (1.0, 0.5)
_LOOSE = {torch.float64: 1e-9, torch.float32: 1e-4}


@final
class BatchedModule:
    """Calls `module` with stacked parameters [n, *shape]; its own values are not used."""

    def __init__(self, module: nn.Module, training: Training | None = None) -> None:
        """`training` says in what precision, and whether by a compiled program."""
        self.module = _with_linears_for_batches(copy.deepcopy(module))
        settings, first = training or Training(), next(module.parameters())
        self._each = in_precision(compiled(vmap(self._call), settings), settings, first)
        self._same = in_precision(vmap(self._call, in_dims=(0, None)), settings, first)

    def each(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs [n, B, …] of n peers for samples [n, B, *shape] of their own."""
        return self._each(dict(params), x)

    def same(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs [n, B, …] of n peers for the same samples [B, *shape]."""
        return self._same(dict(params), x)

    def _call(self, params: Tensors, x: Tensor) -> Tensor:
        return cast(Tensor, functional_call(self.module, params, (x,)))


@final
class _Linear(nn.Module):
    """An nn.Linear that computes W Xᵀ, not X Wᵀ: two to four times faster for stacked, few rows.

    So is its gradient, and for shared samples all peers' weights become one matrix.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out = (self.weight @ x.reshape(-1, x.shape[-1]).mT).mT
        return (out if self.bias is None else out + self.bias).reshape(*x.shape[:-1], -1)


def _with_linears_for_batches(module: nn.Module) -> nn.Module:
    """Put `_Linear` in the place of every nn.Linear; subclasses of the user's stay."""
    if type(module) is nn.Linear:
        return _Linear(module)
    for name, child in list(module.named_children()):
        setattr(module, name, _with_linears_for_batches(child))
    return module


def obstacle(module: nn.Module, x: Tensor) -> str | None:
    """Why peers cannot train `module` as one batch on samples like `x` [1, *shape]; None if so.

    Tries it on two peers: a model that draws random numbers or that torch cannot batch shows
    itself here, and so does one whose batched outputs are others.
    """
    if next(module.buffers(), None) is not None:
        return "the model has buffers, such as BatchNorm's, which every peer changes on its own"
    params = {
        name: torch.stack([p.detach() * scale for scale in _PROBE_SCALES])
        for name, p in module.named_parameters()
    }
    module.train()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_SLOW)
            return _difference(BatchedModule(module), params, torch.cat([x, x]))
    except Exception as error:  # whatever stands in the way of a user's module
        return f"the model cannot be batched: {_reason(error)}"


def drawback(module: nn.Module) -> str | None:
    """Why peers would better not train `module` as one batch, though they can; None if they may."""
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d
    on_cpu = next(module.parameters()).device.type == "cpu"
    if on_cpu and any(isinstance(layer, kinds) for layer in module.modules()):
        return "on a CPU convolutions are faster so"
    return None


def activations(module: nn.Module, x: Tensor) -> int:
    """Number of elements that the layers of `module` put out for one sample `x` [1, *shape]."""
    counts = [x.numel()]

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and next(layer.children(), None) is None:
            counts.append(output.numel())

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _reason(error: Exception) -> str:
    """The gist of what torch says, in one line."""
    slow = re.search(rf"{_SLOW}.* for (aten::\w+)", str(error))
    return f"torch can batch no {slow[1]}" if slow else str(error).splitlines()[0]


def _difference(batched: BatchedModule, params: Tensors, x: Tensor) -> str | None:
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    outputs = batched.each(leaves, x.expand(2, *x.shape))
    torch.autograd.grad(outputs.square().sum(), list(leaves.values()), allow_unused=True)
    with torch.no_grad():
        alone = [
            functional_call(batched.module, {name: p[row] for name, p in leaves.items()}, (x,))
            for row in range(len(_PROBE_SCALES))
        ]
    tolerance = _LOOSE.get(outputs.dtype, 1e-2)
    if torch.allclose(outputs, torch.stack(alone), rtol=tolerance, atol=tolerance):
        return None
    return "the model computes something else when it is batched"
