"""Peers in containers of several hosts, over ssh: `p2p-dml up --hosts-file`.

A launch as `p2p-dml launch` does it, but for where peers live: each in a container of its own, so
that limits of its device hold, with a supervisor that has this one peer. Containers have their
host's network, are removed by docker when they end, and by the host's agent when that ends.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

from p2p_dml.config import RunConfig
from p2p_dml.launchers.containers import docker, images
from p2p_dml.launchers.containers.compose_file import DATA, RUN, limits, service
from p2p_dml.launchers.containers.crew import PAUSED, fate
from p2p_dml.launchers.containers.docker import Container
from p2p_dml.launchers.containers.images import Image
from p2p_dml.launchers.containers.up import NOBODY
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.process import THREAD_VARIABLES
from p2p_dml.launchers.resuming import Past
from p2p_dml.launchers.ssh.channel import HostError, Request, Switchboard, Talk, all_of
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.launch import Voice, check, launch
from p2p_dml.launchers.ssh.quarters import Fitness, Grounds, Program, Say, Site

HOME = "/p2p/home"
"""Where a container finds what was brought for its peer."""

_ARCHIVE = "image.tar.gz"
_NEW_MB, _OLD_MB = 4_000, 300
"""Room for an image, on its way and unpacked, and for a run alone."""

_LABEL = "org.p2p-dml.run"
_TOLD = ("oom", "kill", "die", "pause", "unpause")
_NOT_FOUND = 127  # exit code of a shell for a program that is not there
_KILLED = 137
_STOPPED = (0, 143)  # exit codes of a container that SIGTERM has ended

_NO_DOCKER = (
    "docker is not installed there; install Docker Engine "
    "(https://docs.docker.com/engine/install), or use `p2p-dml launch`, which needs none"
)
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}
"""What engines call them, and what images do."""

_WHILE_HEARD = '"$@" & cat > /dev/null; kill $!'

Event = Mapping[str, Any]


def run(
    cluster: Cluster,
    config: RunConfig,
    out: Path | None,
    voice: Voice,
    *,
    image: str | None = None,
    build: bool = False,
    past: Past | None = None,
) -> Outcome:
    """Run all peers in containers of the hosts to their end, and collect what they leave.

    `image` and `build` as in `p2p_dml.launchers.containers.up.run`; an image that is here is
    brought to hosts that have another one or none, and pulled there if it is not. The rest, and
    what is raised, as in `p2p_dml.launchers.ssh.launch.launch`.
    """
    check(cluster, config, OnHosts.command)
    found = images.for_hosts(image, build=build, say=voice.say)
    return launch(cluster, config, OnHosts(cluster, config, found), out, voice, past)


@final
@dataclass(slots=True, kw_only=True)
class _There:
    """What is known of a host: whom its containers run as, where its data are, its image."""

    user: tuple[int, int]
    owner: tuple[int, int] | None
    data: str | None
    shared_bytes: int
    content: str | None


@final
class OnHosts:
    """Quarters that are containers, one for each peer."""

    command = "p2p-dml up"

    def __init__(self, cluster: Cluster, config: RunConfig, image: Image) -> None:
        self._config = config
        self._image = image
        self._there: dict[Host, _There] = {}
        self._sites = {host: [_site(host, peer) for peer in host.peers] for host in cluster.hosts}
        self._inmates: dict[tuple[Host, str], Site] = {}
        self._starved: set[Site] = set()
        self._told_to_stop: set[Site] = set()

    # ---- what is there ------------------------------------------------------------------------

    def examine(self, host: Host, said: Mapping[str, Any]) -> Talk[Fitness]:
        """See whether docker can be used there, has the image or room for it, and cores enough."""
        asked = yield _call(*docker.INFO)
        facts = _first_table(asked["output"])
        if asked["code"] == _NOT_FOUND:
            return Fitness(problems=[_NO_DOCKER])
        if asked["code"] or not facts.get("NCPU"):
            errors = " ".join(facts.get("ServerErrors") or ()) or asked["output"]
            return Fitness(problems=[docker.why_unusable(errors)])
        found = yield _call(*docker.CONTENT, self._image.name)
        room = yield _call("df", "-Pk", facts["DockerRootDir"])
        there = self._there[host] = _there(said, facts, found)
        free_mb = {said["folder"]: said["disk_mb"], facts["DockerRootDir"]: _free_mb(room)}
        least = _OLD_MB if self._has_image(there) else _NEW_MB
        return Fitness(
            problems=[
                *_unfit(facts, self._image),
                *self._cores(host, int(facts["NCPU"])),
                *_no_room(free_mb, least),
            ]
        )

    def _has_image(self, there: _There) -> bool:
        return there.content is not None and self._image.content in (None, there.content)

    def _cores(self, host: Host, cores: int) -> Iterable[str]:
        """Peers there whose devices would have more cores than the host."""
        for peer in host.peers:
            cpus = limits(self._config, peer).cpus
            if cpus is not None and cpus > cores:
                yield (
                    f"devices of peer {peer}: expected cpus of at most the {cores} cores that "
                    f"docker has there, found {cpus:g}"
                )

    # ---- what is brought ----------------------------------------------------------------------

    def prepare(self, board: Switchboard, grounds: Mapping[Host, Grounds], say: Say) -> None:
        """Bring the image to hosts that have another one or none, or have them pull it."""
        begin, name = time.monotonic(), self._image.name
        without = [host for host in grounds if not self._has_image(self._there[host])]
        names = ", ".join(host.name for host in without)
        if without and self._image.content is None:
            say(f"{names}: pulling the image {name}")
            all_of(board, {host: self._pull() for host in without})
        elif without:
            with tempfile.TemporaryDirectory(prefix="p2p-") as folder:
                archive = Path(folder) / _ARCHIVE
                say(f"{names}: bringing the image {name}, which takes minutes, but once")
                images.save(name, archive, lambda: board.pump(0.1))
                talks = {host: self._load(archive, grounds[host]) for host in without}
                all_of(board, talks)
        seconds = f"; brought to {len(without)}, in {time.monotonic() - begin:.0f} s"
        say(f"image: {name} on {len(grounds)} hosts{seconds if without else ''}")

    def _pull(self) -> Talk[bool]:
        said = yield _call("docker", "pull", self._image.name)
        _expect(said, f"the image {self._image.name} is not here, and cannot be pulled there")
        return True

    def _load(self, archive: Path, grounds: Grounds) -> Talk[bool]:
        """Bring the image to a host; one that had its name before goes, if nothing needs it."""
        old = yield _call("docker", "image", "inspect", "--format", "{{.Id}}", self._image.name)
        place = f"{grounds.home}/{_ARCHIVE}"
        load = _words("docker", "load", "--input", place)
        said = yield Request(head=load, files=[(archive, "home", _ARCHIVE, 0o600)])
        _expect(said, f"docker cannot load the image {self._image.name} there")
        yield _call("rm", "-f", place)
        if not old["code"]:
            yield _call("docker", "image", "rm", old["output"].strip())
        said = yield _call(*docker.CONTENT, self._image.name)
        if said["output"].strip() != self._image.content:
            raise HostError(
                f"docker has loaded the image {self._image.name} there, and has another one"
            )
        return True

    # ---- what is started ----------------------------------------------------------------------

    def sites(self, host: Host) -> Sequence[Site]:
        """One for each peer of the host."""
        return self._sites[host]

    def program(self, site: Site, grounds: Grounds) -> Program:
        """A container with a supervisor, which ends when its input does."""
        (peer,) = site.peers
        token, there = _token(grounds), self._there[site.host]
        name = f"p2p-{token}-{service(peer)}"
        self._inmates[site.host, name] = site
        mounts = {f"{grounds.home}/{site.name}": HOME, f"{grounds.out}/{site.name}": RUN}
        if there.data is not None:
            mounts[there.data] = DATA
        return Program(
            command=[
                *("docker", "run", "--rm", "--interactive", "--name", name),
                *("--label", f"{_LABEL}={token}", "--hostname", service(peer)),
                *_HARDENED,
                *("--user", f"{there.user[0]}:{there.user[1]}"),
                *("--shm-size", str(there.shared_bytes), "--workdir", HOME),
                *self._limited(peer),
                *(word for each in mounts.items() for word in ("--mount", _mount(*each))),
                *(f"--env={key}={self._config.threads}" for key in THREAD_VARIABLES),
                *("--entrypoint", "python", self._image.name),
                *("-m", "p2p_dml.launchers.supervisor"),
            ],
            undo=["docker", "rm", "--force", name],
            home=HOME,
            run=RUN,
            owner=there.owner,
        )

    def _limited(self, peer: int) -> Sequence[str]:
        device, words = limits(self._config, peer), list[str]()
        if device.cpus is not None:
            words += ["--cpus", f"{device.cpus:g}"]
        if device.memory_mb is not None:  # and no swap, which would only make it slow
            num_bytes = f"{device.memory_mb}000000"
            words += ["--memory", num_bytes, "--memory-swap", num_bytes]
        return words

    def lookout(self, host: Host, grounds: Grounds) -> Program:
        """Docker's own account of what happens to the containers of this run on a host."""
        kinds = [word for each in _TOLD for word in ("--filter", f"event={each}")]
        label = f"label={_LABEL}={_token(grounds)}"
        # From a minute ago: whatever happens before it listens is told, too.
        words = ("docker", "events", "--since", "1m", "--format", "{{json .}}", "--filter", label)
        # It reads no input, so that a shell must end it when that is closed.
        return Program(command=["sh", "-c", _WHILE_HEARD, "sh", *words, *kinds])

    def hear(self, host: Host, said: Event) -> Iterable[tuple[Site, Event]]:
        """What happened to a container, and what that means for its peer."""
        actor = said.get("Actor", {}).get("Attributes", {})
        site = self._inmates.get((host, actor.get("name", "")))
        if site is None:
            return
        what = said.get("Action")
        if what in ("pause", "unpause"):
            yield site, {"paused": PAUSED if what == "pause" else None}
        elif what == "kill" and actor.get("signal") == "15":
            self._told_to_stop.add(site)
        elif what == "oom":
            self._starved.add(site)
            yield site, {"fate": self._fate(site, _KILLED)}
        elif what == "die" and (why := self._fate(site, int(actor.get("exitCode", 0)))):
            yield site, {"fate": why}

    def _fate(self, site: Site, code: int) -> str | None:
        """What ended the peer there, if its container was ended from outside."""
        (peer,) = site.peers
        if site in self._told_to_stop and code in _STOPPED:
            return "its container was stopped (docker stop)"
        if code <= 128 and site not in self._starved:
            return None
        ended = Container(
            id="",
            service=service(peer),
            status="exited",
            exit_code=code or _KILLED,
            is_out_of_memory=site in self._starved,
        )
        return fate(ended, limits(self._config, peer).memory_mb, "")[1]


_HARDENED = (
    *("--network", "host", "--userns", "host", "--init", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--log-driver", "none"),
)
"""The host's network and nothing else of it; what is said goes through the pipe alone."""


def _site(host: Host, peer: int) -> Site:
    return Site(
        host=host,
        name=f"container-{peer:03d}",
        peers=range(peer, peer + 1),
        label=f"the container of peer {peer}",
    )


def _token(grounds: Grounds) -> str:
    """What this launch is called on a host: its folder there."""
    return PurePosixPath(grounds.home).parent.name


def _mount(source: str, target: str) -> str:
    """A bind mount as docker reads it: a row of CSV. Only the run folder can be written."""
    quoted = source.replace('"', '""')
    return f'type=bind,"source={quoted}",target={target}{"" if target == RUN else ",readonly"}'


def _call(*command: str) -> Request:
    return Request(head=_words(*command))


def _words(*command: str) -> Mapping[str, Any]:
    """A command for a host, where a program that is missing has the exit code of a shell."""
    return {"ask": "call", "command": ["sh", "-c", 'exec "$@"', "sh", *command]}


def _expect(said: Mapping[str, Any], failure: str) -> None:
    if said["code"]:
        raise HostError(f"{failure}: {docker.end_of(said['output'], 3)}")


def _first_table(output: str) -> Mapping[str, Any]:
    """The JSON among lines of which others are warnings; empty if there is none."""
    return next(filter(None, map(docker.table, output.splitlines())), {})


def _there(said: Mapping[str, Any], facts: Event, found: Mapping[str, Any]) -> _There:
    """From what a host and its engine say. Containers of root are nobody's, as on one machine."""
    user = (said["user"][0], said["user"][1])
    is_root = user[0] == 0
    return _There(
        user=(NOBODY, NOBODY) if is_root else user,
        owner=(NOBODY, NOBODY) if is_root else None,
        data=said["data_folder"],
        shared_bytes=int(facts.get("MemTotal", 0)) // 2 or 1 << 30,
        content=None if found["code"] else found["output"].strip(),
    )


def _unfit(facts: Event, image: Image) -> Iterable[str]:
    """Why an engine cannot run the containers of an image, with the network of its host."""
    if docker.is_rootless(facts):
        yield (
            "docker there is rootless, and its containers have not the host's network; use an "
            "engine that root runs, or `p2p-dml launch`, which needs none"
        )
    theirs = _PROCESSORS.get(facts.get("Architecture", ""))
    ours = image.content.partition(" ")[0] if image.content else theirs
    if theirs is not None and ours != theirs:
        yield (
            f"its processor is {theirs}, the image {image.name} is for {ours}; name one of both "
            "kinds, in a registry, by --image"
        )


def _free_mb(said: Mapping[str, Any]) -> int | None:
    """What `df -Pk` says; None if the folder may not be looked at."""
    cells = said["output"].strip().splitlines()[-1:]
    words = cells[0].split() if cells and not said["code"] else []
    return int(words[3]) * 1024 // 10**6 if len(words) > 3 and words[3].isdigit() else None


def _no_room(free_mb: Mapping[str, int | None], least: int) -> Iterable[str]:
    for folder, free in free_mb.items():
        if free is not None and free < least:
            yield f"{free} MB free in {folder}, {least} MB are needed; free some"
