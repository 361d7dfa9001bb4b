"""A run on hosts whose supervisors are small scripts: what they say makes its course."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, final

import pytest

from p2p_dml import __version__, config
from p2p_dml.errors import ConfigError, ExitCode, StartupError
from p2p_dml.launchers import resuming
from p2p_dml.launchers.local import Outcome
from p2p_dml.launchers.ssh.channel import Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.quarters import Fitness, Grounds, Program, Say, Site
from p2p_dml.launchers.ssh.run import Again, Run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.launchers.ssh.conftest import Hosts

# Says its lines, each after the order that it waits for; FACTS and PEERS are filled in.
SUPERVISOR = """#!{python}
import json, os, sys, time
from pathlib import Path
def say(**line): print(json.dumps(line), flush=True)
def hear(what=None):
    line = json.loads(sys.stdin.readline() or sys.exit(0))
    assert what is None or line["do"] == what, line
    return line
order = hear()
Path(order["home"], "pid").write_text(str(os.getpid()))
name, run, peers = os.environ["HOME"].rpartition("/")[2], Path(order["run"]), order["peers"]
def write(file, text):
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_text(text)
def begin(facts={{"digest": "d"}}, data="x"):
    say(ready={{"facts": facts, "data": data}})
    hear("begin")
    for peer in peers: write(f"events/peer-{{peer:03d}}.jsonl", f"events of {{peer}}\\n")
    say(gathered=True)
    hear("meet")
def begun(*rounds):
    hear("call")
    say(begun=rounds)
    return hear("end")["round"]
def finish(code=0, errors={{}}):
    for peer in peers: write(f"checkpoints/peer-{{peer:03d}}/round-000001.safetensors", "x" * 999)
    say(over={{"exit_codes": dict.fromkeys(peers, code), "errors": errors}})
{script}
"""
RUN = {"peers": 4, "rounds": 1, "links": "ring", "strategy": "dpsgd"}


KILL = 'kill -9 "$(cat "$0")"'
LOOKOUT = "import sys; print(sys.argv[1], flush=True); sys.stdin.read()"


@final
class Huts:
    """Quarters that are a script each, for all peers of a host or for every one.

    `rumours`: what the lookouts of all hosts say, each of a hut by its name.
    """

    command = "a test"

    def __init__(
        self, cluster: Cluster, script: Path, rumours: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._script = script
        self._rumours = rumours
        self._sites = {
            host: [_hut(host, peer) for peer in host.peers] if rumours else [_hut(host, None)]
            for host in cluster.hosts
        }

    def examine(self, host: Host, said: Mapping[str, Any]) -> Talk[Fitness]:
        yield from ()
        return Fitness()

    def prepare(self, board: Switchboard, grounds: Mapping[Host, Grounds], say: Say) -> None:
        """All is there."""

    def sites(self, host: Host) -> Sequence[Site]:
        return self._sites[host]

    def program(self, site: Site, grounds: Grounds) -> Program:
        home = f"{grounds.home}/{site.name}"
        return Program(
            command=[str(self._script)],
            undo=["sh", "-c", KILL, f"{home}/pid"] if self._rumours else (),
            home=home,
            run=f"{grounds.out}/{site.name}",
        )

    def lookout(self, host: Host, grounds: Grounds) -> Program | None:
        if not self._rumours:
            return None
        text = "\n".join(map(json.dumps, self._rumours))
        return Program(command=[sys.executable, "-c", LOOKOUT, text])

    def hear(self, host: Host, said: Mapping[str, Any]) -> Iterable[tuple[Site, Mapping[str, Any]]]:
        return [(site, said) for site in self._sites[host] if site.name == said.get("of")]


def _hut(host: Host, peer: int | None) -> Site:
    if peer is None:
        name, label = f"host-{host.index}", "its supervisor"
        return Site(host=host, name=name, peers=host.peers, label=label)
    return Site(host=host, name=f"hut-{peer}", peers=range(peer, peer + 1), label=f"hut {peer}")


@final
class Stage:
    """Hosts alpha (peers 0, 1) and beta (2, 3) whose supervisors play `script`."""

    def __init__(
        self, hosts: Hosts, script: str, rumours: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.hosts = hosts
        self.out = hosts.folder / "out"
        self.said: list[str] = []
        program = hosts.folder / "tools" / "supervisor"
        text = SUPERVISOR.format(python=sys.executable, script=script)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        self.cluster = hosts.cluster(*(hosts.entry(x, peers=2) for x in ("alpha", "beta")))
        self._huts = Huts(self.cluster, program, rumours)

    def play(
        self,
        act: Callable[[Run, Switchboard], None] = lambda run, board: None,
        *,
        waits: bool = True,
        again: Again | None = None,
    ) -> Outcome:
        """Run it to its end; `act` is called when all peers have met. A look takes 20 s."""
        settings = again.past.config if again else config.parse(RUN, self.hosts.folder)
        with closing(Switchboard(self.cluster.hosts, self.cluster.lost_s)) as board:
            grounds, _ = board.converse({host: _open() for host in self.cluster.hosts})
            run = Run(
                board,
                self.cluster,
                settings,
                self._huts,
                self.out,
                self.said.append,
                waits=waits,
                again=again,
                now=itertools.count(0.0, 20.0).__next__,
            )
            run.start(grounds, 1.0)
            act(run, board)
            run.follow(lambda: None)
            return run.outcome()

    def files(self) -> set[str]:
        """What is in the run folder."""
        return {str(x.relative_to(self.out)) for x in self.out.rglob("*") if x.is_file()}


def _open() -> Talk[Grounds]:
    said = yield Request(head={"ask": "open", "folder": "~/.cache/p2p-dml"})
    return Grounds(home=said["home"], out=said["out"])


Play = Callable[..., Stage]


@pytest.fixture
def stage(hosts_here: Hosts) -> Iterator[Play]:
    """Set the stage for a script; nothing is left on any host afterwards."""
    yield lambda script, *rumours: Stage(hosts_here, script, rumours)
    assert not [*hosts_here.left("alpha"), *hosts_here.left("beta")]


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


LAST_LINES = """
begin()
with open(run / f"events/peer-{peers[0]:03d}.jsonl", "a") as events:
    print(json.dumps({"event": "round_done", "round": 7}), file=events)
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
