"""All peers in this process, as one batch or one after another: `p2p-dml simulate`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch

from p2p_dml import data
from p2p_dml.assemble import (
    Blueprint,
    blueprint,
    check_all,
    fleet_of,
    learner_of,
    load_data,
    loop_of,
    why_alone,
)
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, P2PError
from p2p_dml.events import EventLog, Finished, Joined, Started, event_file
from p2p_dml.launchers import folder
from p2p_dml.launchers.local import Outcome
from p2p_dml.launchers.process import keep_freed_memory, on_stop_signals
from p2p_dml.learners import drawback
from p2p_dml.peer import LocalLearner, PeerLoop
from p2p_dml.simulate import lockstep
from p2p_dml.tensors import num_elements
from p2p_dml.transports.memory import Hub, MemoryTransport


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
) -> Outcome:
    """Run all peers in lock step; the same results and run folder as on processes.

    `batched`: train all peers as one computation, several times faster, equal to processes to
    rounding; False: one after another, equal bit for bit; None: batched where that can be and
    is faster. `say` is told which in one line. Raises ConfigError if True cannot be had.

    The first SIGINT or SIGTERM lets the round finish and saves it. What ends one peer ends the
    simulation: a P2PError, after a last line in every log.
    """
    started = time.time()
    path = folder.choose(out, config)
    torch.set_num_threads(config.threads)
    shared = blueprint(config, *load_data(config))
    model = check_all(shared)
    learners = _learners(shared, _device(device), batched, say)
    folder.create(path, shared, model, "simulate", started)
    digest, hub = shared.digest(model), Hub()
    with ExitStack() as stack:
        logs = [EventLog(event_file(path, peer), peer) for peer in range(config.peers)]
        for log in logs:
            stack.callback(log.close)
        loops = [
            _loop(shared, learner, digest, path, log, started)
            for learner, log in zip(learners, logs, strict=True)
        ]
        transports = [MemoryTransport(loop.me, hub) for loop in loops]
        try:
            with on_stop_signals(lambda: _stop(loops)):
                codes = lockstep(loops, transports, watch(path, started))
        except P2PError as error:
            for loop, log in zip(loops, logs, strict=True):
                log.write(Finished(loop.round, error.exit_code, str(error)))
            raise
        for loop, log, code in zip(loops, logs, codes, strict=True):
            log.write(Finished(loop.round, code))
    return Outcome(path, {me: int(code) for me, code in enumerate(codes)})


def _learners(
    shared: Blueprint,
    device: torch.device,
    batched: bool | None,
    say: Callable[[str], None],
) -> Sequence[_Learner]:
    if batched is not False:
        model = shared.model().to(device)
        obstacle = why_alone(shared, model)
        reason = obstacle or (None if batched else drawback(model))
        if reason is None:
            keep_freed_memory()
            say("peers train as one batch: equal to processes to rounding (--lockstep: every bit)")
            return fleet_of(shared, model).members
        if batched:
            raise ConfigError(f"--batched: {reason}; leave the option out")
        say(f"peers train one after another: {reason}")
    peers = range(shared.config.peers)
    return [learner_of(shared, shared.model().to(device), me) for me in peers]


def _device(name: str) -> torch.device:
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
) -> PeerLoop:
    """The loop of one peer, whose log gets its first lines."""
    me = log.peer
    counts = data.class_counts(shared.dataset, shared.shards[me]) if shared.dataset else []
    parameters = num_elements(learner.params)
    log.write(Started(os.getpid(), 0, "memory", parameters, learner.num_samples, counts))
    log.write(Joined(time.time() - started))
    return loop_of(shared, learner, me, digest, path, log.write)


def _stop(loops: Iterable[PeerLoop]) -> None:
    for loop in loops:
        loop.stop()
