"""What the ranks of a run tell each other outside of rounds, through the store of torchrun.

The store is a table of texts that torchrun's agent of the first host keeps; it outlives every rank.
Each rank tells a `topic` once. All waiting is done in Python, where a signal can end it. Wherever
the store does not answer, TransportError is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TypeVar, final

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from p2p_dml.errors import StartupError, TransportError
from p2p_dml.launchers.endings import Ending, decode_ending
from p2p_dml.launchers.ranks import Ranks
from p2p_dml.types import PeerId

_T = TypeVar("_T")

_POLL_S = 0.03
_ANSWER_S = 10.0
"""The store answers at once, or is gone with its host."""


def meet(ranks: Ranks, timeout_s: float) -> Meeting:
    """Find the store that torchrun names in the environment; StartupError if it does not answer."""
    try:
        found = rendezvous("env://", timeout=timedelta(seconds=timeout_s))
        store, _, _ = next(found)
    except (RuntimeError, ValueError) as error:
        raise StartupError(
            f"peer {ranks.rank}: cannot reach torchrun's store (MASTER_ADDR, MASTER_PORT): {error}"
        ) from error
    store.set_timeout(timedelta(seconds=_ANSWER_S))
    return Meeting(store, ranks.rank, ranks.size)


@final
class Meeting:
    """How one of `size` members, which are ranks or peers (`noun`), sees the store."""

    def __init__(self, store: Store, me: int, size: int, noun: str = "peer") -> None:
        self.store = store
        self.noun = noun
        self._me = me
        self._members = range(size)
        self._why_gone: RuntimeError | None = None

    def of_peers(self, me: PeerId, peers: int) -> Meeting:
        """A meeting of the peers, where they are fewer than the ranks that meet here."""
        self.noun = "rank"
        return Meeting(PrefixStore("peers", self.store), me, peers)

    def tell(self, topic: str, text: str) -> None:
        """Say something as this member."""
        self._ask(lambda: self.store.set(f"{topic}/{self._me}", text))
        self._ask(lambda: self.store.add(f"{topic}/count", 1))

    def count(self, topic: str) -> int:
        """How many have told."""
        return int(self._ask(lambda: self.store.add(f"{topic}/count", 0)))

    def heard(self, topic: str, member: int) -> str | None:
        """What a member told, if it has."""
        key = f"{topic}/{member}"
        is_there = self._ask(lambda: self.store.check([key]))
        return self._ask(lambda: self.store.get(key)).decode() if is_there else None

    def everything(self, topic: str) -> dict[int, str]:
        """What was told so far, by member."""
        told = {member: self.heard(topic, member) for member in self._members}
        return {member: text for member, text in told.items() if text is not None}

    def is_first(self, what: str) -> bool:
        """True at the first member that asks for `what`."""
        return int(self._ask(lambda: self.store.add(f"first/{what}", 1))) == 1

    def agree(self, what: str, proposal: str) -> str:
        """The first proposal for `what` that any member made."""
        key = f"agreed/{what}"
        return self._ask(lambda: self.store.compare_set(key, "", proposal)).decode()

    def _ask(self, act: Callable[[], _T]) -> _T:
        """A store that has failed is not asked again: torch would print a page each time."""
        if self._why_gone is None:
            try:
                return act()
            except RuntimeError as error:
                self._why_gone = error
        why = f"torchrun's store does not answer: {self._why_gone}"
        raise TransportError(why) from self._why_gone

    def listen(self, topic: str, teller: int, timeout_s: float, check: Callable[[], None]) -> str:
        """Wait for what one member tells; `check` may raise meanwhile.

        Raises TransportError if that one ends first, StartupError after `timeout_s`.
        """
        return self._wait(lambda: self.heard(topic, teller), {teller}, topic, timeout_s, check)

    def gather(
        self,
        topic: str,
        timeout_s: float,
        check: Callable[[], None],
        tellers: Collection[int] | None = None,
    ) -> dict[int, str]:
        """Wait until all `tellers` (all members if None), and nobody else, have told.

        Errors are those of `listen`, naming who is missing.
        """
        awaited = {*self._members} if tellers is None else {*tellers}

        def complete() -> dict[int, str] | None:
            return self.everything(topic) if self.count(topic) == len(awaited) else None

        return self._wait(complete, awaited, topic, timeout_s, check)

    def _wait(
        self,
        ready: Callable[[], _T | None],
        tellers: set[int],
        topic: str,
        timeout_s: float,
        check: Callable[[], None],
    ) -> _T:
        deadline = time.monotonic() + timeout_s
        while (found := ready()) is None:
            check()
            if self.count("ending"):
                self._check_endings(tellers, topic)
            if time.monotonic() > deadline:
                missing = sorted(tellers - self.everything(topic).keys())
                raise StartupError(f"{self.noun}s {missing} did not start within {timeout_s:g} s")
            time.sleep(_POLL_S)
        return found

    def _check_endings(self, tellers: set[int], topic: str) -> None:
        for member in sorted(tellers & self.endings().keys()):
            if self.heard(topic, member) is None:
                raise TransportError(f"{self.noun} {member} has ended", member)

    def endings(self) -> dict[int, Ending]:
        """The last words that were said so far, by member."""
        return {p: decode_ending(text) for p, text in self.everything("ending").items()}

    def beat(self) -> None:
        """Let the others know that this member gets on."""
        self._ask(lambda: self.store.add("beats", 1))

    def last_words(
        self, is_over: Callable[[float], bool], members: Collection[int] | None = None
    ) -> dict[int, Ending]:
        """Wait for the last words of `members` (None: all), until `is_over`.

        That is asked with the seconds since anybody spoke or let know that it gets on.
        """
        awaited = {*self._members} if members is None else {*members}
        heard, news, endings = (-1, -1), 0.0, dict[int, Ending]()
        while True:
            if (now := self._count_signs()) != heard:
                heard, news, endings = now, time.monotonic(), self.endings()
            if awaited <= endings.keys() or is_over(time.monotonic() - news):
                return {member: end for member, end in endings.items() if member in awaited}
            time.sleep(_POLL_S)

    def _count_signs(self) -> tuple[int, int]:
        return self.count("ending"), int(self._ask(lambda: self.store.add("beats", 0)))
