"""Containers of several hosts: what hosts are asked, what is started there, what becomes of it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

import pytest

from p2p_dml import config
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.launchers.containers import compose_file, docker, images, on_hosts
from p2p_dml.launchers.containers.compose_file import Places
from p2p_dml.launchers.containers.crew import PAUSED
from p2p_dml.launchers.containers.images import Image
from p2p_dml.launchers.containers.on_hosts import OnHosts
from p2p_dml.launchers.process import THREAD_VARIABLES
from p2p_dml.launchers.ssh.channel import HostError, Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster, Host, HostEntry
from p2p_dml.launchers.ssh.launch import Voice
from p2p_dml.launchers.ssh.quarters import Fitness, Grounds, Program

HOSTS = tuple(
    Host(index=i, entry=HostEntry(ssh=name, peers=2), peers=range(2 * i, 2 * i + 2))
    for i, name in enumerate(("alpha", "beta"))
)
ALPHA, BETA = HOSTS
CLUSTER = Cluster(path=Path("hosts.toml"), hosts=HOSTS, wheels=None, lost_s=60.0)
BASE: Mapping[str, Any] = {"peers": 4, "rounds": 2, "strategy": "dpsgd", "links": "ring"}
SAID: Mapping[str, Any] = {
    "folder": "/home/me/p2p",
    "disk_mb": 9_000,
    "user": [1000, 100],
    "data_folder": "/srv/data",
}
ENGINE = {
    "Architecture": "x86_64",
    "NCPU": 4,
    "MemTotal": 8 << 30,
    "DockerRootDir": "/var/lib/docker",
}
GROUNDS = Grounds(home="/home/me/p2p/runs/f00/home", out="/home/me/p2p/runs/f00/out")
MINE = "amd64 [layers] {labels}"


@final
class Engine:
    """The docker of a host, as the answers that its commands get there."""

    def __init__(
        self,
        info: str = json.dumps(ENGINE),
        code: int = 0,
        content: str | None = None,
        free_mb: int = 90_000,
        loads: str | None = MINE,
    ) -> None:
        self.content = content
        self.calls: list[str] = []
        self._info = info
        self._code = code
        self._free_mb = free_mb
        self._loads = loads

    def answer(self, request: Request) -> Mapping[str, Any]:
        """What the host answers to a call."""
        assert request.head["ask"] == "call"
        shell, words = request.head["command"][:4], request.head["command"][4:]
        assert shell == ["sh", "-c", 'exec "$@"', "sh"]
        self.calls.append(shlex.join(words))
        code, output = self._call(words)
        return {"code": code, "output": output + "\n"}

    def _call(self, words: Sequence[str]) -> tuple[int, str]:
        if words[:2] == ["docker", "info"]:
            return self._code, f"WARNING: no swap limit\n{self._info}"
        if words[0] == "df":
            cells = ["/dev/sda", "1", "1", str(-(-self._free_mb * 10**6 // 1024)), "1%", words[2]]
            return 0, f"Filesystem …\n{' '.join(cells)}"
        if words[1:3] in (["load", "--input"], ["pull", "mine:1"]):
            self.content = self._loads or self.content
            return (0, "loaded") if self._loads else (1, "no space left")
        if words[1:3] == ["image", "inspect"]:
            return (0, self.content) if self.content else (1, "Error: No such image")
        return 0, ""


@final
class Board:
    """Hosts that answer at once."""

    def __init__(self, engines: Mapping[Host, Engine]) -> None:
        self.engines = engines
        self.files: list[tuple[Host, str]] = []

    def pump(self, timeout_s: float) -> None:
        """Nothing is ever under way."""

    def converse(self, talks: Mapping[Host, Talk[Any]]) -> tuple[dict[Host, Any], dict[Host, str]]:
        results, failures = dict[Host, Any](), dict[Host, str]()
        for host, talk in talks.items():
            try:
                results[host] = self._talk(host, talk)
            except HostError as error:
                failures[host] = str(error)
        return results, failures

    def _talk(self, host: Host, talk: Talk[Any]) -> Any:
        request = next(talk)
        while True:
            for source, _, name, _ in request.files:
                assert isinstance(source, Path) and source.exists()
                self.files.append((host, name))
            try:
                request = talk.send(self.engines[host].answer(request))
            except StopIteration as stop:
                return stop.value


def _config(**more: object) -> config.RunConfig:
    return config.parse({**BASE, **more}, Path())


def _quarters(content: str | None = MINE, **more: object) -> OnHosts:
    return OnHosts(CLUSTER, _config(**more), Image(name="mine:1", content=content))


def _examined(
    quarters: OnHosts, engine: Engine, host: Host = ALPHA, **said: object
) -> Sequence[str]:
    """The problems of a host."""
    board = Board({host: engine})
    results, _ = board.converse({host: quarters.examine(host, {**SAID, **said})})
    fitness = results[host]
    assert isinstance(fitness, Fitness)
    return fitness.problems


# ---- what is there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Engine(code=127, info="sh: exec: docker: not found"), "docker is not installed there"),
        (Engine(code=1, info="permission denied while connecting"), "the group docker"),
        (Engine(info=json.dumps({"ServerErrors": ["Cannot connect"]})), "is dockerd running?"),
        (Engine(info=json.dumps({**ENGINE, "SecurityOptions": ["name=rootless"]})), "rootless"),
        (Engine(info=json.dumps({**ENGINE, "Architecture": "aarch64"})), "processor is arm64, the"),
        (Engine(info=json.dumps({**ENGINE, "NCPU": 1})), "devices of peer 1: expected cpus of at"),
        (Engine(free_mb=3_000), "3000 MB free in /var/lib/docker, 4000 MB are needed"),
        (Engine(content=MINE, free_mb=200), "200 MB free in /var/lib/docker, 300 MB are needed"),
    ],
)
def test_what_keeps_a_host_from_taking_part_is_said(engine: Engine, expected: str) -> None:
    (problem,) = _examined(_quarters(devices=[{"peers": [1], "cpus": 2.5}]), engine)
    assert expected in problem


@pytest.mark.parametrize("engine", [Engine(), Engine(content=MINE, free_mb=301)])
def test_a_host_that_is_fine_has_no_problems(engine: Engine) -> None:
    assert not _examined(_quarters(), engine)


def test_a_folder_of_the_engine_that_nobody_may_look_at_is_no_problem() -> None:
    assert on_hosts._free_mb({"code": 1, "output": "df: permission denied"}) is None
    assert on_hosts._free_mb({"code": 0, "output": "Filesystem\n/dev/x 9 9 1000000 1% /"}) == 1024


# ---- the image ---------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were saved to files."""
    names: list[str] = []

    def save(name: str, file: Path, meanwhile: Callable[[], None]) -> None:
        file.write_bytes(b"an image")
        meanwhile()
        names.append(name)

    monkeypatch.setattr(images, "save", save)
    return names


def _prepared(quarters: OnHosts, alpha: Engine, beta: Engine) -> tuple[Board, list[str]]:
    said: list[str] = []
    board = Board({ALPHA: alpha, BETA: beta})
    for host, engine in board.engines.items():
        _examined(quarters, engine, host)
    quarters.prepare(cast(Switchboard, board), dict.fromkeys(HOSTS, GROUNDS), said.append)
    return board, said


def test_the_image_is_brought_where_it_is_missing_or_another(saved: list[str]) -> None:
    alpha, beta = Engine(content=MINE), Engine(content="amd64 [older]")
    board, said = _prepared(_quarters(), alpha, beta)
    assert saved == ["mine:1"]
    assert board.files == [(BETA, "image.tar.gz")]
    assert not any("load" in call for call in alpha.calls)
    assert beta.content == MINE
    after = beta.calls[beta.calls.index(f"docker load --input {GROUNDS.home}/image.tar.gz") :]
    assert after[1] == f"rm -f {GROUNDS.home}/image.tar.gz"
    assert after[2].startswith("docker image rm ")
    assert said[0] == "beta: bringing the image mine:1, which takes minutes, but once"
    assert said[1].startswith("image: mine:1 on 2 hosts; brought to 1, in ")


def test_an_image_that_is_everywhere_is_not_brought(saved: list[str]) -> None:
    board, said = _prepared(_quarters(), Engine(content=MINE), Engine(content=MINE))
    assert not saved and not board.files
    assert said == ["image: mine:1 on 2 hosts"]


def test_an_image_that_is_not_here_is_pulled_there(saved: list[str]) -> None:
    alpha, beta = Engine(), Engine(content="whatever")
    _, said = _prepared(_quarters(content=None), alpha, beta)
    assert not saved
    assert "docker pull mine:1" in alpha.calls
    assert "docker pull mine:1" not in beta.calls
    assert said[0] == "alpha: pulling the image mine:1"


@pytest.mark.parametrize(
    ("content", "loads", "expected"),
    [
        (MINE, None, "alpha: docker cannot load the image mine:1 there: no space left"),
        (MINE, "amd64 [other]", "alpha: docker has loaded the image mine:1 there, and has another"),
        (None, None, "alpha: the image mine:1 is not here, and cannot be pulled there: no space"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_a_host_that_does_not_get_the_image_is_named(
    content: str | None, loads: str | None, expected: str
) -> None:
    with pytest.raises(StartupError) as caught:
        _prepared(_quarters(content=content), Engine(loads=loads), Engine(content=MINE))
    assert str(caught.value).startswith(expected)


# ---- what is started ---------------------------------------------------------------------------


def _program(peer: int, quarters: OnHosts | None = None, **said: object) -> Program:
    quarters = quarters or _quarters()
    _examined(quarters, Engine(content=MINE), ALPHA, **said)
    return quarters.program(quarters.sites(ALPHA)[peer], GROUNDS)


def _values(program: Program, option: str) -> list[str]:
    """What follows an option in a command, wherever it is there."""
    words = program.command
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def test_each_peer_has_a_site_and_a_container_of_its_own() -> None:
    quarters = _quarters()
    sites = [site for host in HOSTS for site in quarters.sites(host)]
    assert [list(site.peers) for site in sites] == [[0], [1], [2], [3]]
    assert quarters.sites(BETA)[1] is sites[3]
    program = _program(1)
    assert program.command[:2] == ["docker", "run"]
    assert program.command[-3:] == ["mine:1", "-m", "p2p_dml.launchers.supervisor"]
    assert _values(program, "--name") == ["p2p-f00-peer-001"]
    assert program.undo == ["docker", "rm", "--force", "p2p-f00-peer-001"]
    assert (program.home, program.run) == ("/p2p/home", "/p2p/run")


def test_a_container_sees_its_own_folders_and_the_data_and_can_write_to_one() -> None:
    source = 'type=bind,"source=/home/me/p2p/runs/f00/{}/container-001",target={}'
    assert _values(_program(1), "--mount") == [
        f"{source.format('home', '/p2p/home')},readonly",
        source.format("out", "/p2p/run"),
        'type=bind,"source=/srv/data",target=/p2p/data,readonly',
    ]
    assert len(_values(_program(1, data_folder=None), "--mount")) == 2
    assert on_hosts._mount('/a,"b"', "/x").split(",target")[0] == 'type=bind,"source=/a,""b"""'


def test_it_may_do_as_little_as_one_of_compose() -> None:
    places = Places(run=Path("/run"))
    text = compose_file.document(_config(), "mine:1", "1000:100", places)
    other = json.loads(text)["services"]["peer-001"]
    program = _program(1)
    assert _values(program, "--cap-drop") == other["cap_drop"]
    assert _values(program, "--security-opt") == other["security_opt"]
    assert _values(program, "--tmpfs") == other["tmpfs"]
    assert ("--read-only" in program.command) is other["read_only"]
    assert ("--init" in program.command) is other["init"]
    assert _values(program, "--user") == [other["user"]]
    threads = {word.removeprefix("--env=") for word in program.command if "--env=" in word}
    assert threads == {f"{name}=1" for name in THREAD_VARIABLES}
    assert "--privileged" not in program.command


@pytest.mark.parametrize(
    ("user", "expected", "owner"),
    [([1000, 100], "1000:100", None), ([0, 0], "10001:10001", (10001, 10001))],
)
def test_containers_are_who_logs_in_or_nobody_for_root(
    user: list[int], expected: str, owner: tuple[int, int] | None
) -> None:
    program = _program(0, user=user)
    assert _values(program, "--user") == [expected]
    assert program.owner == owner


def test_limits_of_devices_hold() -> None:
    quarters = _quarters(devices=[{"peers": [1], "cpus": 0.5, "memory_mb": 600}])
    free, limited = (_program(peer, quarters) for peer in (0, 1))
    assert not _values(free, "--cpus") and not _values(free, "--memory")
    assert _values(limited, "--cpus") == ["0.5"]
    assert _values(limited, "--memory") == _values(limited, "--memory-swap") == ["600000000"]
    assert _values(limited, "--shm-size") == [str(4 << 30)]


# ---- what becomes of it ------------------------------------------------------------------------


def _event(what: str, name: str = "p2p-f00-peer-001", **more: str) -> Mapping[str, Any]:
    return {"Action": what, "Actor": {"Attributes": {"name": name, **more}}}


STARVED = "its container ran out of memory: it used more than memory_mb = 600 of [[devices]]"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([_event("die", exitCode="0")], []),
        ([_event("die", exitCode="3")], []),
        ([_event("kill", signal="9"), _event("die", exitCode="137")],
         [{"fate": "its container was killed by signal 9 (Killed)"}]),
        ([_event("oom"), _event("die", exitCode="137")], [{"fate": STARVED}] * 2),
        ([_event("die", exitCode="137"), _event("oom")],
         [{"fate": "its container was killed by signal 9 (Killed)"}, {"fate": STARVED}]),
        ([_event("oom"), _event("die", exitCode="0")], [{"fate": STARVED}] * 2),
        ([_event("kill", signal="15"), _event("die", exitCode="0")],
         [{"fate": "its container was stopped (docker stop)"}]),
        ([_event("pause"), _event("unpause")], [{"paused": PAUSED}, {"paused": None}]),
        ([_event("die", name="p2p-f00-peer-002", exitCode="137"), {"exit_code": 1}], []),
    ],
)  # fmt: skip
def test_what_docker_tells_of_a_container_is_told_of_its_peer(
    events: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]
) -> None:
    quarters = _quarters(devices=[{"peers": [1], "memory_mb": 600}])
    _program(1, quarters)
    heard = [found for event in events for found in quarters.hear(ALPHA, event)]
    assert [words for _, words in heard] == expected
    assert all(site is quarters.sites(ALPHA)[1] for site, _ in heard)
    assert not [found for event in events for found in quarters.hear(BETA, event)]


def test_docker_is_asked_for_what_happens_to_containers_of_this_run_alone() -> None:
    words = _quarters().lookout(ALPHA, GROUNDS).command
    assert words[:2] == ["sh", "-c"] and words[4:6] == ["docker", "events"]
    filters = [words[i + 1] for i, word in enumerate(words) if word == "--filter"]
    assert filters[0] == "label=org.p2p-dml.run=f00"
    assert _values(_program(1), "--label") == ["org.p2p-dml.run=f00"]


DOCKER = "#!/bin/sh\necho $$ > '{}'\necho '{{}}'\nexec sleep 99\n"


def test_the_lookout_ends_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, pid = tmp_path / "docker", tmp_path / "pid"
    tool.write_text(DOCKER.format(pid), encoding="ascii")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command = _quarters().lookout(ALPHA, GROUNDS).command
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lookout:
        assert lookout.stdin is not None and lookout.stdout is not None
        assert lookout.stdout.readline() == b"{}\n"
        lookout.stdin.close()
        assert lookout.stdout.read() == b""  # whoever could write has ended
    assert int(pid.read_text(encoding="ascii")) != lookout.pid


# ---- from here ---------------------------------------------------------------------------------


def test_mistakes_are_found_before_docker_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*words: object) -> None:
        raise AssertionError("docker was asked")

    monkeypatch.setattr(docker, "_call", fail)
    voice = Voice(say=lambda line: None, watch=lambda folder, started: lambda: None)
    with pytest.raises(ConfigError, match="4 peers in all, the run has 5"):
        on_hosts.run(CLUSTER, _config(peers=5), tmp_path / "out", voice)
