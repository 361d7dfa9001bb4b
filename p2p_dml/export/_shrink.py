"""The same function with fewer channels: what masks have emptied is taken out of a chain."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from p2p_dml.export._channels import Cut, Known, Stage
from p2p_dml.export._stages import stage_of

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
"""What does nothing in evaluation mode."""


def shrink(model: nn.Module, shape: tuple[int, ...]) -> nn.Sequential:
    """A flat chain that computes what `model` does in evaluation mode, without empty channels.

    A filter or neuron goes if it is the same for every sample and can be put into the biases of
    those that read it, or if nobody reads it. One that is constant but stands before a convolution
    with padding stays unless it is 0: at the border it counts less. `shape` is that of a sample.
    Raises ConfigError naming the first layer that is not supported.
    """
    with torch.no_grad():
        whole = copy.deepcopy(model).cpu().double().eval()
        stages = [stage_of(name, layer) for name, layer in _chain(whole, "")]
        trail = _trail(stages, shape)
        cuts = _cuts(stages, trail)
        layers = [
            layer
            for stage, (x, y), (before, behind) in zip(
                stages, pairwise(trail), pairwise(cuts), strict=True
            )
            for layer in stage.small(x, y, before, behind)
        ]
        first = next(model.parameters())
        return nn.Sequential(*layers).to(first.device, first.dtype).eval()


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order in which they act, each with its name."""
    if type(module) is nn.Sequential:
        for place, child in enumerate(module):
            yield from _chain(child, f"{name}.{place}" if name else f"{place}")
    elif type(module) not in _NOTHING:
        yield name or "0", module


def _trail(stages: Sequence[Stage], shape: tuple[int, ...]) -> list[Known]:
    """What is known before the first stage and behind each."""
    values = torch.zeros(shape, dtype=torch.float64)
    trail = [Known(values=values, channels=torch.zeros(shape[0], dtype=torch.bool))]
    for stage in stages:
        trail.append(stage.push(trail[-1]))
    return trail


def _cuts(stages: Sequence[Stage], trail: Sequence[Known]) -> list[Cut]:
    """What is left before the first stage and behind each."""
    needed = [torch.ones_like(trail[-1].channels)]
    for stage, (x, y) in reversed(list(zip(stages, pairwise(trail), strict=True))):
        needed.insert(0, stage.pull(x, y, needed[0]))
    kept = [torch.ones_like(trail[0].channels)]
    for stage, behind in zip(stages, needed[1:], strict=True):
        kept.append(stage.keep(kept[-1], behind))
    return [Cut(needed=n, kept=k) for n, k in zip(needed, kept, strict=True)]
