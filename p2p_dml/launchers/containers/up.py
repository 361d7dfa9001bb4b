"""All peers as containers of this machine, by docker compose: `p2p-dml up`.

Containers, their network and the keys of a run are gone when it is over, however it ends: a shell
that waits for the end of this process takes them down.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from p2p_dml import keys
from p2p_dml.assemble import Blueprint, blueprint, load_data
from p2p_dml.checks import check_all, check_everybody_begins
from p2p_dml.config import RunConfig
from p2p_dml.data.fetch import available
from p2p_dml.errors import ConfigError
from p2p_dml.files import write_whole
from p2p_dml.launchers import folder
from p2p_dml.launchers.containers import compose_file, docker, images
from p2p_dml.launchers.containers.compose_file import Places
from p2p_dml.launchers.containers.crew import LOOK_S, Containers
from p2p_dml.launchers.containers.docker import Engine
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.process import STOP_GRACE_S, on_stop_signals
from p2p_dml.launchers.single import check_transport
from p2p_dml.launchers.temporary import temporary_folder

NOBODY = 10001
"""Whom docker/Dockerfile calls `peer`: containers are run as root by nobody."""

_UPDATE_S = 0.25

_TAKE_DOWN = """
cat > /dev/null  # until the launcher closes it, or is gone
project=$1 log=$2 scratch=$3
shift 3
ours="label=com.docker.compose.project=$project"
"$@" >> "$log" 2>&1
docker ps --all --quiet --filter "$ours" | xargs -r docker rm --force > /dev/null
docker network ls --quiet --filter "$ours" | xargs -r docker network rm > /dev/null
rm -rf -- "$scratch"
"""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who containers are. `given_to`: whom their files belong to; None: this process's user."""

    user: str
    given_to: tuple[int, int] | None = None

    def give(self, path: Path) -> None:
        """Give a folder with all in it, or a file, to the owner."""
        if self.given_to is not None:
            for each in (path, *path.rglob("*")):
                os.chown(each, *self.given_to)


def run(
    config: RunConfig,
    out: Path | None,
    watch: Callable[[Path, float], Callable[[], None]],
    say: Callable[[str], None] = lambda line: None,
    *,
    image: str | None = None,
    build: bool = False,
) -> Outcome:
    """Run all peers in containers to their end; `watch(folder, started)` gives what is called then.

    `image`: another than that of this version, which is built where it is missing, or if `build`.
    The first SIGINT or SIGTERM lets each peer finish its round and save; the second kills them.
    Raises ConfigError before anything is written, StorageError if the run folder cannot be,
    StartupError if docker cannot be used, has no image, starts no containers, or falls silent.
    """
    engine, path = docker.find(), folder.choose(out, config)
    _check_cores(config, engine)
    shared, model = _checked(config)
    name = image or docker.IMAGE
    image_log = images.have(name, is_ours=image is None, build=build, say=say)
    started, owner = time.time(), owner_here(engine.is_rootless)
    folder.create(path, shared, model, "run", started)  # as which it can be resumed
    del shared, model  # the data set with them: it is in every container
    with ExitStack() as stack:
        scratch = stack.enter_context(temporary_folder())
        stack.enter_context(folder.held(path))
        if image_log is not None:
            shutil.move(image_log, path / "logs" / "image.log")
        file = path / "compose.yml"
        _write(file, config, name, owner, _places(config, path, scratch / "keys", owner))
        owner.give(path)
        project = f"p2p-{secrets.token_hex(4)}"
        words = (*engine.compose, "--project-name", project, "--file", str(file.resolve()))
        stack.enter_context(_taken_down(words, project, path, scratch))
        say(f"containers: {' '.join(words)} ps")
        crew = Containers(config, path, say)
        _run_all(crew, words, project, path, watch(path, started))
        return Outcome(path, crew.exit_codes, crew.errors)


def write(config: RunConfig, out: Path | None, file: Path, image: str | None) -> Path:
    """Write a compose file to run by hand, its keys and its run folder, which is returned.

    The keys are beside it. Raises ConfigError if one of them is there already, StorageError if
    they cannot be written.
    """
    secret = file.with_name(f"{file.stem}-keys")
    if found := [path for path in (file, secret) if path.exists()]:
        raise ConfigError(f"--write {file}: {found[0]} is there; choose another name or remove it")
    path, owner = folder.choose(out, config), owner_here(is_rootless=False)
    shared, model = _checked(config)
    folder.create(path, shared, model, "run", time.time())
    places = _places(config, path, secret.resolve(), owner)
    owner.give(path)
    _write(file, config, image or docker.IMAGE, owner, places)
    return path


def owner_here(is_rootless: bool) -> Owner:
    """Who containers are, such that this process's user can read and remove what they write.

    With a rootless engine that is root inside; if root calls it is who called sudo, or nobody.
    """
    if is_rootless:
        return Owner(user="0:0")
    if os.getuid():
        return Owner(user=f"{os.getuid()}:{os.getgid()}")
    ids = tuple(int(os.environ.get(name, 0)) or NOBODY for name in ("SUDO_UID", "SUDO_GID"))
    return Owner(user=f"{ids[0]}:{ids[1]}", given_to=(ids[0], ids[1]))


def _checked(config: RunConfig) -> tuple[Blueprint, nn.Module]:
    """Try all that peers will build. ConfigError with the path in the run file."""
    inside = compose_file.settings(config)
    check_transport(inside)
    check_everybody_begins(inside, "p2p-dml up")
    shared = blueprint(inside, *load_data(inside))
    return shared, check_all(shared)


def _places(config: RunConfig, path: Path, secret: Path, owner: Owner) -> Places:
    """What containers see; makes the keys in `secret`, unless traffic is not to be encrypted."""
    is_encrypted = config.transport.encryption != "none"  # auto: no address here is loopback
    if is_encrypted:
        keys.create(secret, config.peers)
        owner.give(secret)
    return Places(
        run=path.resolve(),
        keys=secret if is_encrypted else None,
        data=_data_folder(config),
        modules=compose_file.modules(config),
        topologies=compose_file.topologies(config),
    )


def _data_folder(config: RunConfig) -> Path | None:
    """Where data sets are: what the environment names, or where that of the run was found."""
    named = os.environ.get("P2P_DML_DATA")
    found = [row.place for row in available() if row.name == config.data.get("name")]
    places = [Path(place) for place in ([named] if named else found) if place]
    return next((place.resolve() for place in places if place.is_dir()), None)


def _check_cores(config: RunConfig, engine: Engine) -> None:
    for place, device in enumerate(config.devices):
        if device.cpus is not None and device.cpus > engine.cores:
            raise ConfigError(
                f"devices[{place}].cpus: expected at most the {engine.cores} cores that docker has "
                f"here, found {device.cpus:g}"
            )


def _write(file: Path, config: RunConfig, image: str, owner: Owner, places: Places) -> None:
    text = compose_file.document(config, image, owner.user, places)
    write_whole(file, text.encode())


def _run_all(
    crew: Containers,
    words: tuple[str, ...],
    project: str,
    path: Path,
    update: Callable[[], None],
) -> None:
    """Start the containers and follow them until all have ended; signals are told to the crew."""
    log = path / "logs" / "compose.log"
    with on_stop_signals(crew.stop, each=True):
        docker.logged((*words, "up", "--detach"), log, "the containers cannot be started")
        crew.begin(docker.containers(project))
        _attend(crew, update)


def _attend(crew: Containers, update: Callable[[], None]) -> None:
    next_look = 0.0
    while crew.running:
        if time.monotonic() >= next_look:
            crew.look()
            next_look = time.monotonic() + LOOK_S
        update()
        time.sleep(_UPDATE_S)
    update()


@contextmanager
def _taken_down(words: tuple[str, ...], project: str, run: Path, scratch: Path) -> Iterator[None]:
    """Take all containers down at the end; also if this process is killed before that."""
    log = (run / "logs" / "compose.log").resolve()
    down = (*words, "down", "--timeout", f"{STOP_GRACE_S:.0f}", "--remove-orphans")
    undertaker = subprocess.Popen(
        ("sh", "-c", _TAKE_DOWN, "sh", project, str(log), str(scratch), *down),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert undertaker.stdin is not None
    try:
        yield
    finally:
        with on_stop_signals(lambda: None, each=True):  # a further Ctrl-C would leave them
            undertaker.stdin.close()
            undertaker.wait()
