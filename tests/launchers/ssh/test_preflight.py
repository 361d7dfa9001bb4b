"""Preflight on hosts that are processes here: each fault is found, named and comes with a fix."""

from __future__ import annotations

import io
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from p2p_dml import config
from p2p_dml.launchers.ssh import preflight, tables
from p2p_dml.launchers.ssh.channel import Switchboard
from p2p_dml.launchers.ssh.environments import Environments
from p2p_dml.launchers.ssh.hosts import Cluster
from p2p_dml.launchers.ssh.preflight import Findings, Need
from p2p_dml.launchers.ssh.wheel import Wheel

if TYPE_CHECKING:
    from tests.launchers.ssh.conftest import Hosts

WHEEL = Wheel(name="x.whl", content=b"", digest="abc", requirements=())
NEED = Need()
DATA = Need(name="mnist", files=("a", "b"))


def _check(cluster: Cluster, need: Need = NEED, num_bytes: int = 0) -> Findings:
    with closing(Switchboard(cluster.hosts, cluster.lost_s)) as board:
        quarters = Environments(cluster, WHEEL)
        return preflight.check(board, cluster, need, quarters, num_bytes)


def _text(found: Findings, cluster: Cluster, need: Need) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(tables.hosts_table(cluster, need, found))
    console.print(tables.latency_table(found), tables.bandwidth_table(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_hosts_that_are_fine_are_measured_both_ways(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(*map(hosts_here.entry, ("alpha", "beta", "gamma")))
    found = _check(cluster, num_bytes=100_000)
    assert not found.problems
    assert not found.remarks
    pairs = {(source, target) for source in cluster.hosts for target in cluster.hosts}
    assert found.paths.keys() == {(a, b) for a, b in pairs if a is not b}
    assert all(path.rtt_s and path.bytes_per_s for path in found.paths.values())
    text = _text(found, cluster, NEED)
    assert text.count("fine") == 3
    assert text.count("not yet") == 3


def test_a_taken_port_is_named(hosts_here: Hosts) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        cluster = hosts_here.cluster(
            hosts_here.entry("alpha", base_port=port - 1, peers=2), hosts_here.entry("beta")
        )
        found = _check(cluster)
    assert found.words == (
        f"alpha: another program listens on port {port}; stop it, or set `base_port` in the hosts "
        "file"
    )
    assert _text(found, cluster, NEED).count("mend") == 1


def test_data_must_be_there_and_the_same(hosts_here: Hosts) -> None:
    names = ("alpha", "beta", "gamma", "delta")
    for name, content in zip(names[:3], (b"same", b"same", b"other"), strict=True):
        place = hosts_here.folder / name
        place.mkdir()
        (place / "a").write_bytes(content)
        (place / "b").touch()
    (hosts_here.folder / "delta").mkdir()
    entries = [hosts_here.entry(each, data=str(hosts_here.folder / each)) for each in names]
    cluster = hosts_here.cluster(*entries)
    found = _check(cluster, DATA)
    gamma, delta = found.words.splitlines()
    assert gamma.startswith(f"gamma: data set 'mnist' in {hosts_here.folder}/gamma differs")
    assert delta.startswith(f"delta: data set 'mnist' is not in {hosts_here.folder}/delta: a, b")
    assert "set `data`" in delta or "with `data` in the hosts file" in delta
    text = _text(found, cluster, DATA)
    assert (text.count("there"), text.count("missing")) == (3, 1)


def test_unset_data_are_said_to_be_nowhere(
    hosts_here: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("P2P_DML_DATA", raising=False)
    found = _check(hosts_here.cluster(hosts_here.entry("alpha")), DATA)
    assert "not anywhere ($P2P_DML_DATA is not set there)" in found.words


def test_a_host_that_cannot_be_reached_by_others_is_named(hosts_here: Hosts) -> None:
    far = hosts_here.entry("far", address="no-such-host.invalid", base_port=5800, peers=2)
    cluster = hosts_here.cluster(*map(hosts_here.entry, ("alpha", "beta")), far)
    (problem,) = _check(cluster).problems
    assert problem[0].name == "far"
    assert problem[1].startswith("cannot be reached from any other host at no-such-host.invalid:58")
    assert problem[1].endswith("let TCP ports 5800 to 5801 in, or set its `address`")


def test_a_host_without_ssh_does_not_hide_the_others(hosts_here: Hosts) -> None:
    names = ("unreachable", "alpha", "beta")
    cluster = hosts_here.cluster(*map(hosts_here.entry, names))
    found = _check(cluster)
    assert [host.name for host, _ in found.problems] == ["unreachable"]
    assert [host.name for host in found.facts] == ["alpha", "beta"]
    assert len(found.paths) == 2


def test_a_folder_that_cannot_be_made_is_named(hosts_here: Hosts) -> None:
    (hosts_here.folder / "file").touch()
    folder = f"{hosts_here.folder}/file/below"
    found = _check(hosts_here.cluster(hosts_here.entry("alpha", folder=folder)))
    assert f"folder {folder}: Not a directory; set `folder`" in found.words


@pytest.mark.parametrize(
    ("tables_", "name", "some_file"),
    [
        ({"data": "digits"}, None, None),
        ({"data": "mnist"}, "mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ({"data": "mnist", "train": "mine:train", "model": "mine:model"}, None, None),
        ({"data": "mine:load"}, None, None),
    ],
)
def test_what_a_run_needs(tables_: dict[str, str], name: str | None, some_file: str | None) -> None:
    base = {"peers": 2, "rounds": 1, "strategy": "dpsgd", "links": "ring"}
    need = preflight.need_of(config.parse({**base, **tables_}, Path()))
    assert need.name == name
    assert some_file is None or some_file in need.files
    assert preflight.need_of(None) == NEED
