"""How a peer is named on a socket: its routing id, and its address as libzmq spells it."""

from __future__ import annotations

import socket

from p2p_dml.errors import StartupError
from p2p_dml.types import PeerId


def route_to(peer: PeerId) -> bytes:
    """Routing id of the connection to `peer`."""
    return b"peer-%d" % peer


def peer_on(route: bytes) -> PeerId:
    """The peer that `route_to` named."""
    return int(route.removeprefix(b"peer-"))


def resolve(address: str) -> str:
    """Numeric form of tcp://host:port, as the socket monitor will spell it.

    Raises StartupError for a host that cannot be resolved.
    """
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp":
        return address
    try:
        return f"tcp://{socket.gethostbyname(host)}:{port}"
    except (OSError, UnicodeError) as error:
        raise StartupError(f"cannot resolve the host of {address}: {error}") from error
