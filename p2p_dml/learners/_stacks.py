"""What many peers train, stacked: row r of every tensor is one peer's; and optimisers on the rows.

The optimisers compute what `torch.optim` computes for each peer alone (elementwise, in the same
order of operations), but rows may have taken different numbers of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.learners._training import BETA_1, BETA_2, EPSILON, Training
from p2p_dml.types import Tensors

_TINY = 1e-6  # as in torch's clip_grad_norm_


@final
@dataclass(frozen=True, slots=True)
class Stacks:
    """Parameters [n, *shape] by name, the optimiser's moments likewise, and its steps [n]."""

    params: Tensors
    moments: dict[str, Tensors]
    steps: Tensor

    def rows(self, rows: slice) -> Stacks:
        """Views of some rows."""
        moments = {key: _rows(tensors, rows) for key, tensors in self.moments.items()}
        return Stacks(_rows(self.params, rows), moments, self.steps[rows])

    def copy_(self, other: Stacks) -> None:
        """Take over every value of stacks of the same shape."""
        self.steps.copy_(other.steps)
        pairs = [(self.params, other.params)]
        pairs += [(own, other.moments[key]) for key, own in self.moments.items()]
        for own, new in pairs:
            for name, x in own.items():
                x.copy_(new[name])

    def forget(self) -> None:
        """Set the optimiser back to its beginning."""
        self.steps.zero_()
        for tensors in self.moments.values():
            for x in tensors.values():
                x.zero_()

    def of_peer(self, row: int) -> Tensors:
        """One peer's optimiser as `index/key` → copy, as its own torch.optim would name it."""
        found: Tensors = {}
        for index, name in enumerate(next(iter(self.moments.values()), {})):
            for key, tensors in self.moments.items():
                found[f"{index}/{key}"] = tensors[name][row].clone()
            if "exp_avg" in self.moments:
                found[f"{index}/step"] = self.steps[row].to(torch.float32)
        return found

    def load_peer(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Take over what `of_peer` returned; what is not in it begins anew.

        Raises ConfigError if it is of another optimiser.
        """
        names = list(next(iter(self.moments.values()), {}))
        self.rows(slice(row, row + 1)).forget()
        for entry, value in state.items():
            index, _, key = entry.partition("/")
            if key == "step" and "exp_avg" in self.moments:
                self.steps[row] = value
            elif key in self.moments:
                self.moments[key][names[int(index)]][row] = value
            else:
                raise ConfigError(f"the checkpoint is of another optimiser: it has {key!r}")


def stacks_of(
    params: Mapping[str, Tensor], trained: Mapping[str, Tensor], n: int, training: Training
) -> Stacks:
    """n peers' copies of `params`; `trained` are those that the optimiser changes."""
    moments = {
        key: {
            name: torch.zeros((n, *x.shape), dtype=x.dtype, device=x.device)
            for name, x in trained.items()
        }
        for key in _moment_keys(training)
    }
    stacked = {name: x.detach().expand(n, *x.shape).clone() for name, x in params.items()}
    return Stacks(stacked, moments, torch.zeros(n, dtype=torch.float64))


def clip(grads: Mapping[str, Tensor], max_norm: float) -> None:
    """Scale each row of the gradients so that its norm over all tensors is at most `max_norm`."""
    squares = [g.flatten(1).square().sum(1) for g in grads.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (max_norm / (norms + _TINY)).clamp_(max=1.0)
    for g in grads.values():
        g.mul_(_column(factors, g))


def descend(stacks: Stacks, grads: Mapping[str, Tensor], training: Training) -> None:
    """Take one optimiser step in every row."""
    stacks.steps.add_(1)
    for name, grad in grads.items():
        moments = {key: tensors[name] for key, tensors in stacks.moments.items()}
        if training.optimiser == "sgd":
            _sgd(stacks.params[name], grad, moments, training)
        else:
            _adam(stacks.params[name], grad, moments, stacks.steps, training)


def _sgd(x: Tensor, grad: Tensor, moments: Tensors, training: Training) -> None:
    if training.weight_decay:
        grad = grad.add(x, alpha=training.weight_decay)
    if training.momentum:
        grad = moments["momentum_buffer"].mul_(training.momentum).add_(grad)
    x.add_(grad, alpha=-training.lr)


def _adam(x: Tensor, grad: Tensor, moments: Tensors, steps: Tensor, training: Training) -> None:
    if training.weight_decay and training.optimiser == "adam":
        grad = grad.add(x, alpha=training.weight_decay)
    elif training.weight_decay:
        x.mul_(1 - training.lr * training.weight_decay)
    mean = moments["exp_avg"].lerp_(grad, 1 - BETA_1)
    square = moments["exp_avg_sq"].mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
    sizes = _column(training.lr / (1 - BETA_1**steps), x)
    roots = _column((1 - BETA_2**steps).sqrt(), x)
    x.sub_(mean.mul(sizes).div_(square.sqrt().div_(roots).add_(EPSILON)))


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values [n] as [n, 1, …], to be multiplied with `like` [n, *shape]."""
    return values.to(like.device, like.dtype).reshape(-1, *(1 for _ in like.shape[1:]))


def _moment_keys(training: Training) -> tuple[str, ...]:
    if training.optimiser == "sgd":
        return ("momentum_buffer",) if training.momentum else ()
    return ("exp_avg", "exp_avg_sq")


def _rows(tensors: Mapping[str, Tensor], rows: slice) -> Tensors:
    return {name: x[rows] for name, x in tensors.items()}
