"""The composition root, where names of a run file meet classes; nowhere else do they."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from p2p_dml import __version__, data, faults, links, plugins, tables, wire
from p2p_dml.checkpoint import Checkpoint, Write, save, write_file
from p2p_dml.config import RunConfig, Table
from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.events import Event
from p2p_dml.faults import Fault
from p2p_dml.kernels.mixing import RULES
from p2p_dml.learners import (
    Fleet,
    FunctionLearner,
    SupervisedLearner,
    Training,
    obstacle,
    own_counts,
)
from p2p_dml.links.elastic import Elastic, Members
from p2p_dml.mailbox import EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.models import build_model, redraw
from p2p_dml.network import Conditions, Network
from p2p_dml.pace import PACES, Asynchronous, Clock, Pace, Slowness, draw_stragglers
from p2p_dml.peer import Keep, LocalLearner, PeerLoop, Plan
from p2p_dml.states import leaves, outline
from p2p_dml.strategies import STRATEGIES
from p2p_dml.transports.shaped import Emulation
from p2p_dml.types import (
    AnyStrategy,
    LinkSchedule,
    Mailbox,
    MixingRule,
    Need,
    PeerId,
    Tensors,
)
from p2p_dml.wire_format import Coder

Shards = Mapping[PeerId, NDArray[Any]]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CONDITIONS = {field.name for field in fields(Conditions)}
_PARTS = ("needs", "exchanges", "init", "round", "report")  # of a strategy


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What all peers of a run share. `dataset` is None where the training is the user's own."""

    config: RunConfig
    schedule: LinkSchedule
    rule: MixingRule
    strategy: AnyStrategy
    pace: Pace
    network: Network | None
    dataset: Dataset | None
    shards: Shards
    faults: Mapping[PeerId, Sequence[Fault]]

    @property
    def stragglers(self) -> frozenset[PeerId]:
        """Who is slow."""
        config = self.config
        return draw_stragglers(config.peers, config.stragglers.share, config.seed)

    def slowness(self, me: PeerId) -> Slowness:
        """How slow peer `me` is."""
        stragglers = self.config.stragglers
        factor = stragglers.factor if me in self.stragglers else 1.0
        return Slowness(factor=factor, round_s=stragglers.round_s)

    def mailbox(self, ahead: int) -> Mailbox:
        """A mailbox for one peer; `ahead`: messages kept of a sender whose turn is yet to come."""
        if not isinstance(self.pace, Asynchronous):
            # With overlap who is heard may be two rounds further when its turn comes.
            return TaggedMailbox(ahead + 2 * self.config.overlap)
        if Need.EVERY_MESSAGE in self.strategy.needs:
            return EveryMailbox(ahead)
        return NewestMailbox(self.pace.max_age)

    def emulation(self, me: PeerId, clock: Clock) -> Emulation | None:
        """The end of peer `me` on the network that the run emulates; None if it emulates none."""
        if self.network is None:
            return None
        every = Need.EVERY_MESSAGE in self.strategy.needs
        return Emulation(me, self.network, clock, waits=self.pace.waits, every=every)

    def model(self) -> nn.Module:
        """A fresh model with the initial weights that all peers share."""
        return model_of(self.config, self.dataset)

    def digest(self, model: nn.Module) -> bytes:
        """What peers compare before they talk: configuration, format, layout, first graphs."""
        layout = [(name, str(x.dtype), list(x.shape)) for name, x in model.state_dict().items()]
        graphs = [self.schedule(tick).sample() for tick in range(3)]
        facts = [self.config.canonical(), wire.VERSION, __version__, layout, graphs]
        text = json.dumps(facts).encode()
        return hashlib.blake2b(text, digest_size=wire.DIGEST_BYTES).digest()


def blueprint(
    config: RunConfig, dataset: Dataset | None = None, shards: Shards | None = None
) -> Blueprint:
    """Put together what all peers share; ConfigError with the path in the run file."""
    plugins.look_in(config.folder)
    check_evaluation(config, dataset, shards or {})
    rule = tables.choose(RULES, config.mixing, "mixing")
    strategy, pace = strategy_of(config), pace_of(config)
    schedule = schedule_of(config)
    network = network_of(config, strategy.exchanges)
    plan = faults.plan(config, schedule(0)) if config.faults else {}
    return Blueprint(config, schedule, rule, strategy, pace, network, dataset, shards or {}, plan)


def load_data(config: RunConfig) -> tuple[Dataset | None, Shards]:
    """Read and deal the data; (None, {}) if the user's train function brings its own.

    Raises ConfigError if the set is missing or damaged, or cannot be dealt as asked.
    """
    plugins.look_in(config.folder)
    if "function" in config.train:
        return None, {}
    dataset = data.load(config.data)
    return dataset, dict(
        enumerate(data.partition(config.partition, dataset, config.peers, config.seed))
    )


def schedule_of(config: RunConfig) -> LinkSchedule:
    """The link schedule of a run.

    Where peers come and go it is one that changes with what this process hears of them.
    """

    if not config.elastic:
        return links_for(config, config.peers)
    members = Members(config.first_peers, config.peers)
    return Elastic(members, functools.partial(links_for, config), strategy_of(config).exchanges)


def links_for(config: RunConfig, num_peers: int) -> LinkSchedule:
    """The schedule that the run file describes, of so many peers."""
    return links.build(config.links, num_peers, config.seed, config.folder)


def network_of(config: RunConfig, exchanges: int) -> Network | None:
    """The network that a run emulates, with `exchanges` per round; None if none."""
    table, uplinks = config.network, _uplinks(config)
    if not table.is_emulated and not uplinks:
        return None
    up = None
    if table.up is not None:
        up = links.build(table.up, config.peers, config.seed, config.folder, "network.up")
    usual = Conditions(**table.model_dump(include=_CONDITIONS))
    special: dict[tuple[PeerId, PeerId], Conditions] = {}
    for place, entry in enumerate(table.between):
        conditions = replace(usual, **entry.model_dump(include=_CONDITIONS, exclude_none=True))
        for a, b in entry.peers:
            _check_peers(config, (a, b), f"network.between[{place}].peers")
            special |= {(a, b): conditions, (b, a): conditions}
    return Network(
        seed=config.seed,
        exchanges=exchanges,
        usual=usual,
        special=special,
        up=up,
        uplinks_mbps=uplinks,
    )


def _uplinks(config: RunConfig) -> dict[PeerId, float]:
    """Megabits per second that leave a peer, of those that are limited."""
    limits: dict[PeerId, float] = {}
    for place, device in enumerate(config.devices):
        _check_peers(config, device.peers, f"devices[{place}].peers")
        if device.bandwidth_mbps is not None:
            limits |= dict.fromkeys(device.peers, device.bandwidth_mbps)
    return limits


def _check_peers(config: RunConfig, peers: Iterable[PeerId], where: str) -> None:
    """Raise ConfigError if one of `peers` is not of this run."""
    for peer in peers:
        if not 0 <= peer < config.peers:
            raise ConfigError(f"{where}: expected peers 0 to {config.peers - 1}, found {peer}")


def strategy_of(config: RunConfig) -> AnyStrategy:
    """The strategy of a run."""
    name, rest = plugins.take_name(config.strategy, "strategy")
    if not plugins.is_object_path(name):
        chosen: Callable[..., AnyStrategy] = tables.choose(STRATEGIES, name, "strategy.name")
        return tables.build(chosen, rest, "strategy")
    strategy: Any = plugins.call(name, rest, "strategy")
    if isinstance(strategy, type) or any(getattr(strategy, x, None) is None for x in _PARTS):
        what = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
        raise ConfigError(
            f"strategy: {name!r} must return a strategy, with {', '.join(_PARTS[:-1])} and "
            f"{_PARTS[-1]}; found {what!r}"
        )
    return strategy  # type: ignore[no-any-return]


def pace_of(config: RunConfig) -> Pace:
    """The pace of a run."""
    name, rest = plugins.take_name(config.pace, "pace")
    chosen: Callable[..., Pace] = tables.choose(PACES, name, "pace.name")
    return tables.build(chosen, rest, "pace")


def model_of(config: RunConfig, dataset: Dataset | None) -> nn.Module:
    """The model with the initial weights that all peers share."""
    dtype = DTYPES[config.dtype]
    if dataset is not None:
        return build_model(
            config.model,
            dataset.shape,
            dataset.num_classes,
            config.seed,
            dtype,
            is_tokens=dataset.is_tokens,
        )
    name, rest = plugins.take_name(config.model, "model")
    init = rest.pop("init", None)
    if not plugins.is_object_path(name):
        raise ConfigError(
            f"model.name: with [train] function the model is yours too: expected "
            f'"package.module:factory", found {name!r}'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = plugins.call(name, rest, "model")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model: {name!r} must return a torch.nn.Module, found {module!r}")
    redraw(module.to(dtype), init, config.seed)
    return module


def training_of(config: RunConfig) -> Training:
    """How the peers of a run train, where that is not a function of the user's."""
    return tables.build(Training, config.train, "train")


def learner_of(
    shared: Blueprint, model: nn.Module, me: PeerId
) -> SupervisedLearner | FunctionLearner:
    """The learner of peer `me` around `model`."""
    config = shared.config
    if shared.dataset is None:
        return own_learner(config.train, model, config, me)
    training = training_of(config)
    return SupervisedLearner(
        model,
        shared.dataset,
        shared.shards[me],
        training,
        seed=config.seed,
        peer=me,
        evaluate_on=config.evaluate_on,
    )


def why_alone(shared: Blueprint, model: nn.Module) -> str | None:
    """Why the peers of this run cannot be trained as one batch; None if they can."""
    if shared.dataset is None:
        return "the training is a function of your own"
    dtype = torch.int64 if shared.dataset.is_tokens else DTYPES[shared.config.dtype]
    device = next(model.parameters()).device
    return obstacle(model, torch.zeros((1, *shared.dataset.shape), dtype=dtype, device=device))


def fleet_of(shared: Blueprint, model: nn.Module) -> Fleet:
    """All peers' learners as one computation; `why_alone` must have found nothing against it."""
    config, dataset = shared.config, shared.dataset
    assert dataset is not None
    training = training_of(config)
    shards = [shared.shards[peer] for peer in range(config.peers)]
    return Fleet(model, dataset, shards, training, seed=config.seed, evaluate_on=config.evaluate_on)


def own_learner(table: Table, model: nn.Module, config: RunConfig, me: PeerId) -> FunctionLearner:
    """A learner around the functions a `[train]` table names."""
    known = ("function", "evaluate")
    for key in table:
        if key not in known:
            raise ConfigError(
                f"train.{key}: unknown key beside function; valid: {', '.join(known)}"
            )
    functions = [
        plugins.load_function(str(table[key]), f"train.{key}") if key in table else None
        for key in known
    ]
    train, evaluate = (f and _with_peer(f, me, config.peers) for f in functions)
    assert train is not None
    return FunctionLearner(model, train, evaluate, peer=me)


def _with_peer(function: Callable[..., object], me: PeerId, peers: int) -> Callable[..., object]:
    """Hand a user's function its `peer` and `peers` if it names such parameters."""
    names = inspect.signature(function).parameters
    given = {key: value for key, value in (("peer", me), ("peers", peers)) if key in names}
    return functools.partial(function, **given) if given else function


def loop_of(
    shared: Blueprint,
    learner: LocalLearner,
    me: PeerId,
    digest: bytes,
    run: Path,
    on_event: Callable[[Event], None],
    memory: Callable[[], tuple[float, float] | None] | None = None,
    clock: Clock | None = None,
    keep: Keep | None = None,
    start: Checkpoint | None = None,
    write: Write = write_file,
) -> PeerLoop:
    """The rounds of peer `me`, with checkpoints going to the run folder; `clock`: None = wall.

    `start`: the checkpoint to go on from. `write` writes the files of checkpoints.
    """
    config, strategy = shared.config, shared.strategy

    def save_state(round_: int, model: Tensors, state: object) -> str:
        return save(run, checkpoint_of(me, round_, digest, model, state), write)

    plan = Plan(
        rounds=config.rounds,
        seed=config.private_seed(me, "strategy"),
        duration_s=config.duration_s,
        slowness=shared.slowness(me),
        waits=shared.pace.waits,
        overlap=config.overlap,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        min_neighbours=config.min_neighbours,
        max_isolated_rounds=config.max_isolated_rounds,
    )
    walk = links.Walk(shared.schedule, shared.rule, me, config.seed, strategy.exchanges)
    return PeerLoop(
        me,
        strategy,
        learner,
        walk,
        plan,
        on_event=on_event,
        save=save_state,
        start=start,
        keep=keep,
        memory=memory,
        clock=clock,
        coder=coder_of(config, me),
    )


def coder_of(config: RunConfig, me: PeerId) -> Coder | None:
    """What codes the messages of peer `me`; None where they travel as they are."""
    if config.wire_format == "as_is":
        return None
    return Coder(me, str(config.strategy.get("name")), config.wire_format)


def checkpoint_of(
    me: PeerId, round_: int, digest: bytes, model: Tensors, state: object
) -> Checkpoint:
    """What is saved of peer `me`: the learner's state and the strategy's, not copied."""
    tensors = model | leaves(state, "strategy")
    return Checkpoint(me, round_, digest.hex(), __version__, tensors, outline(state, "strategy"))


def check_evaluation(config: RunConfig, dataset: Dataset | None, shards: Shards) -> None:
    """Whether the peers can be tested as `evaluate_on` says; ConfigError if they cannot."""
    if config.evaluate_on == "all":
        return
    if dataset is None:
        raise ConfigError(
            'evaluate_on: "own" is for data sets of [data]; a training function of your own comes '
            'with test data of your own; expected "all"'
        )
    for rows in shards.values():
        own_counts(dataset, rows)
