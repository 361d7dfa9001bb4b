"""The last line of a log whose peer did not live to write it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from p2p_dml.events import RoundDone, event_file
from p2p_dml.launchers.last_line import log_ending

DONE = asdict(RoundDone(7, loss=0.5, bytes_out=0, bytes_in=0, neighbours=2))
ROUND = {"event": "round_done", "t": 1.0, "peer": 2, **DONE}
FINISHED = {"event": "finished", "t": 2.0, "peer": 2, "round": 7, "exit_code": 0, "error": None}


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("code", "shown"), [(-9, 137), (3, 3)])
def test_it_says_how_far_the_peer_came_and_why_it_ended(
    tmp_path: Path, code: int, shown: int
) -> None:
    path = event_file(tmp_path, 2)
    path.parent.mkdir()
    path.write_text(json.dumps(ROUND) + "\n", encoding="utf-8")
    log_ending(tmp_path, 2, code, "peer 2: lightning", lambda: 2.0)
    assert _lines(path) == [ROUND, {**FINISHED, "exit_code": shown, "error": "lightning"}]


def test_a_peer_that_never_began_has_one_too(tmp_path: Path) -> None:
    log_ending(tmp_path, 2, -9, "lightning")
    (line,) = _lines(event_file(tmp_path, 2))
    assert (line["event"], line["round"]) == ("finished", 0)


def test_who_has_said_it_has_the_last_word(tmp_path: Path) -> None:
    path = event_file(tmp_path, 2)
    path.parent.mkdir()
    path.write_text(json.dumps(FINISHED) + "\n", encoding="utf-8")
    log_ending(tmp_path, 2, -9, "lightning")
    assert _lines(path) == [FINISHED]
