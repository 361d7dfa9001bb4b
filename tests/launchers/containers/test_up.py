"""`p2p-dml up`, whole, with a docker that only pretends to run containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from typer.testing import CliRunner

import p2p_dml
from p2p_dml import cli, config
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.launchers.containers import docker, up
from p2p_dml.report import load

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

BASE: Mapping[str, object] = {"peers": 3, "rounds": 2, "strategy": "dpsgd", "links": "ring"}


def _config(**more: object) -> config.RunConfig:
    return config.parse({**BASE, **more}, Path())


DOCKER = f"""#!{sys.executable} -IS
import json, os, pathlib, sys
home = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (home / "calls").open("a") as calls:
    print(*words, file=calls)
def has(*names):
    return words[:len(names)] == list(names)
if has("info"):
    denied = home / "denied"
    sys.exit(denied.read_text()) if denied.exists() else print(json.dumps(dict(NCPU=4)))
elif has("compose", "version"):
    sys.exit(int((home / "no-compose").exists()))
elif has("image", "inspect"):
    image = home / "image"
    print(image.read_text()) if image.exists() else sys.exit(1)
elif has("build"):
    print("Step 1/9", flush=True)
    if (home / "broken").exists():
        sys.exit("no such package: tensorscream")
    (home / "image").write_text(words[-2].partition("SOURCE=")[2])
elif "up" in words:
    if (home / "unstartable").exists():
        sys.exit("no space left on device")
    services = json.loads(pathlib.Path(words[words.index("--file") + 1]).read_text())["services"]
    (home / "up").write_text(json.dumps(services))
    run = next(iter(services.values()))["volumes"][0]["source"]
    for name in services:
        event = pathlib.Path(run, "events", name + ".jsonl")
        line = dict(t=1e9, peer=int(name[-3:]))
        joined = dict(line, event="joined", after_s=1)
        finished = dict(line, event="finished", round=2, exit_code=0, error=None)
        event.write_text("".join(json.dumps(x) + "\\n" for x in (joined, finished)))
elif has("ps"):
    up = home / "up"
    print(*json.loads(up.read_text()) if up.exists() else "", sep="\\n")
elif has("inspect"):
    state = "running" if (home / "endless").exists() else "exited"
    state = dict(Status=state, ExitCode=0, OOMKilled=False)
    service = "com.docker.compose.service"
    names = json.loads((home / "up").read_text())
    print(json.dumps([dict(Id=n, Config=dict(Labels={{service: n}}), State=state) for n in names]))
elif "down" in words:
    (home / "up").unlink(missing_ok=True)
elif has("kill"):
    (home / "endless").unlink(missing_ok=True)
elif has("logs"):
    print("done", words[1])
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a docker on PATH whose containers end at once, all well."""
    home = tmp_path / "bin"
    home.mkdir()
    (home / "docker").write_text(DOCKER, encoding="utf-8")
    (home / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return home


def _said(fake: Path) -> str:
    calls = fake / "calls"
    return calls.read_text(encoding="utf-8") if calls.exists() else ""


def _calls(fake: Path) -> list[str]:
    return _said(fake).splitlines()


def services_of(run: Path) -> dict[str, Any]:
    """The containers of a run, by name."""
    services: dict[str, Any] = json.loads((run / "compose.yml").read_text("utf-8"))["services"]
    return services


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


def test_up_builds_starts_follows_and_takes_down(fake: Path, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = up.run(_config(), tmp_path / "out", _ignore, said.append)
    assert outcome.exit_codes == {0: 0, 1: 0, 2: 0}
    assert outcome.verdict is None
    assert "building the image" in said[0]
    built, started, taken_down = (
        next(i for i, call in enumerate(_calls(fake)) if f"{word} --" in call)
        for word in ("build", "up", "down")
    )
    assert built < started < taken_down
    assert not (fake / "up").exists()
    assert load(tmp_path / "out").meta.mode == "run"  # so that it can be resumed
    logs = tmp_path / "out" / "logs"
    assert (logs / "peer-002.log").read_text(encoding="utf-8") == "done peer-002\n"
    assert "Step 1/9" in (logs / "image.log").read_text(encoding="utf-8")


def test_keys_are_in_no_file_that_stays(fake: Path, tmp_path: Path) -> None:
    def seen(folder: Path, started: float) -> Callable[[], None]:
        services = services_of(folder)
        mounts = {each["target"]: each["source"] for each in services["peer-001"]["volumes"]}
        file = Path(mounts["/p2p/keys/peer-001.key"])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_uid == int(services["peer-001"]["user"].partition(":")[0])
        secrets.append((file, file.read_text(encoding="ascii").strip()))
        return lambda: None

    secrets: list[tuple[Path, str]] = []
    up.run(_config(), tmp_path / "out", seen)
    ((file, secret),) = secrets
    assert len(secret) == 40
    assert not file.exists()
    files = [path for path in (fake / "calls", *(tmp_path / "out").rglob("*")) if path.is_file()]
    assert len(files) > len(services_of(tmp_path / "out"))
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_an_image_that_is_there_is_not_built_again(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake / "image").write_text("5" * 64, encoding="ascii")
    monkeypatch.setattr(docker, "source_digest", lambda: "5" * 64)
    said: list[str] = []
    up.run(_config(), tmp_path / "out", _ignore, said.append)
    assert not any(call.startswith("build") for call in _calls(fake))
    assert len(said) == 1 and said[0].startswith("containers: docker compose --project-name p2p-")


def test_code_is_told_from_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "p2p_dml" / "__init__.py"
    module.parent.mkdir()
    module.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(p2p_dml, "__file__", str(module))
    before = docker.source_digest()
    (module.parent / "notes.txt").touch()
    assert docker.source_digest() == before and len(before) == 64
    (module.parent / "kernel.c").touch()
    assert docker.source_digest() != before


def test_an_image_of_other_code_is_said(fake: Path, tmp_path: Path) -> None:
    (fake / "image").write_text("0" * 64, encoding="ascii")
    said: list[str] = []
    up.run(_config(), tmp_path / "out", _ignore, said.append)
    assert "has another state of p2p_dml; --build makes it anew" in said[0]


def test_build_builds_what_is_there_with_what_the_environment_says(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake / "image").write_text("0" * 64, encoding="ascii")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:password@index.example/simple")
    up.run(_config(), tmp_path / "out", _ignore, image="mine:1", build=True)
    (call,) = (call for call in _calls(fake) if call.startswith("build"))
    assert "--tag mine:1" in call and "--build-arg=PIP_INDEX_URL " in call
    assert "password" not in call and "TORCH_INDEX" not in call


def test_another_image_is_pulled(fake: Path, tmp_path: Path) -> None:
    up.run(_config(), tmp_path / "out", _ignore, image="registry.example/peer:1")
    calls = _calls(fake)
    assert "pull registry.example/peer:1" in calls
    assert not any(call.startswith("build") for call in calls)


@pytest.mark.parametrize(
    ("what", "content", "expected"),
    [
        ("denied", "permission denied while connecting", "add yourself to the group docker"),
        ("denied", "Cannot connect to the Docker daemon", "is dockerd running?"),
        ("no-compose", "", "docker-compose-plugin"),
        ("broken", "", "no such package: tensorscream"),
    ],
)
def test_a_docker_that_cannot_be_used_says_what_to_do(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, content: str,
    expected: str,
) -> None:  # fmt: skip
    (fake / what).write_text(content, encoding="utf-8")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: which(name) if name == "docker" else None)
    with pytest.raises(StartupError, match=expected.replace("?", r"\?")):
        up.run(_config(), tmp_path / "out", _ignore)
    assert not (tmp_path / "out").exists()


def test_no_docker_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartupError, match="docker is not installed"):
        up.run(_config(), tmp_path / "out", _ignore)


def test_what_cannot_be_started_is_taken_down(fake: Path, tmp_path: Path) -> None:
    (fake / "unstartable").touch()
    with pytest.raises(StartupError, match="no space left on device"):
        up.run(_config(), tmp_path / "out", _ignore)
    assert any(" down " in call for call in _calls(fake))


def test_an_exception_takes_all_down(fake: Path, tmp_path: Path) -> None:
    def fails(folder: Path, started: float) -> Callable[[], None]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        up.run(_config(), tmp_path / "out", fails)
    assert any(" down " in call for call in _calls(fake))


@pytest.mark.parametrize(
    ("number", "call", "code"),
    [
        (signal.SIGTERM, "kill --signal TERM peer-002", 0),
        (signal.SIGKILL, "down --timeout 60", -9),
    ],
)
def test_whatever_ends_the_command_ends_its_containers(
    fake: Path, shell: Shell, tmp_path: Path, number: int, call: str, code: int
) -> None:
    (fake / "endless").touch()
    command = shell.start("up", shell.write("run.toml", BASE), "--out", "out", "--quiet")
    shell.wait_until(lambda: "inspect --type container" in _said(fake), "containers are watched")
    (key,) = (
        Path(mount["source"])
        for mount in services_of(tmp_path / "out")["peer-000"]["volumes"]
        if mount["target"].endswith(".key")
    )
    assert key.exists()
    command.send_signal(number)
    shell.wait_until(lambda: not key.exists(), "the keys are gone")
    assert shell.end(command).code == code
    assert call in _said(fake) and " down " in _said(fake)


def test_write_says_how_to_go_on(shell: Shell) -> None:
    ended = shell.run("up", shell.write("run.toml", BASE), "--out", "out", "--write", "my.yml")
    assert ended.code == 0
    assert ended.out.split("\n")[:2] == [
        "start it:  docker compose -f my.yml up",
        "report:    p2p-dml report out",
    ]
    assert (shell.folder / "my-keys" / "peers.toml").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"devices": [{"peers": [0], "cpus": 9.0}]}, r"devices\[0\].cpus: .* the 4 cores"),
        ({"devices": [{"peers": [7], "cpus": 1.0}]}, "expected peers 0 to 2, found 7"),
        ({"transport": {"kind": "hybrid"}}, "transport.kind"),
        ({"data": "nothing"}, "data"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(
    fake: Path, tmp_path: Path, more: Mapping[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        up.run(_config(**more), tmp_path / "out", _ignore)
    assert not (tmp_path / "out").exists()
    assert not any(call.startswith("build") or " up " in call for call in _calls(fake))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run.toml", "--hosts-file", "hosts.toml", "--write", "x.yml"], "is for one machine"),
        (["--resume", "out"], "go on as processes, by `p2p-dml run --resume out`"),
        (["--hosts-file", "hosts.toml"], r"hosts\.toml: cannot be read|no such file"),
    ],
)
def test_options_that_cannot_be_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(tomli_w.dumps(BASE), encoding="utf-8")
    shown = CliRunner().invoke(cli.app, ["up", *words])
    assert isinstance(shown.exception, ConfigError)
    assert re.search(expected, str(shown.exception), re.IGNORECASE), shown.exception


def test_root_runs_no_container_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    assert up.owner_here(is_rootless=False).user == "10001:10001"
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "100")
    assert up.owner_here(is_rootless=False).given_to == (1000, 100)


def test_others_run_containers_as_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 99)
    assert up.owner_here(is_rootless=False) == up.Owner(user="1234:99")
    assert up.owner_here(is_rootless=True) == up.Owner(user="0:0")


def test_write_leaves_all_that_is_needed_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    run = up.write(_config(), tmp_path / "out", file, None)
    services = json.loads(file.read_text(encoding="utf-8"))["services"]
    mounts = [mount for each in services.values() for mount in each["volumes"]]
    assert all(Path(mount["source"]).exists() for mount in mounts)
    assert services["peer-000"]["image"] == docker.IMAGE
    inside = config.load(run / "run.toml")
    assert inside.transport.addresses[2] == "tcp://peer-002:5800"
    with pytest.raises(ConfigError, match=r"compose\.yml is there; choose another name"):
        up.write(_config(), tmp_path / "other", file, None)


def test_without_encryption_there_are_no_keys(tmp_path: Path) -> None:
    plain = _config(transport={"encryption": "none"})
    up.write(plain, tmp_path / "out", tmp_path / "c.yml", "an-image")
    assert not (tmp_path / "c-keys").exists()
    text = (tmp_path / "c.yml").read_text(encoding="utf-8")
    assert "/p2p/keys" not in text and "an-image" in text
