"""The compose file of a run: a container for each peer, and what each may see and use."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from p2p_dml import config
from p2p_dml.launchers.containers import compose_file
from p2p_dml.launchers.containers.compose_file import Limits, Places

BASE: Mapping[str, object] = {"peers": 3, "rounds": 2, "strategy": "dpsgd", "links": "ring"}


def _config(folder: Path = Path(), **more: object) -> config.RunConfig:
    return config.parse({**BASE, **more}, folder)


def _services(run: config.RunConfig, places: Places, user: str = "7:8") -> dict[str, Any]:
    text = compose_file.document(run, "an-image", user, places)
    services: dict[str, Any] = json.loads(text)["services"]
    return services


def _mounts(service: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    return {each["target"]: (each["source"], each["read_only"]) for each in service["volumes"]}


def test_there_is_a_container_for_each_peer_on_a_network_of_their_own() -> None:
    text = compose_file.document(_config(), "an-image", "7:8", Places(run=Path("/runs/x")))
    whole = json.loads(text)
    assert list(whole["services"]) == ["peer-000", "peer-001", "peer-002"]
    assert whole["networks"] == {"default": {"driver": "bridge"}}
    for me, (name, service) in enumerate(whole["services"].items()):
        assert service["hostname"] == name
        assert service["image"] == "an-image"
        assert service["user"] == "7:8"
        assert service["command"][-4:] == ["--me", str(me), "--out", "/p2p/run"]


def test_containers_can_do_little_and_hear_signals() -> None:
    service = _services(_config(), Places(run=Path("/runs/x")))["peer-001"]
    assert service["init"] and service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (service["restart"], service["stop_grace_period"]) == ("no", "60s")


def test_containers_write_only_to_the_run_folder() -> None:
    places = Places(
        run=Path("/runs/x"),
        keys=Path("/secret"),
        data=Path("/data"),
        modules=[Path("/home"), Path("/other")],
        topologies=[Path("/traces"), Path("/other")],
    )
    service = _services(_config(), places)["peer-002"]
    assert _mounts(service) == {
        "/p2p/run": ("/runs/x", False),
        "/p2p/data": ("/data", True),
        "/p2p/keys/peers.toml": ("/secret/peers.toml", True),
        "/p2p/keys/peer-002.key": ("/secret/peer-002.key", True),
        "/home": ("/home", True),
        "/other": ("/other", True),
        "/traces": ("/traces", True),
    }
    assert service["working_dir"] == "/home"
    assert service["environment"]["PYTHONPATH"] == "/home:/other"


def test_each_container_gets_its_own_secret_key_only() -> None:
    services = _services(_config(), Places(run=Path("/runs/x"), keys=Path("/secret")))
    secrets = [
        [target for target in _mounts(each) if target.endswith(".key")]
        for each in services.values()
    ]
    assert secrets == [[f"/p2p/keys/peer-00{me}.key"] for me in range(3)]


@pytest.mark.parametrize("words", [("docker", "compose"), ("docker-compose",)], ids=" ".join)
def test_compose_itself_reads_the_files(tmp_path: Path, words: tuple[str, ...]) -> None:
    if shutil.which(words[0]) is None or _call(*words, "version").returncode:
        pytest.skip(f"there is no {' '.join(words)} here")
    devices = [{"peers": [1], "cpus": 0.5, "memory_mb": 300}]
    places = Places(run=tmp_path / "$run", keys=tmp_path, modules=[tmp_path])
    ours = tmp_path / "compose.yml"
    text = compose_file.document(_config(devices=devices), "an-image", "7:8", places)
    ours.write_text(text, encoding="utf-8")
    for file in (ours, Path(__file__).parents[3] / "docker" / "compose.yml"):
        asked = _call(*words, "--file", str(file), "config", "--quiet")
        assert (asked.returncode, asked.stdout) == (0, ""), asked.stderr


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dollar_in_a_path_is_no_variable() -> None:
    service = _services(_config(), Places(run=Path("/runs/$HOME")))["peer-000"]
    assert _mounts(service)["/p2p/run"] == ("/runs/$$HOME", False)


def test_limits_are_those_of_the_devices() -> None:
    devices = [
        {"peers": [0, 1], "cpus": 0.5, "memory_mb": 300},
        {"peers": [1], "memory_mb": 700, "bandwidth_mbps": 8.0},
    ]
    run = _config(devices=devices)
    assert [compose_file.limits(run, peer) for peer in range(3)] == [
        Limits(cpus=0.5, memory_mb=300),
        Limits(cpus=0.5, memory_mb=700),
        Limits(),
    ]
    names = ("cpus", "mem_limit", "memswap_limit")
    services = _services(run, Places(run=Path("/runs/x"))).values()
    assert [[each.get(name) for name in names] for each in services] == [
        [0.5, 300_000_000, 300_000_000],
        [0.5, 700_000_000, 700_000_000],
        [None, None, None],
    ]


def test_peers_meet_at_the_names_of_their_containers() -> None:
    outside = {"straggler_s": 7.0, "directory": "tcp://10.0.0.1:5700", "keys": "elsewhere"}
    inside = compose_file.settings(_config(transport=outside)).transport
    assert inside.addresses == [f"tcp://peer-00{me}:5800" for me in range(3)]
    assert (inside.listen, inside.keys) == ("tcp://*:5800", "/p2p/keys")
    assert (inside.directory, inside.straggler_s) == ("", 7.0)


def test_only_what_a_run_names_is_shown_to_its_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert compose_file.modules(_config(home)) == []
    assert compose_file.topologies(_config(home)) == []
    own = _config(home, model="mine:model")
    assert compose_file.modules(own) == [here, home]
    trained = _config(home, train={"function": "mine:train"})
    assert compose_file.modules(trained) == [here, home]
    links = {"kind": "until", "at_tick": 3, "of": {"file": "graphs/a.toml"}}
    files = _config(home, links=links, network={"up": {"file": "b.toml"}})
    assert compose_file.topologies(files) == [home, home / "graphs"]
