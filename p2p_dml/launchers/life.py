"""One peer's life in this process: it binds, meets the others, runs its rounds, takes leave."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol, final

import torch
from torch import nn

from p2p_dml import data
from p2p_dml.assemble import Blueprint, links_for, loop_of
from p2p_dml.checkpoint import write_file
from p2p_dml.drive import drive
from p2p_dml.errors import ExitCode, P2PError, StorageError, exit_code_of
from p2p_dml.events import Event, EventLog, Finished, Joined, Started, event_file
from p2p_dml.faults.process import injector_of
from p2p_dml.keys import Keys
from p2p_dml.launchers.entering import Entrant, model_of
from p2p_dml.launchers.process import (
    allow_many_files,
    is_out_of_memory,
    keep_freed_memory,
    memory_mb,
    on_stop_signals,
    release_freed_memory,
)
from p2p_dml.launchers.resuming import Start
from p2p_dml.launchers.stopping import StoppedEarly
from p2p_dml.links.acquaintances import acquaintances, is_two_way
from p2p_dml.links.elastic import Elastic
from p2p_dml.pace import WallClock
from p2p_dml.peer import LOOKAHEAD, LocalLearner, PeerLoop
from p2p_dml.tensors import num_bytes, num_elements
from p2p_dml.transports.at_home import at_home
from p2p_dml.transports.shaped import Emulation
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Need, PeerId, Transport
from p2p_dml.watchdog import Watchdog

CPU = torch.device("cpu")
Introduce = Callable[[str], Mapping[PeerId, str]]
"""Own endpoint -> everybody's address."""

_HEAD_START = 2
"""So many rounds before its first one a peer that joins is given a model: time to load it."""

_EARLY_ROUNDS = 64
"""So many rounds a neighbour that waits for nobody may be early, by chance, on a lossy network."""

_STOPPED_EARLY = "stopped by a signal before the first round"

LARGE_MODEL_BYTES = 1 << 20
"""From this size on, page faults of fresh message memory cost more than the memory kept for it."""


class AnyLearner(LocalLearner, Protocol):
    """A learner around a module, with training samples of its own."""

    module: nn.Module

    @property
    def num_samples(self) -> int: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a peer's launcher wants of it beyond the run file.

    `keys`: all is encrypted with them. `home`: where received tensors are wanted. `on_round` is
    called after each round. `patient`: a second signal does not kill. `start`: where to go on, in a
    resumed run. `is_over` is asked after each round, and before the first, whether to stop there.
    `again`: the run is under way without this peer, even if none of its neighbours is there.
    `earlier_digests`: of the run before it was resumed and made longer.
    """

    keys: Keys | None = None
    home: torch.device = CPU
    on_round: Callable[[], None] = lambda: None
    patient: bool = False
    start: Start | None = None
    is_over: Callable[[int], bool] = lambda done: False
    again: bool = False
    earlier_digests: Collection[str] = ()


def run_peer(
    parts: Blueprint,
    learner: AnyLearner,
    me: PeerId,
    run: Path,
    bind: str,
    introduce: Introduce,
    terms: Terms,
) -> ExitCode:
    """Bind, meet the neighbours, run all rounds, take leave; every ending is in the event log."""
    if (size := num_bytes(learner.params)) >= LARGE_MODEL_BYTES:
        keep_freed_memory(size)
    allow_many_files()
    torch.set_num_threads(parts.config.threads)
    before_log: list[Event] = []
    emulation = parts.emulation(me, WallClock())
    transport = _bind(parts, learner, me, bind, emulation, terms.keys, before_log.append)
    try:
        # The log opens after the bind: a second peer with this id fails before it writes a line.
        with closing(EventLog(event_file(run, me), me)) as log:
            return _Life(parts, learner, me, run, transport, emulation, log, terms).live(introduce)
    finally:
        transport.on_event = before_log.append  # the log is closed
        transport.close()


def _bind(
    parts: Blueprint,
    learner: AnyLearner,
    me: PeerId,
    bind: str,
    emulation: Emulation | None,
    keys: Keys | None,
    on_event: Callable[[Event], None],
) -> ZeroMQTransport:
    limits = limits_of(parts, me)
    mailbox = parts.mailbox(limits.queue_messages)
    if emulation is not None:  # the transport is told of what its own mailbox refuses
        mailbox = emulation.mailbox(mailbox, lambda sender, why: transport.complain(sender, why))
    transport = ZeroMQTransport(
        me,
        bind,
        parts.digest(learner.module),
        secrets.randbits(62),
        limits,
        on_event,
        mailbox,
        keys,
        _elastic(parts),
    )
    return transport


def _elastic(parts: Blueprint) -> Elastic | None:
    """The schedule, where peers come and go."""
    return parts.schedule if isinstance(parts.schedule, Elastic) else None


@final
class _Life:
    """A peer that has its socket and its log."""

    def __init__(
        self,
        parts: Blueprint,
        learner: AnyLearner,
        me: PeerId,
        run: Path,
        transport: ZeroMQTransport,
        emulation: Emulation | None,
        log: EventLog,
        terms: Terms,
    ) -> None:
        self._parts = parts
        self._learner = learner
        self._me = me
        self._run = run
        self._transport = transport
        self._emulation = emulation
        self._log = log
        self._terms = terms
        self._digest = transport.signature.digest
        self._elastic = _elastic(parts)
        self._faults = injector_of(me, parts.faults.get(me, ()), log, learner)
        self._watchdog = Watchdog(me, parts.config.watchdog, log.write)

    def live(self, introduce: Introduce) -> ExitCode:
        """From the log's first line to its last, which says how it ended."""
        self._begin()
        loop, begin, has_met = self._loop(), time.monotonic(), False

        def stop() -> None:
            if not has_met:
                raise StoppedEarly(_STOPPED_EARLY)
            loop.stop()

        try:
            with on_stop_signals(stop, each=self._terms.patient):
                self._meet(loop, introduce)
                self._log.write(Joined(time.monotonic() - begin))
                has_met = True
                release_freed_memory()
                code = self._rounds(loop)
                self._transport.close()
            self._log.write(Finished(loop.round, code))
            return code
        except Exception as error:
            with suppress(StorageError):  # the disk may be what failed
                self._log.write(Finished(loop.round, exit_code_of(error), in_words(error)))
            raise

    def _begin(self) -> None:
        transport, start = self._transport, self._terms.start
        incarnation, endpoint = transport.signature.incarnation, transport.endpoint
        self._log.write(started_event(self._parts, self._learner, self._me, incarnation, endpoint))
        if start is not None:
            self._log.write(start.event)
        transport.on_event = self._watchdog.log

    def _loop(self) -> PeerLoop:
        faults, start = self._faults, self._terms.start
        return loop_of(
            self._parts,
            self._watchdog.learner(faults.learner if faults else self._learner),
            self._me,
            self._digest,
            self._run,
            self._watchdog.log,
            memory_mb,
            start=start.checkpoint if start else None,
            write=self._watchdog.writer(faults.write if faults else write_file),
        )

    def _meet(self, loop: PeerLoop, introduce: Introduce) -> None:
        """Get to know the neighbours; if the run is under way, find a way in."""
        transport, first = self._transport, loop.neighbours(loop.round + 1)
        book = introduce(transport.endpoint)
        is_new = self._elastic is not None and not self._elastic.has(self._me, 1)
        if is_new:
            first = frozenset(book)
        transport.open(book, first, is_under_way=self._terms.again or is_new)
        if transport.is_outside:
            self._entrant().enter(transport, loop)
            transport.expect(loop.neighbours(loop.round + 1))

    def _entrant(self) -> Entrant:
        return Entrant(
            me=self._me,
            run=self._run,
            digest=self._digest,
            earlier_digests=self._terms.earlier_digests,
            learner=self._learner,
            waits=self._parts.pace.waits,
            takes_models=Need.FIRST_WEIGHTS not in self._parts.strategy.needs,
            elastic=self._elastic,
            startup_s=self._parts.config.transport.startup_s,
            on_event=self._log.write,
        )

    def _rounds(self, loop: PeerLoop) -> ExitCode:
        if self._terms.is_over(loop.round):
            raise StoppedEarly(_STOPPED_EARLY)
        carrier, straggler_s = self._carrier(), self._parts.config.transport.straggler_s
        with self._watchdog:
            home = at_home(carrier, self._terms.home)
            code = drive(loop, home, straggler_s, lambda: self._after_round(loop))
        if self._elastic is not None and code is ExitCode.STOPPED:
            self._elastic.dismiss(self._me, loop.round)
            self._transport.tell_members()
        carrier.close()
        return code

    def _carrier(self) -> Transport:
        """The transport in all its wrappings."""
        carrier: Transport = self._transport
        if self._emulation:
            carrier = self._emulation.transport(carrier)
        if self._faults:
            carrier = self._faults.transport(carrier)
        return self._watchdog.transport(carrier)

    def _after_round(self, loop: PeerLoop) -> None:
        self._terms.on_round()
        if self._transport.asking:
            self._help_in(loop.round)
        if self._terms.is_over(loop.round):
            loop.stop()

    def _help_in(self, round_: int) -> None:
        """Give the model to those who come in next; let others know how far all is.

        Who had it too soon would begin its first round before all is known of who takes part in it.
        """
        asking, later = self._transport.asking, frozenset[PeerId]()
        if self._elastic is not None and self._parts.pace.waits:
            first = self._elastic.members.first_round
            later = frozenset(j for j in asking if first(j, 0) > round_ + _HEAD_START)
        if asking - later:
            model = model_of(self._me, round_, self._digest, self._learner)
            self._transport.give_model(model, asking - later)
        if later:
            self._transport.tell_members()


def in_words(error: Exception) -> str:
    """The message of an error, for the log and the launcher."""
    if isinstance(error, P2PError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: {error}"
    return f"bug, please report it with the log: {type(error).__name__}: {error}"


def limits_of(parts: Blueprint, me: PeerId) -> Limits:
    """The `[transport]` table as the transport's limits.

    Who is not waited for may be overrun: then the newest message, or every one that there is room
    for, is kept until it can be sent. Where rounds wait there is room for all that may come early.
    """
    config = parts.config
    names = {field.name for field in fields(Limits)} - {"heartbeat_s", "handshake_s", "resend"}
    heartbeat_s = config.heartbeat_s(_connections(parts, me))
    limits = Limits(**config.transport.model_dump(include=names), heartbeat_s=heartbeat_s)
    if parts.pace.waits:
        return replace(limits, queue_messages=_most_early(parts, me))
    is_every = Need.EVERY_MESSAGE in parts.strategy.needs
    return replace(limits, resend=limits.queue_messages if is_every else 1)


def _most_early(parts: Blueprint, me: PeerId) -> int:
    """How many messages of a neighbour, sent before this peer is so far, there must be room for.

    Over two-way links a neighbour waits for this peer in every exchange. Over one-way links, and
    where an emulated network loses the answer, it only waits for others, who wait for others.
    """
    config, room = parts.config, parts.config.transport.queue_messages
    schedule = links_for(config, config.peers) if config.elastic else parts.schedule
    if parts.network is None and is_two_way(schedule, me, LOOKAHEAD):
        return room
    return max(room, parts.strategy.exchanges * max(config.peers, _EARLY_ROUNDS))


def _connections(parts: Blueprint, me: PeerId) -> int:
    """To how many others `me` comes to be connected: to all of them where peers come and go."""
    if parts.config.elastic:
        return parts.config.peers - 1
    ticks = parts.config.rounds * parts.strategy.exchanges
    return acquaintances(parts.schedule, me, ticks)


def started_event(
    parts: Blueprint, learner: AnyLearner, me: PeerId, incarnation: int, endpoint: str
) -> Started:
    """The first line of a peer's log."""
    counts = data.class_counts(parts.dataset, parts.shards[me]) if parts.dataset else []
    parameters = num_elements(learner.params)
    return Started(os.getpid(), incarnation, endpoint, parameters, learner.num_samples, counts)
