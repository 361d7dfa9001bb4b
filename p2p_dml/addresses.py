"""How a peer is named on a socket: its routing id, and its address as libzmq spells it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from functools import cache
from typing import final

from p2p_dml.errors import StartupError
from p2p_dml.types import PeerId

_WILDCARDS = ("*", "0.0.0.0", "[::]", "")


def route_to(peer: PeerId, move: int) -> bytes:
    """Routing id of the connection to `peer` after its address has changed `move` times."""
    return b"peer-%d.%d" % (peer, move)


def peer_on(route: bytes) -> PeerId:
    """The peer that `route_to` named."""
    return int(route.removeprefix(b"peer-").partition(b".")[0])


def resolve(address: str) -> str:
    """Numeric form of tcp://host:port, as the socket monitor will spell it.

    Of a host that has addresses of both kinds, that of IPv4. Raises StartupError for a host that
    cannot be resolved.
    """
    scheme, host, port = _parts(address)
    if scheme != "tcp":
        return address
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StartupError(f"cannot resolve the host of {address}: {error}") from error
    family, *_, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return f"tcp://[{place[0]}]:{port}" if family == socket.AF_INET6 else f"tcp://{place[0]}:{port}"


def to_listen_on(address: str) -> str:
    """`address` as libzmq can bind it: numeric, or what it knows itself (`*`, an interface)."""
    if is_wildcard(address):
        return address
    try:
        return resolve(address)
    except StartupError:
        return address


def is_wildcard(address: str) -> bool:
    """Whether it means every address of a machine, so that nobody can be reached there."""
    scheme, host, _ = _parts(address)
    return scheme == "tcp" and host in _WILDCARDS


@cache
def is_here(address: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost counts as no."""
    scheme, host, _ = _parts(address)
    if scheme != "tcp" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_ipv6(address: str) -> bool:
    """Whether a socket needs IPv6 for a numeric address; `*` takes both where there is both."""
    scheme, host, _ = _parts(address)
    return scheme == "tcp" and (host.startswith("[") or (host == "*" and _has_both()))


def host_and_port(address: str) -> tuple[str, int]:
    """Of a TCP address. Raises StartupError if it has no port."""
    _, host, port = _parts(address)
    if not port.isdecimal():
        raise StartupError(f"expected an address such as tcp://10.0.0.7:5803, found {address!r}")
    return host.strip("[]"), int(port)


def _has_both() -> bool:
    return socket.has_dualstack_ipv6()


def _parts(address: str) -> tuple[str, str, str]:
    """Scheme, host and port."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    return scheme, host, port


@final
class AddressBook:
    """Where everybody can be reached, in numbers; peers may come back elsewhere."""

    def __init__(self, addresses: Mapping[PeerId, str]) -> None:
        """Raises StartupError as `resolve`."""
        self._as_told = dict(addresses)
        self._numeric = {peer: resolve(address) for peer, address in addresses.items()}

    def __len__(self) -> int:
        return len(self._numeric)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._numeric

    def __getitem__(self, peer: PeerId) -> str:
        return self._numeric[peer]

    def add(self, peer: PeerId, address: str) -> None:
        """Take down where somebody new can be reached. StartupError if nobody can be there."""
        self._take_down(peer, address)

    def move(self, peer: PeerId, address: str) -> bool:
        """Take down where `peer` says it is; whether that is elsewhere. StartupError as above.

        What means every address, or is of another kind than before, changes nothing.
        """
        before = self._numeric.get(peer, "")
        if is_wildcard(address) or _parts(address)[0] != _parts(before)[0]:
            return False
        if address == self._as_told.get(peer):  # its name may mean nothing any more
            return False
        self._take_down(peer, address)
        return self._numeric[peer] != before

    def _take_down(self, peer: PeerId, address: str) -> None:
        scheme, _, port = _parts(address)
        is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
        if is_wildcard(address) or not (scheme == "ipc" or (scheme == "tcp" and is_port)):
            raise StartupError(
                f"cannot use {address!r}, the address of peer {peer}: expected such as "
                "tcp://10.0.0.7:5803"
            )
        self._numeric[peer] = resolve(address)
        self._as_told[peer] = address
