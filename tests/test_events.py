"""Event files: what is written can be read, whatever the disk and the peer's death do to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from p2p_dml import events
from p2p_dml.errors import StorageError, TrainingError
from p2p_dml.events import EventLog

EVENTS: list[events.Event] = [
    events.Started(10, 5, "ipc:///a", 650, 100, [50, 50]),
    events.Resumed(3),
    events.Joined(0.25),
    events.RoundDone(1, 0.5, 10, 20, 2, missing=[3], seconds={"train": 0.1}, reported={"w": 3.0}),
    events.RoundDone(2, None, 0, 0, 0),
    events.Evaluated(2, 0.9, None, 0.01, "AAAA"),
    events.NeighbourChanged(3, "dead", 2, 'said "goodbye"\n'),
    events.Rejected(None, 2, "ünknown"),
    events.Isolated(2, 0),
    events.Checkpointed(2, "checkpoints/x"),
    events.Memory(2, 9.5, 80.0),
    events.Finished(2, 0),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return events.event_file(tmp_path, 3)


def write(path: Path, *some: events.Event, clock: Callable[[], float] = lambda: 1.5) -> None:
    log = EventLog(path, 3, clock)
    for event in some:
        log.write(event)
    log.close()


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (events.Started, "started"),
        (events.Resumed, "resumed"),
        (events.RoundDone, "round_done"),
        (events.NeighbourChanged, "neighbour_changed"),
    ],
)
def test_names(event: type[events.Event], name: str) -> None:
    assert events.event_name(event) == name


@pytest.mark.parametrize(
    ("line", "counts_no_more"),
    [
        ({"event": "started"}, False),
        ({"event": "round_done", "round": 7}, False),
        ({"event": "round_done", "round": 8}, True),
        ({"event": "evaluated", "round": 6}, False),
        ({"event": "evaluated", "round": 7}, True),
        ({"event": "isolated", "round": 8}, True),
        ({"event": "resumed", "round": 9}, False),
    ],
)
def test_what_a_peer_that_resumes_after_round_7_does_again(
    line: dict[str, object], counts_no_more: bool
) -> None:
    resumed: dict[str, object] = {"event": "resumed", "round": 7}
    assert events.standing([line, resumed, line]) == [line] * (not counts_no_more) + [resumed, line]


def test_the_place_of_a_file(tmp_path: Path) -> None:
    assert events.event_file(tmp_path, 7) == tmp_path / "events" / "peer-007.jsonl"
    assert events.event_file(tmp_path, 1234).name == "peer-1234.jsonl"


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_comes_back(path: Path, event: events.Event) -> None:
    write(path, event, clock=lambda: 12.3456789)
    (line,) = events.read_events(path)
    head = {"event": events.event_name(type(event)), "t": 12.345679, "peer": 3}
    assert line == head | asdict(event)
    assert list(line)[:3] == ["event", "t", "peer"]


def test_one_line_each_in_order_and_at_once(path: Path) -> None:
    log = EventLog(path, 3)
    for count, event in enumerate(EVENTS, start=1):
        log.write(event)
        assert len(list(events.read_events(path))) == count
    log.close()
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(EVENTS)


def test_a_later_incarnation_appends(path: Path) -> None:
    write(path, events.Joined(1.0))
    write(path, events.Joined(2.0))
    assert [line["after_s"] for line in events.read_events(path)] == [1.0, 2.0]


@pytest.mark.parametrize("kept", [1, 12, 30])
def test_a_line_torn_by_a_kill_is_left_out_and_spoils_no_other(path: Path, kept: int) -> None:
    write(path, events.Joined(1.0), events.Joined(2.0))
    first, second = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(first + second[:kept], encoding="utf-8")
    assert [line["after_s"] for line in events.read_events(path)] == [1.0]
    write(path, events.Joined(3.0))
    assert [line["after_s"] for line in events.read_events(path)] == [1.0, 3.0]


def test_a_whole_line_without_its_end_is_left_out(path: Path) -> None:
    write(path, events.Joined(1.0))
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    assert list(events.read_events(path)) == []


DONE = events.RoundDone(1, 0.5, 10, 20, 2, seconds={"train": 0.1})
HUGE = 10**400


@pytest.mark.parametrize(
    ("event", "field", "bad"),
    [
        (DONE, "t", "x"),
        (DONE, "t", 1e308),
        (DONE, "t", -1),
        (DONE, "t", True),
        (DONE, "peer", None),
        (DONE, "round", "three"),
        (DONE, "round", 1.0),
        (DONE, "round", True),
        (DONE, "round", HUGE),
        (DONE, "bytes_out", None),
        (DONE, "loss", [0.5]),
        (DONE, "loss", math.nan),
        (DONE, "loss", HUGE),
        (DONE, "late", None),
        (DONE, "missing", 3),
        (DONE, "missing", ["3"]),
        (DONE, "seconds", [0.1]),
        (DONE, "seconds", {"train": "x"}),
        (DONE, "reported", {"w": -math.inf}),
        (events.Evaluated(1, 0.5, None, 0.1, ""), "accuracy", "x"),
        (events.Evaluated(1, 0.5, None, 0.1, ""), "sketch", 5),
        (events.Stuck(1, "train", 2.0), "is_over", 1),
        (events.NeighbourChanged(1, "dead", 2, ""), "state", "asleep"),
        (events.Resumed(1), "event", 5),
    ],
)
def test_a_line_with_a_field_of_a_wrong_type_is_passed_over(
    path: Path, event: events.Event, field: str, bad: object
) -> None:
    write(path, event)
    line = json.loads(path.read_text(encoding="utf-8"))
    rest = {key: value for key, value in line.items() if key != field}
    lines = [line, line | {field: bad}, *([rest] if field in ("t", "peer", "round") else []), line]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines), encoding="utf-8")
    assert list(events.read_events(path)) == [line, line]


def test_fields_with_a_default_may_be_absent(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"event": "finished", "t": 1, "peer": 3, "round": 2, "exit_code": 0}\n')
    assert len(list(events.read_events(path))) == 1


def test_what_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=rf"cannot read the events in {tmp_path}: Is a directory"
    ):
        list(events.read_events(tmp_path))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda x: events.Evaluated(4, 0.5, x, 0.1, ""), "loss = "),
        (lambda x: events.RoundDone(4, 1.0, 0, 0, 0, metrics={"f1": x}), r"metrics\.f1 = "),
    ],
)
def test_a_figure_that_is_not_finite_is_an_error_of_training(
    path: Path, bad: float, make: Callable[[float], events.Event], named: str
) -> None:
    log = EventLog(path, 3)
    with pytest.raises(TrainingError, match=f"peer 3, round 4: {named}{bad}; the training div"):
        log.write(make(bad))
    log.write(events.Finished(4, 1, "diverged"))
    log.close()
    assert [line["event"] for line in events.read_events(path)] == ["finished"]


def test_a_full_disk_is_a_storage_error(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    log = EventLog(path, 3)
    with pytest.raises(StorageError, match=r"peer 3: cannot write .*peer-003\.jsonl: No space"):
        log.write(events.Joined(1.0))
    log.close()  # nothing more to say about it
    log.close()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"peer 3: cannot open .*: Not a directory"):
        EventLog(tmp_path / "file" / "events" / "x.jsonl", 3)


def test_lines_are_plain_json(path: Path) -> None:
    write(path, *EVENTS)
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["peer"] == 3
