"""All peers in this process, as one batch or one after another: `p2p-dml simulate`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import NoReturn, Protocol

import torch
from torch import nn

from p2p_dml import data
from p2p_dml.assemble import (
    Blueprint,
    blueprint,
    fleet_of,
    learner_of,
    load_data,
    loop_of,
    why_alone,
)
from p2p_dml.checkpoint import write_file
from p2p_dml.checks import check_all, check_everybody_begins
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, P2PError
from p2p_dml.events import EventLog, Finished, Joined, Started, event_file
from p2p_dml.faults import Agenda
from p2p_dml.faults.simulated import Fate, Mortal, check_possible
from p2p_dml.launchers import folder
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.process import keep_freed_memory, on_stop_signals
from p2p_dml.launchers.resuming import Past, Start, start_of, take_up
from p2p_dml.learners import drawback
from p2p_dml.pace import VirtualClock
from p2p_dml.peer import LocalLearner, PeerLoop
from p2p_dml.simulate import free_running, lockstep
from p2p_dml.tensors import num_elements
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import PeerId, Transport


class _Learner(LocalLearner, Protocol):
    """Any of the learners: all know the size of their shard."""

    @property
    def num_samples(self) -> int: ...


def simulate(
    config: RunConfig,
    out: Path | None,
    watch: Callable[[Path, float], Callable[[], None]],
    *,
    batched: bool | None = False,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    past: Past | None = None,
) -> Outcome:
    """Run all peers in lock step; the same results and run folder as on processes.

    Asynchronous rounds, emulated stragglers and links that take time go by virtual clocks, on which
    only local work and such links take time; the times of all events are theirs.

    `batched`: train all peers as one computation, several times faster, equal to processes to
    rounding; False: one after another, equal bit for bit; None: batched where that can be and
    is faster. `say` is told which in one line. `past`: the run to go on with, in its folder;
    `config` is its own then. Raises ConfigError if True cannot be had, or if virtual time has no
    length.

    The first SIGINT or SIGTERM lets the round finish and saves it. What ends one peer ends the
    simulation: a P2PError, after a last line in every log.
    """
    started = time.time()
    path = past.path if past else folder.choose(out, config)
    torch.set_num_threads(config.threads)
    shared = blueprint(config, *load_data(config))
    check_everybody_begins(config, "a simulation")
    model = check_all(shared)
    clocks = _virtual_clocks(shared)
    check_possible(shared.faults)
    learners, is_batched = _learners(shared, device_of(device), batched, say)
    if past is None:
        folder.create(
            path,
            shared,
            model,
            "simulate",
            started,
            is_virtual=bool(clocks),
            batched=is_batched,
            device=device,
        )
    with ExitStack() as stack:
        stack.enter_context(folder.claimed(path) if past else folder.held(path))
        starts = _starts(past, shared, model, started, say) if past else {}
        logs = [_log(path, peer, started, clocks) for peer in range(config.peers)]
        for log in logs:
            stack.callback(log.close)
        fates = {
            peer: Fate(Agenda(own, event_file(path, peer)), logs[peer].write)
            for peer, own in shared.faults.items()
        }
        digest = shared.digest(model)
        loops = [
            _loop(
                shared,
                learner,
                digest,
                path,
                log,
                started,
                clocks,
                starts.pop(log.peer, None),
                fates.get(log.peer),
            )
            for learner, log in zip(learners, logs, strict=True)
        ]
        codes = _run(shared, loops, fates, logs, clocks, watch(path, started))
    return Outcome(path, dict(enumerate(codes)))


def _starts(
    past: Past, shared: Blueprint, model: nn.Module, started: float, say: Callable[[str], None]
) -> dict[PeerId, Start]:
    rounds = take_up(past, shared, model, started, say)
    return {peer: start_of(past, peer, round_) for peer, round_ in rounds.items()}


def _run(
    shared: Blueprint,
    loops: Sequence[PeerLoop],
    fates: Mapping[PeerId, Fate],
    logs: Sequence[EventLog],
    clocks: Sequence[VirtualClock],
    update: Callable[[], None],
) -> list[int]:
    """Run all loops to their end, calling `update` meanwhile; the end is in every log.

    But not in those of peers that their fate has killed, as on processes.
    """

    def is_gone(peer: PeerId) -> bool:
        return peer in fates and fates[peer].has_died

    hub, told = Hub(lambda tag, sender, receiver: is_gone(receiver)), Event()
    transports = [
        _transport(shared, loop.me, hub, clocks[loop.me] if clocks else None) for loop in loops
    ]

    def between() -> None:
        update()
        if told.is_set():  # between the exchanges, so that all peers end after the same round
            for loop in loops:
                loop.stop()

    runs = [Mortal(loop, fates[loop.me]) if loop.me in fates else loop for loop in loops]
    run = lockstep if shared.pace.waits else free_running
    try:
        with on_stop_signals(told.set):
            codes = run(runs, transports, clocks, between)
    except P2PError as error:
        for loop, log in zip(loops, logs, strict=True):
            if not is_gone(loop.me):
                log.write(Finished(loop.round, error.exit_code, str(error)))
        raise
    for loop, log, code in zip(loops, logs, codes, strict=True):
        if not is_gone(loop.me):
            log.write(Finished(loop.round, code))
    return [-signal.SIGKILL if is_gone(me) else int(code) for me, code in enumerate(codes)]


def _transport(shared: Blueprint, me: PeerId, hub: Hub, clock: VirtualClock | None) -> Transport:
    """The end of a peer in memory, on the network that the run emulates if it does."""
    mailbox = shared.mailbox(sys.maxsize)
    emulation = shared.emulation(me, clock or VirtualClock())
    if emulation is None:
        return MemoryTransport(me, hub, mailbox)

    def refused(sender: PeerId, why: str) -> NoReturn:
        raise AssertionError(f"peer {me} has room for all that peer {sender} sends, yet: {why}")

    return emulation.transport(MemoryTransport(me, hub, emulation.mailbox(mailbox, refused), clock))


def _virtual_clocks(shared: Blueprint) -> Sequence[VirtualClock]:
    """A clock for each peer, or none if all go by the wall.

    Raises ConfigError if a round would take no time.
    """
    stragglers = shared.config.stragglers
    is_timed = shared.network is not None and shared.network.takes_time
    if shared.pace.waits and not stragglers.is_emulated and not is_timed:
        return []
    if not stragglers.round_s and not (shared.pace.waits and is_timed):
        raise ConfigError(
            "stragglers.round_s: missing; a simulation of peers that differ in pace goes by "
            "virtual time, in which computing takes none: expected the seconds of local work per "
            "round, such as 1.0"
        )
    return [VirtualClock() for _ in range(shared.config.peers)]


def _log(path: Path, me: PeerId, started: float, clocks: Sequence[VirtualClock]) -> EventLog:
    now = (lambda: started + clocks[me].now()) if clocks else time.time
    return EventLog(event_file(path, me), me, now)


def _learners(
    shared: Blueprint,
    device: torch.device,
    batched: bool | None,
    say: Callable[[str], None],
) -> tuple[Sequence[_Learner], bool]:
    """A learner for each peer, and whether they are computed as one batch."""
    if batched is not False:
        model = shared.model().to(device)
        obstacle = why_alone(shared, model) if shared.pace.waits else "each has a pace of its own"
        reason = obstacle or (None if batched else drawback(model))
        if reason is None:
            keep_freed_memory()
            say("peers train as one batch: equal to processes to rounding (--lockstep: every bit)")
            return fleet_of(shared, model).members, True
        if batched:
            raise ConfigError(f"--batched: {reason}; leave the option out")
        say(f"peers train one after another: {reason}")
    peers = range(shared.config.peers)
    return [learner_of(shared, shared.model().to(device), me) for me in peers], False


def device_of(name: str) -> torch.device:
    """A device that can be computed on; ConfigError with torch's reason otherwise."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}; expected cpu, cuda or cuda:1, …") from error


def _loop(
    shared: Blueprint,
    learner: _Learner,
    digest: bytes,
    path: Path,
    log: EventLog,
    started: float,
    clocks: Sequence[VirtualClock],
    start: Start | None,
    fate: Fate | None,
) -> PeerLoop:
    """The loop of one peer, whose log gets its first lines. `start`: in a resumed run."""
    me = log.peer
    counts = data.class_counts(shared.dataset, shared.shards[me]) if shared.dataset else []
    parameters = num_elements(learner.params)
    log.write(Started(os.getpid(), 0, "memory", parameters, learner.num_samples, counts))
    if start is not None:
        log.write(start.event)
    log.write(Joined(0.0 if clocks else time.time() - started))
    clock = clocks[me] if clocks else None
    origin = start.checkpoint if start else None
    return loop_of(
        shared,
        fate.learner(learner) if fate else learner,
        me,
        digest,
        path,
        log.write,
        clock=clock,
        start=origin,
        write=fate.write if fate else write_file,
    )
