"""One peer's rounds in a group of torch.distributed, whose peers end together.

Whatever ends them, the state after the last complete round is saved, and the reason is found in
the last words of all. The group is that of all peers, or, with ZeroMQ between hosts, of one host.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from p2p_dml import checkpoint
from p2p_dml.assemble import Blueprint, checkpoint_of, loop_of
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.drive import drive
from p2p_dml.errors import ExitCode, StorageError, TransportError, exit_code_of
from p2p_dml.events import Checkpointed, EventLog, Finished, Joined, event_file
from p2p_dml.keys import Keys
from p2p_dml.launchers.endings import Ending, judge
from p2p_dml.launchers.life import (
    LARGE_MODEL_BYTES,
    AnyLearner,
    Introduce,
    in_words,
    limits_of,
    started_event,
)
from p2p_dml.launchers.meeting import Meeting
from p2p_dml.launchers.process import keep_freed_memory, memory_mb, release_freed_memory
from p2p_dml.launchers.ranks import Choice
from p2p_dml.launchers.resuming import Start
from p2p_dml.launchers.stopping import (
    GRACE_S,
    LAST_WORDS_S,
    Overdue,
    Stopping,
)
from p2p_dml.launchers.teams import connect
from p2p_dml.learners.parallel import ParallelLearner
from p2p_dml.peer import PeerLoop
from p2p_dml.tensors import clone, num_bytes
from p2p_dml.transports.at_home import at_home
from p2p_dml.transports.hybrid import HybridTransport
from p2p_dml.transports.torchdist import Group, TorchDistTransport
from p2p_dml.transports.zeromq import ZeroMQTransport
from p2p_dml.types import PeerId, Tensors, Transport

_MORE_ROUNDS = 2
"""Rounds that may still begin after a signal, so that all ranks come to end after the same one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a rank has prepared before it meets the others.

    `group`: the peers with which it ends; `leaders`: the process group of these, if other ranks
    help them. `bind` and `introduce`: where ZeroMQ listens, and how addresses are exchanged.
    `keys`: its encryption. `start`: where to go on, in a resumed run.
    """

    parts: Blueprint
    learner: AnyLearner
    me: PeerId
    choice: Choice
    group: range
    leaders: dist.ProcessGroup | None
    bind: str
    introduce: Introduce
    keys: Keys | None
    device: torch.device
    run: Path
    start: Start | None

    def leave(self, *, is_done: bool) -> None:
        """Let the ranks that help this one go, if there are any, before the groups are closed."""
        if self.leaders is not None:
            assert isinstance(self.learner, ParallelLearner)
            self.learner.close(is_done=is_done)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a peer ended; `error` is its own, `why` what ended the run, for the user to be told.

    `is_said`: the peer that failed tells the user itself.
    """

    code: ExitCode
    error: Exception | None = None
    why: str | None = None
    is_said: bool = False


@final
class Spare:
    """A copy of a peer's state after its last complete round, should a later one not be."""

    def __init__(self, me: PeerId, digest: bytes) -> None:
        self._me = me
        self._digest = digest
        self._held: Checkpoint | None = None

    def keep(self, round_: int, model: Tensors, state: object) -> None:
        """Take the state after `round_`; `model` is a copy already."""
        held = checkpoint_of(self._me, round_, self._digest, {}, state)
        self._held = replace(held, tensors=model | clone(held.tensors))

    def save(self, run: Path) -> Checkpointed | None:
        """Write it; None before the end of a round."""
        if self._held is None:
            return None
        return Checkpointed(self._held.round, checkpoint.save(run, self._held))


def run_in_group(
    seat: Seat, meeting: Meeting, stopping: Stopping, on_round: Callable[[], None]
) -> Result:
    """Run all rounds; every ending is in the event log. StorageError if that cannot be written."""
    if (size := num_bytes(seat.learner.params)) >= LARGE_MODEL_BYTES:
        keep_freed_memory(size)
    torch.set_num_threads(seat.parts.config.threads)
    with closing(EventLog(event_file(seat.run, seat.me), seat.me)) as log:
        return _Member(seat, meeting, stopping, log).run(on_round)


@final
class _Member:
    """A peer of the group while it runs."""

    def __init__(self, seat: Seat, meeting: Meeting, stopping: Stopping, log: EventLog) -> None:
        self._seat = seat
        self._meeting = meeting
        self._stopping = stopping
        self._log = log
        self._digest = seat.parts.digest(seat.learner.module)
        self._spare = Spare(seat.me, self._digest)
        self._is_whole = False  # until all rounds are over and saved
        self._transport: Transport | None = None

    def run(self, on_round: Callable[[], None]) -> Result:
        seat = self._seat
        self._log.write(started_event(seat.parts, seat.learner, seat.me, 0, seat.choice.name))
        if seat.start is not None:
            self._log.write(seat.start.event)
        loop = loop_of(
            seat.parts,
            seat.learner,
            seat.me,
            self._digest,
            seat.run,
            self._log.write,
            memory_mb,
            keep=self._spare.keep,
            start=seat.start.checkpoint if seat.start else None,
        )
        error: Exception | None = None
        try:
            ending = self._rounds(loop, on_round)
        except Exception as found:
            error = found
            ending = Ending(how="failed", round=loop.round, why=in_words(found))
        result = self._conclude(ending, error)
        if self._transport is not None:
            self._transport.close()
        with suppress(StorageError):  # the disk may be what failed
            is_fine = result.code in (ExitCode.DONE, ExitCode.STOPPED)
            self._log.write(Finished(loop.round, result.code, None if is_fine else result.why))
        return result

    def _rounds(self, loop: PeerLoop, on_round: Callable[[], None]) -> Ending:
        """Come together and run; how that ended, unless it was by an error of this peer's own."""

        def each_round() -> None:
            on_round()
            if self._stopping.is_told and loop.round >= self._final_round(loop.round):
                loop.stop()

        begin, straggler_s = time.monotonic(), self._seat.parts.config.transport.straggler_s
        try:
            self._transport = transport = self._open(loop)
            self._log.write(Joined(time.monotonic() - begin))
            release_freed_memory()
            with self._stopping.interruptible():
                code = drive(loop, transport, straggler_s, each_round)
            self._is_whole = True
        except TransportError as error:
            if error.peer == self._seat.me:  # a rank that helped this one is lost
                raise
            return Ending(
                how="broken",
                round=loop.round,
                blames=error.peer,
                is_late=error.is_late,
                why=str(error),
            )
        except Overdue:
            return Ending(how="stopped", round=loop.round)
        return Ending(how="done" if code is ExitCode.DONE else "stopped", round=loop.round)

    def _open(self, loop: PeerLoop) -> Transport:
        """Connect to all others. TransportError if that fails, StartupError at another run's."""
        near = self._open_near()
        if self._seat.choice.transport == "torchdist":
            return near
        return HybridTransport(near, self._open_far(loop), self._seat.group)

    def _open_far(self, loop: PeerLoop) -> Transport:
        """Connect to neighbours on other hosts."""
        seat, limits = self._seat, limits_of(self._seat.parts, self._seat.me)
        mailbox, incarnation = seat.parts.mailbox(limits.queue_messages), secrets.randbits(62)
        write = self._log.write
        far = ZeroMQTransport(
            seat.me, seat.bind, self._digest, incarnation, limits, write, mailbox, seat.keys
        )
        book = seat.introduce(far.endpoint)
        far.open(book, loop.neighbours(loop.round + 1) - {*seat.group})
        return at_home(far, seat.device)

    def _open_near(self) -> TorchDistTransport:
        """Connect to the other peers of the group."""
        seat, group = self._seat, self._seat.group
        config, backend = seat.parts.config.transport, seat.choice.backend
        assert backend is not None
        if seat.leaders is None:
            connect(
                backend,
                seat.device,
                PrefixStore(f"group of {group[0]}", self._meeting.store),
                group.index(seat.me),
                len(group),
                config.straggler_s,
            )
        wire = seat.device if backend == "nccl" else torch.device("cpu")
        transport = TorchDistTransport(
            Group(wire, group[0], seat.leaders),
            self._digest,
            home=seat.device,
            max_message_bytes=config.max_message_bytes,
            debug=config.debug,
        )
        transport.open(config.startup_s)
        return transport

    def _final_round(self, round_: int) -> int:
        """The round after which all stop: what the first that was told to stop has proposed."""
        return int(self._meeting.agree("final round", str(round_ + _MORE_ROUNDS)))

    def _conclude(self, ending: Ending, error: Exception | None) -> Result:
        """Say how this peer ends, save what there is, and hear how the others do."""
        me, meeting, group = self._seat.me, self._meeting, self._seat.group
        with suppress(TransportError):
            meeting.tell("ending", ending.encode())
        if not self._is_whole:
            self._break_up()
            with suppress(StorageError):
                if saved := self._spare.save(self._seat.run):
                    self._log.write(saved)
        if error is not None:
            return Result(code=exit_code_of(error), error=error, why=ending.why)
        try:
            endings = meeting.last_words(lambda idle_s: self._is_over(ending, idle_s), group)
        except TransportError:  # the store has gone: of the others nothing is known
            endings, group = {me: ending}, range(me, me + 1)
        judgement = judge(me, endings, group)
        if self._is_whole:
            self._break_up()
        return Result(code=judgement.code, why=judgement.why, is_said=judgement.is_said)

    def _break_up(self) -> None:
        """Close the connections: whoever waits at one of them learns that this peer has ended.

        Those of a broken NCCL group may hang in that; they go with the process.
        """
        self._seat.leave(is_done=self._is_whole)
        if dist.is_initialized() and (self._is_whole or self._seat.choice.backend == "gloo"):
            dist.destroy_process_group()

    def _is_over(self, ending: Ending, idle_s: float) -> bool:
        """Whether to give up waiting for the last words of others."""
        if ending.how == "broken" and not (ending.is_late and self._stopping.is_told):
            return idle_s > LAST_WORDS_S
        if self._stopping.is_told:  # a peer that is only slow speaks when its own grace is over
            return self._stopping.seconds > GRACE_S + LAST_WORDS_S
        return idle_s > self._seat.parts.config.transport.straggler_s
