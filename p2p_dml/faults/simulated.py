"""Planned faults in one process: peers of the simulator drop out, or send what is no number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import final

from p2p_dml.attended import Activity, AttendedLearner
from p2p_dml.checkpoint import write_file
from p2p_dml.config import FaultPhase
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.events import Event
from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.faults._files import write_half
from p2p_dml.faults._plan import Agenda, Fault, halves, injected, spoilt
from p2p_dml.peer import LocalLearner, PeerLoop
from p2p_dml.simulate import Rounds
from p2p_dml.types import PeerId, Tensors


class _Killed(BaseException):
    """A peer was killed in its training, or while it wrote a checkpoint.

    No error, so that nobody cleans up after it, as nobody does after SIGKILL.
    """


def check_possible(faults: Mapping[PeerId, Collection[Fault]]) -> None:
    """Raise ConfigError if one of `faults` needs a process to happen in."""
    for fault in (each for own in faults.values() for each in own):
        if fault.kind != "kill" and (fault.kind, fault.phase) != ("nan", "send"):
            raise ConfigError(
                f"faults[{fault.place}].kind: {fault.kind!r} in phase {fault.phase!r} happens to a "
                'process: use `p2p-dml run`; in the simulator expected "kill", or "nan" in phase '
                '"send"'
            )


@final
class Fate:
    """What is planned for one peer of the simulator; `has_died` as soon as it was killed."""

    def __init__(self, agenda: Agenda, on_event: Callable[[Event], None]) -> None:
        self.has_died = False
        self.round = 0
        self._agenda = agenda
        self._on_event = on_event

    def seek(self, round: int) -> None:
        """From now on the peer is in `round`."""
        self.round = round

    @contextmanager
    def during(self, phase: Activity) -> Iterator[None]:
        """Be killed in training, if that is due."""
        if phase == "train" and self._is_due("train"):
            raise _Killed
        yield

    def learner(self, learner: LocalLearner) -> LocalLearner:
        """`learner`, in whose training the peer may be killed."""
        return AttendedLearner(learner, self)

    def write(self, tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint; only half of it if that is where the peer is killed."""
        if self._is_due("checkpoint"):
            write_half(tensors, path, metadata)
            raise _Killed
        write_file(tensors, path, metadata)

    def lead(self, loop: PeerLoop) -> Rounds:
        """The rounds of a peer, as far as it gets; FAILED if it was killed."""
        rounds = loop.run()
        delivery: Delivery | None = None
        while True:
            try:
                step = rounds.send(delivery)
            except StopIteration as end:
                code: ExitCode = end.value
                return code
            except _Killed:
                return self._die()
            if step is None:
                delivery = yield None
                continue
            step, is_last = self._sending(step)
            delivery = yield step
            if is_last or self._is_due("mix"):
                return self._die()

    def _sending(self, exchange: Exchange) -> tuple[Exchange, bool]:
        """What the peer gets to send, and whether it is killed at it."""
        fault = self._take("send")
        if fault is None:
            return exchange, False
        if fault.kind == "nan":
            return replace(exchange, sent=spoilt(exchange.sent)), False
        return replace(exchange, sent=halves(exchange.sent)[0]), True

    def _is_due(self, phase: FaultPhase) -> bool:
        return self._take(phase) is not None

    def _take(self, phase: FaultPhase) -> Fault | None:
        """What is due now; the log then says so."""
        fault = self._agenda.take(self.round, phase)
        if fault is not None:
            self._on_event(injected(fault, self.round))
        return fault

    def _die(self) -> ExitCode:
        self.has_died = True
        return ExitCode.FAILED


@final
class Mortal:
    """A peer's loop with its fate; run as loops are."""

    def __init__(self, loop: PeerLoop, fate: Fate) -> None:
        self._loop = loop
        self._fate = fate

    def run(self) -> Rounds:
        return self._fate.lead(self._loop)
