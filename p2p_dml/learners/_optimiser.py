"""The optimiser of a peer's local training: torch's steps, without what torch's classes import.

`torch.optim.Optimizer.step` imports torch's compiler, to tell it not to look inside: 1.2 s and
75 MB for every process that trains, whether it compiles or not. The functions that those classes
call to compute do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from p2p_dml.errors import ConfigError
from p2p_dml.learners._training import BETA_1, BETA_2, EPSILON, Training
from p2p_dml.types import Tensors

_KEYS = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
}


@final
class Optimiser:
    """SGD, Adam or AdamW over `params`, as `training` has it; every bit as `torch.optim`'s.

    `state`: what it keeps of a parameter by the parameter's number, from its first step on.
    """

    def __init__(self, params: Iterable[nn.Parameter], training: Training) -> None:
        self.state: dict[int, Tensors] = {}
        self._params = list(params)
        self._training = training

    @property
    def keys(self) -> tuple[str, ...]:
        """What it may keep of a parameter, sorted."""
        return _KEYS[self._training.optimiser]

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for p in self._params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move, in place, the parameters that have a gradient."""
        moved = {index: p for index, p in enumerate(self._params) if p.grad is not None}
        params: list[Tensor] = list(moved.values())
        grads = [p.grad for p in params if p.grad is not None]
        if self._training.optimiser == "sgd":
            self._sgd(list(moved), params, grads)
        else:
            self._adam(list(moved), params, grads)

    def _sgd(self, indices: list[int], params: list[Tensor], grads: list[Tensor]) -> None:
        own = self._training
        buffers = [self.state.get(index, {}).get("momentum_buffer") for index in indices]
        sgd(
            params,
            grads,
            buffers,
            lr=own.lr,
            momentum=own.momentum,
            weight_decay=own.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if own.momentum:  # the first step has made them
            pairs = zip(indices, buffers, strict=True)
            self.state |= {i: {"momentum_buffer": b} for i, b in pairs if b is not None}

    def _adam(self, indices: list[int], params: list[Tensor], grads: list[Tensor]) -> None:
        own = self._training
        for index, p in zip(indices, params, strict=True):
            if index not in self.state:
                moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                self.state[index] = moments | {"step": torch.zeros(())}
        kept = [self.state[index] for index in indices]
        move = adam if own.optimiser == "adam" else adamw
        move(
            params,
            grads,
            [each["exp_avg"] for each in kept],
            [each["exp_avg_sq"] for each in kept],
            [],
            [each["step"] for each in kept],
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=own.lr,
            weight_decay=own.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def named_state(self) -> Tensors:
        """`state` by names such as `0/step`; no copies."""
        return {
            f"{index}/{key}": value
            for index, entry in sorted(self.state.items())
            for key, value in sorted(entry.items())
        }

    def entries(self, named: Mapping[str, Tensor]) -> dict[int, Tensors]:
        """A copy of what `named_state` returned, by number; ConfigError if it does not fit."""
        entries: dict[int, Tensors] = {}
        for name, value in named.items():
            number, _, key = name.partition("/")
            index = int(number)
            if key not in self.keys:
                raise ConfigError(
                    f"the checkpoint is of another optimiser than {self._training.optimiser!r}: "
                    f"it has {key!r}"
                )
            if index >= len(self._params):
                raise ConfigError(
                    f"the checkpoint does not fit the model: it has 'optimiser/{name}', and the "
                    f"model trains {len(self._params)} parameters"
                )
            p = self._params[index]
            own = value.clone() if key == "step" else value.to(p.device, p.dtype, copy=True)
            entries.setdefault(index, {})[key] = own
        return entries
