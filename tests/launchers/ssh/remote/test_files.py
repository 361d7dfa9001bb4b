"""Files that travel: pieces put together, growth followed, folders that do not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.launchers.ssh.remote.control import MAX_BODY
from p2p_dml.launchers.ssh.remote.files import Growing, Scratch, pieces, receive


def _put(root: Path, name: str, body: bytes, offset: int, *, is_last: bool) -> None:
    head = {"put": name, "offset": offset, "mode": 0o600, "is_last": is_last}
    receive(root, head, body)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    _put(tmp_path, "a/b.txt", b"one ", 0, is_last=False)
    assert not (tmp_path / "a" / "b.txt").exists()
    _put(tmp_path, "a/b.txt", b"two", 4, is_last=True)
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"one two"
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_a_file_replaces_one_that_was_there(tmp_path: Path) -> None:
    for content in (b"long before", b"new"):
        _put(tmp_path, "x", content, 0, is_last=True)
    assert (tmp_path / "x").read_bytes() == b"new"


def test_growth_is_sent_once_and_in_order(tmp_path: Path) -> None:
    growing = Growing(tmp_path, "events/*.jsonl")
    assert list(growing.pieces()) == []
    (tmp_path / "events").mkdir()
    files = [tmp_path / "events" / f"{name}.jsonl" for name in "ab"]
    got = dict.fromkeys(files, b"")
    for step in (b"1\n", b"", b"x" * (MAX_BODY + 5)):
        for file in files:
            with file.open("ab") as end:
                end.write(step)
        for frame in growing.pieces():
            file = tmp_path / str(frame.head["file"])
            assert frame.head["offset"] == len(got[file])
            got[file] += frame.body
    assert all(got[file] == file.read_bytes() for file in files)
    assert list(growing.pieces()) == []


def test_links_are_passed_over_and_what_comes_first_is_sent_first(tmp_path: Path) -> None:
    growing = Growing(tmp_path, "z/*", "a/*")
    for name in ("a/new", "z/event"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"1234567")
    (tmp_path / "a" / "brought").symlink_to(tmp_path / "a" / "new")
    frames = list(growing.pieces())
    assert [frame.head for frame in frames] == [
        {"file": name, "offset": 0, "size": 7} for name in ("z/event", "a/new")
    ]


def test_pieces_are_small_enough_for_frames(tmp_path: Path) -> None:
    content = bytes(range(256)) * 3000
    (tmp_path / "x").write_bytes(content)
    found = list(pieces(tmp_path / "x", "y"))
    assert [frame.head["offset"] for frame in found] == list(range(0, len(content), MAX_BODY))
    assert b"".join(frame.body for frame in found) == content


def test_a_folder_is_removed_with_the_launch_or_by_the_next_one(tmp_path: Path) -> None:
    left_over = tmp_path / "runs" / "0123"
    left_over.mkdir(parents=True)
    (left_over / "lock").touch()
    first = Scratch(tmp_path)
    assert not left_over.exists()
    second = Scratch(tmp_path)
    assert first.path.exists()  # it is in use
    assert first.path.stat().st_mode & 0o077 == 0
    first.remove()
    second.remove()
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["a", "deep/er/b"])
def test_an_empty_file_is_a_file(tmp_path: Path, name: str) -> None:
    _put(tmp_path, name, b"", 0, is_last=True)
    assert (tmp_path / name).read_bytes() == b""
