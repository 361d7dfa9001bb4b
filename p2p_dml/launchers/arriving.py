"""What a rank of torchrun does before the first round: data, agreement with all others, folder."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from p2p_dml.assemble import (
    Blueprint,
    blueprint,
    learner_of,
    load_data,
    training_of,
)
from p2p_dml.checks import check_buffers, check_everybody_begins, check_needs
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.keys import Keys, new_pair
from p2p_dml.launchers import folder, resuming
from p2p_dml.launchers.group import Seat
from p2p_dml.launchers.keyring import is_encrypted
from p2p_dml.launchers.life import AnyLearner
from p2p_dml.launchers.meeting import Meeting
from p2p_dml.launchers.ranks import Choice, Ranks, Role, choose
from p2p_dml.launchers.resuming import Past, Start
from p2p_dml.launchers.scratch import laid_out, lay_out
from p2p_dml.launchers.stopping import Stopping
from p2p_dml.launchers.teams import Backend, Teams, form
from p2p_dml.launchers.temporary import temporary_folder
from p2p_dml.learners.parallel import ParallelLearner, follow
from p2p_dml.types import PeerId

_PROGRAM = "torchrun -m p2p_dml"

_POLL_S = 0.05

_PATIENCE_S = 3600.0
"""How long a leader may be busy with other peers between two orders to its followers."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for: a run in folder `out` (None: a new one), or to go on with `past`."""

    config: RunConfig
    out: Path | None = None
    past: Past | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What every rank has before the run folder is made; `teams` if several train a peer."""

    parts: Blueprint
    choice: Choice
    device: torch.device
    model: nn.Module
    teams: Teams | None


@final
class Arrival:
    """One rank before the first round.

    `ranks` and `peers` are the meetings of all, which may be the same. The run folder is held,
    against a second run in it, in `holding`.
    """

    def __init__(
        self,
        place: Ranks,
        role: Role,
        ranks: Meeting,
        peers: Meeting,
        stopping: Stopping,
        holding: ExitStack,
    ) -> None:
        self._place = place
        self._role = role
        self._ranks = ranks
        self._peers = peers
        self._stopping = stopping
        self._holding = holding
        self.started = time.time()

    def prepare(self, config: RunConfig) -> Prepared:
        """Build everything that a rank needs, and see that all ranks have built the same."""
        parts = self._parts(config)
        check_everybody_begins(config, "torchrun")
        check_needs(parts)
        num_gpus = torch.cuda.device_count()
        choice = choose(config.transport, self._place, num_gpus, _obstacle(parts))
        index = self._place.local_rank % num_gpus if num_gpus else 0
        device = torch.device("cuda", index) if num_gpus else torch.device("cpu")
        model = parts.model().to(device)
        check_buffers(parts, model)
        self._compare(choice, parts.digest(model).hex(), config)
        teams = self._teams(choice, device, config) if self._role.each > 1 else None
        return Prepared(parts=parts, choice=choice, device=device, model=model, teams=teams)

    def take_seat(self, prepared: Prepared, wish: Wish, say: Callable[[str], None]) -> Seat:
        """Have the run folder made; what the rank that is peer `role.me` to others runs with."""
        parts, model, choice = prepared.parts, prepared.model, prepared.choice
        learner = _learner(prepared, self._role.me)
        if wish.past is None:
            path, start = self._new_folder(parts, model, wish.out), None
        else:
            path, start = wish.past.path, self._resume(wish.past, parts, model, say)
        startup_s = wish.config.transport.startup_s
        bind = f"tcp://{self._own_host()}:*"
        return Seat(
            parts=parts,
            learner=learner,
            me=self._role.me,
            choice=choice,
            group=self._role.here if choice.transport == "hybrid" else range(wish.config.peers),
            leaders=prepared.teams.leaders if prepared.teams else None,
            bind=bind,
            introduce=lambda endpoint: self._introduce(endpoint, startup_s),
            keys=self._keys(wish.config, bind) if choice.transport != "torchdist" else None,
            device=prepared.device,
            run=path,
            start=start,
        )

    def _teams(self, choice: Choice, device: torch.device, config: RunConfig) -> Teams:
        """Connect the ranks of each peer, where several train it."""
        backend: Backend = choice.backend or "gloo"
        if choice.backend is None and self._place.local_size <= torch.cuda.device_count():
            backend = "nccl"
        is_one_group = choice.transport == "torchdist"
        world = range(self._place.size) if is_one_group else self._place.here
        timeout_s = config.transport.straggler_s
        return form(backend, device, self._ranks.store, world, self._place, self._role, timeout_s)

    def _parts(self, config: RunConfig) -> Blueprint:
        """What all peers share. One rank of a host reads and deals the data, the others map it."""
        topic, check = f"data of host {self._place.node}", self._stopping.check
        timeout_s, ranks = config.transport.startup_s, self._place.here
        if len(ranks) == 1 or "function" in config.train:
            return blueprint(config, *load_data(config))
        if self._place.local_rank:
            place = self._ranks.listen(topic, ranks[0], timeout_s, check)
            parts = laid_out(config, Path(place), self._role.me)
            self._ranks.tell(f"{topic} mapped", "")
            return parts
        with temporary_folder() as path:
            dataset, shards = load_data(config)
            lay_out(dataset, {peer: shards[peer] for peer in self._role.here}, path)
            self._ranks.tell(topic, str(path))
            parts = laid_out(config, path, self._role.me)
            self._ranks.tell(f"{topic} mapped", "")
            self._ranks.gather(f"{topic} mapped", timeout_s, check, ranks)
        return parts

    def _compare(self, choice: Choice, digest: str, config: RunConfig) -> None:
        """Wait for all ranks; StartupError if they are of different runs or would not meet."""
        name = "hybrid" if choice.transport == "hybrid" else choice.name  # hosts may differ in GPUs
        way = f"{name}{', debug' * config.transport.debug}"
        noun = self._ranks.noun
        self._ranks.tell("here", f"{digest} {way}")
        found = self._ranks.gather("here", config.transport.startup_s, self._stopping.check)
        digests, ways = zip(*(found[each].split(" ", 1) for each in sorted(found)), strict=True)
        if foreign := [each for each, other in enumerate(digests) if other != digests[0]]:
            raise StartupError(
                f"{noun}s {foreign} are of another run than {noun} 0 (digests "
                f"{digests[foreign[0]][:12]} and {digests[0][:12]}): run file, overrides and "
                "p2p_dml version must be the same on all hosts"
            )
        if others := [each for each, other in enumerate(ways) if other != ways[0]]:
            raise StartupError(
                f"{noun} 0 would use {ways[0]} and {noun} {others[0]} {ways[others[0]]}: GPUs, "
                "ranks per host and [transport] must lead to the same on all hosts; set "
                "transport.kind and transport.backend"
            )

    # ---- the run folder -------------------------------------------------------------------

    def _new_folder(self, parts: Blueprint, model: nn.Module, out: Path | None) -> Path:
        """The folder that rank 0 has made; a host that does not see it gets one of its own.

        Raises ConfigError if that of another run is in the way.
        """

        def create(path: Path) -> None:
            folder.create(path, parts, model, "torchrun", self.started, program=_PROGRAM)

        if self._role.me == 0:
            path = folder.choose(out, parts.config)
            create(path)
            self._tell_folder(path)
        else:
            path = self._hear_folder(parts.config)
            if self._place.local_rank == 0:
                if not (path / folder.FACTS).exists():
                    create(path)
                elif _facts(path)["started"] != self.started:
                    raise ConfigError(
                        f"--out {path}: on the host of peer {self._role.me} this folder holds "
                        "another run; choose another or remove it"
                    )
        self._holding.enter_context(folder.held(path))
        return path

    def _resume(
        self, past: Past, parts: Blueprint, model: nn.Module, say: Callable[[str], None]
    ) -> Start:
        """Agree where to go on, and take it down in the folder, or in that of each host."""
        is_first = self._role.me == 0
        if is_first:
            self._holding.enter_context(folder.claimed(past.path))
        resuming.check_unchanged(past, parts, model)
        rounds = self._agree_on_rounds(past, parts, say)
        start = resuming.start_of(past, self._role.me, rounds[self._role.me])
        if not is_first:
            self._hear_folder(parts.config)
        is_own = self._place.local_rank == 0 and not self._is_taken_up(past)
        if is_own and not is_first:
            self._holding.enter_context(folder.claimed(past.path))
        if is_own:
            resuming.go_on(past, parts, model, rounds, self.started, _PROGRAM)
        if is_first:
            self._tell_folder(past.path)
            say(f"resumed after round {min(rounds.values())} of {parts.config.rounds}")
        elif not is_own:  # not before it was claimed, perhaps by the first rank of this host
            while not self._is_taken_up(past):
                self._stopping.check()
                time.sleep(_POLL_S)
            self._holding.enter_context(folder.held(past.path))
        return start

    def _is_taken_up(self, past: Past) -> bool:
        """Whether the folder that this host sees says that the run goes on."""
        resumed = _facts(past.path).get("resumed", [])
        return bool(resumed) and resumed[-1]["at"] == self.started

    def _agree_on_rounds(
        self, past: Past, parts: Blueprint, say: Callable[[str], None]
    ) -> dict[PeerId, int]:
        """The round that each peer goes on after; its checkpoints may be on its own host only."""
        waits = parts.pace.waits
        own = list(resuming.usable_rounds(past, self._role.me, waits, say))
        self._peers.tell("rounds", json.dumps(own))
        startup_s = parts.config.transport.startup_s
        told = self._peers.gather("rounds", startup_s, self._stopping.check)
        found = {peer: json.loads(text) for peer, text in told.items()}
        return resuming.starts_among(past, found, waits)

    def _tell_folder(self, path: Path) -> None:
        self._peers.tell("folder", json.dumps([str(path), self.started]))

    def _hear_folder(self, config: RunConfig) -> Path:
        """The folder of rank 0, which also says when the run began."""
        check, timeout_s = self._stopping.check, config.transport.startup_s
        name, self.started = json.loads(self._peers.listen("folder", 0, timeout_s, check))
        return Path(name)

    # ---- addresses of ZeroMQ --------------------------------------------------------------

    def _own_host(self) -> str:
        """The address by which ranks of other hosts reach this one."""
        if self._place.is_one_host:
            return "127.0.0.1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(self._place.master)  # sends nothing: only asks for the route
            host: str = probe.getsockname()[0]
        return host

    def _keys(self, config: RunConfig, bind: str) -> Keys | None:
        """Keys for this run alone, if it is encrypted; torchrun's store is trusted to say whose."""
        if not is_encrypted(config, [bind]):
            return None
        own = new_pair()
        self._peers.tell("key", own.public)
        told = self._peers.gather("key", config.transport.startup_s, self._stopping.check)
        return Keys(public=told, own=own)

    def _introduce(self, endpoint: str, timeout_s: float) -> Mapping[PeerId, str]:
        self._peers.tell("address", endpoint)
        return self._peers.gather("address", timeout_s, self._stopping.check)


def follow_leader(prepared: Prepared, me: PeerId) -> None:
    """What a rank does that does not lead: help to train its peer until the leader is done.

    Raises TransportError if the leader, or another rank of the peer, is lost.
    """
    parts, teams, config = prepared.parts, prepared.teams, prepared.parts.config
    assert teams is not None and parts.dataset is not None
    follow(
        prepared.model,
        parts.dataset,
        parts.shards[me],
        training_of(config),
        teams.own,
        seed=config.seed,
        evaluate_on=config.evaluate_on,
        patience_s=_PATIENCE_S,
    )


def _learner(prepared: Prepared, me: PeerId) -> AnyLearner:
    """The learner of peer `me`, alone or with the ranks that help it."""
    parts, config = prepared.parts, prepared.parts.config
    if prepared.teams is None:
        return learner_of(parts, prepared.model, me)
    assert parts.dataset is not None  # else every peer has one rank
    return ParallelLearner(
        prepared.model,
        parts.dataset,
        parts.shards[me],
        training_of(config),
        prepared.teams.own,
        seed=config.seed,
        evaluate_on=config.evaluate_on,
    )


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((path / folder.FACTS).read_text(encoding="utf-8"))
    return facts


def _obstacle(parts: Blueprint) -> str | None:
    """Why a group whose peers end together cannot run this, if it cannot."""
    if not parts.pace.waits:
        return "rounds are asynchronous"
    if parts.config.overlap:
        return "with overlap messages travel while ranks compute"
    if parts.network is not None:
        return "messages can be lost or late on the [network] that is emulated"
    if parts.faults:
        return "[[faults]] befall single peers"
    if parts.config.duration_s is not None:
        return "duration_s ends each peer after a round of its own"
    return None
