"""Key files: made once, private, and refused with a reason when they are not what a run needs."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from p2p_dml import keys
from p2p_dml.errors import ConfigError, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of three peers."""
    keys.create(tmp_path / "keys", 3)
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_peer_gets_a_pair_and_reads_it_back(folder: Path) -> None:
    everyone = [keys.read(folder, me, 3) for me in range(3)]
    assert len({each.own.secret for each in everyone}) == 3
    for me, each in enumerate(everyone):
        assert zmq.curve_public(each.own.secret.encode()).decode() == each.own.public
        assert each.public == everyone[0].public
        assert each.public[me] == each.own.public


def test_secrets_are_for_their_owner_and_public_keys_for_all(folder: Path) -> None:
    assert [mode(each.path) for each in keys.held(folder)] == [0o600] * 3
    assert mode(folder / keys.PUBLIC) == 0o644
    assert mode(folder) == 0o700


def test_a_peer_needs_its_own_secret_only(folder: Path) -> None:
    for peer in (0, 2):
        (folder / keys.secret_file(peer)).unlink()
    assert keys.read(folder, 1, 3).own.public == keys.read_public(folder)[1]
    assert [each.path.name for each in keys.held(folder)] == ["peer-001.key"]


def test_no_secret_is_shown(folder: Path) -> None:
    mine = keys.read(folder, 1, 3)
    assert mine.own.secret not in repr(mine)
    assert mine.own.public in repr(mine)


@pytest.mark.parametrize("left", ["peers.toml", "peer-001.key"])
def test_keys_are_never_written_over(folder: Path, left: str) -> None:
    for path in folder.iterdir():
        if path.name != left:
            path.unlink()
    before = (folder / left).read_bytes()
    with pytest.raises(ConfigError, match=rf"there are keys already \({left}\)"):
        keys.create(folder, 3)
    assert (folder / left).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [left]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write keys to \S+file/keys: Not a directory"):
        keys.create(tmp_path / "file" / "keys", 2)


def test_without_encryption_in_libzmq_there_are_no_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zmq, "has", lambda what: what != "curve")
    with pytest.raises(ConfigError, match="built without CURVE"):
        keys.create(tmp_path / "keys", 2)


@pytest.mark.parametrize("others", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_secret_that_others_may_touch_is_refused(folder: Path, others: int) -> None:
    path = folder / "peer-001.key"
    path.chmod(others)
    with pytest.raises(ConfigError, match=rf"mode {others:04o}.*chmod 600 {path}"):
        keys.read(folder, 1, 3)
    assert [each.is_private for each in keys.held(folder)] == [True, False, True]
    keys.read(folder, 0, 3)


def swap(folder: Path) -> None:
    (folder / "peer-001.key").replace(folder / "peer-000.key")


def test_errors_hold_no_secret(folder: Path) -> None:
    secret = (folder / "peer-001.key").read_text().strip()
    swap(folder)
    with pytest.raises(ConfigError) as error:
        keys.read(folder, 0, 3)
    assert secret not in str(error.value)


PUBLIC = {"0": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"}  # of RFC 26

WRONG = [
    (swap, "not the secret of peer 0's public key in peers.toml"),
    (lambda f: (f / "peer-000.key").unlink(), "cannot read the secret key of peer 0: No such file"),
    (lambda f: (f / "peer-000.key").write_text("x" * 39), "not the secret of peer 0's"),
    (lambda f: (f / "peer-000.key").write_bytes(b"\xff" * 40), "not a secret key"),
    (lambda f: (f / keys.PUBLIC).unlink(), "cannot read the public keys: No such file"),
    (lambda f: (f / keys.PUBLIC).write_text("public = 3"), r"expected a table \[public\]"),
    (lambda f: (f / keys.PUBLIC).write_text(""), r"expected a table \[public\]"),
    (lambda f: (f / keys.PUBLIC).write_text('[public]\n0 = "short"'), "public.0: expected .* 40"),
    (lambda f: (f / keys.PUBLIC).write_text("[public]\n0 = 3"), "public.0: expected"),
    (lambda f: (f / keys.PUBLIC).write_text(f'[public]\nme = "{PUBLIC["0"]}"'), "public.me: exp"),
    (
        lambda f: (f / keys.PUBLIC).write_text(
            f'[public]\n0 = "{PUBLIC["0"]}"\n1 = "{PUBLIC["0"]}"'
        ),
        "two peers have the same key",
    ),
    (
        lambda f: (f / keys.PUBLIC).write_text(f'[public]\n0 = "{PUBLIC["0"]}"'),
        "each of the 3 peers of the run, found 1 .*p2p-dml keys new .* --peers 3",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong_is_named(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        keys.read(folder, 0, 3)
