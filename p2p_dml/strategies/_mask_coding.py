"""How a mask travels on each link: as bits, entropy-coded, or as the change of an earlier mask.

A payload has the tensor `mask` (uint8) and the scalars `coding`, `base` and `have`. Masks are named
by a digest of their bits, so that a name stands for one mask whatever was lost, late or run again:
`have` is the newest mask of the receiver that the sender holds, `base` the mask of the sender that
a change applies to (0: none). A peer sends changes of masks that the receiver said it holds, or
should hold by now, and refuses changes of masks that it does not hold. Both ends forget by
themselves; a link on which that went apart gets a whole mask as soon as the next `have` comes
through, or, if both ends refuse each other's messages, after PATIENCE of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels import entropy
from p2p_dml.kernels.masks import has_padding, ones, packed_bytes
from p2p_dml.types import Neighbourhood, Outbox, Payload, PeerId

Mode = Literal["packed", "entropy", "delta", "eager"]
Expected = Callable[[PeerId], Sequence[int]]
"""sender -> how many bits of each layer its masks have."""

PACKED, ENTROPY, DELTA = 0, 1, 2

OWN = 16
"""Newest own masks that are kept: a peer of a slower pace answers to one that many rounds old."""

WINDOW = 32
"""Rounds for which a mask serves as a base; older ones differ too much to be worth their room."""

PATIENCE = 3
"""Messages without an answer after which masks go whole: the other end may be unable to say so."""

RECENT = PATIENCE + 1
"""Newest masks of a neighbour that are kept: one that it was told of is its base until then."""

_NONE = 0
_SCALARS = frozenset({"coding", "base", "have"})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A packed mask, and the last round in which it was sent or heard."""

    bits: Tensor
    round: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What is known of one neighbour.

    `masks`: those of its masks that are held, by name; at most RECENT and the last one it used as
    base, `used`. `has`: the mask of this peer's own that the neighbour said it holds; `last` and
    `before`: the last two that it was sent. `round`: when it was heard last, or first sent a mask;
    `unanswered`: how many masks it was sent since.
    """

    masks: Mapping[str, Kept] = field(default_factory=dict)
    used: int = _NONE
    has: int = _NONE
    last: int = _NONE
    before: int = _NONE
    round: int = 0
    unanswered: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodingState:
    """What a peer remembers of its links; empty where no changes are sent.

    `sent`: own masks by name, the OWN newest, and of the last WINDOW rounds those that serve as
    base for a neighbour: two for each neighbour, but no more than WINDOW. `heard`: by neighbour,
    until it was not heard for WINDOW rounds.
    """

    sent: Mapping[str, Kept] = field(default_factory=dict)
    heard: Mapping[str, Heard] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCoding:
    """Codes masks of layers of `numels` values.

    "packed": a bit per value. "entropy": entropy-coded where that is shorter. "delta": also as the
    change of the last mask that the receiver is known to hold, where that is shorter still. As what
    is heard in a round is announced in the next, that mask is two rounds old. "eager": as the
    change of the last mask sent, as long as the receiver has heard those before: fewer bits change
    in one round than in two, but after a mask that is lost the next one cannot be read either.
    """

    numels: tuple[int, ...]
    mode: Mode = "delta"

    def outbox(
        self, state: CodingState, hood: Neighbourhood, round: int, bits: Tensor
    ) -> tuple[Outbox, CodingState]:
        """The mask for every neighbour that hears this peer, and the state that remembers it.

        To be called once a round, rounds ascending; the packed `bits` are not to be changed any
        more. What is shortest is told from the numbers of ones, before it is coded.
        """
        bits = bits.cpu()
        bases = {k: self._base(state, k) for k in hood.out_weights}
        codes = {base: self._shortest(state, base, bits) for base in sorted({*bases.values()})}
        outbox = {
            k: _payload(*codes[base], have=_newest(state.heard.get(str(k))))
            for k, base in bases.items()
        }
        return outbox, self._sent(state, hood, round, bits)

    def read(
        self,
        state: CodingState,
        sender: PeerId,
        payload: Payload,
        expected: Expected | None = None,
    ) -> Payload:
        """The payload with its mask decoded to packed bits; `state` is that before `heard`.

        Raises WireError if it breaks the format, changes a mask that is not held, or holds a mask
        with other numbers of ones than `expected` of the sender.
        """
        code, scalars = _conforming(payload)
        bits = self._decoded(state, sender, code, scalars)
        if expected is not None:
            _check_ones(ones(bits, self.numels), expected(sender))
        return Payload({"mask": bits}, payload.scalars)

    def heard(
        self, state: CodingState, round: int, messages: Mapping[PeerId, Payload]
    ) -> CodingState:
        """Remember what `read` returned of the messages of a round, by sender."""
        if not self._remembers:
            return state
        heard = {j: known for j, known in state.heard.items() if round - known.round < WINDOW}
        for sender, payload in messages.items():
            key = str(sender)
            heard[key] = _updated(heard.get(key, Heard()), round, payload)
        return CodingState(sent=_still_used(state.sent, heard, round), heard=heard)

    @property
    def _remembers(self) -> bool:
        return self.mode in ("delta", "eager")

    def _base(self, state: CodingState, receiver: PeerId) -> int:
        """The own mask that the receiver has, or should have, if it is still known here."""
        known = state.heard.get(str(receiver), Heard())
        if known.unanswered >= PATIENCE:
            return _NONE
        is_up_to_date = known.unanswered == 0 and known.has in (known.before, known.last)
        base = known.last if self.mode == "eager" and is_up_to_date else known.has
        return base if str(base) in state.sent else _NONE

    def _shortest(self, state: CodingState, base: int, bits: Tensor) -> tuple[Tensor, int, int]:
        """(code, coding, base) of the way that is about the shortest; never longer than packed."""
        if self.mode == "packed":
            return bits, PACKED, _NONE
        options = [(bits, ENTROPY, _NONE)]
        if base != _NONE:
            options.append((bits ^ state.sent[str(base)].bits, DELTA, base))
        lengths = [entropy.code_bytes(ones(x, self.numels), self.numels) for x, _, _ in options]
        shortest = min(lengths)
        if shortest < bits.numel():
            each, coding, base = options[lengths.index(shortest)]
            code = entropy.encode(each, self.numels)
            if code.numel() < bits.numel():
                return code, coding, base
        return bits, PACKED, _NONE

    def _sent(
        self, state: CodingState, hood: Neighbourhood, round: int, bits: Tensor
    ) -> CodingState:
        if not self._remembers:
            return state
        name = digest(bits)
        sent = {**state.sent, str(name): Kept(bits=bits, round=round)}
        heard = dict(state.heard)
        for k in map(str, hood.out_weights):
            known = heard.get(k, Heard(round=round))
            heard[k] = replace(known, last=name, before=known.last, unanswered=known.unanswered + 1)
        return CodingState(sent=_still_used(sent, heard, round), heard=heard)

    def _decoded(
        self, state: CodingState, sender: PeerId, code: Tensor, scalars: Mapping[str, int]
    ) -> Tensor:
        if scalars["coding"] == PACKED:
            return self._unpadded(code)
        known = state.heard.get(str(sender), Heard())
        base = known.masks.get(str(scalars["base"]))
        if scalars["coding"] == DELTA and base is None:
            raise WireError("mask: the change of one that is not held here")
        try:
            bits = entropy.decode(code, self.numels)
        except ValueError as error:
            raise WireError(f"mask: {error}") from error
        return bits if base is None else bits ^ base.bits

    def _unpadded(self, bits: Tensor) -> Tensor:
        numel = sum(self.numels)
        if bits.numel() != packed_bytes(numel):
            raise WireError(f"mask of {bits.numel()} bytes: expected {packed_bytes(numel)}")
        if has_padding(bits, numel):
            raise WireError(f"mask with bits set behind its {numel} values")
        return bits.clone()  # a transport may use the memory of what it received again


def digest(bits: Tensor) -> int:
    """A name for a packed mask: 52 bits of its BLAKE2b hash, never 0, exact as a float."""
    return int(hashlib.blake2b(bits.numpy().data, digest_size=8).hexdigest()[:13], 16) or 1


def sizes(bits: Tensor, numel: int, outbox: Outbox) -> dict[str, float]:
    """Mean bytes of a message with the mask `bits` of `numel` values, by how they are counted.

    `bytes/dense`: float32 values; `bytes/packed`: a bit per value; `bytes/coded`: what is in the
    `outbox`, left out if that is empty; `bytes/ones`: a bit per one, which no receiver could
    decode. Source of the last: Tian et al. 2025 (MCE-PL), the accounting of the published code.
    """
    coded = [payload.tensors["mask"].nbytes for payload in outbox.values()]
    return {
        "bytes/dense": 4.0 * numel,
        "bytes/packed": float(packed_bytes(numel)),
        "bytes/ones": ones(bits, [numel])[0] / 8,
    } | ({"bytes/coded": sum(coded) / len(coded)} if coded else {})


def _payload(code: Tensor, coding: int, base: int, have: int) -> Payload:
    scalars = {"coding": float(coding), "base": float(base), "have": float(have)}
    return Payload({"mask": code}, scalars)


def _conforming(payload: Payload) -> tuple[Tensor, dict[str, int]]:
    """The code and the scalars as whole numbers; WireError if they are not what they must be."""
    if payload.tensors.keys() != {"mask"} or payload.scalars.keys() != _SCALARS:
        names = sorted([*payload.tensors, *payload.scalars])
        raise WireError(f"a mask with base, coding and have: expected these names, got {names}")
    code = payload.tensors["mask"].cpu()
    if code.dtype != torch.uint8 or code.dim() != 1:
        raise WireError(f"mask: expected uint8 [bytes], got {code.dtype} {list(code.shape)}")
    for name, value in payload.scalars.items():
        if not (float(value).is_integer() and 0 <= value < 2**52):
            raise WireError(f"mask: {name} = {value} is no whole number from 0 to 2^52 - 1")
    scalars = {name: int(value) for name, value in payload.scalars.items()}
    if scalars["coding"] > DELTA or (scalars["coding"] == DELTA) != (scalars["base"] != _NONE):
        raise WireError(f"mask: coding {scalars['coding']} with base {scalars['base']}")
    return code, scalars


def _check_ones(found: Sequence[int], wanted: Sequence[int]) -> None:
    for layer, (ones_found, ones_wanted) in enumerate(zip(found, wanted, strict=True)):
        if ones_found != ones_wanted:
            raise WireError(f"mask: {ones_found} ones in layer {layer}, expected {ones_wanted}")


def _newest(known: Heard | None) -> int:
    """The name of the mask heard last, 0 if none is held."""
    if known is None or not known.masks:
        return _NONE
    return int(max(known.masks, key=lambda name: known.masks[name].round))


def _updated(known: Heard, round: int, payload: Payload) -> Heard:
    """One more message; forgets what the neighbour has no reason to use as a base any more."""
    bits, used = payload.tensors["mask"], int(payload.scalars["base"]) or known.used
    masks = {**known.masks, str(digest(bits)): Kept(bits=bits, round=round)}
    newest = sorted(masks, key=lambda name: -masks[name].round)[:RECENT]
    kept = {name: mask for name, mask in masks.items() if name in {*newest, str(used)}}
    has = int(payload.scalars["have"])
    return replace(known, masks=kept, used=used, has=has, round=round, unanswered=0)


def _still_used(
    sent: Mapping[str, Kept], heard: Mapping[str, Heard], round: int
) -> dict[str, Kept]:
    """The newest own masks, and those of the last WINDOW rounds that serve as a base."""
    newest = sorted(sent, key=lambda name: -sent[name].round)[:OWN]
    bases = {str(base) for each in heard.values() for base in (each.has, each.last)}
    in_use = {name for name in bases & sent.keys() if round - sent[name].round < WINDOW}
    return {name: kept for name, kept in sent.items() if name in {*newest, *in_use}}
