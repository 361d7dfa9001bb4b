"""Models by name or from the user's own factory, equal at every peer before round 0.

Every built-in takes the shape of one sample and the number of classes. Image models return logits
[B, classes]; text models take tokens [B, L] and return logits [B, L, classes].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2p_dml import plugins, tables
from p2p_dml.errors import ConfigError
from p2p_dml.layers import ChannelsLastConv2d, LocalResponseNorm
from p2p_dml.types import Part

_STREAM = 0x696E697469616C21  # sets the words of `redraw` apart from other users of the run's seed

# Layers whose inner nn.Linear transform features; they decide nothing.
_BLOCKS = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def softmax(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Softmax regression: one linear layer (HyperPrism's "LR")."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(*, shape: tuple[int, ...], classes: int, hidden: tuple[int, ...] = (200,)) -> nn.Module:
    """Fully connected layers of `hidden` units with ReLU between."""
    sizes = (math.prod(shape), *_positive("hidden", *hidden))
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def lenet(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Small CNN in the manner of LeCun et al. 1998, for HyperPrism's "CNN".

    Two convolutions 5 x 5 of 16 and 32 channels, each halved by max pooling, and two linear
    layers, the first of 64 units. The paper gives no sizes; these are ours.
    """
    # ReLU after pooling: the same outputs at a quarter of its cost
    features = nn.Sequential(
        ChannelsLastConv2d(_channels(shape), 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    size = _num_features(features, shape)
    return nn.Sequential(features, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, classes))


def alexnet_mcepl(*, shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """The AlexNet-like CNN of Tian et al. 2025 (MCE-PL), from the authors' release.

    Convolutions have no bias and 1, 2, 4 `width` channels; the last layer is followed by an ELU as
    in the release (logits above -1). 1,227,328 weights for [3, 32, 32], 10 classes, and biases.
    """
    one, two, four = _positive("width", width, 2 * width, 4 * width)
    features = nn.Sequential(
        ChannelsLastConv2d(_channels(shape), one, 5, padding=1, bias=False),
        nn.ELU(),
        LocalResponseNorm(4, alpha=2e-5, beta=0.75),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(one, two, 5, padding=1, bias=False),
        nn.ELU(),
        LocalResponseNorm(4, alpha=1e-4, beta=0.75),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(two, four, 5, padding=1, bias=False),
        nn.ELU(),
        LocalResponseNorm(4, alpha=1e-4, beta=0.75),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Flatten(),
    )
    size = _num_features(features, shape)
    return nn.Sequential(
        features, nn.Linear(size, 3 * width), nn.ELU(), nn.Linear(3 * width, classes), nn.ELU()
    )


def resnet(*, shape: tuple[int, ...], classes: int, depth: int = 8, width: int = 16) -> nn.Module:
    """ResNet for small images (He et al. 2016, section 4.2) with GroupNorm (Wu & He 2018).

    `depth` is 6n + 2: three stages of n blocks with `width`, 2 `width` and 4 `width` channels.
    GroupNorm keeps no running statistics, so peers with different data can be averaged.
    """
    blocks_per_stage, rest = divmod(depth - 2, 6)
    if blocks_per_stage < 1 or rest:
        raise ValueError(f"depth: expected 6n + 2 (8, 14, 20, …), found {depth}")
    _positive("width", width)
    layers: list[nn.Module] = [_conv3(_channels(shape), width), _norm(width), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(blocks_per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_ResidualBlock(channels, width << stage, stride))
            channels = width << stage
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def char_lstm(
    *,
    shape: tuple[int, ...],
    classes: int,
    embedding: int = 8,
    hidden: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """Character LSTM (Kim et al. 2016 in the small): embedding, LSTM layers, linear head.

    `dropout` acts between LSTM layers. McMahan et al. 2017 use 8, 256 and 2 layers.
    """
    _length(shape)
    _positive("embedding, hidden, layers", embedding, hidden, layers)
    if dropout and layers == 1:
        raise ValueError("dropout: acts between LSTM layers, and there is one; set layers = 2")
    return nn.Sequential(
        nn.Embedding(classes, embedding),
        _Lstm(embedding, hidden, layers, dropout),
        nn.Linear(hidden, classes),
    )


def char_transformer(
    *,
    shape: tuple[int, ...],
    classes: int,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """Decoder-only transformer (Vaswani et al. 2017) with norms before the blocks and GELU."""
    _positive("width, heads, layers", width, heads, layers)
    if width % heads:
        raise ValueError(f"width: expected a multiple of heads ({heads}), found {width}")
    blocks = [_CausalBlock(width, heads, dropout) for _ in range(layers)]
    return nn.Sequential(
        _TokensAndPlaces(classes, _length(shape), width),
        *blocks,
        nn.LayerNorm(width),
        nn.Linear(width, classes),
    )


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "softmax": softmax,
    "mlp": mlp,
    "lenet": lenet,
    "alexnet_mcepl": alexnet_mcepl,
    "resnet": resnet,
    "char_lstm": char_lstm,
    "char_transformer": char_transformer,
}


def build_model(
    table: Mapping[str, object],
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    *,
    is_tokens: bool = False,
    where: str = "model",
) -> nn.Module:
    """Build the model that `table` names, with the same initial weights for the same `seed`.

    A "package.module:factory" is called with the table's other keys only. `init`, for every model,
    is what `redraw` does. torch's generator is left as it was. `is_tokens`: samples (of `shape`)
    are int64 tokens, an output is [B, L, classes], not [B, classes]. ConfigError: it does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        is_own = plugins.is_object_path(str(table.get("name")))  # and may draw on any device
        (torch.manual_seed if is_own else torch.default_generator.manual_seed)(seed)
        own = {key: value for key, value in table.items() if key != "init"}
        try:
            module = _build(own, {"shape": shape, "classes": classes}, where).to(dtype)
        except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
            why, *_ = str(error).splitlines() or [type(error).__name__]
            raise ConfigError(f"{where}: cannot be built: {why}") from error
        sample = torch.zeros((1, *shape), dtype=torch.int64 if is_tokens else dtype)
        _check_output(module, sample, classes, where)
    redraw(module, table.get("init"), seed, where)
    return module


def redraw(module: nn.Module, init: object, seed: int, where: str = "model") -> None:
    """Draw the parameters of 2 or more axes anew as `init` says; None leaves them as they are.

    "kaiming": uniform within ± sqrt(6 / fan_in) (He et al. 2015). "signed_constant": ± sqrt(2 /
    fan_in), either sign alike (Ramanujan et al. 2020). `fan_in` is the number of weights of one
    output, the first axis. Words, not torch's generator: equal in every process. Biases, norms and
    buffers stay. Raises ConfigError for another name.
    """
    if init is None:
        return
    draw = tables.choose(_INITS, init, f"{where}.init")
    bits = np.random.Philox(key=[seed ^ _STREAM, 0])
    with torch.no_grad():
        for x in module.parameters():
            if x.dim() > 1 and x.numel():
                words = bits.random_raw(x.numel()).reshape(x.shape)
                x.copy_(torch.from_numpy(draw(words, x.numel() // len(x))))


def _kaiming(words: NDArray[np.uint64], fan_in: int) -> NDArray[np.float64]:
    return np.asarray((words >> 11) * 2.0**-52 - 1) * math.sqrt(6 / fan_in)


def _signed_constant(words: NDArray[np.uint64], fan_in: int) -> NDArray[np.float64]:
    bound = math.sqrt(2 / fan_in)
    return np.where(words >> 63, bound, -bound)


_INITS: Mapping[str, Callable[[NDArray[np.uint64], int], NDArray[np.float64]]] = {
    "kaiming": _kaiming,
    "signed_constant": _signed_constant,
}


def parts(module: nn.Module) -> dict[str, Part]:
    """The part of the model to which each parameter and float buffer belongs, by name.

    "decision" is every fully connected layer (nn.Linear) outside recurrent and attention blocks;
    "representation" is all else: convolutions, embeddings, recurrent and attention blocks, and
    norms, wherever they stand. Weight and bias of a layer go together. The names, in the order of
    `state_dict`, are those that peers exchange; a tied tensor has its first name only.
    """
    decision = _decision_layers(module, "")
    seen: set[Tensor] = set()
    found: dict[str, Part] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point() and value not in seen:
            seen.add(value)
            found[name] = "decision" if name.rpartition(".")[0] in decision else "representation"
    return found


def _build(table: Mapping[str, object], given: Mapping[str, object], where: str) -> nn.Module:
    """The table's model; one of ours is built for what is `given` of the data set."""
    name, rest = plugins.take_name(table, where)
    if not plugins.is_object_path(name):
        factory = tables.choose(MODELS, name, f"{where}.name")
        for key in sorted(given.keys() & rest.keys()):
            raise ConfigError(f"{where}.{key}: comes from the data set; remove this key")
        return tables.build(factory, rest, where, fixed=given, **given)
    module = plugins.call(name, rest, where)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{where}: {name!r} must return a torch.nn.Module, found {type(module).__name__}"
        )
    return module


def _check_output(module: nn.Module, sample: Tensor, classes: int, where: str) -> None:
    """Run one sample in evaluation mode; ConfigError if the logits have another shape."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(sample)
    except Exception as error:  # a user's forward may raise anything
        raise ConfigError(
            f"{where}: the model cannot take a sample of shape {list(sample.shape[1:])} and type "
            f"{sample.dtype}: {type(error).__name__}: {error}; choose another model or data set"
        ) from error
    module.train(was_training)
    expected = [*(sample.shape if sample.dtype == torch.int64 else (1,)), classes]
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        raise ConfigError(
            f"{where}: for {classes} classes expected an output of shape {expected} for one "
            f"sample, got {found}"
        )


def _decision_layers(module: nn.Module, name: str) -> set[str]:
    if isinstance(module, nn.Linear):
        return {name}
    if isinstance(module, _BLOCKS):
        return set()
    prefix = f"{name}." if name else ""
    inner = (_decision_layers(child, prefix + key) for key, child in module.named_children())
    return set().union(*inner)


@final
class _ResidualBlock(nn.Module):
    """Two convolutions 3 x 3 and a shortcut, projected where the size changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3(before, after, stride), _norm(after), nn.ReLU(), _conv3(after, after),
            _norm(after),
        )  # fmt: skip
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@final
class _Lstm(nn.Module):
    """An LSTM over [B, L, before] that returns its outputs [B, L, hidden] only."""

    def __init__(self, before: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(before, hidden, layers, batch_first=True, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.lstm(x)[0])


@final
class _TokensAndPlaces(nn.Module):
    """Embedding of tokens [B, L] plus a learned one of their places, [B, L, width]."""

    def __init__(self, classes: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(classes, width)
        self.place = nn.Embedding(length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return cast(Tensor, self.token(tokens) + self.place(places))


@final
class _CausalBlock(nn.Module):
    """Attention to the characters so far, then a two-layer network; [B, L, width] to the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        return cast(Tensor, self.block(x, src_mask=mask, is_causal=True))


def _conv3(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _channels(shape: tuple[int, ...]) -> int:
    if len(shape) != 3:
        raise ValueError(f"expected images of shape [C, H, W], found samples {list(shape)}")
    return shape[0]


def _length(shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ValueError(f"expected tokens of shape [L], found samples {list(shape)}")
    return shape[0]


def _num_features(features: nn.Module, shape: tuple[int, ...]) -> int:
    try:
        with torch.no_grad():
            return int(features(torch.zeros(1, *shape)).shape[1])
    except RuntimeError as error:
        raise ValueError(f"images of shape {list(shape)} are too small for this model") from error


def _positive(field: str, *values: int) -> tuple[int, ...]:
    if min(values, default=1) < 1:
        raise ValueError(f"{field}: expected at least 1, found {min(values)}")
    return values
