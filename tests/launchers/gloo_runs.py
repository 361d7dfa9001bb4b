"""A program for torchrun: runs of several run files, one after another, in one gloo group.

python gloo_runs.py CASES.json FOLDER, where CASES.json holds run file tables by name; each run
leaves events and checkpoints below FOLDER / name, as `p2p-dml run` does.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from p2p_dml import config
from p2p_dml.assemble import blueprint, learner_of, load_data, loop_of
from p2p_dml.drive import drive
from p2p_dml.events import EventLog, Finished, event_file
from p2p_dml.transports.torchdist import Group, TorchDistTransport

DEADLINE_S = 60.0
CPU = torch.device("cpu")


def run(tables: dict[str, Any], folder: Path, me: int) -> None:
    """This rank's peer of one run."""
    settings = config.parse(tables, Path())
    parts = blueprint(settings, *load_data(settings))
    model = parts.model()
    learner = learner_of(parts, model, me)
    digest = parts.digest(model)
    transport = TorchDistTransport(Group(CPU), digest, home=CPU, debug=settings.transport.debug)
    with closing(EventLog(event_file(folder, me), me)) as log:
        loop = loop_of(parts, learner, me, digest, folder, log.write)
        transport.open(DEADLINE_S)
        code = drive(loop, transport, DEADLINE_S)
        log.write(Finished(loop.round, code))
    transport.close()


def main(cases: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, tables in json.loads(cases.read_text(encoding="utf-8")).items():
        run(tables, folder / name, int(os.environ["RANK"]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
