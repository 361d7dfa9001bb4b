"""A module as named tensors: the live views that peers exchange, and its state for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from p2p_dml.errors import ConfigError
from p2p_dml.models import parts
from p2p_dml.tensors import clone, mismatch
from p2p_dml.types import Part, Tensors


def exchanged_parts(module: nn.Module, *, buffers: bool) -> dict[str, Part]:
    """Names, in `state_dict` order, and parts of what peers exchange.

    All parameters and, if `buffers`, the float buffers (BatchNorm's running statistics); integer
    counters never.
    """
    own = {name for name, _ in module.named_buffers()}
    return {name: part for name, part in parts(module).items() if buffers or name not in own}


def live_views(module: nn.Module, *, buffers: bool) -> Tensors:
    """The tensors of `exchanged_parts`, sharing memory with the module, outside autograd."""
    state = module.state_dict()
    return {name: state[name] for name in exchanged_parts(module, buffers=buffers)}


def copy_into(views: Tensors, new: Mapping[str, torch.Tensor]) -> None:
    """Copy values into live views; ValueError if names, dtypes or shapes differ."""
    difference = mismatch(new, views)
    if difference:
        raise ValueError(f"these are not the model's tensors: {difference}")
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(new[name])


def saved(module: nn.Module) -> Tensors:
    """A copy of all parameters and buffers, integer ones too."""
    return clone(module.state_dict())


def restore(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy `saved` values back; ConfigError if they are those of another model."""
    difference = mismatch(state, module.state_dict())
    if difference:
        raise ConfigError(f"the checkpoint does not fit the model: {difference}")
    module.load_state_dict(dict(state))
