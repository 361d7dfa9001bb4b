"""A program for torchrun: runs of several run files, one after another, in one gloo group.

python gloo_runs.py CASES.json FOLDER HOSTS, where CASES.json holds run file tables by name; each
run leaves events and checkpoints below FOLDER / name, as `p2p-dml run` does. With two HOSTS each
half of the ranks has a group of its own, and ZeroMQ between them.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from p2p_dml import config
from p2p_dml.assemble import blueprint, learner_of, load_data, loop_of
from p2p_dml.drive import drive
from p2p_dml.events import EventLog, Finished, event_file
from p2p_dml.transports.hybrid import HybridTransport
from p2p_dml.transports.torchdist import Group, TorchDistTransport
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Transport

DEADLINE_S = 240.0
CPU = torch.device("cpu")


def run(tables: dict[str, Any], folder: Path, me: int, here: range) -> None:
    """This rank's peer of one run; `here`: the peers of its group."""
    settings = config.parse(tables, Path())
    parts = blueprint(settings, *load_data(settings))
    model = parts.model()
    learner = learner_of(parts, model, me)
    digest = parts.digest(model)
    group = Group(CPU, here[0])
    near = TorchDistTransport(group, digest, home=CPU, debug=settings.transport.debug)
    near.open(DEADLINE_S)
    with closing(EventLog(event_file(folder, me), me)) as log:
        loop = loop_of(parts, learner, me, digest, folder, log.write)
        transport: Transport = near
        if len(here) < settings.peers:
            book = {peer: f"ipc://{folder}/{peer}" for peer in range(settings.peers)}
            far = ZeroMQTransport(me, book[me], digest, me, Limits(), log.write)
            far.open(book, loop.neighbours(1) - {*here})
            transport = HybridTransport(near, far, here)
        code = drive(loop, transport, DEADLINE_S)
        log.write(Finished(loop.round, code))
        transport.close()


def main(cases: Path, folder: Path, num_hosts: int) -> None:
    torch.set_num_threads(1)
    store, me, num_ranks = next(rendezvous("env://"))
    host, local = divmod(me, num_ranks // num_hosts)
    here = range(me - local, me - local + num_ranks // num_hosts)
    own = PrefixStore(f"host {host}", store)
    dist.init_process_group("gloo", store=own, rank=local, world_size=len(here))
    for name, tables in json.loads(cases.read_text(encoding="utf-8")).items():
        run(tables, folder / name, me, here)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
