"""A peer of a real run that hangs: told by itself, given up on by others, ended if so wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2p_dml import config
from p2p_dml.errors import ExitCode
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local
from p2p_dml.launchers.outcome import Outcome

HUNG, ROUNDS = 2, 12
RUN: dict[str, object] = {
    "peers": 4,
    "rounds": ROUNDS,
    "strategy": "dpsgd",
    "links": "complete",
    "evaluate_every": 0,
    "transport": {"straggler_s": 1.0, "patience": 2, "heartbeat_s": 30.0},
}


def hang(tmp_path: Path, for_s: float, **watchdog: object) -> tuple[Outcome, Path]:
    fault = {"peers": [HUNG], "round": 3, "kind": "hang", "for_s": for_s}
    run = config.parse({**RUN, "watchdog": watchdog, "faults": [fault]}, Path())
    return local.run(run, tmp_path / "run", lambda folder, started: lambda: None), tmp_path / "run"


def lines_of(folder: Path, peer: int, event: str) -> list[dict[str, Any]]:
    return [line for line in read_events(event_file(folder, peer)) if line["event"] == event]


@pytest.mark.slow
def test_a_peer_that_hangs_says_so_and_costs_others_a_few_deadlines(tmp_path: Path) -> None:
    outcome, folder = hang(tmp_path, 8.0, step_s=1.5)
    assert outcome.exit_codes == dict.fromkeys(range(4), 0)
    begun, over = lines_of(folder, HUNG, "stuck")
    assert (begun["phase"], begun["round"], begun["is_over"]) == ("train", 3, False)
    assert over["is_over"] and over["seconds"] >= 8.0
    for peer in {0, 1, 3}:
        states = [x["state"] for x in lines_of(folder, peer, "neighbour_changed")]
        assert states[:2] == ["slow", "stuck"]
        waits = [x["seconds"]["wait"] for x in lines_of(folder, peer, "round_done")]
        assert len(waits) == ROUNDS and sum(wait >= 0.9 for wait in waits) == 2


@pytest.mark.slow
def test_a_peer_that_hangs_can_be_ended_and_the_others_finish(tmp_path: Path) -> None:
    outcome, folder = hang(tmp_path, 60.0, step_s=1.5, action="end")
    assert outcome.exit_codes == {0: 0, 1: 0, HUNG: ExitCode.STUCK, 3: 0}
    assert outcome.exit_code is ExitCode.STUCK
    (last,) = lines_of(folder, HUNG, "finished")
    assert last["exit_code"] == ExitCode.STUCK and "stuck in 'train'" in last["error"]
    assert "in sleep" in (folder / "logs" / f"peer-{HUNG:03d}.log").read_text()
    for peer in {0, 1, 3}:
        assert len(lines_of(folder, peer, "round_done")) == ROUNDS
