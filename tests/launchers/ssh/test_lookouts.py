"""What is told from outside of supervisors: what ended them, that they are paused, or go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2p_dml.errors import StartupError
from tests.launchers.ssh.stage import Play, Stage

LAST_LINES = """
begin()
with open(run / f"events/peer-{peers[0]:03d}.jsonl", "a") as events:
    done = {"loss": 0.5, "bytes_out": 0, "bytes_in": 0, "neighbours": 2}
    line = {"event": "round_done", "t": 1.0, "peer": peers[0], "round": 7, **done}
    print(json.dumps(line), file=events)
"""


def _last_line(play: Stage, peer: int) -> Any:
    text = (play.out / "events" / f"peer-{peer:03d}.jsonl").read_text(encoding="utf-8")
    return json.loads(text.splitlines()[-1])


def test_what_ended_a_peer_from_outside_is_its_last_line(stage: Play) -> None:
    fate = "its house burnt down"
    end = "if peers[0] == 1: os.kill(os.getpid(), 9)\nfinish()"
    play = stage(LAST_LINES + end, {"of": "hut-1", "fate": fate})
    outcome = play.play()
    assert outcome.exit_codes == {0: 0, 1: -9, 2: 0, 3: 0}
    assert outcome.verdict == f"peer 1: {fate}"
    last = _last_line(play, 1)
    assert (last["event"], last["round"], last["exit_code"]) == ("finished", 7, 137)
    assert last["error"] == fate
    assert _last_line(play, 2)["event"] == "round_done"


def test_a_peer_whose_supervisor_survived_it_has_the_same_fate(stage: Play) -> None:
    play = stage("begin()\nfinish(-9 * (2 in peers))", {"of": "hut-2", "fate": "it starved"})
    assert play.play().verdict == "peer 2: it starved"


def test_who_is_paused_when_all_others_have_ended_is_ended(stage: Play) -> None:
    play = stage(
        LAST_LINES + "if 3 in peers: hear()\nfinish()", {"of": "hut-3", "paused": "it slept"}
    )
    outcome = play.play()
    assert play.said == ["hut 3 is paused"]
    assert outcome.exit_codes == {0: 0, 1: 0, 2: 0, 3: -9}
    assert outcome.verdict == "peer 3: it slept"
    assert _last_line(play, 3)["error"] == "it slept"


def test_nobody_waits_for_the_word_of_who_is_paused(stage: Play) -> None:
    play = stage(
        "begin()\nif 0 in peers: hear(); hear(); sys.exit('was not ended')\nbegun(3)\nfinish(5)",
        {"of": "hut-0", "paused": "it slept"},
    )
    outcome = play.play(lambda run, board: run.stop())
    assert outcome.exit_codes == {0: -9, 1: 5, 2: 5, 3: 5}


def test_who_goes_on_is_waited_for(stage: Play) -> None:
    rumours = [{"of": "hut-1", "paused": "it slept"}, {"of": "hut-1", "paused": None}]
    play = stage("begin()\nfinish()", *rumours)
    assert play.play().exit_codes == dict.fromkeys(range(4), 0)
    assert play.said == ["hut 1 is paused", "hut 1 goes on"]


def test_a_peer_that_cannot_begin_says_why_in_the_words_of_who_saw_it(stage: Play) -> None:
    play = stage("if 2 in peers: sys.exit(1)\nbegin()", {"of": "hut-2", "fate": "it starved"})
    with pytest.raises(StartupError, match=r"^beta: peer 2: it starved$"):
        play.play()
