"""Where this process stands among those that torchrun started, and which transport suits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from p2p_dml.errors import ConfigError
from p2p_dml.graph import PeerId

if TYPE_CHECKING:  # every start of the command imports this module
    from p2p_dml.config import TransportConfig

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each of its processes, and all of which must be there."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all (`rank` of `size`) and among those of its host.

    `node`: which host; `master`: host and port of torchrun's store.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int = 0
    master: tuple[str, int] = ("127.0.0.1", 0)

    @property
    def here(self) -> range:
        """The ranks of this host, with this one."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    @property
    def is_one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return self.local_size == self.size


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a rank is for: it is the one at `place` of the `each` ranks that train peer `me`.

    The first of them leads: it is the peer to all others. `here`: the peers of this host.
    """

    me: PeerId
    place: int
    each: int
    here: range


def role_of(ranks: Ranks, each: int) -> Role:
    """The role of a rank where `each` ranks in a row train a peer.

    Raises ConfigError if the ranks of a peer are not on one host.
    """
    if ranks.local_size % each or (ranks.rank - ranks.local_rank) % each:
        raise ConfigError(
            f"peers: {each} ranks train each peer, and this host has {ranks.local_size}; expected "
            f"a multiple of {each}, so that the ranks of a peer are on one host"
        )
    me, place = divmod(ranks.rank, each)
    first = (ranks.rank - ranks.local_rank) // each
    return Role(me=me, place=place, each=each, here=range(first, first + ranks.local_size // each))


def ranks_of(environment: Mapping[str, str]) -> Ranks | None:
    """What torchrun says in the environment of its processes; None if nothing is said."""
    if any(name not in environment for name in _VARIABLES):
        return None
    numbers = [int(environment[name]) for name in _VARIABLES[:4]]
    return Ranks(
        rank=numbers[0],
        size=numbers[1],
        local_rank=numbers[2],
        local_size=numbers[3],
        node=int(environment.get("GROUP_RANK", 0)),
        master=(environment["MASTER_ADDR"], int(environment["MASTER_PORT"])),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A transport, the backend of its groups if it has any, and why: the end of a sentence."""

    transport: Literal["torchdist", "zeromq", "hybrid"]
    backend: Literal["gloo", "nccl"] | None = None
    why: str

    @property
    def name(self) -> str:
        if self.transport == "zeromq":
            return "ZeroMQ"
        between = " within a host, ZeroMQ between hosts" * (self.transport == "hybrid")
        return f"torch.distributed ({self.backend}){between}"


def choose(wanted: TransportConfig, ranks: Ranks, num_gpus: int, obstacle: str | None) -> Choice:
    """The transport for these ranks on a host of `num_gpus` GPUs.

    `obstacle`: why torchdist cannot be used, if it cannot. Raises ConfigError if what is `wanted`
    cannot be had.
    """
    if wanted.kind == "zeromq":
        return Choice(transport="zeromq", why="transport.kind says so")
    if obstacle is not None:
        if wanted.kind == "auto":
            return Choice(transport="zeromq", why=obstacle)
        raise ConfigError(
            f"transport.kind: {wanted.kind} cannot be used, because {obstacle}; "
            'set transport.kind = "auto" or "zeromq"'
        )
    grouped: Literal["torchdist", "hybrid"] = "hybrid" if wanted.kind == "hybrid" else "torchdist"
    if wanted.backend == "gloo":
        return Choice(transport=grouped, backend="gloo", why="transport.backend says so")
    if num_gpus == 0 and wanted.backend == "auto":
        return Choice(transport=grouped, backend="gloo", why="there is no CUDA device")
    if ranks.local_size <= num_gpus:
        why = f"{ranks.local_size} ranks here and {num_gpus} GPUs"
        return Choice(transport=grouped, backend="nccl", why=why)
    crowd = f"{ranks.local_size} ranks here share {num_gpus} GPUs, and NCCL wants one for each"
    if wanted.kind == "auto" and wanted.backend == "auto":
        return Choice(transport="zeromq", why=crowd)
    raise ConfigError(
        f"transport.backend: {crowd}; start fewer ranks per host, or set "
        'transport.backend = "gloo" or transport.kind = "zeromq"'
    )
