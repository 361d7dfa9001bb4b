"""Bad input, each tried for real: one message, the documented exit code, nothing left behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

from p2p_dml.checkpoint import load as load_checkpoint
from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Ended, Shell

RUN: Mapping[str, object] = {"peers": 4, "rounds": 4, "strategy": "dpsgd", "links": "ring"}
PAIR: Mapping[str, object] = {
    "peers": 2,
    "rounds": 10**6,
    "strategy": "dpsgd",
    "links": "ring",
    "evaluate_every": 0,
    "max_isolated_rounds": 10**6,
}
MINE = """
from torch import nn

def network():
    return nn.Linear(2, 1)

def network_that_raises():
    raise RuntimeError("no such width")

def train(model, round):
    if round == 2:
        raise RuntimeError("out of cheese")
    return 0.5
"""
SECOND = ("--me", "1", "--out", "other", "--set", "transport.startup_s=5.0")
OTHER_VERSION = "from p2p_dml import cli, wire; wire.VERSION = 99; cli.main()"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is set in the run file, and what must be said about it."""

    override: str
    says: tuple[str, ...]
    code: int = 2
    command: str = "run"


CASES: Mapping[str, Case] = {
    "unknown key": Case(override="ronuds=4", says=("ronuds", "did you mean 'rounds'")),
    "wrong type": Case(override="rounds=four", says=("rounds", "integer", "'four'")),
    "strategy": Case(override="strategy=dpsdg", says=("strategy.name", "'dpsgd'")),
    "links": Case(override="links=rign", says=("links.kind", "did you mean 'ring'")),
    "model": Case(override="model=sofmax", says=("model.name", "did you mean 'softmax'")),
    "training's value": Case(override="train.lr=-1", says=("train", "lr", "positive", "-1")),
    "partition": Case(
        override='partition={name="dirichlet", alpha=1.0, min_samples=400}',
        says=("partition", "1600 samples", "1437", "min_samples"),
    ),
    "data set": Case(override="data=mnist", says=("'mnist'", "looked for", "p2p-dml data fetch")),
    "edge": Case(override='links={file="far.toml"}', says=("far.toml", "edge 1-9", "0 to 3")),
    "no module": Case(override="model=nowhere:network", says=("model", "no module", "'nowhere'")),
    "model raises": Case(
        override="model=mine:network_that_raises",
        says=("model", "RuntimeError: no such width", "mine.py:8"),
    ),
    "peer id": Case(override="peers=4", says=("peer id 7", "0 to 3"), command="peer"),
    "simulate": Case(override="rounds=0", says=("rounds", "1"), command="simulate"),
    "late peers": Case(
        override="transport.startup_s=0.001",
        says=("did not start within 0.001 s",),  # some may be there already
        code=3,
    ),
}


def _left(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


def _check(ended: Ended, code: int, says: tuple[str, ...], out: Path | None = None) -> None:
    """One message that says all of `says`, the exit code, and no traceback anywhere."""
    assert ended.code == code, ended.err
    assert len(ended.messages) == 1, ended.err
    for fragment in says:
        assert fragment in ended.messages[0]
    logs = "".join(path.read_text() for path in (out or Path("none")).glob("logs/*"))
    assert "Traceback" not in ended.out + ended.err + logs


@pytest.mark.parametrize("name", CASES)
def test_one_message_and_its_exit_code(shell: Shell, name: str) -> None:
    case = CASES[name]
    shell.write("run.toml", RUN)
    shell.write("far.toml", {"kind": "edges", "peers": 4, "edges": [[0, 1], [1, 9]]})
    (shell.folder / "mine.py").write_text(MINE, encoding="utf-8")
    who = ["--me", "7"] if case.command == "peer" else []
    ended = shell.run(case.command, "run.toml", *who, "--set", case.override, "--out", "out")
    _check(ended, case.code, case.says, shell.folder / "out")
    assert ended.err.strip() == ended.messages[0]
    assert (shell.folder / "out").exists() == (case.code != 2)
    shell.wait_until(lambda: not shell.processes(), "everything is gone")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read the run file"),
        ("peers = = 3", "TOML: Invalid value"),
        ("peers = 3", "missing"),
    ],
    ids=["absent", "not TOML", "incomplete"],
)
def test_a_run_file_that_is_none(shell: Shell, text: str | None, says: str) -> None:
    if text is not None:
        (shell.folder / "run.toml").write_text(text, encoding="utf-8")
    ended = shell.run("simulate", "run.toml", "--out", "out")
    assert ended.code == 2
    assert ended.err.startswith("error: run.toml: ")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert not (shell.folder / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(shell: Shell) -> None:
    (shell.folder / "out").mkdir()
    (shell.folder / "out" / "thesis.txt").write_text("irreplaceable", encoding="utf-8")
    ended = shell.run("run", shell.write("run.toml", RUN), "--out", "out")
    _check(ended, 2, ("--out out", "not an empty folder"))
    assert [path.name for path in _left(shell.folder / "out")] == ["thesis.txt"]


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_a_loss_that_is_not_a_number(shell: Shell, command: str) -> None:
    tables = {**RUN, "model": "mlp", "train": {"lr": 1e30}}
    ended = shell.run(command, shell.write("run.toml", tables), "--out", "out")
    _check(ended, 1, ("peer ", "round 1", "loss is nan", "lower [train] lr"), shell.folder / "out")


def test_a_training_function_that_raises(shell: Shell) -> None:
    (shell.folder / "mine.py").write_text(MINE, encoding="utf-8")
    tables = {**RUN, "model": "mine:network", "train": "mine:train"}
    ended = shell.run("run", shell.write("run.toml", tables), "--out", "out")
    says = ("peer ", "round 2", "RuntimeError: out of cheese", "mine.py:12 in train")
    _check(ended, 1, says, shell.folder / "out")
    assert (shell.folder / "out" / "report.html").exists()


# ---- peers that do not belong together -------------------------------------------------------


def _addresses(count: int) -> list[str]:
    """Addresses nobody listens at now."""
    with closing(socket.socket()) as first, closing(socket.socket()) as second:
        sockets = (first, second)[:count]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _pair(shell: Shell) -> list[str]:
    """Write the run file of two peers; returns their addresses."""
    addresses = _addresses(2)
    shell.write("run.toml", {**PAIR, "transport": {"addresses": addresses, "startup_s": 50.0}})
    return addresses


def _first_peer(shell: Shell, out: str = "first") -> subprocess.Popen[str]:
    """Start peer 0 and wait until it listens."""
    process = shell.start("peer", "run.toml", "--me", "0", "--out", out)
    events = event_file(shell.folder / out, 0)
    shell.wait_until(lambda: events.exists() and [*read_events(events)], "peer 0 listens")
    return process


def _said_by_first(shell: Shell, process: subprocess.Popen[str], out: str = "first") -> str:
    """End peer 0 and return all it said.

    It ends with 5 if it was still waiting, or with 3 if it was itself refused by then.
    """
    process.terminate()
    ended = shell.end(process)
    assert ended.code in (3, 5)
    assert "Traceback" not in ended.err
    shell.wait_until(lambda: not shell.processes(), "everything is gone")
    return ended.err + event_file(shell.folder / out, 0).read_text(encoding="utf-8")


def test_a_port_in_use(shell: Shell) -> None:
    address = _pair(shell)[0]
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        other.listen()
        ended = shell.run("peer", "run.toml", "--me", "0", "--out", "out")
    _check(ended, 3, ("peer 0", f"cannot listen on {address}", "[transport]"))
    assert not (shell.folder / "out").exists()


def test_a_peer_that_never_starts(shell: Shell) -> None:
    address = _pair(shell)[1]
    quick = ("--set", "transport.startup_s=0.5")
    ended = shell.run("peer", "run.toml", "--me", "0", *quick, "--out", "out")
    _check(ended, 3, ("no hello within 0.5 s", f"peer 1 at {address}", "was it started"))


def test_the_same_peer_started_twice(shell: Shell) -> None:
    _pair(shell)
    first = _first_peer(shell)
    before = event_file(shell.folder / "first", 0).read_text()
    ended = shell.run("peer", "run.toml", "--me", "0", "--out", "first")
    _check(ended, 3, ("peer 0", "cannot listen", "is another peer 0"))
    assert event_file(shell.folder / "first", 0).read_text() == before
    assert "refused" not in _said_by_first(shell, first)


@pytest.mark.slow
def test_two_peers_with_one_id_at_different_addresses(shell: Shell) -> None:
    addresses = _pair(shell)
    first = _first_peer(shell)
    second = shell.start("peer", "run.toml", "--me", "1", "--out", "second")
    shell.wait_until(lambda: _has_done_a_round(shell.folder / "first"), "both are at work")
    elsewhere = f'transport.addresses=["{addresses[0]}", "{_addresses(1)[0]}"]'
    ended = shell.run("peer", "run.toml", "--me", "1", "--set", elsewhere, "--out", "twin")
    _check(ended, 3, ("peer 0", "refused", "a peer 1 is here and alive", "two peers with one id"))
    assert "two peers with one id" in event_file(shell.folder / "first", 0).read_text()
    for process in (second, first):
        process.terminate()
    assert [shell.end(process).code for process in (second, first)] == [5, 5]


def _has_done_a_round(out: Path) -> bool:
    return any(event["event"] == "round_done" for event in read_events(event_file(out, 0)))


def test_a_peer_of_another_run(shell: Shell) -> None:
    _pair(shell)
    first = _first_peer(shell)
    ended = shell.run("peer", "run.toml", *SECOND, "--set", "seed=9")
    _check(ended, 3, ("peer 0 at ", "refused", "of another run", "seed"))
    assert "is of another run" in _said_by_first(shell, first)


@pytest.mark.slow
def test_a_peer_of_another_version(shell: Shell) -> None:
    _pair(shell)
    first = _first_peer(shell)
    program = ("-c", OTHER_VERSION)
    ended = shell.run("peer", "run.toml", *SECOND, program=program)
    _check(ended, 3, ("peer 0 at ", "wire version 1, this peer speaks 99"))
    assert "wire version 99, this peer speaks 1" in _said_by_first(shell, first)


# ---- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    order = [mount or "", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if mount is None or subprocess.run(order, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_full_from_the_start(shell: Shell, small_disk: Path) -> None:
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    out = small_disk / "out"
    ended = shell.run("run", shell.write("run.toml", RUN), "--out", str(out))
    _check(ended, 1, ("cannot write to the run folder", "No space left", "--out"))
    assert not out.exists()


def test_a_disk_that_fills_up(shell: Shell, small_disk: Path) -> None:
    tables = {**RUN, "rounds": 30, "model": "mlp", "checkpoint_every": 1}
    out = small_disk / "out"
    ended = shell.run("run", shell.write("run.toml", tables), "--out", str(out))
    _check(ended, 1, ("peer ", "round ", "cannot write", "No space left"), out)
    assert not list(out.rglob("*.part"))
    for path in out.rglob("*.safetensors"):
        load_checkpoint(path)  # none is torn
