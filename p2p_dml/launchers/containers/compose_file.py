"""The compose file of a run: a container for each peer, all on one network of their own. Pure.

It is JSON, which is YAML, in the part of the format that `docker compose` (v2) and docker-compose
1.29 read alike. Containers see of the machine: the run folder, to write; and, only to be read, the
data sets, the keys of their own peer, and the folders that the run file takes something from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from p2p_dml.config import RunConfig, map_link_files
from p2p_dml.keys import PUBLIC, secret_file
from p2p_dml.launchers.process import STOP_GRACE_S, THREAD_VARIABLES
from p2p_dml.plugins import modules_named
from p2p_dml.types import PeerId

RUN, DATA, KEYS = "/p2p/run", "/p2p/data", "/p2p/keys"
"""Where containers find the run folder, data sets and keys."""

PORT = 5800
"""Where every peer listens, in its own container."""

_MEGABYTE = 10**6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What of this machine containers see.

    `keys`: the folder of everybody's keys, None if traffic is not encrypted. `data`: None if there
    are no data sets. `modules`: where the user's own are looked for, the current folder first;
    `topologies`: folders of the files of link schedules. Both are in the same place in containers.
    """

    run: Path
    keys: Path | None = None
    data: Path | None = None
    modules: Sequence[Path] = ()
    topologies: Sequence[Path] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the device of a peer can do; None: as much as this machine."""

    cpus: float | None = None
    memory_mb: int | None = None


def service(peer: PeerId) -> str:
    """The name of a peer's container among the others, and of its files."""
    return f"peer-{peer:03d}"


def settings(config: RunConfig) -> RunConfig:
    """The run as its containers are to read it: where peers and keys are is as it is inside."""
    transport = config.transport.model_copy(
        update={
            "addresses": [f"tcp://{service(peer)}:{PORT}" for peer in range(config.peers)],
            "listen": f"tcp://*:{PORT}",
            "keys": KEYS,
            "directory": "",
            "reached_at": "",
        }
    )
    return config.model_copy(update={"transport": transport})


def limits(config: RunConfig, peer: PeerId) -> Limits:
    """What `[[devices]]` says of a peer; of two entries about it the later one holds."""
    found = Limits()
    for device in config.devices:
        if peer in device.peers:
            found = Limits(
                cpus=device.cpus or found.cpus, memory_mb=device.memory_mb or found.memory_mb
            )
    return found


def modules(config: RunConfig) -> list[Path]:
    """Where a run's own modules are looked for; none if it names none."""
    return _resolved([Path.cwd(), config.folder] if modules_named(config.model_dump()) else [])


def topologies(config: RunConfig) -> list[Path]:
    """The folders of the files that a run takes link schedules from."""
    files: list[str] = []

    def note(file: str) -> str:
        files.append(file)
        return file

    map_link_files(config.model_dump(exclude_none=True), note)
    return _resolved((config.folder / name).parent for name in sorted(files))


def _resolved(folders: Iterable[Path]) -> list[Path]:
    """Each folder once, in their order."""
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def document(config: RunConfig, image: str, user: str, places: Places) -> str:
    """The text of the compose file; `user`: `uid:gid` of the containers."""
    containers = {
        service(peer): _container(config, peer, image, user, places) for peer in range(config.peers)
    }
    whole = {"services": containers, "networks": {"default": {"driver": "bridge"}}}
    return json.dumps(_literal(whole), indent=2) + "\n"


def _literal(value: Any) -> Any:
    """`value` with every `$` doubled: compose takes a single one for a variable."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def _container(
    config: RunConfig, me: PeerId, image: str, user: str, places: Places
) -> dict[str, Any]:
    hosts = " ".join(service(peer) for peer in range(config.peers))
    environment = dict.fromkeys(THREAD_VARIABLES, str(config.threads)) | {"AWAIT_HOSTS": hosts}
    container = {
        "image": image,
        "hostname": service(me),
        "command": ["peer", f"{RUN}/run.toml", "--me", str(me), "--out", RUN],
        "environment": environment,
        "volumes": _volumes(me, places),
        "user": user,
        "init": True,  # so that a signal ends a peer that does not listen to any yet
        "stop_grace_period": f"{STOP_GRACE_S:.0f}s",
        "restart": "no",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "logging": {"driver": "json-file", "options": {"max-size": "10m"}},
        **_limited(limits(config, me)),
    }
    if places.modules:
        container["working_dir"] = str(places.modules[0])
        path = ":".join(map(str, places.modules))
        container["environment"] = environment | {"PYTHONPATH": path}
    return container


def _limited(device: Limits) -> dict[str, object]:
    limited: dict[str, object] = {}
    if device.cpus is not None:
        limited["cpus"] = device.cpus
    if device.memory_mb is not None:  # and no swap, which would only make it slow
        num_bytes = device.memory_mb * _MEGABYTE
        limited |= {"mem_limit": num_bytes, "memswap_limit": num_bytes}
    return limited


def _volumes(me: PeerId, places: Places) -> list[dict[str, Any]]:
    volumes = [_mount(places.run, RUN, read_only=False)]
    if places.data is not None:
        volumes.append(_mount(places.data, DATA))
    if places.keys is not None:
        names = (PUBLIC, secret_file(me))
        volumes += [_mount(places.keys / name, f"{KEYS}/{name}") for name in names]
    folders = dict.fromkeys((*places.modules, *places.topologies))
    return volumes + [_mount(path, str(path)) for path in folders]


def _mount(source: Path, target: str, *, read_only: bool = True) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "target": target, "read_only": read_only}
