"""The network that a run emulates: which messages are lost on it, and when the others arrive.

Conditions are data of the run file, and everything random about them follows from the seed, the
exchange and the link. So both ends of a link agree without a word what is lost on it, in one
process as in containers or on several hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np

from p2p_dml.types import LinkSchedule, PeerId, Tag

_STREAM = 0x4E455457  # keeps the draws of the network apart from other uses of the seed
_WORD = 1 << 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Of a link in one direction. `jitter_s`: at most so much is added to `delay_s`, drawn evenly.

    `bandwidth_mbps`: megabits per second, None = no limit. `loss`: share of messages.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_mbps: float | None = None

    @property
    def takes_time(self) -> bool:
        return bool(self.delay_s or self.jitter_s or self.bandwidth_mbps)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The links between all peers: `usual` ones, and those (sender, receiver) of `special`.

    `up`: links that are up at a tick, all if None; what is sent over others is lost. `exchanges`:
    per round. `uplinks_mbps`: what leaves a peer in all, of those that are limited.
    """

    seed: int
    exchanges: int
    usual: Conditions = Conditions()
    special: Mapping[tuple[PeerId, PeerId], Conditions] = field(default_factory=dict)
    up: LinkSchedule | None = None
    uplinks_mbps: Mapping[PeerId, float] = field(default_factory=dict)

    @property
    def takes_time(self) -> bool:
        """Whether any message arrives later than it was sent."""
        links = (self.usual, *self.special.values())
        return bool(self.uplinks_mbps) or any(link.takes_time for link in links)

    def link(self, sender: PeerId, receiver: PeerId) -> Conditions:
        """The conditions of a link."""
        return self.special.get((sender, receiver), self.usual)

    def is_lost(self, tag: Tag, sender: PeerId, receiver: PeerId) -> bool:
        """Whether the message of an exchange does not arrive."""
        tick = (tag.round - 1) * self.exchanges + tag.exchange
        if self.up is not None and sender not in self.up(tick).senders_of(receiver):
            return True
        loss = self.link(sender, receiver).loss
        return loss > 0 and self._draw(tag, sender, receiver)[0] < loss

    def delay_s(self, tag: Tag, sender: PeerId, receiver: PeerId) -> float:
        """How long the message of an exchange travels."""
        link = self.link(sender, receiver)
        if not link.jitter_s:
            return link.delay_s
        return link.delay_s + link.jitter_s * self._draw(tag, sender, receiver)[1]

    def uplink_s(self, sender: PeerId, num_bytes: int) -> float:
        """How long bytes take to leave a peer."""
        return _seconds(num_bytes, self.uplinks_mbps.get(sender))

    def _draw(self, tag: Tag, sender: PeerId, receiver: PeerId) -> tuple[float, float]:
        """Two numbers in [0, 1) of this message, whoever asks."""
        key = [(self.seed + _STREAM) % _WORD, tag.round]
        counter = [0, tag.exchange, sender, receiver]
        first, second = np.random.Philox(key=key, counter=counter).random_raw(2).tolist()
        return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53


@final
class Line:
    """One link in time: messages go one after another, and none overtakes another."""

    def __init__(self, network: Network, sender: PeerId, receiver: PeerId) -> None:
        self._network = network
        self._ends = sender, receiver
        self._free_at = self._last_at = -np.inf

    def is_busy(self, now: float) -> bool:
        """Whether bytes of an earlier message are still going onto the link."""
        return self._free_at > now

    def arrival(self, tag: Tag, departed: float, num_bytes: int) -> float:
        """When a message arrives that has left its sender at time `departed`."""
        link = self._network.link(*self._ends)
        self._free_at = max(self._free_at, departed) + _seconds(num_bytes, link.bandwidth_mbps)
        at = self._free_at + self._network.delay_s(tag, *self._ends)
        self._last_at = max(self._last_at, at)
        return self._last_at


def _seconds(num_bytes: int, mbps: float | None) -> float:
    return num_bytes * 8e-6 / mbps if mbps else 0.0
