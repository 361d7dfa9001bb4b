"""What is known of an activation, which of its channels are needed, and what a layer says to both.

A *channel* is the first axis of one sample's activation: a feature map [H, W], or one number after
a Flatten. It is *known* if it is the same for every sample; it is *needed* if an output of the
model depends on it in a way that cannot be put into a bias. Flags are bool [C], over the channels
of the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

from torch import Tensor, nn

_ROUNDING = 1e-12  # relative; float64 sums of a few thousand terms


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What is known of one sample's activation [C, …], in float64; 0 where `channels` says no."""

    values: Tensor
    channels: Tensor

    @property
    def constant(self) -> Tensor:
        """Channels that are known and have the same value at every position."""
        return self.channels & is_constant(self.values)

    @property
    def zero(self) -> Tensor:
        """Channels that are known to be 0."""
        return self.channels & (self.values == 0).reshape(len(self.values), -1).all(1)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """The channels of an activation that are needed, and those that the small model has.

    It has those needed; more only where it cannot leave them out: the model's own inputs, whole
    feature maps before a Flatten, and one channel where none is needed.
    """

    needed: Tensor
    kept: Tensor


class Stage(Protocol):
    """One layer of a chain, in float64; x is the activation before it, y the one behind it."""

    def push(self, x: Known) -> Known:
        """What is known behind the layer. ConfigError if it does not take such an activation."""
        ...

    def pull(self, x: Known, y: Known, needed: Tensor) -> Tensor:
        """Channels needed before the layer for those `needed` behind it."""
        ...

    def keep(self, kept: Tensor, needed: Tensor) -> Tensor:
        """Channels that the small model has behind the layer, of those `kept` before it."""
        ...

    def small(self, x: Known, y: Known, before: Cut, behind: Cut) -> list[nn.Module]:
        """The layers that take its place."""
        ...


def is_constant(values: Tensor) -> Tensor:
    """Whether each channel of [C, …] has one value at all positions, up to rounding."""
    flat = values.reshape(len(values), -1)
    return flat.amax(1) - flat.amin(1) <= _ROUNDING * flat.abs().amax(1)


def level(values: Tensor) -> Tensor:
    """Mean over the positions of each channel: its value where `is_constant`."""
    return values.reshape(len(values), -1).mean(1)
