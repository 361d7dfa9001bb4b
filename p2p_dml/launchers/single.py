"""One peer in this process: what launchers start, `p2p-dml peer`, and `p2p_dml.Peer`."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from p2p_dml import config as run_files
from p2p_dml import data
from p2p_dml.assemble import Blueprint, blueprint, learner_of, load_data, loop_of
from p2p_dml.checkpoint import write_file
from p2p_dml.checks import check_needs
from p2p_dml.config import RunConfig
from p2p_dml.drive import drive
from p2p_dml.errors import ConfigError, ExitCode, P2PError, StorageError, exit_code_of
from p2p_dml.events import Event, EventLog, Finished, Joined, Started, event_file
from p2p_dml.faults.process import injector_of
from p2p_dml.keys import Keys
from p2p_dml.launchers import folder
from p2p_dml.launchers.addresses import bind_of, find, places
from p2p_dml.launchers.entering import Entrant, model_of
from p2p_dml.launchers.keyring import keys_of
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.process import (
    allow_many_files,
    is_out_of_memory,
    keep_freed_memory,
    memory_mb,
    on_stop_signals,
    release_freed_memory,
)
from p2p_dml.launchers.rendezvous import recall, register
from p2p_dml.launchers.resuming import Start, read, start_of
from p2p_dml.launchers.scratch import laid_out
from p2p_dml.launchers.stopping import StoppedEarly
from p2p_dml.learners import FunctionLearner
from p2p_dml.links.elastic import Elastic
from p2p_dml.pace import WallClock
from p2p_dml.peer import LocalLearner, PeerLoop
from p2p_dml.tensors import num_bytes, num_elements
from p2p_dml.transports.at_home import at_home
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Need, PeerId, Transport
from p2p_dml.watchdog import Watchdog

CPU = torch.device("cpu")
Introduce = Callable[[str], Mapping[PeerId, str]]
"""Own endpoint -> everybody's address."""

LAST_ROUND = "last-round"
"""The file of `LastRound` in the launcher's folder."""

_STOPPED_EARLY = "stopped by a signal before the first round"

LARGE_MODEL_BYTES = 1 << 20
"""From this size on, page faults of fresh message memory cost more than the memory kept for it."""


class AnyLearner(LocalLearner, Protocol):
    """A learner around a module, with training samples of its own."""

    module: nn.Module

    @property
    def num_samples(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the local launcher hands a forked peer: plain text and numbers, so it can be JSON.

    `shared` is the launcher's folder with data set, shards and sockets; relative paths of the run
    file begin at `folder`. `starts`: the round that each peer of a resumed run goes on after.
    `listen`: where each peer listens, those of other hosts too; None: where the system likes.
    `again`: the peer was lost, and the others are past the beginning.
    """

    run: str
    shared: str
    folder: str
    me: PeerId
    starts: Sequence[int] | None = None
    listen: Sequence[str] | None = None
    again: bool = False


def run_assignment(task: Assignment) -> ExitCode:
    """Run one peer of a local run. An error is left in the shared folder for the launcher too.

    The run folder is no place for it: that its disk is full may be the error.
    """
    shared, run = Path(task.shared), Path(task.run)
    try:
        with folder.held(run), closing(LastRound(shared / LAST_ROUND)) as last:
            return _run_assignment(task, shared, run, lambda done: last.is_over(task.me, done))
    except Exception as error:
        (shared / f"{task.me}.error").write_text(in_words(error), encoding="utf-8")
        if isinstance(error, P2PError):
            return error.exit_code
        raise


def _run_assignment(
    task: Assignment, shared: Path, run: Path, is_over: Callable[[int], bool]
) -> ExitCode:
    config = run_files.load(run / folder.SETTINGS, folder=Path(task.folder))
    parts = laid_out(config, shared, task.me)
    is_ipc = config.transport.scheme == "ipc"
    bind = socket_of(shared, task.me) if is_ipc else "tcp://127.0.0.1:*"
    if task.listen is not None:
        bind = task.listen[task.me]
    learner = learner_of(parts, parts.model(), task.me)
    start = None
    if task.starts is not None and not task.again:
        start = start_of(read(run, (), None), task.me, task.starts[task.me])
    meet = recall if task.again else register
    keys = keys_of(config, task.me, task.listen or [bind], shared)
    return run_peer(
        parts,
        learner,
        task.me,
        run,
        bind,
        lambda endpoint: meet(shared / "desk.sock", task.me, endpoint),
        keys=keys,
        start=start,
        is_over=is_over,
        again=task.again,
    )


def socket_of(shared: Path, peer: PeerId) -> str:
    """Where a peer of a local run listens, if by a Unix socket."""
    return f"ipc://{shared}/{peer}.sock"


def run_alone(config: RunConfig, me: PeerId, out: Path) -> ExitCode:
    """`p2p-dml peer`: read the data, take the shard of `me`, meet the others at fixed addresses."""
    _check_id(config, me)
    dataset, shards = load_data(config)
    parts = blueprint(config, dataset, shards)
    check_needs(parts)
    learner = learner_of(parts, parts.model(), me)
    return _meet_and_run(parts, learner, me, out)


class Peer:
    """A peer around a training loop of your own, without the command line.

    `train(model, round)` trains `model` in place and returns the loss, or a mapping with "loss";
    `evaluate(model)` returns a mapping with "accuracy" and "loss". All peers must start from equal
    weights and name the same run file.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, int], object],
        *,
        run: str | Path | RunConfig,
        me: PeerId,
        evaluate: Callable[[nn.Module], object] | None = None,
        out: str | Path | None = None,
    ) -> None:
        self.model = model
        self.me = me
        self.config = run if isinstance(run, RunConfig) else run_files.load(Path(run))
        _check_id(self.config, me)
        self.out = Path(out) if out else Path("runs", self.config.name)
        self._learner = FunctionLearner(model, train, evaluate, peer=me)

    def run(self) -> ExitCode:
        """Train and gossip to the end; the trained weights are in `model`.

        Returns DONE or STOPPED (by a signal, after a checkpoint); raises P2PError otherwise.
        """
        parts = blueprint(self.config)
        check_needs(parts)
        return _meet_and_run(parts, self._learner, self.me, self.out)


def _check_id(config: RunConfig, me: PeerId) -> None:
    if not 0 <= me < config.peers:
        raise ConfigError(
            f"peer id {me} is out of range: the run has peers 0 to {config.peers - 1}"
        )


def _meet_and_run(parts: Blueprint, learner: AnyLearner, me: PeerId, out: Path) -> ExitCode:
    """Bind the address that the run file gives this peer and run."""
    check_transport(parts.config)
    config, started = parts.config, time.time()
    keys = keys_of(config, me, places(config, me))

    with ExitStack() as while_running:

        def introduce(endpoint: str) -> Mapping[PeerId, str]:
            book = find(
                config, me, endpoint, lambda: parts.digest(learner.module), keys, while_running
            )
            if not (out / "run.json").exists():  # only now: a peer that cannot bind leaves nothing
                folder.create(out, parts, learner.module, "peer", started)
            return book

        return run_peer(parts, learner, me, out, bind_of(config, me), introduce, keys=keys)


def check_transport(config: RunConfig) -> None:
    """Raise ConfigError if the run wants a transport that only ranks of torchrun have."""
    if config.transport.kind in ("torchdist", "hybrid"):
        raise ConfigError(
            f"transport.kind: {config.transport.kind} connects ranks that torchrun starts; use "
            f"`torchrun --nproc-per-node {config.peers} -m p2p_dml FILE.toml`, or set "
            'transport.kind = "auto" or "zeromq"'
        )


def run_peer(
    parts: Blueprint,
    learner: AnyLearner,
    me: PeerId,
    run: Path,
    bind: str,
    introduce: Introduce,
    *,
    keys: Keys | None = None,
    home: torch.device = CPU,
    on_round: Callable[[], None] = lambda: None,
    patient: bool = False,
    start: Start | None = None,
    is_over: Callable[[int], bool] = lambda done: False,
    again: bool = False,
) -> ExitCode:
    """Bind, meet the neighbours, run all rounds, take leave; every ending is in the event log.

    `keys`: all is encrypted with them. `home`: where received tensors are wanted. `on_round` is
    called after each round. `patient`: a second signal does not kill. `start`: where to go on, in a
    resumed run. `is_over` is asked after each round, and before the first, whether to stop there.
    `again`: the run is under way without this peer, even if none of its neighbours is there.
    """
    if num_bytes(learner.params) >= LARGE_MODEL_BYTES:
        keep_freed_memory()
    allow_many_files()
    torch.set_num_threads(parts.config.threads)
    digest, incarnation = parts.digest(learner.module), secrets.randbits(62)
    before_log: list[Event] = []
    limits = limits_of(parts)
    mailbox = parts.mailbox(limits.queue_messages)
    emulation = parts.emulation(me, WallClock())
    if emulation is not None:
        mailbox = emulation.mailbox(mailbox)
    report = before_log.append
    elastic = parts.schedule if isinstance(parts.schedule, Elastic) else None
    transport = ZeroMQTransport(
        me, bind, digest, incarnation, limits, report, mailbox, keys, elastic
    )
    try:
        # The log opens after the bind: a second peer with this id fails before it writes a line.
        with closing(EventLog(event_file(run, me), me)) as log:
            transport.on_event = log.write
            log.write(started_event(parts, learner, me, incarnation, transport.endpoint))
            if start is not None:
                log.write(start.event)
            origin = start.checkpoint if start else None
            faults = injector_of(me, parts.faults.get(me, ()), log, learner)
            watchdog = Watchdog(me, parts.config.watchdog, log.write)
            transport.on_event = watchdog.log
            loop = loop_of(
                parts,
                watchdog.learner(faults.learner if faults else learner),
                me,
                digest,
                run,
                watchdog.log,
                memory_mb,
                start=origin,
                write=watchdog.writer(faults.write if faults else write_file),
            )
            straggler_s = parts.config.transport.straggler_s
            entrant = Entrant(
                me=me,
                run=run,
                digest=digest,
                learner=learner,
                waits=parts.pace.waits,
                elastic=elastic,
                startup_s=limits.startup_s,
                on_event=log.write,
            )

            def each_round() -> None:
                on_round()
                if transport.is_asked:
                    transport.give_model(model_of(me, loop.round, digest, learner))
                if is_over(loop.round):
                    loop.stop()

            def rounds() -> ExitCode:
                if is_over(loop.round):
                    raise StoppedEarly(_STOPPED_EARLY)
                carrier: Transport = emulation.transport(transport) if emulation else transport
                carrier = watchdog.transport(faults.transport(carrier) if faults else carrier)
                with watchdog:
                    code = drive(loop, at_home(carrier, home), straggler_s, each_round)
                if elastic is not None and code is ExitCode.STOPPED:
                    elastic.dismiss(me, loop.round)
                    transport.tell_members()
                carrier.close()
                return code

            def meet() -> None:
                book, first = introduce(transport.endpoint), loop.neighbours(loop.round + 1)
                is_new = elastic is not None and not elastic.has(me, 1)
                first = frozenset(book) if is_new else first
                transport.open(book, first, is_under_way=again or is_new)
                if transport.is_outside:
                    entrant.enter(transport, loop)
                    transport.expect(loop.neighbours(loop.round + 1))

            return _live(loop, transport, log, meet, rounds, patient=patient)
    finally:
        transport.on_event = before_log.append  # the log is closed
        transport.close()


def _live(
    loop: PeerLoop,
    transport: ZeroMQTransport,
    log: EventLog,
    meet: Callable[[], None],
    rounds: Callable[[], ExitCode],
    *,
    patient: bool,
) -> ExitCode:
    """Meet the neighbours, run the rounds, take leave; the log's last line says how it ended."""
    begin, has_met = time.monotonic(), False

    def stop() -> None:
        if not has_met:
            raise StoppedEarly(_STOPPED_EARLY)
        loop.stop()

    try:
        with on_stop_signals(stop, each=patient):
            meet()
            log.write(Joined(time.monotonic() - begin))
            has_met = True
            release_freed_memory()
            code = rounds()
            transport.close()
        log.write(Finished(loop.round, code))
        return code
    except Exception as error:
        with suppress(StorageError):  # the disk may be what failed
            log.write(Finished(loop.round, exit_code_of(error), in_words(error)))
        raise


def in_words(error: Exception) -> str:
    """The message of an error, for the log and the launcher."""
    if isinstance(error, P2PError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: {error}"
    return f"bug, please report it with the log: {type(error).__name__}: {error}"


def limits_of(parts: Blueprint) -> Limits:
    """The `[transport]` table as the transport's limits.

    Who is not waited for may be overrun: then the newest message, or every one that there is room
    for, is kept until it can be sent.
    """
    config = parts.config
    names = {field.name for field in fields(Limits)} - {"heartbeat_s", "handshake_s", "resend"}
    limits = Limits(**config.transport.model_dump(include=names), heartbeat_s=config.heartbeat_s)
    if parts.pace.waits:
        return limits
    is_every = Need.EVERY_MESSAGE in parts.strategy.needs
    return replace(limits, resend=limits.queue_messages if is_every else 1)


def started_event(
    parts: Blueprint, learner: AnyLearner, me: PeerId, incarnation: int, endpoint: str
) -> Started:
    """The first line of a peer's log."""
    counts = data.class_counts(parts.dataset, parts.shards[me]) if parts.dataset else []
    parameters = num_elements(learner.params)
    return Started(os.getpid(), incarnation, endpoint, parameters, learner.num_samples, counts)
