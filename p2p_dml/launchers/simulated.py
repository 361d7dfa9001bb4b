"""All peers in this process, in lock step: `p2p-dml simulate`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch

from p2p_dml import data
from p2p_dml.assemble import Blueprint, blueprint, check_all, learner_of, load_data, loop_of
from p2p_dml.config import RunConfig
from p2p_dml.errors import P2PError
from p2p_dml.events import EventLog, Finished, Joined, Started, event_file
from p2p_dml.launchers import folder
from p2p_dml.launchers.local import Outcome
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.peer import PeerLoop
from p2p_dml.simulate import lockstep
from p2p_dml.tensors import num_elements
from p2p_dml.transports.memory import Hub, MemoryTransport


def simulate(
    config: RunConfig, out: Path | None, watch: Callable[[Path, float], Callable[[], None]]
) -> Outcome:
    """Run all peers in lock step; the same results and run folder as on processes.

    The first SIGINT or SIGTERM lets the round finish and saves it. What ends one peer ends the
    simulation: a P2PError, after a last line in every log.
    """
    started = time.time()
    path = folder.choose(out, config)
    torch.set_num_threads(config.threads)
    shared = blueprint(config, *load_data(config))
    model = check_all(shared)
    folder.create(path, shared, model, "simulate", started)
    digest, hub = shared.digest(model), Hub()
    with ExitStack() as stack:
        logs = [EventLog(event_file(path, peer), peer) for peer in range(config.peers)]
        for log in logs:
            stack.callback(log.close)
        loops = [_loop(shared, digest, path, log, started) for log in logs]
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


def _loop(shared: Blueprint, digest: bytes, path: Path, log: EventLog, started: float) -> PeerLoop:
    """The loop of one peer, whose log gets its first lines."""
    me = log.peer
    learner = learner_of(shared, shared.model(), me)
    counts = data.class_counts(shared.dataset, shared.shards[me]) if shared.dataset else []
    parameters = num_elements(learner.params)
    log.write(Started(os.getpid(), 0, "memory", parameters, learner.num_samples, counts))
    log.write(Joined(time.time() - started))
    return loop_of(shared, learner, me, digest, path, log.write)


def _stop(loops: Iterable[PeerLoop]) -> None:
    for loop in loops:
        loop.stop()
