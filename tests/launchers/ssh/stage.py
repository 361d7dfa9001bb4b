"""Hosts whose supervisors are small scripts: what they say makes the course of a run."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, final

from p2p_dml import config
from p2p_dml.launchers.outcome import Outcome
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
