"""Push-sum's shares as running sums: what a lost message carried comes with the next one.

Per link a sender keeps the sum of all shares that it dealt, and sends that sum; the receiver keeps
the last sum it has used and adds what the new one has more. So nothing that travels is ever lost
for good or counted twice, whatever is dropped, late or repeated on the way; a message overtaken by
a newer one is of no use any more. Nor is anything when either end goes on from a checkpoint: its
sums are as old as its model, and the difference to the other end's makes good what is in between.

A peer that begins anew, without its sums, cannot know what its predecessor was given. It takes the
first sum of a link that is older than itself as its zero, and others see by `life` that its own
sums begin anew. So what was under way to its predecessor is gone, and a first share of each link.

On links that go both ways a neighbour that was not heard PATIENCE times in a row is dealt nothing
until it is heard again: to a dead one no more than so many shares are lost.
Source: Hadjicostis, Vaidya, Dominguez-Garcia 2016, "Robust distributed average consensus via
exchange of running sums"; what is said of restarts and of the dead is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch

from p2p_dml.tensors import clone, mismatch, tmap
from p2p_dml.types import Inbox, Neighbourhood, Outbox, Payload, PeerId, Tensors

PATIENCE = 3
"""Exchanges in a row without a word after which a neighbour is dealt nothing."""

_COUNTS = ("count", "first", "life")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The shares that one peer has dealt another: their sum, and how many they are.

    `first`: the round of the first one. `life`: the round in which their sender began.
    """

    x: Tensors
    weight: float
    count: int
    first: int
    life: int

    def plus(self, share: float, x: Tensors, weight: float) -> Sum:
        """The sum with one share more."""
        total = tmap(lambda total, x: torch.add(total, x, alpha=share), self.x, x)
        return replace(self, x=total, weight=self.weight + share * weight, count=self.count + 1)

    def payload(self) -> Payload:
        scalars = {name: float(getattr(self, name)) for name in ("weight", *_COUNTS)}
        return Payload(self.x, scalars)

    def is_newer(self, other: Sum) -> bool:
        return (self.life, self.count) > (other.life, other.count)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a peer remembers of its links: a model per neighbour and direction.

    `given`: by receiver, those of equal history share one. `taken`: by sender, the last that was
    used. `silent`: how many times in a row a neighbour was not heard. `life`: the round in which
    this peer began, 0 before.
    """

    given: Mapping[str, Sum] = field(default_factory=dict)
    taken: Mapping[str, Sum] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    life: int = 0


def deal(
    sums: Sums, hood: Neighbourhood, round: int, x: Tensors, weight: float
) -> tuple[Sums, Outbox, Payload]:
    """Deal (x, weight) out by the column of W; returns what goes to whom, and what stays here.

    What rounding keeps out of a large sum stays here too, so none of it is lost.
    """
    life = sums.life or round
    zero = Sum(x=tmap(torch.zeros_like, x), weight=0.0, count=0, first=round, life=life)
    given, own, kept = dict(sums.given), clone(x), [weight]
    outbox: dict[PeerId, Payload] = {}
    dealt: dict[tuple[int, float], _Dealt] = {}  # receivers of one history and share go on alike
    for k, share in hood.out_weights.items():
        old = given.get(str(k), zero)
        share = share if sums.silent.get(str(k), 0) < PATIENCE else 0.0
        key = id(old), share
        if key not in dealt:
            dealt[key] = _deal_one(old, share, x, weight)
        each = dealt[key]
        given[str(k)], outbox[k] = each.new, each.payload
        own = tmap(torch.Tensor.sub_, own, each.gone)
        kept.append(old.weight - each.new.weight)
    own_share = Payload(own, {"weight": math.fsum(kept)})
    return replace(sums, given=given, life=life), outbox, own_share


def take(sums: Sums, inbox: Inbox, like: Tensors) -> tuple[Sums, dict[PeerId, Payload]]:
    """What each sender's newest sum has more than the last one used, by sender, ascending.

    Messages that are no sums of tensors `like` these are left aside.
    """
    everyone = [*inbox.messages.items(), *((m.sender, m.payload) for m in inbox.late)]
    newest: dict[PeerId, Sum] = {}
    for sender, payload in everyone:
        found = _sum_of(payload, like)
        if found and (sender not in newest or found.is_newer(newest[sender])):
            newest[sender] = found
    taken, shares = dict(sums.taken), dict[PeerId, Payload]()
    for sender, found in sorted(newest.items()):
        old = taken.get(str(sender))
        if old is None or found.is_newer(old):
            taken[str(sender)] = replace(found, x=clone(found.x))  # its memory is the transport's
            shares[sender] = _difference(found, old, sums.life)
    silent = _silence(sums.silent, inbox.hood, {sender for sender, _ in everyone})
    return replace(sums, taken=taken, silent=silent), shares


@final
@dataclass(frozen=True, slots=True)
class _Dealt:
    """A sum with one share more, as it is sent, and by how much it has grown."""

    new: Sum
    payload: Payload
    gone: Tensors


def _deal_one(old: Sum, share: float, x: Tensors, weight: float) -> _Dealt:
    new = old.plus(share, x, weight) if share else old
    return _Dealt(new, new.payload(), tmap(torch.sub, new.x, old.x))


def _difference(new: Sum, old: Sum | None, life: int) -> Payload:
    """What is to be added; `life`: when this peer began."""
    if old is not None and old.life == new.life:
        x = tmap(torch.sub, new.x, old.x)
        return Payload(x, {"weight": new.weight - old.weight})
    if new.first >= life or new.count <= 1:
        return Payload(new.x, {"weight": new.weight})
    return Payload(tmap(torch.zeros_like, new.x), {"weight": 0.0})


def _sum_of(payload: Payload, like: Tensors) -> Sum | None:
    scalars = payload.scalars
    if scalars.keys() != {"weight", *_COUNTS} or mismatch(payload.tensors, like) is not None:
        return None
    counts = {name: scalars[name] for name in _COUNTS}
    is_sane = all(0 <= n < 2**52 and n == int(n) for n in counts.values())
    if not (is_sane and 0 <= scalars["weight"] < math.inf):
        return None
    whole = {name: int(n) for name, n in counts.items()}
    return Sum(x=dict(payload.tensors), weight=scalars["weight"], **whole)


def _silence(
    silent: Mapping[str, int], hood: Neighbourhood, heard: Iterable[PeerId]
) -> dict[str, int]:
    """Counts after an exchange; only who hears this peer too is held to be away."""
    both_ways = hood.in_weights.keys() & hood.out_weights.keys()
    counts = {str(k): silent.get(str(k), 0) + 1 for k in both_ways}
    found = {**silent, **counts, **{str(k): 0 for k in heard}}
    return {k: times for k, times in found.items() if times}
