"""What a run needs to make sense, held against what its file says, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from p2p_dml import wire_format
from p2p_dml.assemble import Blueprint, learner_of, links_for, training_of
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.kernels.mixing import is_doubly_stochastic, mixing_matrix
from p2p_dml.peer import LOOKAHEAD
from p2p_dml.types import Need


def check_all(shared: Blueprint) -> nn.Module:
    """Try everything that a peer will build, before any is started; returns a fresh model.

    Raises ConfigError with the path in the run file.
    """
    check_needs(shared)
    model = shared.model()
    check_buffers(shared, model)
    learner_of(shared, model, 0)
    return model


def check_everybody_begins(config: RunConfig, command: str) -> None:
    """Raise ConfigError if some peers may come later, which `command` knows no way for."""
    if config.first_peers < config.peers:
        raise ConfigError(
            f"initial_peers: {command} begins with all {config.peers} peers; leave it out, or use "
            "`p2p-dml run` and `p2p-dml join`, or `p2p-dml peer`"
        )


def check_needs(shared: Blueprint) -> None:
    """Hold the strategy's needs against the mixing rule and the first rounds of the schedule.

    Raises ConfigError naming the need, what was found and what to change.
    """
    config = shared.config
    check_pace(shared)
    check_wire_format(shared)
    check_overlap(shared)
    if config.elastic:
        _check_sizes(config)
    graphs = [shared.schedule(tick) for tick in range(LOOKAHEAD)]
    symmetric = all(graph.is_symmetric for graph in graphs)
    if config.mixing == "metropolis" and not symmetric:
        raise ConfigError(
            f"mixing: metropolis needs symmetric links, and {config.links} has one-way links; "
            "choose other links, or a mixing rule and strategy for directed links"
        )
    found: Mapping[Need, bool] = {
        Need.SYMMETRIC: symmetric,
        Need.DOUBLY_STOCHASTIC: config.mixing == "metropolis"
        or all(is_doubly_stochastic(mixing_matrix(graph, shared.rule)) for graph in graphs),
        Need.COLUMN_STOCHASTIC: config.mixing in ("metropolis", "push_uniform"),
        Need.STATIC: all(graph == graphs[0] for graph in graphs),
        Need.COMPLETE: all(graph.is_complete for graph in graphs),
        Need.SYNCHRONOUS: True,  # else `check_pace` has refused it
        Need.EVERY_MESSAGE: True,
        Need.EXACT: True,  # else `check_wire_format` has refused it
        Need.FIRST_WEIGHTS: True,  # peers that come later keep theirs
        Need.NO_MATRIX_BUFFERS: True,  # else `check_buffers` refuses it
    }
    for need in shared.strategy.needs:
        if not found[need]:
            raise ConfigError(
                f"strategy {config.strategy.get('name')!r} needs {need.value}; links = "
                f"{config.links} with mixing = {config.mixing!r} do not give that; {_FIXES[need]}"
            )


def check_buffers(shared: Blueprint, model: nn.Module) -> None:
    """Hold the strategy against the buffers of `model`; ConfigError saying what to do instead."""
    if Need.NO_MATRIX_BUFFERS not in shared.strategy.needs:
        return
    if shared.dataset is None or training_of(shared.config).buffers == "local":
        return
    for name, buffer in model.named_buffers():
        if buffer.dim() > 1 and buffer.is_floating_point():
            raise ConfigError(
                f"train.buffers: strategy {shared.config.strategy.get('name')!r} masks what peers "
                f"exchange of two or more dimensions, and {name} {list(buffer.shape)} is a buffer "
                'of the model, not a weight; set train.buffers = "local"'
            )


def _check_sizes(config: RunConfig) -> None:
    """Raise ConfigError unless the links do for as many peers as there may come to be."""
    for num_peers in range(2, config.peers + 1):
        try:
            links_for(config, num_peers)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; with elastic = true there may be any number of peers up to "
                f"{config.peers}, and the links must do for each"
            ) from error


_FIXES = {
    Need.SYMMETRIC: "choose undirected links, such as erdos_renyi or ring",
    Need.DOUBLY_STOCHASTIC: 'set mixing = "metropolis" and choose undirected links',
    Need.COLUMN_STOCHASTIC: 'set mixing = "push_uniform"',
    Need.STATIC: "choose links that do not change, such as ring",
    Need.COMPLETE: 'set links = "complete"',
}


def check_wire_format(shared: Blueprint) -> None:
    """Hold the strategy against coded messages; ConfigError saying what to do instead."""
    wanted = shared.config.wire_format
    if wanted != "as_is" and Need.EXACT in shared.strategy.needs:
        name = str(shared.config.strategy.get("name"))
        raise ConfigError(
            f"wire_format: {wanted!r} cannot be used, because {wire_format.obstacle(name)}; set "
            'wire_format = "as_is", or choose another strategy, such as dpsgd or hyperprism'
        )


def check_overlap(shared: Blueprint) -> None:
    """Hold the run against messages that are mixed a round later; ConfigError with what to do."""
    config, strategy = shared.config, shared.strategy
    if not config.overlap:
        return
    against = strategy.needs & _NEVER_LATER.keys()
    if not shared.pace.waits:
        raise ConfigError(
            "overlap: asynchronous rounds wait for nobody, so that there is nothing to overlap; "
            'leave it out, or set pace = "synchronous"'
        )
    if strategy.exchanges != 1 or against:
        why = (
            f"it has {strategy.exchanges} exchanges in a round"
            if strategy.exchanges != 1
            else min(_NEVER_LATER[need] for need in against)
        )
        raise ConfigError(
            f"overlap: strategy {config.strategy.get('name')!r} cannot mix messages a round after "
            f"they were sent, because {why}; leave it out, or choose another strategy, such as "
            "dpsgd or hyperprism"
        )
    if config.transport.queue_messages < 2:
        raise ConfigError(
            "transport.queue_messages: expected at least 2 with overlap = true, as messages of two "
            f"rounds are under way; found {config.transport.queue_messages}"
        )


_NEVER_LATER = {
    Need.SYNCHRONOUS: "both ends of a link must mix in the same round",
    Need.EVERY_MESSAGE: "what is under way counts in its sums",
    Need.EXACT: "its messages are codes of their own, read by what was sent in the same round",
}
"""Why a strategy with such a need has no use for a message of the round before."""


def check_pace(shared: Blueprint) -> None:
    """Hold the strategy against asynchronous rounds; ConfigError saying what to do instead."""
    if shared.pace.waits:
        return
    name, advice = shared.config.strategy.get("name"), 'set pace = "synchronous"'
    if Need.SYNCHRONOUS in shared.strategy.needs:
        raise ConfigError(
            f"strategy {name!r} needs {Need.SYNCHRONOUS.value}, and pace is asynchronous; "
            f"{advice}, or choose another strategy, such as dpsgd, hyperprism or sgp"
        )
    if shared.strategy.exchanges > 1:
        raise ConfigError(
            f"strategy {name!r} has {shared.strategy.exchanges} exchanges in a round, each built "
            f"on the one before; asynchronous rounds have one; {advice} or exchanges = 1"
        )
