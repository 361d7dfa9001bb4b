"""Models in fewer bits on the wire: coded by their sender, full precision again at the receiver.

What a peer trains and keeps stays as it is. Only tensors of floating-point numbers are coded; all
else travels as it is. Coding is deterministic, rounds to nearest, and depends on nothing but the
values: processes and the simulator decode the same bits. What is no number stays none in a code, so
that receivers refuse it as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, final

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError, TrainingError, WireError
from p2p_dml.tensors import mismatch
from p2p_dml.types import Coded, Mail, Message, Outbox, Payload, PeerId, Sent, Tensors

BLOCK = 1024
"""Values of a tensor that share a scale: 4 bytes more for each 1,024, and the last may be fewer."""

SCALES = "int8/scales"
"""The tensor that a payload of int8 has besides those of the model: float32, one for each block."""

_PIECE = 1 << 20
"""Values that are worked on at a time, so that coding needs little memory of its own."""

_LEVELS = 127


class Format(Protocol):
    """How tensors look on the wire; non-floating ones are none of its business."""

    def code(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """What travels instead of `tensors`, in memory of its own.

        OverflowError names a tensor with a number too large, ValueError one of a taken name.
        """
        ...

    def layout(self, like: Mapping[str, Tensor]) -> Tensors:
        """Names, dtypes and shapes of what `code` makes of tensors like these, without values."""
        ...

    def decode(self, coded: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
        """Tensors that look like `like`, of `coded` ones that look like its `layout`."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Half:
    """Sixteen bits a value: float16 has 11 significant bits up to 65,504, bfloat16 8 up to 3e38.

    Rounding to nearest, ties to even (IEEE 754); float16 below 6e-8 is 0.
    """

    dtype: torch.dtype

    def code(self, tensors: Mapping[str, Tensor]) -> Tensors:
        coded: Tensors = {}
        for name, x in tensors.items():
            if _is_coded(x):
                low, high = (bound.item() for bound in torch.aminmax(x.detach()))
                _check_reach(name, max(-low, high), torch.finfo(self.dtype).max)
                x = x.detach().to(self.dtype, copy=True)
            coded[name] = x
        return coded

    def layout(self, like: Mapping[str, Tensor]) -> Tensors:
        return {n: _blank(x, self.dtype) if _is_coded(x) else x for n, x in like.items()}

    def decode(self, coded: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
        return {n: coded[n].to(x.dtype) if _is_coded(x) else coded[n] for n, x in like.items()}


@final
@dataclass(frozen=True, slots=True)
class Int8:
    """Eight bits a value and a scale for each BLOCK of them: x is sent as round(x / s).

    s is the largest |x| of the block by 127, so no value is off by more than s / 2. Blocks of a
    tensor keep one outlier from costing all others their precision.
    Source: Dettmers et al. 2022, section 2.1 (block-wise), with linear levels as in QSGD
    (Alistarh et al. 2017), but to nearest: two runs of one seed are equal.
    """

    def code(self, tensors: Mapping[str, Tensor]) -> Tensors:
        if SCALES in tensors:
            raise ValueError(f"tensor {SCALES!r}: this name is taken; rename it")
        coded: Tensors = {}
        scales: list[Tensor] = []
        for name, x in tensors.items():
            coded[name] = x
            if _is_coded(x):
                codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
                values = zip(_blocks(x.detach()), _blocks(codes), strict=True)
                found = [_quantise(name, *pair) for pair in values]
                coded[name] = codes
                scales += found
        return coded | ({SCALES: torch.cat(scales)} if scales else {})

    def layout(self, like: Mapping[str, Tensor]) -> Tensors:
        looks = {n: _blank(x, torch.int8) if _is_coded(x) else x for n, x in like.items()}
        count = sum(_num_blocks(x) for x in like.values() if _is_coded(x))
        if not count:
            return looks
        return looks | {SCALES: torch.empty(count, dtype=torch.float32, device="meta")}

    def decode(self, coded: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
        decoded: Tensors = {}
        first = 0
        for name, x in like.items():
            decoded[name] = coded[name]
            if _is_coded(x):
                new = torch.empty(x.shape, dtype=x.dtype, device=coded[name].device)
                for blocks, codes in zip(_blocks(new), _blocks(coded[name]), strict=True):
                    scales = coded[SCALES][first : first + len(blocks), None].to(x.dtype)
                    blocks.copy_(codes).mul_(scales)
                    first += len(blocks)
                decoded[name] = new
        return decoded


FORMATS: Mapping[str, Format] = {
    "float16": Half(torch.float16),
    "bfloat16": Half(torch.bfloat16),
    "int8": Int8(),
}
"""Formats by what a run file calls them; "as_is" is none of them."""

Read = Callable[[PeerId, Payload], Payload]


@final
@dataclass(frozen=True, slots=True)
class Coder:
    """A format at work for one peer. `strategy`: its name, for messages."""

    me: PeerId
    strategy: str
    name: str

    def outbox(self, sent: Sent, round_: int) -> Outbox:
        """What travels of an outbox; a payload for many stays one.

        Raises TrainingError for a number that the format cannot hold, ConfigError for a tensor of a
        taken name or if the strategy codes by itself.
        """
        if isinstance(sent, Coded):
            raise ConfigError(
                f"peer {self.me}, round {round_}: {obstacle(self.strategy)}; set wire_format = "
                '"as_is"'
            )
        coded: dict[int, Payload] = {}
        for payload in sent.values():
            if id(payload) not in coded:
                coded[id(payload)] = Payload(self._code(payload, round_), payload.scalars)
        return {peer: coded[id(payload)] for peer, payload in sent.items()}

    def _code(self, payload: Payload, round_: int) -> Tensors:
        try:
            return FORMATS[self.name].code(payload.tensors)
        except OverflowError as error:
            wider = '"bfloat16" or "as_is"' if self.name == "float16" else '"as_is"'
            raise TrainingError(
                f"{self._at(round_)}: {error}; take smaller steps, or set wire_format = {wider}"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self._at(round_)}: {error}") from error

    def _at(self, round_: int) -> str:
        return f"peer {self.me}, round {round_}: wire_format = {self.name!r}"

    def reader(self, sent: Outbox, params: Mapping[str, Tensor]) -> Read:
        """Turns payloads into such that look like what is `sent`, or like `params` if nothing is.

        Raises WireError if one cannot be.
        """
        codec, own = FORMATS[self.name], next(iter(sent.values()), None)
        like = own.tensors if own else params
        expected = codec.layout(like)

        def read(sender: PeerId, payload: Payload) -> Payload:
            if wrong := mismatch(payload.tensors, expected):
                raise WireError(wrong)
            # Not finite any more, perhaps: a scale can be too large.
            return replace(payload, tensors=codec.decode(payload.tensors, like), is_finite=False)

        return read


def read_late(mail: Mail, read: Read, refuse: Callable[[PeerId, str], None]) -> Mail:
    """The mail with its late messages read; those that cannot be are left out, and `refuse` told.

    A strategy that counts late mail gets it in the precision of its own.
    """
    good: list[Message] = []
    for message in mail.late:
        try:
            good.append(replace(message, payload=read(message.sender, message.payload)))
        except WireError as error:
            refuse(message.sender, str(error))
    return replace(mail, late=good)


def obstacle(strategy: str) -> str:
    """Why the messages of a strategy cannot be coded once more."""
    return (
        f"strategy {strategy!r} needs its messages as they are (masks, codes of its own, or sums "
        "in which errors of rounding would add up)"
    )


def _is_coded(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0


def _blank(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device="meta")


def _num_blocks(x: Tensor) -> int:
    return -(-x.numel() // BLOCK)


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """A tensor's values as matrices of a block per row, _PIECE values at most in each.

    Of a contiguous tensor they are views; the last may be a row of fewer values.
    """
    flat = x.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    for begin in range(0, whole, _PIECE):
        yield flat[begin : min(begin + _PIECE, whole)].view(-1, BLOCK)
    if whole < flat.numel():
        yield flat[whole:].view(1, -1)


def _quantise(name: str, x: Tensor, out: Tensor) -> Tensor:
    """Write the codes of blocks [r, n] to `out`; returns their scales [r], float32.

    The scale of a block that is all but 0 is the smallest normal number, which 0 can be divided by.
    """
    largest = torch.maximum(x.amax(1), x.amin(1).neg_())  # NaN if one of them is
    _check_reach(name, largest.max().item(), torch.finfo(torch.float32).max)
    scales = largest.div_(_LEVELS).float().clamp_min_(torch.finfo(torch.float32).tiny)
    out.copy_(x.div(scales[:, None].to(x.dtype)).round_())
    return scales


def _check_reach(name: str, largest: float, limit: float) -> None:
    """Raise OverflowError for a number that is finite and too large; others are as they are."""
    if limit < largest < math.inf:
        raise OverflowError(f"tensor {name!r} holds {largest:.6g}, and {limit:.6g} is the most")
