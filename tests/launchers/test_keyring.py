"""When a run is encrypted, and where its keys come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2p_dml import config, keys
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.keyring import is_encrypted, keys_of, lend

HERE = ["tcp://127.0.0.1:5800", "ipc:///tmp/x"]
ELSEWHERE = ["tcp://127.0.0.1:5800", "tcp://10.0.0.7:5800"]


def run(folder: Path, **transport: Any) -> RunConfig:
    tables = {"peers": 2, "rounds": 1, "strategy": "dpsgd", "links": "ring"}
    return config.parse({**tables, "transport": transport}, folder)


@pytest.mark.parametrize(
    ("encryption", "addresses", "expected"),
    [
        ("auto", HERE, False),
        ("auto", ELSEWHERE, True),
        ("curve", HERE, True),
        ("curve", ELSEWHERE, True),
        ("none", HERE, False),
        ("none", ELSEWHERE, False),
    ],
)
def test_who_is_encrypted(
    tmp_path: Path, encryption: str, addresses: list[str], expected: bool
) -> None:
    assert is_encrypted(run(tmp_path, encryption=encryption), addresses) is expected


def test_off_this_machine_keys_are_asked_for_with_the_commands_that_make_them(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as error:
        keys_of(run(tmp_path), 1, ELSEWHERE)
    for part in (
        f"transport.keys: {tmp_path / 'keys'}: there are no keys",
        "its addresses are not all on this machine",
        f"p2p-dml keys new {tmp_path / 'keys'} --peers 2",
        "copy peers.toml and peer-001.key",
        'transport.encryption = "none"',
    ):
        assert part in str(error.value)


def test_the_run_file_names_the_folder(tmp_path: Path) -> None:
    keys.create(tmp_path / "mine", 2)
    found = keys_of(run(tmp_path, keys="mine"), 1, ELSEWHERE)
    assert found == keys.read(tmp_path / "mine", 1, 2)


def test_what_a_launcher_lends_comes_first(tmp_path: Path) -> None:
    wish = run(tmp_path, encryption="curve")
    keys.create(tmp_path / "keys", 2)
    lend(wish, tmp_path / "scratch")
    lent = keys_of(wish, 0, HERE, tmp_path / "scratch")
    assert lent == keys.read(tmp_path / "scratch" / "keys", 0, 2)
    assert lent != keys_of(wish, 0, HERE)


def test_nothing_is_lent_to_a_local_run_that_does_not_ask(tmp_path: Path) -> None:
    lend(run(tmp_path), tmp_path)
    assert [*tmp_path.iterdir()] == []
    assert keys_of(run(tmp_path), 0, HERE, tmp_path) is None


def test_a_run_in_the_open_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_run = run(tmp_path, encryption="none")
    assert keys_of(open_run, 1, HERE) is None
    assert capsys.readouterr().err == ""
    assert keys_of(open_run, 1, ELSEWHERE) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("peer 1: not encrypted, and open to whoever reaches tcp://10.0.0.7:5800")
