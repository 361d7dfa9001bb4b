"""Hosts files: what they say, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from p2p_dml.errors import ConfigError
from p2p_dml.launchers.ssh import hosts

ROOT = Path(__file__).parents[3]
TWO = """
wheels = "wheels"
lost_s = 30

[[hosts]]
ssh = "me@gpu1"
peers = 3

[[hosts]]
ssh = "gpu2"
address = "fd00::2"
peers = 2
base_port = 7000
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "hosts.toml"
    path.write_text(text, encoding="utf-8")
    (folder / "wheels").mkdir()
    (folder / "wheels" / "x-1-py3-none-any.whl").touch()
    return path


def test_peers_are_numbered_host_by_host(tmp_path: Path) -> None:
    cluster = hosts.read(_write(tmp_path, TWO))
    assert [list(host.peers) for host in cluster.hosts] == [[0, 1, 2], [3, 4]]
    assert (cluster.num_peers, cluster.lost_s, cluster.wheels) == (5, 30.0, tmp_path / "wheels")
    assert cluster.endpoints == [
        "tcp://gpu1:5800",
        "tcp://gpu1:5801",
        "tcp://gpu1:5802",
        "tcp://[fd00::2]:7000",
        "tcp://[fd00::2]:7001",
    ]
    assert cluster.listen == [f"tcp://*:{port}" for port in (5800, 5801, 5802, 7000, 7001)]


@pytest.mark.parametrize(
    ("ssh", "address"),
    [
        ("gpu1", "gpu1"),
        ("me@10.0.0.7", "10.0.0.7"),
        ("ssh://me@gpu1:2222", "gpu1"),
        ("ssh://gpu1", "gpu1"),
    ],
)
def test_peers_reach_a_host_where_ssh_does(tmp_path: Path, ssh: str, address: str) -> None:
    cluster = hosts.read(_write(tmp_path, f'[[hosts]]\nssh = "{ssh}"\n'))
    assert cluster.hosts[0].address == address


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_stays_closed_to_others(tmp_path: Path, address: str) -> None:
    text = f'[[hosts]]\nssh = "localhost"\naddress = "{address}"\n'
    (place,) = hosts.read(_write(tmp_path, text)).listen
    assert "*" not in place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "hosts: missing"),
        ("hosts = []", "hosts: list should have at least 1 item"),
        ("[[hosts]]\npeers = 2", "hosts.0.ssh: missing"),
        ('[[hosts]]\nssh = "a"\npeer = 2', "hosts.0.peer: unknown key; did you mean 'peers'"),
        ('wheel = "x"\n[[hosts]]\nssh = "a"', "wheel: unknown key; did you mean 'wheels'"),
        ('[[hosts]]\nssh = "a"\npeers = "2"', "hosts.0.peers: input should be a valid integer"),
        ('lost_s = 1\n[[hosts]]\nssh = "a"', "lost_s: input should be greater than or equal to 5"),
        ('[[hosts]]\nssh = "a"\n[[hosts]]\nssh = "a"', "hosts.1.ssh: 'a' is hosts.0 already"),
        (
            '[[hosts]]\nssh = "a"\naddress = "c"\npeers = 2\n'
            '[[hosts]]\nssh = "b"\naddress = "c"\nbase_port = 5801',
            "hosts.1: its peers would have tcp://c:5801, as those of hosts.0 have",
        ),
        ('[[hosts]]\nssh = "a"\nbase_port = 65000\npeers = 600', "leaves no room for 600 peers"),
        ('wheels = "none"\n[[hosts]]\nssh = "a"', "none is no folder with wheels"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        hosts.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_hosts_and_run_must_have_as_many_peers(tmp_path: Path) -> None:
    cluster = hosts.read(_write(tmp_path, TWO))
    hosts.check_peers(cluster, 5)
    with pytest.raises(ConfigError, match=r"5 peers in all, the run has 8; .* --set peers=5"):
        hosts.check_peers(cluster, 8)


def test_the_example_can_be_used() -> None:
    cluster = hosts.read(ROOT / "launch" / "hosts.toml")
    assert cluster.num_peers == 9
    assert cluster.endpoints[-1] == "tcp://10.0.0.9:6000"


@pytest.mark.parametrize("section", [hosts.HostEntry, hosts.HostsFile])
def test_every_key_has_its_row_in_the_documentation(section: type[BaseModel]) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    keys = [key for key in section.model_fields if key != "hosts"]
    assert keys
    assert not [key for key in keys if f"\n| `{key}` | " not in page]
