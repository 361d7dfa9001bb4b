"""Where the peers of a run are: as its file says, or as its directory has heard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from p2p_dml.addresses import is_here
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.keys import Keys
from p2p_dml.transports.directory import ask, reachable_at
from p2p_dml.transports.relay import Relayed
from p2p_dml.types import PeerId, Tag
from p2p_dml.wire import Header, Kind


def bind_of(config: RunConfig, me: PeerId) -> str:
    """Where a peer of the run listens."""
    transport = config.transport
    if transport.listen or not transport.directory:
        return transport.listen or addresses(config)[me]
    return "tcp://127.0.0.1:*" if is_here(transport.directory) else "tcp://*:*"


def find(
    config: RunConfig,
    me: PeerId,
    endpoint: str,
    digest: Callable[[], bytes],
    own: Keys | None,
    while_running: ExitStack,
) -> Mapping[PeerId, str]:
    """Everybody's address, of the run file or its directory, which is told that of peer `me`.

    `digest`: that of the run. A peer that is relayed is so as long as `while_running`. Raises
    ConfigError if addresses are missing, StartupError if the directory or a peer is.
    """
    transport = config.transport
    if not transport.directory:
        return addresses(config)
    place = transport.reached_at or reachable_at(endpoint, transport.directory)
    hello = Header(Kind.HELLO, digest(), me, 0, Tag(0), note=place)
    answer = ask(transport.directory, hello, config.peers, own, transport.startup_s)
    if answer.ticket:
        relayed = Relayed(transport.directory, answer.ticket, endpoint)
        while_running.callback(relayed.close)
    return answer.book


def addresses(config: RunConfig) -> dict[PeerId, str]:
    """Everybody's fixed address, as `[transport]` says. ConfigError if some are missing."""
    transport = config.transport
    if not transport.addresses:
        return {
            peer: f"tcp://{transport.host}:{transport.base_port + peer}"
            for peer in range(config.peers)
        }
    if len(transport.addresses) != config.peers or len(set(transport.addresses)) != config.peers:
        raise ConfigError(
            f"transport.addresses: expected {config.peers} different addresses, one per peer, "
            f"found {len(set(transport.addresses))}"
        )
    return dict(enumerate(transport.addresses))


def places(config: RunConfig, me: PeerId) -> list[str]:
    """All addresses by which it is judged whether the run needs encryption."""
    transport = config.transport
    known = [transport.directory] if transport.directory else [*addresses(config).values()]
    return [*known, bind_of(config, me)]
