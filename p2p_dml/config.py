"""The run file: one typed TOML file says everything about a run.

Tables that choose something by name (`[strategy]`, `[links]`, `[model]`, …) are checked against the
signature of what they choose, in `p2p_dml.assemble`; everything else is checked here. Each field's
description is its manual.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from p2p_dml.errors import ConfigError
from p2p_dml.run_fields import Name, Pair, Seconds, Wait
from p2p_dml.tables import explain, keys_of, nearest, parse_toml, read_toml

Table = dict[str, Any]
FaultPhase = Literal["train", "send", "mix", "checkpoint"]
FaultKind = Literal[
    "kill", "stop", "hang", "exit", "nan", "full_disk", "read_only", "descriptors", "memory"
]

_SHORT_FOR = {"links": "kind", "train": "function"}
"""The key that a table's short form stands for, where it is not `name`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TransportConfig(_Section):
    """How messages travel."""

    kind: Literal["auto", "zeromq", "torchdist", "hybrid"] = Field(
        "auto",
        description="the transport; auto: zeromq, under torchrun torchdist where it can be "
        "(synchronous rounds, a GPU per rank or none at all); hybrid: torchdist within a host, "
        "zeromq between hosts",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="torchdist: gloo, or nccl if every rank has a GPU of its own"
    )
    debug: bool = Field(
        False, description="torchdist: before each exchange compare who sends to whom, slowly"
    )
    scheme: Literal["ipc", "tcp"] = Field(
        "ipc",
        description="local runs: Unix sockets (ipc) or loopback TCP, ports chosen by the system",
    )
    addresses: list[str] = Field(
        [],
        description="`p2p-dml peer`: one address per peer, such as tcp://10.0.0.7:5803; "
        "empty = host and base_port + peer id",
    )
    listen: str = Field(
        "",
        description="`p2p-dml peer`: where to listen, such as tcp://*:5803 behind a port mapping; "
        "empty = at the peer's own address",
    )
    encryption: Literal["auto", "curve", "none"] = Field(
        "auto",
        description="curve: encrypted, and only holders of listed keys get in; auto: curve unless "
        "all addresses are on this machine",
    )
    keys: str = Field(
        "keys",
        description="folder made by `p2p-dml keys new`; of the secret keys a peer needs its own",
    )
    directory: str = Field(
        "",
        description="`p2p-dml peer`: instead of addresses, where `p2p-dml directory` runs, such as "
        "tcp://10.0.0.1:5700",
    )
    reached_at: str = Field(
        "",
        description="with a directory: where others reach this peer, if that is not its own "
        "address, such as tcp://203.0.113.7:5803; relay: nowhere, it can only dial out",
    )
    host: str = Field("127.0.0.1", description="`p2p-dml peer` without addresses: the host")
    base_port: int = Field(5800, ge=1, le=65000, description="port of peer 0; peer i takes + i")
    startup_s: Wait = Field(60.0, description="wait for every neighbour's first hello")
    straggler_s: Wait = Field(60.0, description="wait for a slow neighbour in an exchange")
    patience: int = Field(
        3,
        ge=1,
        description="exchanges in a row that a neighbour may miss by then; after that it "
        "is not waited for until it delivers again",
    )
    heartbeat_s: Wait | None = Field(
        None,
        description="silence after which a connection is dead; default: 5, and more with many "
        "connections, so that there are at most 1,000 heartbeats per second in the whole run",
    )
    linger_s: Seconds = Field(5.0, description="wait at the end until others have read all")
    queue_messages: int = Field(4, ge=1, description="messages queued per neighbour and direction")
    max_message_bytes: int = Field(1 << 30, ge=1 << 10, description="larger ones are refused")
    shared_memory: bool = Field(
        True,
        description="zeromq: peers of one machine read each other's models in shared memory "
        "wherever they can; false: messages go through sockets",
    )


class StragglersConfig(_Section):
    """Slowness that is emulated: local work is followed by a pause, so it takes no computing."""

    share: float = Field(0.0, ge=0, le=1, description="of the peers are slow, drawn by the seed")
    factor: float = Field(
        5.0, ge=1, le=10_000, description="their local work takes so many times as long"
    )
    round_s: Seconds = Field(
        0.0, description="least seconds of a normal peer's local work in a round"
    )

    @property
    def is_emulated(self) -> bool:
        """Whether anyone pauses."""
        return bool(self.share or self.round_s)


class DeviceConfig(_Section):
    """What some of the peers' devices can do: limits that make them unequal."""

    peers: list[int] = Field(min_length=1, description="whom this is about, by id")
    cpus: float | None = Field(None, gt=0, description="containers: processor cores, may be part")
    memory_mb: int | None = Field(None, ge=64, description="containers: more ends the peer")
    bandwidth_mbps: float | None = Field(
        None, gt=0, description="megabits per second that leave the peer, kept by its transport"
    )


class BetweenConfig(_Section):
    """How some links are, both ways; what is not given is as `[network]` says of all."""

    peers: list[Pair] = Field(min_length=1, description="pairs of peers, such as [[0, 1], [0, 2]]")
    loss: float | None = Field(None, ge=0, le=1, description="share of messages that are lost")
    delay_s: Seconds | None = Field(None, description="how long a message travels")
    jitter_s: Seconds | None = Field(None, description="up to so much longer")
    bandwidth_mbps: float | None = Field(None, gt=0, description="megabits per second of a link")


class NetworkConfig(_Section):
    """The network that a run emulates between its peers, whatever is really there."""

    loss: float = Field(0.0, ge=0, le=1, description="share of messages that are lost")
    delay_s: Seconds = Field(0.0, description="how long a message travels")
    jitter_s: Seconds = Field(0.0, description="up to so much longer, drawn per message")
    bandwidth_mbps: float | None = Field(
        None, gt=0, description="megabits per second of a link; default: no limit"
    )
    up: Table | None = Field(
        None,
        description="links that are up, as for `links`: what is sent over others is lost",
    )
    between: list[BetweenConfig] = Field([], description="links that differ from the others")

    @field_validator("up", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def is_emulated(self) -> bool:
        """Whether there is anything to emulate."""
        return self != NetworkConfig()


class FaultConfig(_Section):
    """What goes wrong on purpose at some peers, once; docs/reliability.md has it in full."""

    peers: list[int] | Table = Field(
        description="whom it befalls: ids, { share = 0.5 } of all, drawn by the seed, or "
        "{ most_central = 3 } in the graph of round 1"
    )
    round: int = Field(ge=1, description="due when its phase comes in this round, or next after")
    phase: FaultPhase = Field(
        "train",
        description="in the middle of the local training; with half of the receivers sent to; "
        "between collecting and mixing; with half of a checkpoint written",
    )
    kind: FaultKind = Field(
        description="what happens to the peer's process, its numbers or its disk"
    )
    for_s: Wait = Field(1.0, description="how long a stop or a hang lasts")


class WatchdogConfig(_Section):
    """When a peer is held to hang, and what it does then; waiting for others does not count."""

    step_s: Wait = Field(
        600.0, description="training, sending, mixing or evaluating that lasts longer is told"
    )
    storage_s: Wait = Field(60.0, description="the same of writing a checkpoint or an event")
    action: Literal["report", "end"] = Field(
        "report",
        description="end: the peer leaves the stacks of its threads in its log and ends at once, "
        "with exit code 7, so that others go on",
    )


class RunConfig(_Section):
    """A whole run. `folder` (not part of the file) is where relative paths start."""

    name: Name = Field("run", description="shown in reports; names the default run folder")
    peers: int = Field(ge=1, le=100_000, description="number of peers")
    rounds: int = Field(ge=1, description="number of rounds")
    seed: int = Field(0, ge=0, lt=1 << 63, description="everything random follows from it")
    dtype: Literal["float32", "float64"] = Field("float32", description="of parameters and data")
    threads: int = Field(1, ge=1, le=1024, description="torch threads per peer")
    strategy: Table = Field(description="what is sent and how it is combined: name, parameters")
    links: Table = Field(description="who talks to whom in a round: kind, parameters; or file")
    pace: Table = Field(
        {"name": "synchronous"}, description="whom a peer waits for: synchronous, asynchronous"
    )
    stragglers: StragglersConfig = Field(StragglersConfig(), description="who is slow, emulated")
    duration_s: float | None = Field(
        None, gt=0, description="a peer ends after the round in which this time is over"
    )
    overlap: bool = Field(
        False, description="models travel while the next round is trained, and are mixed in it"
    )
    mixing: str = Field("metropolis", description="mixing rule: from a graph to weights")
    wire_format: Literal["as_is", "float16", "bfloat16", "int8"] = Field(
        "as_is",
        description="how numbers travel, whatever the dtype: as_is, in 16 bits, or in 8 with a "
        "scale for each 1,024; every peer's own model stays in full precision",
    )
    data: Table = Field({"name": "digits"}, description="data set: name, parameters")
    partition: Table = Field({"name": "iid"}, description="how the data are dealt to peers")
    model: Table = Field({"name": "softmax"}, description="model: name, parameters")
    train: Table = Field({}, description="local training: optimiser, lr, steps; or function")
    evaluate_every: int = Field(1, ge=0, description="rounds between evaluations; 0 = at the end")
    evaluate_on: Literal["all", "own"] = Field(
        "all", description="test samples: all, or those of the peer's own mix of classes"
    )
    checkpoint_every: int = Field(0, ge=0, description="rounds between checkpoints; 0 = at the end")
    min_neighbours: int = Field(1, ge=0, description="heard fewer: the round is local only")
    max_isolated_rounds: int = Field(10, ge=1, description="exchanges in isolation before exit 4")
    elastic: bool = Field(
        False, description="peers may join and leave while the run goes on; `peers` is the most"
    )
    initial_peers: int | None = Field(
        None, ge=1, description="elastic: how many begin, those with the lowest ids; default: all"
    )
    restarts: int = Field(
        0, ge=0, description="how often a peer that is lost (killed, stuck) is started again"
    )
    transport: TransportConfig = Field(TransportConfig(), description="how messages travel")
    network: NetworkConfig = Field(NetworkConfig(), description="what is emulated between peers")
    devices: list[DeviceConfig] = Field([], description="limits of some peers' devices")
    faults: list[FaultConfig] = Field([], description="what goes wrong on purpose")
    watchdog: WatchdogConfig = Field(WatchdogConfig(), description="what a peer that hangs does")
    folder: Path = Field(Path(), exclude=True)

    @field_validator("strategy", "data", "model", "partition", "pace", mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        """`strategy = "dpsgd"` is short for `strategy = { name = "dpsgd" }`."""
        return {"name": value} if isinstance(value, str) else value

    @field_validator("links", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("train", mode="before")
    @classmethod
    def _function_alone(cls, value: object) -> object:
        return {"function": value} if isinstance(value, str) else value

    @property
    def first_peers(self) -> int:
        """How many peers begin."""
        return self.peers if self.initial_peers is None else self.initial_peers

    def canonical(self) -> str:
        """What all peers of a run must agree on, as text: equal runs, equal text."""
        local = {"name", "transport", "threads", "evaluate_every", "checkpoint_every", "faults"}
        local |= {"min_neighbours", "max_isolated_rounds", "restarts", "watchdog"}
        fields = self.model_dump(exclude=local)
        fields["train"].pop("parallel", None)  # nor how many ranks share a peer's training
        # Hosts keep files in different places; that the contents agree shows in the first graphs.
        map_link_files(fields, lambda file: Path(file).name)
        return json.dumps(fields, sort_keys=True)

    def heartbeat_s(self, neighbours: int) -> float:
        """`transport.heartbeat_s`, or its default where each peer has so many neighbours.

        Heartbeats go over every connection, two to a neighbour, three times in this time; between
        200 peers that are all connected they alone would keep two cores busy at 5 s.
        """
        return self.transport.heartbeat_s or max(5.0, 6 * self.peers * neighbours / 1000)

    def private_seed(self, peer: int, purpose: str) -> int:
        """A 63-bit seed that differs between peers and purposes and follows from `seed`."""
        text = f"{self.seed}/{peer}/{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def load(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> RunConfig:
    """Read a run file and apply `key=value` overrides; relative paths start at `folder` (its own).

    Raises ConfigError that says what is wrong, where, and what would be right.
    """
    tables = read_toml(path, "run file")
    for text in overrides:
        override(tables, text)
    return parse(tables, folder or path.parent, str(path))


def parse(tables: Mapping[str, object], folder: Path, where: str = "run") -> RunConfig:
    """Check a run file's tables; relative paths in it start at `folder`."""
    if "folder" in tables:
        raise ConfigError(f"{where}: folder: unknown key; {nearest('folder', keys_of(RunConfig))}")
    try:
        config = RunConfig.model_validate({**tables, "folder": folder})
    except ValidationError as error:
        raise ConfigError(explain(error, where, _SECTIONS)) from error
    if config.initial_peers is not None and not config.elastic:
        raise ConfigError(f"{where}: initial_peers: needs elastic = true")
    if config.first_peers > config.peers:
        raise ConfigError(f"{where}: initial_peers: expected at most peers = {config.peers}")
    return config


def dump(config: RunConfig, path: Path) -> None:
    """Write the effective config, defaults included, as a run file to run from anywhere."""
    tables = config.model_dump(exclude_none=True)
    map_link_files(tables, lambda file: str((config.folder / file).resolve()))
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")


def overrides_table(overrides: Sequence[str]) -> Table:
    """The table that a list of `key=value` overrides makes by itself."""
    tables: Table = {}
    for text in overrides:
        override(tables, text)
    return tables


def map_link_files(tables: Table, change: Callable[[str], str]) -> None:
    """Rewrite in place the `file` entries of all link schedules that a run's tables have."""
    for table in (tables, tables["network"]):
        for key in {"links", "up"} & table.keys():
            table[key] = map_files(table[key], change)


def map_files(table: Any, change: Callable[[str], str]) -> Any:
    """A links table with its `file` entries rewritten, those of nested schedules too."""
    if isinstance(table, list):
        return [map_files(entry, change) for entry in table]
    if not isinstance(table, Mapping):
        return table
    return {
        key: change(value) if key == "file" and isinstance(value, str) else map_files(value, change)
        for key, value in table.items()
    }


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": RunConfig,
    "transport": TransportConfig,
    "stragglers": StragglersConfig,
    "devices": DeviceConfig,
    "network": NetworkConfig,
    "network.between": BetweenConfig,
    "faults": FaultConfig,
    "watchdog": WatchdogConfig,
}
"""Sections of a run file by their path."""


def override(tables: Table, text: str) -> None:
    """Apply one `a.b=value`; the value is TOML, or a bare word taken as text."""
    key, equals, right = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, such as rounds=50")
    try:
        value = parse_toml(f"value = {right}", text)["value"]
    except ConfigError:
        value = right.strip()
    assign(tables, key.strip(), value)


def assign(tables: Table, key: str, value: object) -> None:
    """Set the dotted `key` of a run file's tables; a short form on the way becomes a table."""
    *parents, last = key.split(".")
    for step in parents:
        below = tables.setdefault(step, {})
        if not isinstance(below, dict):
            below = tables[step] = {_SHORT_FOR.get(step, "name"): below}
        tables = below
    tables[last] = value
