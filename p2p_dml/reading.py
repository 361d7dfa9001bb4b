"""Reading what came: as the strategy says, and refusing what makes no sense or is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.tensors import mismatch, not_finite
from p2p_dml.types import Coded, Mail, Message, Payload, PeerId, Sent

Read = Callable[[PeerId, Payload], Payload]
Versions = Sequence[int]
Refuse = Callable[[PeerId, str], None]
"""(sender, why): told of what is not used."""


def reader(sent: Sent, params: Mapping[str, Tensor]) -> Read:
    """How payloads of an exchange are read: as the strategy says, or as they are if alike.

    Alike are those that look like what is `sent`, or like `params` where nothing is.
    """
    if isinstance(sent, Coded):
        return sent.read
    own = next(iter(sent.values()), None)
    expected = own.tensors if own else params

    def as_it_is(sender: PeerId, payload: Payload) -> Payload:
        if wrong := mismatch(payload.tensors, expected):
            raise WireError(wrong)
        return payload

    return as_it_is


def on_time(mail: Mail, read: Read, refuse: Refuse) -> dict[PeerId, Payload]:
    """What can be used of the messages of this exchange, by sender."""
    good: dict[PeerId, Payload] = {}
    for sender, payload in mail.on_time.items():
        try:
            good[sender] = _finite(read(sender, payload))
        except WireError as error:
            refuse(sender, str(error))
    return good


def late(mail: Mail, refuse: Refuse) -> list[Message]:
    """What can be used of the messages of earlier exchanges."""
    good: list[Message] = []
    for message in mail.late:
        try:
            _finite(message.payload)
            good.append(message)
        except WireError as error:
            refuse(message.sender, str(error))
    return good


def versions(payloads: Mapping[PeerId, Payload]) -> Versions:
    """How often each tensor was changed so far, for `changed`."""
    return [x._version for payload in payloads.values() for x in payload.tensors.values()]


def changed(payloads: Mapping[PeerId, Payload], before: Versions) -> str | None:
    """Which tensor was changed in place since, in words; None if all are as they came."""
    after = versions(payloads)
    if after == before:
        return None
    names = [f"tensor {name!r} of peer {j}" for j, p in payloads.items() for name in p.tensors]
    return next(n for n, was, now in zip(names, before, after, strict=True) if was != now)


def _finite(payload: Payload) -> Payload:
    """The same; WireError if it holds a NaN or an infinity, which would spread over all peers."""
    if not payload.is_finite and (wrong := not_finite(payload.tensors)):
        raise WireError(f"tensor {wrong!r} holds a NaN or an infinity")
    for name, x in payload.scalars.items():
        if not math.isfinite(x):
            raise WireError(f"scalar {name!r} is {x}")
    return payload
