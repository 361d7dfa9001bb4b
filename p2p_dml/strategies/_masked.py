"""Fixed weights under masks: what the strategies share that learn masks in place of weights.

Masked are the exchanged tensors of two or more dimensions, the weights of linear and convolutional
layers; biases and norms stay as they were drawn, the same at every peer. What a learner holds and
evaluates are the effective weights w ⊙ m. Outputs, filters and neurons, are along the first axis.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.kernels.masks import num_kept, top_share
from p2p_dml.kernels.structure import kept_per_output, prune_outputs
from p2p_dml.tensors import num_elements, tmap
from p2p_dml.types import Learner, Part, PeerId, Tensors

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Keep:
    """Share of each tensor's weights that a mask keeps, by part; peer i has entry i, in turns."""

    representation: Sequence[float]
    decision: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("representation", "decision"):
            shares = getattr(self, name)
            if not shares or not all(0 < share <= 1 for share in shares):
                raise ValueError(f"keep_{name}: expected shares above 0, at most 1, got {shares}")

    def of_peer(self, peer: PeerId, learner: Learner, names: Iterable[str]) -> dict[str, float]:
        """The shares of one peer, tensor by tensor."""
        each = {name: self._turns(learner.parts[name]) for name in names}
        return {name: turns[peer % len(turns)] for name, turns in each.items()}

    def common(self, learner: Learner, names: Iterable[str]) -> dict[str, float]:
        """Mean shares over the kinds of peers, tensor by tensor."""
        each = {name: self._turns(learner.parts[name]) for name in names}
        return {name: sum(turns) / len(turns) for name, turns in each.items()}

    def _turns(self, part: Part) -> Sequence[float]:
        return self.decision if part == "decision" else self.representation


def in_turns(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """One value for all peers, or one for each in turns."""
    return value if isinstance(value, tuple) else (value,)


def maskable(model: Mapping[str, Tensor]) -> Tensors:
    """The tensors of two or more dimensions that are not empty."""
    return {name: x for name, x in model.items() if x.dim() > 1 and x.numel()}


def weights_of(learner: Learner) -> Tensors:
    """The weights that can be masked, by name, as live views; ConfigError if there are none."""
    weights = maskable(learner.params)
    if not weights:
        raise ConfigError(
            "model: expected weights of two or more dimensions for the strategy to mask, found none"
        )
    return weights


def common_draws(weights: Mapping[str, Tensor]) -> torch.Generator:
    """Random numbers that are the same at every peer with the same `weights`."""
    digest = hashlib.blake2b(digest_size=8)
    for name, w in weights.items():
        digest.update(name.encode())
        digest.update(w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)


def draw_scores(weights: Mapping[str, Tensor], draws: torch.Generator) -> Tensors:
    """Kaiming-uniform scores with a = √5: uniform in ±1/√fan_in. Source: Ramanujan et al. 2020."""
    return {name: _uniform(w, 1 / math.sqrt(w[0].numel()), draws) for name, w in weights.items()}


def draw_mask(
    weights: Mapping[str, Tensor], shares: Mapping[str, float], draws: torch.Generator
) -> Tensors:
    """Independent ones with the probability that `shares` gives each tensor, as numbers."""
    return {
        name: (_uniform(w, 0.5, draws) + 0.5 < shares[name]).to(w.dtype)
        for name, w in weights.items()
    }


def top_masks(
    scores: Mapping[str, Tensor], shares: Mapping[str, float], least_kept: int = 0
) -> Tensors:
    """Bool masks of each tensor's largest scores; `shares` says how many.

    Outputs with `least_kept` ones or fewer are then taken out whole. Raises FloatingPointError,
    naming the tensor, if one holds NaN.
    """
    masks = {name: _top(name, x, shares[name]) for name, x in scores.items()}
    return tmap(lambda mask: prune_outputs(mask, least_kept), masks)


def check_least_kept(weights: Mapping[str, Tensor], least_kept: int) -> None:
    """Raise ConfigError if a tensor would lose all outputs, whatever its mask is."""
    for name, w in weights.items():
        fan_in = w[0].numel()
        if least_kept and fan_in <= least_kept:
            raise ConfigError(
                f"strategy.least_kept = {least_kept}: {name} has {fan_in} weights for each "
                f"output, so that all outputs would go; expected less than {fan_in}"
            )


def num_ones(weights: Mapping[str, Tensor], shares: Mapping[str, float]) -> list[int]:
    """How many weights such masks keep, tensor by tensor."""
    return [num_kept(w.numel(), shares[name]) for name, w in weights.items()]


def straight_through(
    grads: Mapping[str, Tensor], weights: Mapping[str, Tensor], scores: Mapping[str, Tensor]
) -> Tensors:
    """∂L/∂z of scores whose magnitude decides: (∂L/∂(w ⊙ m) ⊙ w) ⊙ sign z.

    As if the mask were |z|. Source: Ramanujan et al. 2020; Tian et al. 2025.
    """
    return {name: grads[name] * weights[name] * z.sign() for name, z in scores.items()}


def put_on(learner: Learner, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Make w ⊙ m the learner's weights, in place; all else of it stays."""
    params = learner.params
    for name, mask in masks.items():
        torch.mul(weights[name], mask, out=params[name].detach())


def figures_of(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """What a report shows of bool masks: the share of kept weights and of empty outputs."""
    outputs = [kept_per_output(mask) for mask in masks.values()]
    empty = sum(int((each == 0).sum()) for each in outputs)
    return {
        "share/kept": sum(int(each.sum()) for each in outputs) / num_elements(masks),
        "share/empty outputs": empty / sum(map(len, outputs)),
    }


def _top(name: str, scores: Tensor, share: float) -> Tensor:
    try:
        return top_share(scores, share)
    except FloatingPointError as error:
        raise FloatingPointError(f"{name}: {error}") from error


def _uniform(like: Tensor, bound: float, draws: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=draws, dtype=torch.float64)
    return ((2 * drawn - 1) * bound).to(like.device, like.dtype)
