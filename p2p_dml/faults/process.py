"""Real faults in a peer's own process, where the run file's `[[faults]]` plan them.

The learner, the transport and the writing of checkpoints are wrapped; the loop between them knows
nothing of it, and a run without faults is not wrapped. What happens then is real: the process is
killed or stopped, its descriptors or memory are used up; only full and read-only disks are errors
made up at the point where the system would raise them.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import torch
from torch import nn

from p2p_dml.attended import Activity, AttendedLearner
from p2p_dml.checkpoint import write_file
from p2p_dml.config import FaultPhase
from p2p_dml.errors import TrainingError
from p2p_dml.events import Event, EventLog
from p2p_dml.faults._files import write_half
from p2p_dml.faults._plan import Agenda, Fault, halves, injected, nan_like, spoilt
from p2p_dml.pace import Clock, WallClock
from p2p_dml.peer import LocalLearner
from p2p_dml.tensors import tmap
from p2p_dml.types import Mail, PeerId, Sent, Tag, Tensors, Transport

_SETTLE_S = 0.25
"""Before a kill: what was handed to libzmq is on its way then, so that no earlier round is hit."""

_MORSEL_BYTES, _TOO_MUCH_BYTES = 1 << 28, 1 << 30
"""What a process is left that runs out of memory, for its last words, and what it then asks for."""

_NEVER = sys.maxsize

_CONTINUE = """
import os, select, signal, sys
peer = int(sys.argv[1])
gone, _, _ = select.select([sys.stdin], [], [], float(sys.argv[2]))
if not gone and os.getppid() == peer:
    os.kill(peer, signal.SIGCONT)
"""
"""A program that continues its parent after a time, and ends at once when the parent is gone."""


class _AnyLearner(LocalLearner, Protocol):
    """A learner around a module."""

    module: nn.Module


@final
class Injector:
    """What goes wrong at one peer; wrap what its loop is given with it."""

    def __init__(
        self,
        me: PeerId,
        agenda: Agenda,
        on_event: Callable[[Event], None],
        clock: Clock,
        learner: _AnyLearner,
    ) -> None:
        self._me = me
        self._agenda = agenda
        self._on_event = on_event
        self._clock = clock
        self._inner = learner
        self.round = 0

    @property
    def learner(self) -> LocalLearner:
        """The learner, in whose training things go wrong."""
        return AttendedLearner(self._inner, self)

    def transport(self, transport: Transport) -> Transport:
        """`transport`, in whose exchanges things go wrong."""
        return _FaultyTransport(transport, self)

    def write(self, tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint; in a round with a fault half of it first, and not the rest if so."""
        fault = self.take("checkpoint")
        if fault is not None:
            if fault.kind != "read_only":
                write_half(tensors, path, metadata)
            self.act(fault)
        write_file(tensors, path, metadata)

    def take(self, phase: FaultPhase) -> Fault | None:
        """What is due now."""
        return self._agenda.take(self.round, phase)

    def seek(self, round: int) -> None:
        """From now on the peer is in `round`."""
        self.round = round

    @contextmanager
    def during(self, phase: Activity) -> Iterator[None]:
        """In training, do what is due at the second use of the model, or at the end if none is.

        What becomes NaN does so at the end, so that it is sent.
        """
        fault = self.take("train") if phase == "train" else None
        if fault is None:
            yield
            return
        uses = _NEVER if fault.kind == "nan" else 2
        countdown = _Countdown(uses, lambda: self.act(fault))
        handle = self._inner.module.register_forward_pre_hook(lambda module, args: countdown.tick())
        try:
            yield
        finally:
            handle.remove()
        countdown.finish()

    def announce(self, fault: Fault) -> None:
        """Write into the log that it happens now."""
        self._on_event(injected(fault, self.round))

    def act(self, fault: Fault) -> None:
        """Let it happen; if this returns, the peer goes on."""
        if fault.kind == "kill":
            self._clock.sleep(_SETTLE_S)
        self.announce(fault)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "stop":
            _stop(fault.for_s)
        elif fault.kind == "hang":
            self._clock.sleep(fault.for_s)
        elif fault.kind == "exit":
            raise TrainingError(
                f"peer {self._me}, round {self.round}: ended as faults[{fault.place}] plans it"
            )
        elif fault.kind == "nan":
            self._inner.params = tmap(nan_like, self._inner.params)
        else:
            _USE_UP[fault.kind]()


def injector_of(
    me: PeerId, faults: Sequence[Fault], log: EventLog, learner: _AnyLearner
) -> Injector | None:
    """What makes `faults` happen to this process; None if there are none."""
    if not faults:
        return None
    return Injector(me, Agenda(faults, log.path), log.write, WallClock(), learner)


@final
@dataclass(slots=True)
class _Countdown:
    """Acts once: at the last of so many ticks, or when finished before."""

    left: int
    act: Callable[[], None]

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def finish(self) -> None:
        if self.left > 0:
            self.act()


@final
class _FaultyTransport:
    """The transport as the loop sees it, with faults between its messages."""

    def __init__(self, transport: Transport, faults: Injector) -> None:
        self.elastic = transport.elastic
        self._transport = transport
        self._faults = faults

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self._transport.expect(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        fault = self._faults.take("send")
        if fault is None:
            return self._transport.post(tag, sent)
        if fault.kind == "nan":
            self._faults.announce(fault)
            return self._transport.post(tag, spoilt(sent))
        first, rest = halves(sent)
        num_bytes = self._transport.post(tag, first)
        self._faults.act(fault)
        return num_bytes + self._transport.post(tag, rest)

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        mail = self._transport.collect(tag, senders, deadline_s)
        fault = self._faults.take("mix")
        if fault is not None:
            self._faults.act(fault)
        return mail

    def close(self) -> None:
        self._transport.close()


# ---- what it takes ----------------------------------------------------------------------------


def _stop(for_s: float) -> None:
    """Stop this process; a program of its own continues it, as nothing here runs meanwhile."""
    program = [sys.executable, "-I", "-S", "-c", _CONTINUE, str(os.getpid()), str(for_s)]
    with subprocess.Popen(program, stdin=subprocess.PIPE):  # which tells it of this one's end
        os.kill(os.getpid(), signal.SIGSTOP)


def _use_up_descriptors() -> None:
    """Let this process open nothing more than it has open."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))


def _use_up_memory() -> None:
    """Let this process map hardly more memory than it has, and ask for more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + _MORSEL_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    torch.empty(_TOO_MUCH_BYTES, dtype=torch.uint8)


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


_USE_UP: Mapping[str, Callable[[], None]] = {
    "descriptors": _use_up_descriptors,
    "memory": _use_up_memory,
    "full_disk": lambda: _fail(errno.ENOSPC),
    "read_only": lambda: _fail(errno.EROFS),
}
