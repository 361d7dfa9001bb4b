"""All peers in this process, in lock step: `p2p-dml simulate`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from p2p_dml import data
from p2p_dml.assemble import blueprint, check_all, learner_of, load_data, loop_of
from p2p_dml.config import RunConfig
from p2p_dml.events import EventLog, Finished, Joined, Started, event_file
from p2p_dml.launchers import folder
from p2p_dml.launchers.local import Outcome
from p2p_dml.peer import PeerLoop
from p2p_dml.simulate import lockstep
from p2p_dml.tensors import num_elements
from p2p_dml.transports.memory import Hub, MemoryTransport


def simulate(
    config: RunConfig, out: Path | None, watch: Callable[[Path, float], Callable[[], None]]
) -> Outcome:
    """Run all peers in lock step; the same results and run folder as on processes.

    Raises P2PError: what ends one peer ends the simulation.
    """
    started = time.time()
    path = folder.choose(out, config)
    torch.set_num_threads(config.threads)
    shared = blueprint(config, *load_data(config))
    model = check_all(shared)
    folder.create(path, shared, model, "simulate", started)
    digest = shared.digest(model)
    loops: list[PeerLoop] = []
    with ExitStack() as stack:
        logs = [EventLog(event_file(path, peer), peer) for peer in range(config.peers)]
        for me, log in enumerate(logs):
            stack.callback(log.close)
            learner = learner_of(shared, shared.model(), me)
            counts = data.class_counts(shared.dataset, shared.shards[me]) if shared.dataset else []
            parameters = num_elements(learner.params)
            log.write(Started(os.getpid(), 0, "memory", parameters, learner.num_samples, counts))
            log.write(Joined(time.time() - started))
            loops.append(loop_of(shared, learner, me, digest, path, log.write))
        hub = Hub()
        transports = [MemoryTransport(me, hub) for me in range(config.peers)]
        codes = lockstep(loops, transports, watch(path, started))
        for loop, log, code in zip(loops, logs, codes, strict=True):
            log.write(Finished(loop.round, code))
    return Outcome(path, {me: int(code) for me, code in enumerate(codes)})
