"""One peer in this process: what launchers start, `p2p-dml peer`, and `p2p_dml.Peer`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from torch import nn

from p2p_dml import config as run_files
from p2p_dml.assemble import Blueprint, blueprint, learner_of, load_data
from p2p_dml.checks import check_all, check_needs
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, ExitCode, P2PError
from p2p_dml.launchers import folder
from p2p_dml.launchers.addresses import bind_of, find, places
from p2p_dml.launchers.assignment import Assignment
from p2p_dml.launchers.keyring import keys_of
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.life import AnyLearner, Terms, in_words, run_peer
from p2p_dml.launchers.rendezvous import recall, register
from p2p_dml.launchers.resuming import read, start_of
from p2p_dml.launchers.scratch import shared_by_all, with_shards
from p2p_dml.learners import FunctionLearner
from p2p_dml.peer import LOOKAHEAD
from p2p_dml.plugins import modules_named
from p2p_dml.types import PeerId

LAST_ROUND = "last-round"
"""The file of `LastRound` in the launcher's folder."""


def prepare(task: Assignment, peers: Iterable[PeerId]) -> Blueprint | None:
    """What `peers` of a local run need, with all shards and first graphs, for children to inherit.

    None where modules of the user's take part: they might compute, which is not for a process that
    is forked. None too if it cannot be had: each peer says why.
    """
    try:
        config = _config_of(task)
        if any(not name.startswith("p2p_dml.") for name in modules_named(config.model_dump())):
            return None
        parts = with_shards(shared_by_all(config, Path(task.shared)), Path(task.shared), peers)
    except (P2PError, OSError):
        return None
    if config.train.get("compile"):
        importlib.import_module("torch._dynamo")  # 1.2 s and 75 MB, once for all
    if not config.elastic:  # there graphs go by what a peer hears
        for tick in range(LOOKAHEAD):
            _ = parts.schedule(tick).receivers_of(0)  # a graph drawn whole is kept from now on
    return parts


def _config_of(task: Assignment) -> RunConfig:
    return run_files.load(Path(task.run) / folder.SETTINGS, folder=Path(task.folder))


def run_assignment(task: Assignment, prepared: Blueprint | None = None) -> ExitCode:
    """Run one peer of a local run. An error is left in the shared folder for the launcher too.

    The run folder is no place for it: that its disk is full may be the error.
    """
    shared, run = Path(task.shared), Path(task.run)
    try:
        with folder.held(run), closing(LastRound(shared / LAST_ROUND)) as last:
            parts = prepared or shared_by_all(_config_of(task), shared)
            parts = with_shards(parts, shared, [task.me])
            return _run_assignment(
                task, parts, shared, run, lambda done: last.is_over(task.me, done)
            )
    except Exception as error:
        (shared / f"{task.me}.error").write_text(in_words(error), encoding="utf-8")
        if isinstance(error, P2PError):
            return error.exit_code
        raise


def _run_assignment(
    task: Assignment, parts: Blueprint, shared: Path, run: Path, is_over: Callable[[int], bool]
) -> ExitCode:
    config = parts.config
    is_ipc = config.transport.scheme == "ipc"
    bind = socket_of(shared, task.me) if is_ipc else "tcp://127.0.0.1:*"
    if task.listen is not None:
        bind = task.listen[task.me]
    learner = learner_of(parts, parts.model(), task.me)
    start, earlier_digests = None, frozenset[str]()
    if task.starts is not None:
        past = read(run, (), None)
        earlier_digests = past.digests
        start = None if task.again else start_of(past, task.me, task.starts[task.me])
    meet = recall if task.again else register
    keys = keys_of(config, task.me, task.listen or [bind], shared)
    return run_peer(
        parts,
        learner,
        task.me,
        run,
        bind,
        lambda endpoint: meet(shared / "desk.sock", task.me, endpoint),
        Terms(
            keys=keys,
            start=start,
            is_over=is_over,
            again=task.again,
            earlier_digests=earlier_digests,
        ),
    )


def socket_of(shared: Path, peer: PeerId) -> str:
    """Where a peer of a local run listens, if by a Unix socket."""
    return f"ipc://{shared}/{peer}.sock"


def run_alone(config: RunConfig, me: PeerId, out: Path) -> ExitCode:
    """`p2p-dml peer`: read the data, take the shard of `me`, meet the others at fixed addresses."""
    _check_id(config, me)
    dataset, shards = load_data(config)
    parts = blueprint(config, dataset, shards)
    learner = learner_of(parts, check_all(parts), me)
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

        return run_peer(parts, learner, me, out, bind_of(config, me), introduce, Terms(keys=keys))


def check_transport(config: RunConfig) -> None:
    """Raise ConfigError if the run wants a transport that only ranks of torchrun have."""
    if config.transport.kind in ("torchdist", "hybrid"):
        raise ConfigError(
            f"transport.kind: {config.transport.kind} connects ranks that torchrun starts; use "
            f"`torchrun --nproc-per-node {config.peers} -m p2p_dml FILE.toml`, or set "
            'transport.kind = "auto" or "zeromq"'
        )
