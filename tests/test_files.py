"""Whole files or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.errors import StorageError
from p2p_dml.files import write_whole


def test_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "a.png"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_in_the_way_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.mkdir()
    with pytest.raises(StorageError, match=r"report\.html: .*choose another folder"):
        write_whole(path, b"x")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_as_parent_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("")
    with pytest.raises(StorageError, match="plots"):
        write_whole(tmp_path / "plots" / "a.png", b"x")
