"""Messages of which a strategy needs numbers: those without count as missing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from p2p_dml.types import Inbox

MOST = 100.0
"""No degree, and no logarithm of one, is larger than this."""


def with_numbers(inbox: Inbox, names: Collection[str]) -> Inbox:
    """The inbox without messages that lack one of these scalars, or have one beyond ±MOST."""
    whole = {
        j: payload
        for j, payload in inbox.messages.items()
        if all(abs(payload.scalars.get(name, MOST + 1)) <= MOST for name in names)
    }
    return inbox if len(whole) == len(inbox.messages) else replace(inbox, messages=whole)
