"""Peers of all hosts, from the start of their supervisors to the last file that is collected."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

from p2p_dml import config as run_files
from p2p_dml.config import RunConfig
from p2p_dml.errors import StartupError
from p2p_dml.launchers import folder
from p2p_dml.launchers.last_round import agreed
from p2p_dml.launchers.local import Outcome
from p2p_dml.launchers.resuming import LONGER, Past, changed, take_down
from p2p_dml.launchers.ssh.arrivals import Arrivals
from p2p_dml.launchers.ssh.channel import HostError, Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.remote.control import Frame
from p2p_dml.types import PeerId

T = TypeVar("T")

_UPDATE_S = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """On a host: a Python, and the folder where it finds the package."""

    python: str
    path: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A run that goes on: what its folder says, and the round that each peer goes on after."""

    past: Past
    rounds: Mapping[PeerId, int]

    @property
    def order(self) -> Mapping[str, Any]:
        """What a supervisor is told of it."""
        stored = run_files.load(self.past.path / folder.SETTINGS, folder=self.past.config.folder)
        return {
            "starts": [self.rounds[peer] for peer in sorted(self.rounds)],
            "digests": sorted(self.past.digests),
            "before": {key: getattr(stored, key) for key in LONGER},
        }


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What a supervisor has built: `facts` as in run.json, and a digest of the data.

    `before`: of a run that goes on, its digest before it was made longer.
    """

    facts: Mapping[str, Any]
    data: str | None
    before: str | None = None


@final
@dataclass(slots=True)
class _State:
    """How far a supervisor is, by its own words."""

    ready: _Ready | None = None
    has_gathered: bool = False
    begun: Sequence[int] | None = None
    failure: str | None = None
    is_over: bool = False


def all_of(board: Switchboard, talks: Mapping[Host, Talk[T]]) -> dict[Host, T]:
    """What came of a conversation with every host; StartupError naming those where it failed."""
    results, failures = board.converse(talks)
    _check(failures)
    return results


def _check(failures: Mapping[Host, str]) -> None:
    if failures:
        raise StartupError("\n".join(f"{host.name}: {why}" for host, why in failures.items()))


def _same(what: str, found: Mapping[Host, object], first: Host) -> None:
    """Raise StartupError naming the hosts where `found` is not that of the first."""
    others = [host.name for host, each in found.items() if each != found[first]]
    if others:
        raise StartupError(
            f"{', '.join(others)}: another {what} than on {first.name}; make them equal"
        )


@final
class Run:
    """One run on all hosts of a cluster; `path` is its folder here."""

    def __init__(
        self,
        board: Switchboard,
        cluster: Cluster,
        config: RunConfig,
        path: Path,
        say: Callable[[str], None],
        *,
        waits: bool = True,
        again: Again | None = None,
    ) -> None:
        """`waits`: peers wait for each other in a round, so that they can all stop after one."""
        self._board = board
        self._cluster = cluster
        self._config = config
        self._path = path
        self._say = say
        self._arrivals = Arrivals(path)
        self._states = {host: _State() for host in cluster.hosts}
        self._codes: dict[PeerId, int] = {}
        self._errors: dict[PeerId, str] = {}
        self._num_stops = 0
        self._waits = waits
        self._is_asking = False
        self._again = again
        board.on_frame = self._take

    # ---- coming together ------------------------------------------------------------------

    def start(self, installed: Mapping[Host, Installed], started: float) -> None:
        """Have peers begin once every host has data and model, and meet once all are there.

        Raises StartupError if a host has other data or cannot begin; nothing is left then.
        """
        is_new = not self._path.exists()
        try:
            self._start_all(installed, started)
        except BaseException:
            if is_new:
                shutil.rmtree(self._path, ignore_errors=True)
            raise

    def _start_all(self, installed: Mapping[Host, Installed], started: float) -> None:
        starts = {host: self._start(host, each, started) for host, each in installed.items()}
        all_of(self._board, starts)
        self._wait_for(lambda state: state.ready is not None)
        self._make_folder(self._agreed(), started)
        self._tell({"do": "begin"})
        self._wait_for(lambda state: state.has_gathered)
        self._tell({"do": "meet"})

    def _start(self, host: Host, there: Installed, started: float) -> Talk[bool]:
        order = {"peers": list(host.peers), "listen": self._cluster.listen, "started": started}
        order["past"] = self._again.order if self._again else None
        env = {"PYTHONPATH": there.path}
        if host.entry.data:
            env["P2P_DML_DATA"] = host.entry.data
        yield Request(head={"ask": "start", "python": there.python, "order": order, "env": env})
        return True

    def _wait_for(self, holds: Callable[[_State], bool]) -> None:
        """Wait until all supervisors are so far; StartupError if one of them cannot begin."""
        while not all(map(holds, self._states.values())):
            self._board.pump(_UPDATE_S)
            failures = {h: state.failure for h, state in self._states.items() if state.failure}
            for host, connection in self._board.connections.items():
                if connection.why_closed is not None:
                    failures.setdefault(host, connection.why_closed)
            _check(failures)

    def _agreed(self) -> Mapping[str, Any]:
        """What all hosts say of the run; StartupError if some have other data or another run."""
        ready = {host: state.ready for host, state in self._states.items() if state.ready}
        first = self._cluster.hosts[0]
        _same("data", {host: each.data for host, each in ready.items()}, first)
        digests = {host: each.facts["digest"] for host, each in ready.items()}
        _same("run (a module or package of yours)", digests, first)
        if self._again and ready[first].before not in self._again.past.digests:
            raise changed(self._again.past)
        return ready[first].facts

    def _make_folder(self, facts: Mapping[str, Any], started: float) -> None:
        """The run folder here: what the hosts say of the run, and where it was started."""
        hosts = [{"ssh": each.name, "peers": list(each.peers)} for each in self._cluster.hosts]
        ours = {"folder": str(self._config.folder.resolve()), "hosts": hosts, "started": started}
        ours |= {"host": os.uname().nodename, "command": folder.command()}
        if self._again:
            past = self._again.past
            past = replace(past, facts={**past.facts, "hosts": hosts})
            take_down(past, self._config, facts["digest"], self._again.rounds, started)
            return
        with folder.storage(self._path):
            for name in ("events", "logs"):
                (self._path / name).mkdir(parents=True, exist_ok=True)
            run_files.dump(self._config, self._path / folder.SETTINGS)
            folder.write_facts(self._path, {**facts, **ours})

    def _tell(self, order: Mapping[str, object]) -> None:
        for connection in self._board.standing.values():
            connection.tell({"tell": order})

    # ---- what hosts send unasked ----------------------------------------------------------

    def _take(self, host: Host, frame: Frame) -> None:
        """A piece of a file, or a line of the host's supervisor."""
        if "file" in frame.head:
            try:
                self._arrivals.take(host, frame.head, frame.body)
            except HostError as error:
                self._board.connections[host].close(str(error))
        elif "said" in frame.head:
            self._hear(host, frame.head["said"])

    def _hear(self, host: Host, said: Mapping[str, Any]) -> None:
        state = self._states[host]
        if "ready" in said:
            state.ready = _Ready(**said["ready"])
        elif "gathered" in said:
            state.has_gathered = True
        elif "begun" in said:
            state.begun = said["begun"]
        elif "ended" in said:
            self._end(host, {said["ended"]: said["code"]}, {})
        elif "over" in said:
            self._end(host, said["over"]["exit_codes"], said["over"]["errors"])
            state.is_over = True
            if not state.has_gathered:
                words = [self._errors[peer] for peer in host.peers if peer in self._errors]
                state.failure = words[0] if words else "its peers ended before all had met"
        elif "failed" in said:
            state.failure = said["failed"]
        elif "exit_code" in said and not state.is_over:
            why = said["last_words"] or f"exit code {said['exit_code']}"
            state.failure = state.failure or f"its supervisor ended: {why}"
            state.is_over = True

    def _end(self, host: Host, codes: Mapping[Any, int], errors: Mapping[Any, str]) -> None:
        """Take down how peers ended, which must be this host's."""
        self._codes |= {int(peer): code for peer, code in codes.items() if int(peer) in host.peers}
        self._errors |= {int(peer): why for peer, why in errors.items() if int(peer) in host.peers}

    # ---- to the end -----------------------------------------------------------------------

    def stop(self) -> None:
        """First call: let peers finish a round, the same for all, and save. Second: kill them."""
        self._num_stops += 1

    def _stop(self, is_first: bool) -> None:
        """Have all hosts stop; by asking first how far they are, if peers wait for each other."""
        self._is_asking = is_first and self._waits
        self._tell({"do": "call" if self._is_asking else "stop"})
        if is_first:
            self._say("stopping: peers finish their round and save; again: kills them")

    def _end_together(self) -> None:
        """When all hosts have said which rounds have begun there: name the last one."""
        states = [self._states[host] for host in self._board.standing]
        said = [state.begun for state in states if not state.is_over]
        if None in said:
            return
        self._is_asking = False
        begun = [round_ for each in said for round_ in each or ()]
        done = min(self._again.rounds.values()) if self._again else 0
        last = agreed(begun) if begun else None
        self._tell({"do": "end", "round": last if last is not None and last > done else None})

    def follow(self, update: Callable[[], None]) -> None:
        """Wait for the ends of all peers on hosts that are not lost, then for their files."""
        told = 0
        while any(not self._states[host].is_over for host in self._board.standing):
            if told < self._num_stops:
                told += 1
                self._stop(told == 1)
            if self._is_asking:
                self._end_together()
            before = self._board.standing
            self._board.pump(_UPDATE_S)
            for host in before.keys() - self._board.standing.keys():
                self._say(f"host {host.name} is lost: {before[host].why_closed}")
            update()
        self._board.converse({host: _collect() for host in self._board.standing})
        update()

    def outcome(self) -> Outcome:
        """How all ended; peers of a host that was lost count as killed."""
        for host, connection in self._board.connections.items():
            lost = [peer for peer in host.peers if peer not in self._codes]
            why = connection.why_closed or self._states[host].failure
            peers = f"peer{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            for peer in lost:
                self._codes[peer] = -signal.SIGKILL
                self._errors[peer] = f"host {host.name} was lost, and with it {peers}: {why}"
        return Outcome(self._path, dict(sorted(self._codes.items())), self._errors)


def _collect() -> Talk[bool]:
    yield Request(head={"ask": "collect"})
    return True
