"""`torchrun … -m p2p_dml FILE.toml`: every rank is a peer; over torch.distributed, or ZeroMQ.

There is no launcher process of ours: ranks come together at torchrun's store, and so do their last
words, from which each finds out who ended the run. The lowest rank that could speak writes the
report.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import nn

from p2p_dml.assemble import Blueprint, blueprint, check_needs, learner_of, load_data
from p2p_dml.config import RunConfig
from p2p_dml.errors import (
    ConfigError,
    ExitCode,
    P2PError,
    StartupError,
    TransportError,
    exit_code_of,
)
from p2p_dml.launchers import folder
from p2p_dml.launchers.endings import Ending, judge, reporter
from p2p_dml.launchers.group import Result, Seat, run_in_group
from p2p_dml.launchers.meeting import Meeting, meet
from p2p_dml.launchers.ranks import Choice, Ranks, choose
from p2p_dml.launchers.scratch import laid_out, lay_out, temporary_folder
from p2p_dml.launchers.single import in_words, run_peer
from p2p_dml.launchers.stopping import GRACE_S, LAST_WORDS_S, StoppedEarly, Stopping
from p2p_dml.types import PeerId

_STORE_S = 60.0
"""torchrun's agent of the first host may start so much later than that of another."""

_CLOSED_S = 5.0
"""How long the others may take to write their last line before the report is made."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How a rank speaks to the user; all but `complain` is used by one rank only.

    `watch(config, folder, started)` gives a function called after each round; `conclude` writes the
    report.
    """

    say: Callable[[str], None]
    complain: Callable[[str], None]
    watch: Callable[[RunConfig, Path, float], Callable[[], None]]
    conclude: Callable[[Path], None]


def run(
    load: Callable[[], RunConfig],
    out: Path | None,
    ranks: Ranks,
    stopping: Stopping,
    voice: Voice,
) -> ExitCode:
    """Run this rank's peer to its end; everything that went wrong has been said once per host.

    `load` reads the run file. Bugs are raised.
    """
    try:
        meeting = meet(ranks, _STORE_S)
    except StartupError as error:
        voice.complain(str(error))
        return error.exit_code
    return _Rank(ranks, meeting, stopping, voice).run(load, out)


@final
class _Rank:
    """One process of the run."""

    def __init__(self, ranks: Ranks, meeting: Meeting, stopping: Stopping, voice: Voice) -> None:
        self._ranks = ranks
        self._meeting = meeting
        self._stopping = stopping
        self._voice = voice
        self._me: PeerId = ranks.rank
        self._started = time.time()

    def run(self, load: Callable[[], RunConfig], out: Path | None) -> ExitCode:
        seat = None
        try:
            seat = self._take_seat(load(), out)
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

    def _act(self, seat: Seat, update: Callable[[], None]) -> Result:
        if seat.choice.transport == "zeromq":
            return self._over_zeromq(seat, update)
        return run_in_group(seat, self._meeting, self._stopping, update)

    def _ended_by(self, error: Exception) -> Result:
        """Say that an error ended this peer, and find whose fault that is if not its own."""
        is_own = not isinstance(error, TransportError | StoppedEarly)
        if is_own:
            ending = Ending(how="failed", round=0, why=in_words(error))
        elif isinstance(error, TransportError):
            ending = Ending(how="broken", round=0, blames=error.peer, why=str(error))
        else:
            ending = Ending(how="stopped", round=0)
        with suppress(TransportError):
            self._meeting.tell("ending", ending.encode())
        if is_own:
            return Result(code=exit_code_of(error), error=error, why=ending.why)
        try:
            endings = self._meeting.last_words(lambda idle_s: idle_s > LAST_WORDS_S)
        except TransportError:
            endings = {self._me: ending}
        judgement = judge(self._me, endings, range(self._ranks.size))
        return Result(code=judgement.code, why=judgement.why, is_said=judgement.is_said)

    # ---- before the first round -------------------------------------------------------------

    def _take_seat(self, config: RunConfig, out: Path | None) -> Seat:
        """Prepare everything and see that all ranks have; the run folder is there then."""
        if config.peers != self._ranks.size:
            raise ConfigError(
                f"peers: the run file has {config.peers} and torchrun started {self._ranks.size} "
                f"ranks; every rank is a peer: set peers={self._ranks.size}, or start "
                f"{config.peers} ranks (--nproc-per-node, --nnodes)"
            )
        parts = self._parts(config)
        check_needs(parts)
        num_gpus = torch.cuda.device_count()
        choice = choose(config.transport, self._ranks, num_gpus, _obstacle(parts))
        index = self._ranks.local_rank % num_gpus if num_gpus else 0
        device = torch.device("cuda", index) if num_gpus else torch.device("cpu")
        model = parts.model().to(device)
        learner = learner_of(parts, model, self._me)
        self._compare(choice, parts.digest(model).hex(), config)
        return Seat(
            parts=parts,
            learner=learner,
            me=self._me,
            choice=choice,
            group=self._ranks.here if choice.transport == "hybrid" else range(config.peers),
            bind=f"tcp://{self._own_host()}:*",
            introduce=lambda endpoint: self._introduce(endpoint, config.transport.startup_s),
            device=device,
            run=self._run_folder(parts, model, out),
        )

    def _parts(self, config: RunConfig) -> Blueprint:
        """What all peers share. One rank of a host reads and deals the data, the others map it."""
        topic, check = f"data of host {self._ranks.node}", self._stopping.check
        if self._ranks.local_size == 1 or "function" in config.train:
            return blueprint(config, *load_data(config))
        if self._ranks.local_rank:
            reader = self._me - self._ranks.local_rank
            place = self._meeting.listen(topic, reader, config.transport.startup_s, check)
            parts = laid_out(config, Path(place), self._me)
            self._meeting.tell(f"{topic} mapped", "")
            return parts
        with temporary_folder() as path:
            dataset, shards = load_data(config)
            mine = range(self._me, self._me + self._ranks.local_size)
            lay_out(dataset, {peer: shards[peer] for peer in mine}, path)
            self._meeting.tell(topic, str(path))
            parts = laid_out(config, path, self._me)
            self._meeting.tell(f"{topic} mapped", "")
            self._meeting.gather(f"{topic} mapped", config.transport.startup_s, check, mine)
        return parts

    def _compare(self, choice: Choice, digest: str, config: RunConfig) -> None:
        """Wait for all ranks; StartupError if they are of different runs or would not meet."""
        name = "hybrid" if choice.transport == "hybrid" else choice.name  # hosts may differ in GPUs
        way = f"{name}{', debug' * config.transport.debug}"
        self._meeting.tell("here", f"{digest} {way}")
        found = self._meeting.gather("here", config.transport.startup_s, self._stopping.check)
        digests, ways = zip(*(found[peer].split(" ", 1) for peer in sorted(found)), strict=True)
        if foreign := [peer for peer, other in enumerate(digests) if other != digests[0]]:
            raise StartupError(
                f"peers {foreign} are of another run than peer 0 (digests "
                f"{digests[foreign[0]][:12]} and {digests[0][:12]}): run file, overrides and "
                "p2p_dml version must be the same on all hosts"
            )
        if others := [peer for peer, other in enumerate(ways) if other != ways[0]]:
            raise StartupError(
                f"peer 0 would use {ways[0]} and peer {others[0]} {ways[others[0]]}: GPUs, ranks "
                "per host and [transport] must lead to the same on all hosts; set transport.kind "
                "and transport.backend"
            )

    def _run_folder(self, parts: Blueprint, model: nn.Module, out: Path | None) -> Path:
        """The folder that rank 0 has made; a host that does not see it gets one of its own.

        Raises ConfigError if that of another run is in the way.
        """
        if self._me == 0:
            path = folder.choose(out, parts.config)
            self._create(path, parts, model)
            self._meeting.tell("folder", json.dumps([str(path), self._started]))
            return path
        timeout_s = parts.config.transport.startup_s
        told = self._meeting.listen("folder", 0, timeout_s, self._stopping.check)
        name, self._started = json.loads(told)
        path, facts = Path(name), Path(name, "run.json")
        if self._ranks.local_rank == 0:
            if not facts.exists():
                self._create(path, parts, model)
            elif json.loads(facts.read_text(encoding="utf-8"))["started"] != self._started:
                raise ConfigError(
                    f"--out {path}: on the host of rank {self._me} this folder holds another run; "
                    "choose another or remove it"
                )
        return path

    def _create(self, path: Path, parts: Blueprint, model: nn.Module) -> None:
        program = "torchrun -m p2p_dml"
        folder.create(path, parts, model, "torchrun", self._started, program=program)

    def _begin(self, seat: Seat) -> Callable[[], None]:
        """Say what is going on; a function to be called after each round."""
        updates = []
        if seat.choice.transport != "torchdist":
            updates.append(self._beat)
        if self._me == 0:
            self._voice.say(f"transport: {seat.choice.name}, because {seat.choice.why}")
            updates.append(self._voice.watch(seat.parts.config, seat.run, self._started))

        def update() -> None:
            for each in updates:
                each()

        return update

    def _beat(self) -> None:
        with suppress(TransportError):  # the first host may go, and this one carry on
            self._meeting.beat()

    # ---- over ZeroMQ ------------------------------------------------------------------------

    def _over_zeromq(self, seat: Seat, update: Callable[[], None]) -> Result:
        """Run like a peer of `p2p-dml run`, with addresses told at the store."""
        code = run_peer(
            seat.parts,
            seat.learner,
            self._me,
            seat.run,
            seat.bind,
            seat.introduce,
            home=seat.device,
            on_round=update,
            patient=True,
        )
        if code is ExitCode.STOPPED:
            self._stopping.tell()  # the peer itself has taken the signal
        how: Final = "done" if code is ExitCode.DONE else "stopped"
        with suppress(TransportError):
            self._meeting.tell("ending", Ending(how=how, round=seat.parts.config.rounds).encode())
        return Result(code=code)

    def _own_host(self) -> str:
        """The address by which ranks of other hosts reach this one."""
        if self._ranks.is_one_host:
            return "127.0.0.1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(self._ranks.master)  # sends nothing: only asks for the route
            host: str = probe.getsockname()[0]
        return host

    def _introduce(self, endpoint: str, timeout_s: float) -> Mapping[PeerId, str]:
        self._meeting.tell("address", endpoint)
        return self._meeting.gather("address", timeout_s, self._stopping.check)

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
            if self._me == 0 and (result.error or seat.choice.transport != "torchdist"):
                meeting.last_words(lambda idle_s: self._is_over(seat, idle_s))
            endings = meeting.endings()
            if self._me != reporter(endings):
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


def _obstacle(parts: Blueprint) -> str | None:
    """Why a group whose peers end together cannot run this, if it cannot."""
    if not parts.pace.waits:
        return "rounds are asynchronous"
    if parts.config.duration_s is not None:
        return "duration_s ends each peer after a round of its own"
    return None
