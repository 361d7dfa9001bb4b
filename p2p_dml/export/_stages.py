"""Stages: for each kind of layer, what it makes of known channels and which ones it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2p_dml.errors import ConfigError
from p2p_dml.export._channels import Cut, Known, Stage, is_constant, level
from p2p_dml.export._layers import EACH, POOLS, Pick, WindowNorm, changed
from p2p_dml.layers import ChannelsLastConv2d, LocalResponseNorm, is_in_window

_MAP = 3  # axes of a feature map with its channels


def stage_of(name: str, layer: nn.Module) -> Stage:
    """The stage of a float64 layer; ConfigError naming the layer if it is of another kind."""
    kind = type(layer)  # a subclass may compute anything
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return _Weighted(name=name, layer=layer, num_axes=1)
    convolutions = (nn.Conv2d, ChannelsLastConv2d)
    if isinstance(layer, nn.Conv2d) and kind in convolutions and layer.groups == 1:
        return _Weighted(name=name, layer=layer, num_axes=_MAP)
    norms = (nn.LocalResponseNorm, LocalResponseNorm)
    if isinstance(layer, nn.LocalResponseNorm) and kind in norms:
        ours = LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        return _Window(name=name, layer=ours)
    if isinstance(layer, nn.GroupNorm) and kind is nn.GroupNorm and _is_usual(layer):
        return _Groups(name=name, layer=layer)
    if kind in EACH or _is_whole_flatten(layer):
        return _Each(name=name, layer=layer, num_axes=None)
    if kind in POOLS:
        return _Each(name=name, layer=layer, num_axes=_MAP)
    raise ConfigError(
        f"layer {name}, {_head(layer)}, is not supported; expected a chain (nn.Sequential) of "
        "Linear, Conv2d without groups, pooling, Flatten, functions of one number, "
        "LocalResponseNorm, GroupNorm and Dropout"
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Each:
    """A layer that treats channels one by one; a Flatten makes several of each."""

    name: str
    layer: nn.Module
    num_axes: int | None

    def push(self, x: Known) -> Known:
        values = _run(self.name, self.layer, x, self.num_axes)
        return _known(values, x.channels.repeat_interleave(len(values) // len(x.values)))

    def pull(self, x: Known, y: Known, needed: Tensor) -> Tensor:
        return needed.view(len(x.values), -1).any(1)

    def keep(self, kept: Tensor, needed: Tensor) -> Tensor:
        return kept.repeat_interleave(len(needed) // len(kept))

    def small(self, x: Known, y: Known, before: Cut, behind: Cut) -> list[nn.Module]:
        return [changed(self.layer, {})]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Weighted:
    """A linear layer or convolution: every output reads the inputs that it has weights for."""

    name: str
    layer: nn.Linear | nn.Conv2d
    num_axes: int

    def push(self, x: Known) -> Known:
        values = _run(self.name, self.layer, x, self.num_axes)
        return _known(values, ~(self._links & ~x.channels).any(1))

    def pull(self, x: Known, y: Known, needed: Tensor) -> Tensor:
        can_fold, _ = self._shares(x)
        return (self._reads(y, needed) & ~can_fold).any(0)

    def keep(self, kept: Tensor, needed: Tensor) -> Tensor:
        return _at_least_one(needed)

    def small(self, x: Known, y: Known, before: Cut, behind: Cut) -> list[nn.Module]:
        reads = self._reads(y, behind.needed)
        is_left = (reads & before.needed).view(*reads.shape, *(1,) * (self.num_axes - 1))
        weight = self.layer.weight.where(is_left, 0.0)
        bias = self._bias(x, y, reads & ~before.needed).where(behind.needed, 0.0)
        weight = weight[behind.kept][:, before.kept].contiguous()
        return [self._sized(weight, bias[behind.kept])]

    def _bias(self, x: Known, y: Known, folded: Tensor) -> Tensor:
        """The bias with what the inputs `folded` [O, I] add; constant outputs are all bias."""
        _, shares = self._shares(x)
        own = 0.0 if self.layer.bias is None else self.layer.bias
        return level(y.values).where(y.constant, own + shares.where(folded, 0.0).sum(1))

    @property
    def _links(self) -> Tensor:
        """Which inputs each output has weights for, [O, I]."""
        weight = self.layer.weight
        return (weight != 0).reshape(*weight.shape[:2], -1).any(2)

    def _reads(self, y: Known, needed: Tensor) -> Tensor:
        """Which inputs the outputs `needed` read, [O, I]; a constant one needs none."""
        return self._links & (needed & ~y.constant)[:, None]

    def _shares(self, x: Known) -> tuple[Tensor, Tensor]:
        """Whether a known input adds the same at every position of an output, and what; [O, I]."""
        can_fold = x.channels.expand_as(self._links).clone()
        shares = torch.zeros_like(can_fold, dtype=torch.float64)
        for channel in (x.channels & ~x.zero).nonzero().flatten().tolist():
            added = self._alone(channel, x.values[channel])
            can_fold[:, channel] &= is_constant(added)
            shares[:, channel] = level(added)
        return can_fold, shares

    def _alone(self, channel: int, value: Tensor) -> Tensor:
        """What one input adds to the outputs, [O, …]."""
        weights = {"weight": self.layer.weight[:, channel : channel + 1]}
        if self.layer.bias is not None:
            weights["bias"] = torch.zeros_like(self.layer.bias)
        added: Tensor = functional_call(self.layer, weights, (value[None, None],))
        return added[0]

    def _sized(self, weight: Tensor, bias: Tensor) -> nn.Module:
        """This layer with other weights; it has a bias if it had one or needs one now."""
        outputs, inputs = weight.shape[:2]
        has_bias = self.layer.bias is not None or bool((bias != 0).any())
        weights = {"weight": weight, "bias": bias} if has_bias else {"weight": weight}
        if isinstance(self.layer, nn.Linear):
            sizes = {"in_features": inputs, "out_features": outputs}
        else:
            sizes = {"in_channels": inputs, "out_channels": outputs}
        return changed(self.layer, weights, **sizes, bias=has_bias)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """Local response normalisation: an output reads its own channel and the squares of others."""

    name: str
    layer: LocalResponseNorm

    def push(self, x: Known) -> Known:
        values = _run(self.name, self.layer, x, _MAP)
        is_whole_window = ~(self._links(x) & ~x.channels).any(1)
        return _known(values, is_whole_window | x.zero)  # 0 stays 0 whatever the others are

    def pull(self, x: Known, y: Known, needed: Tensor) -> Tensor:
        own = torch.eye(len(needed), dtype=torch.bool)
        return (self._links(x) & needed[:, None] & (own | ~self._squares(x).constant)).any(0)

    def keep(self, kept: Tensor, needed: Tensor) -> Tensor:
        return _at_least_one(needed)

    def small(self, x: Known, y: Known, before: Cut, behind: Cut) -> list[nn.Module]:
        if not behind.needed.any():
            return _pick(before.kept, behind.kept)
        if before.needed.all() and behind.needed.all():
            return [changed(self.layer, {})]
        layer = self.layer
        inputs, outputs = _places(before.needed), _places(behind.needed)
        gone = level(self._squares(x).values).where(~before.needed, 0.0)
        added = self._links(x).double() @ gone * (layer.alpha / layer.size)
        norm = WindowNorm(layer.size, layer.alpha, layer.beta, inputs, outputs)
        norm.offset = (layer.k + added)[behind.needed]
        return [*_pick(before.kept, before.needed), norm]

    def _links(self, x: Known) -> Tensor:
        place = torch.arange(len(x.values))
        return is_in_window(place - place[:, None], self.layer.size)

    def _squares(self, x: Known) -> Known:
        return Known(values=x.values**2, channels=x.channels)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Groups:
    """GroupNorm: the channels of a group stay together."""

    name: str
    layer: nn.GroupNorm

    def push(self, x: Known) -> Known:
        values = _run(self.name, self.layer, x, _MAP)
        return _known(values, ~self._whole(~x.channels))

    def pull(self, x: Known, y: Known, needed: Tensor) -> Tensor:
        return self._whole(needed)

    def keep(self, kept: Tensor, needed: Tensor) -> Tensor:
        return _at_least_one(needed)

    def small(self, x: Known, y: Known, before: Cut, behind: Cut) -> list[nn.Module]:
        if not behind.needed.any():
            return _pick(before.kept, behind.kept)
        weights = {name: w[before.needed] for name, w in self.layer.state_dict().items()}
        num_channels = int(before.needed.sum())
        num_groups = num_channels * self.layer.num_groups // len(before.needed)
        norm = changed(self.layer, weights, num_groups=num_groups, num_channels=num_channels)
        first, last = _pick(before.kept, before.needed), _pick(before.needed, behind.kept)
        return [*first, norm, *last]

    def _whole(self, channels: Tensor) -> Tensor:
        """All channels of the groups that have one of `channels`."""
        is_group = channels.view(self.layer.num_groups, -1).any(1)
        return is_group.repeat_interleave(len(channels) // len(is_group))


def _run(name: str, layer: nn.Module, x: Known, num_axes: int | None) -> Tensor:
    if num_axes is not None and x.values.dim() != num_axes:
        raise ConfigError(
            f"layer {name}, {_head(layer)}, is not supported on activations of shape "
            f"{list(x.values.shape)}; expected {num_axes} axes"
        )
    try:
        output: Any = layer(x.values[None].clone())  # a copy: it may be one that works in place
    except RuntimeError as error:
        raise ConfigError(
            f"layer {name}, {_head(layer)}, cannot take an activation of shape "
            f"{list(x.values.shape)}: {error}"
        ) from error
    values: Tensor = output[0]
    return values


def _known(values: Tensor, channels: Tensor) -> Known:
    is_known = channels.view(-1, *(1 for _ in values.shape[1:]))
    return Known(values=values.where(is_known, 0.0), channels=channels)


def _at_least_one(needed: Tensor) -> Tensor:
    """`needed`, or the first channel: torch has no layers without channels."""
    return needed if needed.any() else torch.arange(len(needed)) == 0


def _pick(have: Tensor, want: Tensor) -> list[nn.Module]:
    """What takes the channels `have` to those of them that are in `want`."""
    places = _places(want[have])
    return [] if len(places) == int(have.sum()) else [Pick(places)]


def _places(channels: Tensor) -> list[int]:
    found: list[int] = channels.nonzero().flatten().tolist()
    return found


def _is_whole_flatten(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _is_usual(layer: nn.GroupNorm) -> bool:
    return (layer.weight is None) == (layer.bias is None)


def _head(layer: nn.Module) -> str:
    """A layer as torch prints it, without the layers inside."""
    return repr(layer).partition("\n")[0].rstrip("(")
