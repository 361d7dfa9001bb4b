"""The tail of a file that grows, is torn, or is not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.errors import StorageError
from p2p_dml.events import EventTail, parse


def test_reads_each_line_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "peer-000.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    path.write_text('{"event": "a", "t": 1}\n{"event": "b", ')
    assert [line["event"] for line in tail.read()] == ["a"]
    assert tail.read() == []
    with path.open("a") as file:
        file.write('"t": 2}\n{"event": "c", "t": 3}\n')
    assert [line["event"] for line in tail.read()] == ["b", "c"]
    assert tail.read() == []


def test_a_character_split_between_two_reads_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "peer-000.jsonl"
    content = '{"event": "é", "t": 1}\n'.encode()
    cut = content.index("é".encode()) + 1
    tail = EventTail(path)
    path.write_bytes(content[:cut])
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(content[cut:])
    assert tail.read() == [{"event": "é", "t": 1}]


RESUMED = b'{"event": "resumed", "t": 2, "peer": 0, "round": 1}'
REJECTED = b'{"event": "rejected", "t": 1, "peer": 0, "sender": 1, "round": 2, "why": '


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b'{"event": "a", "t": 1}', "a"),
        (b'{"event": "round_done", "t": 1, "pe' + RESUMED, "resumed"),
        (REJECTED + b'"{\\"event\\": 1}"}', "rejected"),
        (REJECTED + b'"{\\"event\\": 1}"} and more', None),
        (b'{"event": "a", "t"', None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"", None),
        (b"[1]", None),
        (b'{"event": "a"}', None),
    ],
)
def test_parse(line: bytes, event: str | None) -> None:
    parsed = parse(line)
    assert (parsed and parsed["event"]) == event


def test_a_folder_in_place_of_the_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=rf"cannot read the events in {tmp_path}: Is a directory"
    ):
        EventTail(tmp_path).read()
