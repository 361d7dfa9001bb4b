"""`torchrun … -m p2p_dml FILE.toml`: every rank is a peer; over torch.distributed, or ZeroMQ.

There is no launcher process of ours: ranks come together at torchrun's store, and so do their last
words, from which each finds out who ended the run. The lowest rank that could speak writes the
report.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch.distributed as dist

from p2p_dml.config import RunConfig
from p2p_dml.errors import ExitCode, P2PError, StartupError, TransportError, exit_code_of
from p2p_dml.launchers.arriving import Arrival, Prepared, Wish, follow_leader
from p2p_dml.launchers.endings import Ending, judge, reporter
from p2p_dml.launchers.group import Result, Seat, run_in_group
from p2p_dml.launchers.life import Terms, in_words, run_peer
from p2p_dml.launchers.meeting import Meeting, meet
from p2p_dml.launchers.ranks import Ranks, role_of
from p2p_dml.launchers.stopping import GRACE_S, LAST_WORDS_S, StoppedEarly, Stopping
from p2p_dml.learners.parallel import ranks_per_peer

_STORE_S = 60.0
"""torchrun's agent of the first host may start so much later than that of another."""

_BEAT_S = 0.2
"""How often a rank lets know that it gets on: short rounds need not wait for the store."""

_CLOSED_S = 5.0
"""How long the others may take to write their last line before the report is made."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How a rank speaks to the user; `watch` and `conclude` are used by one rank only.

    `watch(config, folder, started)` gives a function called after each round; `conclude` writes the
    report.
    """

    say: Callable[[str], None]
    complain: Callable[[str], None]
    watch: Callable[[RunConfig, Path, float], Callable[[], None]]
    conclude: Callable[[Path], None]


def run(
    load: Callable[[], Wish],
    ranks: Ranks,
    stopping: Stopping,
    voice: Voice,
) -> ExitCode:
    """Run this rank's peer to its end; everything that went wrong has been said once per host.

    `load` reads the run file, or the folder to go on in. Bugs are raised.
    """
    try:
        meeting = meet(ranks, _STORE_S)
    except StartupError as error:
        voice.complain(str(error))
        return error.exit_code
    with ExitStack() as holding:
        return _Rank(ranks, meeting, stopping, voice, holding).run(load)


@final
class _Rank:
    """One process of the run."""

    def __init__(
        self,
        ranks: Ranks,
        meeting: Meeting,
        stopping: Stopping,
        voice: Voice,
        holding: ExitStack,
    ) -> None:
        self._ranks = ranks
        self._everybody = self._meeting = meeting
        self._stopping = stopping
        self._voice = voice
        self._holding = holding
        self._role = role_of(ranks, 1)
        self._started = self._next_beat = 0.0

    def run(self, load: Callable[[], Wish]) -> ExitCode:
        seat = None
        try:
            wish = load()
            arrival = self._arrive(wish.config)
            prepared = arrival.prepare(wish.config)
            if self._role.place:
                return self._follow(prepared)
            seat = arrival.take_seat(prepared, wish, self._voice.say)
            self._started = arrival.started
            result = self._act(seat, self._begin(seat))
        except Exception as error:
            result = self._ended_by(error)
        if result.why is not None and not result.is_said:
            self._complain(result.why)
        code = result.code
        if seat is not None:
            try:
                self._report(seat, result)
            except P2PError as error:
                self._complain(str(error))
                code = code or error.exit_code
        if result.error is not None and not isinstance(result.error, P2PError):
            raise result.error
        return code

    def _arrive(self, config: RunConfig) -> Arrival:
        """Learn which peer this rank is for, and whom to meet then."""
        each = ranks_per_peer(self._ranks.size, config.peers, config.train)
        if each > 1:
            self._role = role_of(self._ranks, each)
            self._meeting = self._everybody.of_peers(self._role.me, config.peers)
        return Arrival(
            self._ranks,
            self._role,
            self._everybody,
            self._meeting,
            self._stopping,
            self._holding,
        )

    def _follow(self, prepared: Prepared) -> ExitCode:
        """Help the rank that leads; it also says why the run ends, if it ends early."""
        try:
            follow_leader(prepared, self._role.me)
        except TransportError as error:
            return error.exit_code
        return ExitCode.DONE

    def _act(self, seat: Seat, update: Callable[[], None]) -> Result:
        if seat.choice.transport == "zeromq":
            return self._over_zeromq(seat, update)
        return run_in_group(seat, self._meeting, self._stopping, update)

    def _ended_by(self, error: Exception) -> Result:
        """Say that an error ended this peer, and find whose fault that is if not its own."""
        if isinstance(error, TransportError):
            ending = Ending(how="broken", round=0, blames=error.peer, why=str(error))
        elif isinstance(error, StoppedEarly):
            ending = Ending(how="stopped", round=0)
        else:
            return self._failed(error)
        self._tell(ending)
        try:
            endings = self._everybody.last_words(lambda idle_s: idle_s > LAST_WORDS_S)
        except TransportError:
            endings = {self._ranks.rank: ending}
        everybody, noun = range(self._ranks.size), self._everybody.noun
        judgement = judge(self._ranks.rank, endings, everybody, noun)
        return Result(code=judgement.code, why=judgement.why, is_said=judgement.is_said)

    def _failed(self, error: Exception) -> Result:
        """Say that this peer ends by an error of its own."""
        ending = Ending(how="failed", round=0, why=in_words(error))
        self._tell(ending)
        return Result(code=exit_code_of(error), error=error, why=ending.why)

    def _tell(self, ending: Ending) -> None:
        """Say how this rank ends, and, if it leads, its peer."""
        with suppress(TransportError):
            self._everybody.tell("ending", ending.encode())
            if self._meeting is not self._everybody and not self._role.place:
                self._meeting.tell("ending", ending.encode())

    def _begin(self, seat: Seat) -> Callable[[], None]:
        """Say what is going on; a function to be called after each round."""
        updates = []
        if seat.choice.transport != "torchdist":
            updates.append(self._beat)
        if self._role.me == 0:
            self._voice.say(f"transport: {seat.choice.name}, because {seat.choice.why}")
            updates.append(self._voice.watch(seat.parts.config, seat.run, self._started))

        def update() -> None:
            for each in updates:
                each()

        return update

    def _beat(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + _BEAT_S
        with suppress(TransportError):  # the first host may go, and this one carry on
            self._meeting.beat()

    # ---- over ZeroMQ ------------------------------------------------------------------------

    def _over_zeromq(self, seat: Seat, update: Callable[[], None]) -> Result:
        """Run like a peer of `p2p-dml run`, with addresses told at the store."""
        is_done = False
        try:
            code = run_peer(
                seat.parts,
                seat.learner,
                seat.me,
                seat.run,
                seat.bind,
                seat.introduce,
                Terms(
                    keys=seat.keys,
                    home=seat.device,
                    on_round=update,
                    patient=True,
                    start=seat.start,
                ),
            )
            is_done = True
        except TransportError as error:
            if error.peer != seat.me:
                raise
            return self._failed(error)  # a rank that helps this one is lost
        finally:
            seat.leave(is_done=is_done)
            if dist.is_initialized():
                dist.destroy_process_group()
        if code is ExitCode.STOPPED:
            self._stopping.tell()  # the peer itself has taken the signal
        how: Final = "done" if code is ExitCode.DONE else "stopped"
        with suppress(TransportError):
            self._meeting.tell("ending", Ending(how=how, round=seat.parts.config.rounds).encode())
        return Result(code=code)

    # ---- the end ----------------------------------------------------------------------------

    def _complain(self, why: str) -> None:
        """Tell the user, unless another rank of this host has said the same."""
        mark = hashlib.blake2b(why.encode(), digest_size=8).hexdigest()
        try:
            is_first = self._meeting.is_first(f"{self._ranks.node}/{mark}")
        except TransportError:  # then rather twice than never
            is_first = True
        if is_first:
            self._voice.complain(why)

    def _report(self, seat: Seat, result: Result) -> None:
        """Write the report when all logs are closed, if it falls to this rank.

        Raises StorageError if it cannot be written.
        """
        meeting = self._meeting
        try:
            meeting.tell("closed", "")
            if self._role.me == 0 and (result.error or seat.choice.transport != "torchdist"):
                meeting.last_words(lambda idle_s: self._is_over(seat, idle_s))
            endings = meeting.endings()
            if self._role.me != reporter(endings):
                return
            deadline = time.monotonic() + _CLOSED_S
            while meeting.count("closed") < len(endings) and time.monotonic() < deadline:
                time.sleep(0.05)
        except TransportError:  # the first host is gone; this one may have a folder of its own
            if self._ranks.local_rank:
                return
        self._voice.conclude(seat.run)

    def _is_over(self, seat: Seat, idle_s: float) -> bool:
        """Whether to wait no longer for the others. Over ZeroMQ they may be rounds behind."""
        if seat.choice.transport == "torchdist":
            return idle_s > LAST_WORDS_S
        patience_s = seat.parts.config.transport.straggler_s
        return idle_s > patience_s or self._stopping.seconds > GRACE_S + LAST_WORDS_S
