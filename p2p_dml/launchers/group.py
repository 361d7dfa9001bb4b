"""One peer's rounds in a group of torch.distributed, whose peers end together.

Whatever ends them, the state after the last complete round is saved, and the reason is found in
the last words of all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from p2p_dml import __version__, checkpoint
from p2p_dml.assemble import Blueprint, loop_of
from p2p_dml.checkpoint import Checkpoint, leaves
from p2p_dml.drive import drive
from p2p_dml.errors import ExitCode, StorageError, TransportError, exit_code_of
from p2p_dml.events import Checkpointed, EventLog, Finished, Joined, event_file
from p2p_dml.launchers.endings import Ending, judge
from p2p_dml.launchers.meeting import Meeting
from p2p_dml.launchers.process import keep_freed_memory, memory_mb, release_freed_memory
from p2p_dml.launchers.ranks import Choice
from p2p_dml.launchers.single import LARGE_MODEL_BYTES, AnyLearner, in_words, started_event
from p2p_dml.launchers.stopping import (
    GRACE_S,
    LAST_WORDS_S,
    Overdue,
    Stopping,
)
from p2p_dml.peer import PeerLoop
from p2p_dml.tensors import clone, num_bytes
from p2p_dml.transports.torchdist import Group, TorchDistTransport
from p2p_dml.types import PeerId, Tensors

_CONNECT_S = 20.0
"""How long connecting may take at least; all ranks are there by then."""

_MORE_ROUNDS = 2
"""Rounds that may still begin after a signal, so that all ranks come to end after the same one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a rank has prepared before it meets the others."""

    parts: Blueprint
    learner: AnyLearner
    me: PeerId
    choice: Choice
    device: torch.device
    run: Path


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
class LastRound:
    """A copy of a peer's state after its last complete round."""

    def __init__(self) -> None:
        self._round = 0
        self._tensors: Tensors = {}

    def keep(self, round_: int, model: Tensors, state: object) -> None:
        """Take the state after `round_`; `model` is a copy already."""
        self._round = round_
        self._tensors = model | clone(leaves(state, "strategy"))

    def save(self, run: Path, me: PeerId, digest: bytes) -> Checkpointed | None:
        """Write it; None before the end of round 1."""
        if not self._round:
            return None
        held = Checkpoint(me, self._round, digest.hex(), __version__, self._tensors)
        return Checkpointed(self._round, checkpoint.save(run, held))


def run_in_group(
    seat: Seat, meeting: Meeting, stopping: Stopping, on_round: Callable[[], None]
) -> Result:
    """Run all rounds; every ending is in the event log. StorageError if that cannot be written."""
    if num_bytes(seat.learner.params) >= LARGE_MODEL_BYTES:
        keep_freed_memory()
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
        self._last = LastRound()
        self._is_whole = False  # until all rounds are over and saved

    def run(self, on_round: Callable[[], None]) -> Result:
        seat = self._seat
        self._log.write(started_event(seat.parts, seat.learner, seat.me, 0, seat.choice.name))
        loop = loop_of(
            seat.parts,
            seat.learner,
            seat.me,
            self._digest,
            seat.run,
            self._log.write,
            memory_mb,
            keep=self._last.keep,
        )
        error: Exception | None = None
        try:
            ending = self._rounds(loop, on_round)
        except Exception as found:
            error = found
            ending = Ending(how="failed", round=loop.round, why=in_words(found))
        result = self._conclude(ending, error)
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
            transport = self._open()
            self._log.write(Joined(time.monotonic() - begin))
            release_freed_memory()
            with self._stopping.interruptible():
                code = drive(loop, transport, straggler_s, each_round)
            self._is_whole = True
        except TransportError as error:
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

    def _open(self) -> TorchDistTransport:
        """Connect to all others. TransportError if that fails, StartupError at another run's."""
        config, backend = self._seat.parts.config.transport, self._seat.choice.backend
        device = torch.device("cpu")
        if backend == "nccl":
            device = self._seat.device
            torch.cuda.set_device(device)
            # So that waiting for a batch ends with an error, not with the process.
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        try:
            dist.init_process_group(
                backend,
                store=PrefixStore("group", self._meeting.store),
                rank=self._seat.me,
                world_size=self._seat.parts.config.peers,
                timeout=timedelta(seconds=max(config.straggler_s, _CONNECT_S)),
            )
        except RuntimeError as error:
            raise TransportError(f"cannot connect to all peers: {error}") from error
        transport = TorchDistTransport(
            Group(device),
            self._digest,
            home=self._seat.device,
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
        me, meeting = self._seat.me, self._meeting
        with suppress(TransportError):
            meeting.tell("ending", ending.encode())
        if not self._is_whole:
            self._break_up()
            with suppress(StorageError):
                if saved := self._last.save(self._seat.run, me, self._digest):
                    self._log.write(saved)
        if error is not None:
            return Result(code=exit_code_of(error), error=error, why=ending.why)
        try:
            endings = meeting.last_words(lambda idle_s: self._is_over(ending, idle_s))
        except TransportError:
            endings = {me: ending}
        judgement = judge(me, endings, self._seat.parts.config.peers)
        if self._is_whole:
            self._break_up()
        return Result(code=judgement.code, why=judgement.why, is_said=judgement.is_said)

    def _break_up(self) -> None:
        """Close the connections: whoever waits at one of them learns that this peer has ended.

        Those of a broken NCCL group may hang in that; they go with the process.
        """
        if dist.is_initialized() and (self._is_whole or self._seat.choice.backend == "gloo"):
            dist.destroy_process_group()

    def _is_over(self, ending: Ending, idle_s: float) -> bool:
        """Whether to give up waiting for the last words of others."""
        if ending.how == "broken" and not (ending.is_late and self._stopping.is_told):
            return idle_s > LAST_WORDS_S
        if self._stopping.is_told:  # a peer that is only slow speaks when its own grace is over
            return self._stopping.seconds > GRACE_S + LAST_WORDS_S
        return idle_s > self._seat.parts.config.transport.straggler_s
