"""A run on hosts whose supervisors are small scripts: what they say makes its course."""

from __future__ import annotations

import json
import os
import signal

import pytest

from p2p_dml import __version__
from p2p_dml.errors import ConfigError, ExitCode, StartupError
from p2p_dml.launchers import resuming
from p2p_dml.launchers.ssh.channel import Switchboard
from p2p_dml.launchers.ssh.run import Again, Run
from tests.launchers.ssh.stage import Play, Stage


def test_what_hosts_have_is_collected(stage: Play) -> None:
    play = stage("begin()\nfinish()")
    outcome = play.play()
    assert outcome.exit_codes == dict.fromkeys(range(4), 0)
    assert outcome.verdict is None
    events = {f"events/peer-00{peer}.jsonl" for peer in range(4)}
    models = {f"checkpoints/peer-00{peer}/round-000001.safetensors" for peer in range(4)}
    assert play.files() == {"run.json", "run.toml", *events, *models}
    assert (play.out / "events" / "peer-003.jsonl").read_text(encoding="utf-8") == "events of 3\n"
    facts = json.loads((play.out / "run.json").read_text(encoding="utf-8"))
    assert facts["digest"] == "d"
    hosts = [{"ssh": "alpha", "peers": [0, 1]}, {"ssh": "beta", "peers": [2, 3]}]
    assert (facts["hosts"], facts["started"]) == (hosts, 1.0)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("sys.exit('no memory left')", ": its supervisor ended: no memory left"),
        ("say(failed='no such data', code=2)", ": no such data"),
        ("begin(data=name)", "beta: another data than on alpha; make them equal"),
        ("begin({'digest': name})", "beta: another run (a module or package of yours) than on a"),
        (
            "say(ready={'facts': {'digest': 'd'}, 'data': 'x'})\nhear('begin')\n"
            "if name == 'alpha': hear()\nfinish(3, {peers[0]: 'the port is taken'})",
            "beta: the port is taken",
        ),
    ],
)
def test_who_cannot_begin_keeps_all_from_it(stage: Play, script: str, expected: str) -> None:
    play = stage(script)
    with pytest.raises(StartupError) as caught:
        play.play()
    assert expected in str(caught.value)
    assert not play.out.exists()


def test_a_lost_host_costs_its_own_peers(stage: Play) -> None:
    play = stage("begin()\nif name == 'alpha': begun(3)\nelse: hear()\nfinish(5)")

    def lose_beta(run: Run, board: Switchboard) -> None:
        beta = board.connections[play.cluster.hosts[1]]
        beta.close("its cable was pulled")
        run.stop()

    outcome = play.play(lose_beta)
    assert outcome.exit_codes == {0: 5, 1: 5, 2: -9, 3: -9}
    assert outcome.exit_code is ExitCode.FAILED
    verdict = (
        "host beta was lost, and with it peers 2, 3: its cable was pulled; 1 more peers failed"
    )
    assert str(outcome.verdict).startswith(verdict)
    assert play.said[0].startswith("stopping: ")
    assert "checkpoints/peer-001/round-000001.safetensors" in play.files()
    assert "checkpoints/peer-002/round-000001.safetensors" not in play.files()


def test_a_connection_that_breaks_is_told_at_once(stage: Play) -> None:
    play = stage("begin()\nif name == 'alpha': begun(3)\nelse: hear()\nfinish()")

    def end_beta(run: Run, board: Switchboard) -> None:
        for pid in play.hosts.processes("beta"):
            os.kill(pid, signal.SIGTERM)
        beta = board.connections[play.cluster.hosts[1]]
        while beta.why_closed is None:
            board.pump(0.1)
        run.stop()

    assert play.play(end_beta).exit_codes == {0: 0, 1: 0, 2: -9, 3: -9}


def test_a_supervisor_that_crashes_in_the_run_has_lost_its_peers(stage: Play) -> None:
    play = stage("begin()\nif name == 'beta': sys.exit('out of luck')\nfinish()")
    outcome = play.play()
    assert outcome.exit_codes == {0: 0, 1: 0, 2: -9, 3: -9}
    assert "its supervisor ended: out of luck" in outcome.errors[2]
    assert (play.out / "logs" / "host-1.log").read_text(encoding="utf-8") == "out of luck\n"


def test_peers_that_ended_before_their_host_was_lost_have_ended_well(stage: Play) -> None:
    play = stage(
        "begin()\nfor peer in peers: say(ended=peer, code=0)\n"
        "if name == 'beta': sys.exit('just now')\nfinish()"
    )
    assert play.play().exit_codes == dict.fromkeys(range(4), 0)


def test_a_host_cannot_speak_for_peers_of_another(stage: Play) -> None:
    play = stage("begin()\nif name == 'beta': say(ended=0, code=1)\nfinish()")
    outcome = play.play()
    assert outcome.exit_codes == dict.fromkeys(range(4), 0)


@pytest.mark.parametrize(
    ("alpha", "beta", "last"), [("3, 4", "4, 4", 4), ("3, 3", "5, 4", 5), ("3, 4", "9, 9", None)]
)
def test_all_hosts_end_after_the_latest_round_that_has_begun_on_any(
    stage: Play, alpha: str, beta: str, last: int | None
) -> None:
    rounds = f"{{'alpha': ({alpha}), 'beta': ({beta})}}"
    play = stage(f"begin()\nlast = begun(*{rounds}[name])\nfinish(5, {{peers[0]: str(last)}})")
    outcome = play.play(lambda run, board: run.stop())
    assert outcome.errors == {0: str(last), 2: str(last)}


def test_who_does_not_wait_for_others_stops_alone(stage: Play) -> None:
    play = stage("begin()\nhear('stop')\nfinish(5)")
    outcome = play.play(lambda run, board: run.stop(), waits=False)
    assert outcome.exit_codes == dict.fromkeys(range(4), 5)


def test_a_second_signal_kills_even_if_a_host_does_not_answer(stage: Play) -> None:
    play = stage("begin()\nhear('call')\nhear('stop')\nfinish(-9)")

    def stop_twice(run: Run, board: Switchboard) -> None:
        run.stop()
        run.stop()

    assert play.play(stop_twice).exit_codes == dict.fromkeys(range(4), -9)


def _again(stage: Stage) -> Again:
    """A run of round 7 of which the run folder here has events."""
    stage.play()
    past = resuming.read(stage.out, ["rounds=9"], "launch")
    return Again(past=past, rounds=dict.fromkeys(range(4), 7))


RESUMED = (
    f"version = {__version__!r}"
    + """
past = order["past"]
facts = {"digest": "longer" if past else "d", "version": version, "mode": "launch"}
say(ready={"facts": facts, "data": "x", "before": "d" if past else None})
hear("begin")
for peer in peers: write(f"events/peer-{peer:03d}.jsonl", json.dumps(past) + "\\n")
say(gathered=True)
hear("meet")
finish()
"""
)


def test_a_run_that_goes_on_is_told_where_and_keeps_its_events(stage: Play) -> None:
    play = stage(RESUMED)
    play.play(again=_again(play))
    lines = (play.out / "events" / "peer-001.jsonl").read_text(encoding="utf-8").splitlines()
    past = {"starts": [7] * 4, "digests": ["d"], "before": {"rounds": 1, "duration_s": None}}
    assert [json.loads(line) for line in lines] == [None, past]
    facts = json.loads((play.out / "run.json").read_text(encoding="utf-8"))
    assert (facts["digest"], facts["earlier_digests"]) == ("longer", ["d"])
    assert facts["resumed"][0]["round"] == 7
    assert "rounds = 9" in (play.out / "run.toml").read_text(encoding="utf-8")


def test_a_run_that_was_changed_does_not_go_on(stage: Play) -> None:
    play = stage(
        RESUMED.replace("version,", f"{__version__!r},").replace('"d" if past', '"e" if past')
    )
    again = _again(play)
    before = play.files()
    with pytest.raises(ConfigError, match="no longer the run that the checkpoints are of"):
        play.play(again=again)
    assert play.files() == before
