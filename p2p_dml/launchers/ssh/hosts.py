"""The hosts file: which hosts there are, how many peers each has, and how they are reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2p_dml.addresses import is_here
from p2p_dml.errors import ConfigError
from p2p_dml.tables import explain, read_toml
from p2p_dml.types import PeerId


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HostEntry(_Section):
    """`[[hosts]]`: one host."""

    ssh: str = Field(min_length=1, description="what ssh is given: host, me@host, or an alias")
    address: str = Field(
        "", description="where peers of other hosts reach it; default: the host part of ssh"
    )
    peers: int = Field(1, ge=1, le=10_000, description="how many peers run there")
    python: str = Field("python3", min_length=1, description="Python 3.10 or newer on the host")
    folder: str = Field("~/.cache/p2p-dml", min_length=1, description="ours, on the host")
    base_port: int = Field(5800, ge=1, le=65000, description="of its first peer; others follow")
    data: str | None = Field(None, description="where its data sets are; default: $P2P_DML_DATA")
    inherit: bool = Field(
        False,
        description="use packages that `python` has, such as a torch that fits the GPUs, and "
        "install only what it has not",
    )
    ssh_options: list[str] = Field([], description='further words for ssh, such as "-p", "2222"')


class HostsFile(_Section):
    """A hosts file."""

    hosts: list[HostEntry] = Field(min_length=1, description="the hosts")
    wheels: str | None = Field(
        None, description="folder of wheels for hosts without internet; they are copied there"
    )
    lost_s: float = Field(60.0, ge=5, description="a host that is silent for so long is lost")


_SECTIONS: Mapping[str, type[BaseModel]] = {"": HostsFile, "hosts": HostEntry}


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """A host with the peers that it has in this run; `index` is its place in the file.

    Two are the same if they are one object.
    """

    index: int
    entry: HostEntry
    peers: range

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.entry.ssh

    @property
    def address(self) -> str:
        """Where other hosts reach it: a name or a number."""
        if self.entry.address:
            return self.entry.address
        host = self.entry.ssh.removeprefix("ssh://").rpartition("@")[2]
        return host.partition(":")[0] if self.entry.ssh.startswith("ssh://") else host

    @property
    def ports(self) -> range:
        """Those of its peers."""
        return range(self.entry.base_port, self.entry.base_port + len(self.peers))

    @property
    def endpoints(self) -> list[str]:
        """The addresses of its peers."""
        return [f"tcp://{_bracketed(self.address)}:{port}" for port in self.ports]

    @property
    def listen(self) -> list[str]:
        """Where its peers listen: everywhere, as its address may be another's (NAT, a proxy).

        A host that is reached by loopback is this machine, and stays closed to others.
        """
        return [
            endpoint if is_here(endpoint) else f"tcp://*:{port}"
            for endpoint, port in zip(self.endpoints, self.ports, strict=True)
        ]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a hosts file says, with peers numbered host by host."""

    path: Path
    hosts: tuple[Host, ...]
    wheels: Path | None
    lost_s: float

    @property
    def num_peers(self) -> int:
        return sum(len(host.peers) for host in self.hosts)

    @property
    def endpoints(self) -> list[str]:
        """Everybody's address, by peer id."""
        return [endpoint for host in self.hosts for endpoint in host.endpoints]

    @property
    def listen(self) -> list[str]:
        """Where everybody listens, by peer id."""
        return [place for host in self.hosts for place in host.listen]

    def host_of(self, peer: PeerId) -> Host:
        """Where a peer runs."""
        return next(host for host in self.hosts if peer in host.peers)


def read(path: Path) -> Cluster:
    """Read a hosts file; ConfigError that says what is wrong, where, and what would be right."""
    tables = read_toml(path, "hosts file")
    try:
        file = HostsFile.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), _SECTIONS)) from error
    hosts, first = [], 0
    for index, entry in enumerate(file.hosts):
        hosts.append(Host(index=index, entry=entry, peers=range(first, first + entry.peers)))
        first += entry.peers
    _check_distinct(hosts, path)
    wheels = path.parent / Path(file.wheels).expanduser() if file.wheels else None
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise ConfigError(
            f"{path}: wheels: {wheels} is no folder with wheels; fill it by `pip download`, as "
            "docs/clusters.md says"
        )
    return Cluster(path=path, hosts=tuple(hosts), wheels=wheels, lost_s=file.lost_s)


def check_peers(cluster: Cluster, peers: int) -> None:
    """Raise ConfigError unless the hosts have as many peers as the run."""
    if cluster.num_peers != peers:
        raise ConfigError(
            f"{cluster.path}: the hosts have {cluster.num_peers} peers in all, the run has "
            f"{peers}; change `peers` of some hosts, or use --set peers={cluster.num_peers}"
        )


def _check_distinct(hosts: Sequence[Host], path: Path) -> None:
    """Raise ConfigError if two entries mean one host, or two peers one address."""
    names: dict[str, int] = {}
    places: dict[str, int] = {}
    for host in hosts:
        if (other := names.setdefault(host.name, host.index)) != host.index:
            raise ConfigError(
                f"{path}: hosts.{host.index}.ssh: {host.name!r} is hosts.{other} already; "
                "one entry per host, with more peers"
            )
        for endpoint in host.endpoints:
            if (other := places.setdefault(endpoint, host.index)) != host.index:
                raise ConfigError(
                    f"{path}: hosts.{host.index}: its peers would have {endpoint}, as those of "
                    f"hosts.{other} have; set another address or base_port"
                )
        if host.ports[-1] > 65535:
            raise ConfigError(
                f"{path}: hosts.{host.index}.base_port: {host.entry.base_port} leaves no room for "
                f"{len(host.peers)} peers below 65536"
            )
