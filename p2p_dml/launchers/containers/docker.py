"""Docker by its command line: the engine, images, and how containers are.

The commands run in sessions of their own, so that a Ctrl-C of the user's does not reach them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import p2p_dml
from p2p_dml import __version__
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.launchers.sources import package_files

IMAGE = f"p2p-dml:{__version__}"
"""What the image of this version is called."""

BUILD_ARGUMENTS = (
    "PYTHON_IMAGE",
    "TORCH_INDEX",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_NO_INDEX",
)
"""Variables of the environment that a build takes over; see docker/Dockerfile."""

INFO = ("docker", "info", "--format", "{{json .}}")
"""Asks an engine what it is."""

CONTENT = (
    "docker",
    "image",
    "inspect",
    "--format",
    "{{.Architecture}} {{json .RootFS.Layers}} {{json .Config.Labels}}",
)
"""Asks, with the name of an image after it, what is in it."""

Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]

_SOURCE = "org.p2p-dml.source"
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"
_TAIL_LINES = 15


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A docker that can be used: the words that begin a compose command, and what it runs on."""

    compose: tuple[str, ...]
    cores: int
    is_rootless: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How a container is; `service` is its name in the compose file.

    `exit_code` means something once it has ended.
    """

    id: str
    service: str
    status: Status
    exit_code: int
    is_out_of_memory: bool

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self.status in ("exited", "dead", "removing")


def find() -> Engine:
    """The docker of this machine, with compose; StartupError saying what to do if it has none."""
    facts = facts_here()
    return Engine(
        compose=_find_compose(),
        cores=int(facts["NCPU"]),
        is_rootless=is_rootless(facts),
    )


def facts_here() -> Mapping[str, Any]:
    """What the engine of this machine says of itself; StartupError if it cannot be used."""
    if shutil.which("docker") is None:
        raise StartupError(
            "docker is not installed: looked for the command `docker`; install Docker Engine "
            "(https://docs.docker.com/engine/install), or use `p2p-dml run`, which needs none"
        )
    asked = _call(*INFO)
    facts = table(asked.stdout)
    if asked.returncode or not facts.get("NCPU"):
        errors = " ".join(facts.get("ServerErrors") or ())
        raise StartupError(why_unusable(asked.stderr + errors))
    return facts


def is_rootless(facts: Mapping[str, Any]) -> bool:
    """Whether an engine runs as a user who is not root."""
    return "name=rootless" in (facts.get("SecurityOptions") or ())


def why_unusable(said: str) -> str:
    """What an engine that does not answer has said instead, and what to do."""
    if "permission denied" in said.lower():
        advice = "add yourself to the group docker (and log in again), or use sudo"
    else:
        advice = "is dockerd running? start it, for instance by `sudo systemctl start docker`"
    return f"docker cannot be used: {advice}. It says: {end_of(said, 3)}"


def _find_compose() -> tuple[str, ...]:
    for words in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(words[0]) and _call(*words, "version").returncode == 0:
            return words
    raise StartupError(
        "docker has no compose: tried `docker compose` and `docker-compose`; install the package "
        "docker-compose-plugin, docker-compose-v2 or docker-compose (1.29)"
    )


# ---- images -----------------------------------------------------------------------------------


def source_digest() -> str:
    """A hash of this package's files, to tell whether an image was built from them."""
    whole = hashlib.sha256()
    for name, content in package_files((".py", ".c", ".h", ".html")):
        whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def source_of(image: str) -> str | None:
    """The `source_digest` that an image was built with, "" if it names none; None: no image."""
    template = f'{{{{index .Config.Labels "{_SOURCE}"}}}}'
    asked = _call("docker", "image", "inspect", "--format", template, image)
    return None if asked.returncode else asked.stdout.strip().removeprefix("<no value>")


def content_of(image: str) -> str | None:
    """What an image is, whoever stores it, as `CONTENT` asks for it; None: no image, or no docker.

    An id would not do: engines that store images otherwise give them other ids.
    """
    if shutil.which("docker") is None:
        return None
    asked = _call(*CONTENT, image)
    return None if asked.returncode else asked.stdout.strip()


def build(image: str, log: Path) -> None:
    """Build the image from the checkout that this package is in; what is said goes to `log`.

    Raises ConfigError if it is in none, StartupError with the end of the log if it fails.
    """
    root = Path(p2p_dml.__file__).parents[1]
    recipe = root / "docker" / "Dockerfile"
    if not recipe.is_file():
        raise ConfigError(
            f"no image {image}, and nothing to build it from: {recipe} is not there; build it in a "
            f"checkout of p2p_dml {__version__} by `docker build -f docker/Dockerfile -t {image} .`"
            ", or name another by --image"
        )
    # Named without values, docker takes those of the environment: none is on a command line.
    given = [f"--build-arg={name}" for name in BUILD_ARGUMENTS if name in os.environ]
    source = f"--build-arg=SOURCE={source_digest()}"
    command = ("docker", "build", "--file", str(recipe), "--tag", image, *given, source, str(root))
    logged(command, log, f"the image {image} cannot be built")


def pull(image: str, log: Path) -> None:
    """Get an image from its registry; what is said goes to `log`. StartupError if it fails."""
    logged(("docker", "pull", image), log, f"there is no image {image}, and it cannot be pulled")


def logged(command: Sequence[str], log: Path, failure: str) -> None:
    """Run a command whose output goes to the end of `log`; killed if this process is interrupted.

    Raises StartupError that begins with `failure` and has the end of the log if it fails.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code:
        said = end_of(log.read_text(encoding="utf-8", errors="replace"), _TAIL_LINES)
        raise StartupError(f"{failure} ({command[0]} ended with {code}; all of {log}):\n{said}")


# ---- containers -------------------------------------------------------------------------------


def containers(project: str) -> list[str]:
    """Ids of all containers of a compose project, whatever they do."""
    of_project = f"label={_PROJECT}={project}"
    asked = _call("docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", of_project)
    return asked.stdout.split()


def look(ids: Sequence[str]) -> list[Container] | None:
    """How containers are, without those that are no more; None if the engine does not answer."""
    asked = _call("docker", "inspect", "--type", "container", *ids)
    try:
        return [_container(each) for each in json.loads(asked.stdout)]
    except ValueError:
        return None


def _container(facts: Mapping[str, Any]) -> Container:
    state = facts["State"]
    return Container(
        id=facts["Id"],
        service=facts["Config"]["Labels"][_SERVICE],
        status=state["Status"],
        exit_code=state["ExitCode"],
        is_out_of_memory=state["OOMKilled"],
    )


def tell(ids: Iterable[str], *words: str) -> None:
    """`docker WORDS ID` for each of `ids`; those that are gone are passed over."""
    for each in ids:
        _call("docker", *words, each)


def save_output(id_: str, path: Path) -> str:
    """Write to `path` what a container has said; returns its last error message or last line."""
    asked = _call("docker", "logs", id_)
    said = asked.stdout + asked.stderr
    path.write_text(said, encoding="utf-8")
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        check=False,
    )


def table(text: str) -> dict[str, Any]:
    """A JSON object; empty if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def end_of(text: str, num_lines: int) -> str:
    """The last lines of what a command has said."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-num_lines:])
