"""The layers of a small model: which there are, and each as a table of plain values and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from p2p_dml import tables
from p2p_dml.errors import ConfigError
from p2p_dml.layers import (
    ChannelsLastConv2d,
    LocalResponseNorm,
    is_in_window,
    over_power,
    sums_of_squares,
)


@final
class Pick(nn.Module):
    """Some channels of [B, C, …], by position."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        index = torch.tensor(self.channels, dtype=torch.int64, device="cpu")
        self.register_buffer("_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, cast(Tensor, self._index))


@final
class WindowNorm(nn.Module):
    """Local response normalisation (Krizhevsky et al. 2012) of a model that has lost channels.

    `inputs` are the channels that come in, [B, len(inputs), H, W], and `outputs`, some of them,
    those that go out, both by their positions in the whole model, ascending. Windows are of `size`
    positions there; a channel that is not among `inputs` adds nothing to the sum of squares.
    `offset` [len(outputs)] is the `k` of `torch.nn.LocalResponseNorm`, one per output, with what
    constant channels add to it.
    """

    offset: Tensor

    def __init__(
        self,
        size: int,
        alpha: float,
        beta: float,
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        super().__init__()
        if not set(outputs) <= set(inputs):
            raise ValueError(f"outputs: expected some of inputs {inputs}, found {outputs}")
        self.size, self.alpha, self.beta = size, alpha, beta
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        places = torch.tensor(self.inputs, dtype=torch.int64, device="cpu")
        channels = torch.tensor(self.outputs, dtype=torch.int64, device="cpu")[:, None]
        windows = is_in_window(places - channels, size)
        own = (places == channels).nonzero()[:, 1]
        self.register_buffer("offset", torch.ones(len(outputs)))
        self.register_buffer("_windows", windows, persistent=False)
        self.register_buffer("_own", own, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.alpha / self.size
        scale = sums_of_squares(x, cast(Tensor, self._windows), factor) + self.offset[:, None, None]
        own = x if self.inputs == self.outputs else x.index_select(1, cast(Tensor, self._own))
        return over_power(own, scale, self.beta)


EACH: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.CELU: ("alpha",),
    nn.SELU: (),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Mish: (),
    nn.Tanh: (),
    nn.Sigmoid: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Softsign: (),
    nn.Hardtanh: ("min_val", "max_val"),
    nn.Hardswish: (),
    nn.Hardsigmoid: (),
}
"""Functions of one number, with what makes them up."""

POOLS: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: (
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size",),
}  # fmt: skip
"""Functions of one channel [H, W]."""

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")

_OPTIONS: Mapping[type[nn.Module], tuple[str, ...]] = {
    **EACH,
    **POOLS,
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: (*_CONV, "groups", "padding_mode"),
    ChannelsLastConv2d: (*_CONV, "groups", "padding_mode"),
    LocalResponseNorm: ("size", "alpha", "beta", "k"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    Pick: ("channels",),
    WindowNorm: ("size", "alpha", "beta", "inputs", "outputs"),
}

_KINDS: Mapping[str, Callable[..., nn.Module]] = {kind.__name__: kind for kind in _OPTIONS}


def describe(layer: nn.Module) -> dict[str, Any]:
    """The `kind` of a layer and what makes it up, in plain values; its weights are not among it."""
    options = {name: getattr(layer, name) for name in _OPTIONS[type(layer)]}
    if isinstance(layer, nn.Linear | nn.Conv2d):
        options["bias"] = layer.bias is not None
    return {"kind": type(layer).__name__, **options}


def rebuild(description: Mapping[str, Any], where: str) -> nn.Module:
    """The layer that `describe` described; its weights have shapes only, on the device "meta".

    Raises ConfigError at `where` for an unknown kind or options that it cannot have.
    """
    kind = tables.choose(_KINDS, description.get("kind"), f"{where}.kind")
    options = {key: value for key, value in description.items() if key != "kind"}
    try:
        with torch.device("meta"):
            return tables.build(kind, options, where)
    except (RuntimeError, TypeError, ZeroDivisionError) as error:  # numbers that torch cannot use
        raise ConfigError(f"{where}: {error}") from error


def changed(layer: nn.Module, weights: Mapping[str, Tensor], **options: object) -> nn.Module:
    """A layer like `layer` but for `options`, with these weights."""
    new = rebuild({**describe(layer), **options}, "layer")
    new.load_state_dict(dict(weights), assign=True)
    return new
