"""Peers of all hosts, from the start of their supervisors to the last file that is collected."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from p2p_dml import config as run_files
from p2p_dml.config import RunConfig
from p2p_dml.errors import StartupError
from p2p_dml.launchers import folder
from p2p_dml.launchers.last_line import log_ending
from p2p_dml.launchers.last_round import agreed
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.resuming import LONGER, Past, changed, take_down
from p2p_dml.launchers.ssh.accounts import Account, Accounts
from p2p_dml.launchers.ssh.arrivals import Arrivals
from p2p_dml.launchers.ssh.channel import (
    HostError,
    Request,
    Switchboard,
    Talk,
    all_of,
    expect_none,
)
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.quarters import Grounds, Program, Quarters, Site
from p2p_dml.launchers.ssh.remote.control import Frame
from p2p_dml.types import PeerId

PAUSED_S = 10.0
"""How long supervisors may stay paused when all others have ended."""

_UPDATE_S = 0.1


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


def _same(what: str, found: Mapping[Site, object], first: Site) -> None:
    """Raise StartupError naming the hosts where `found` is not that of the first."""
    others = [site.host.name for site, each in found.items() if each != found[first]]
    if others:
        raise StartupError(
            f"{', '.join(dict.fromkeys(others))}: another {what} than on {first.host.name}; make "
            "them equal"
        )


@final
class Run:
    """One run on all hosts of a cluster; `path` is its folder here."""

    def __init__(
        self,
        board: Switchboard,
        cluster: Cluster,
        config: RunConfig,
        quarters: Quarters,
        path: Path,
        say: Callable[[str], None],
        *,
        waits: bool = True,
        again: Again | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`waits`: peers wait for each other in a round, so that they can all stop after one."""
        self._board = board
        self._cluster = cluster
        self._config = config
        self._quarters = quarters
        self._path = path
        self._say = say
        self._now = now
        self._arrivals = Arrivals(path)
        sites = [site for host in cluster.hosts for site in quarters.sites(host)]
        self._sites = {(site.host, site.name): site for site in sites}
        self._accounts = Accounts(sites, say)
        self._num_stops = 0
        self._waits = waits
        self._is_asking = False
        self._only_paused_since: float | None = None
        self._again = again
        board.on_frame = self._take

    # ---- coming together ------------------------------------------------------------------

    def start(self, grounds: Mapping[Host, Grounds], started: float) -> None:
        """Have peers begin once every site has data and model, and meet once all are there.

        Raises StartupError if a host has other data or cannot begin; nothing is left then.
        """
        is_new = not self._path.exists()
        try:
            self._start_all(grounds, started)
        except BaseException:
            if is_new:
                shutil.rmtree(self._path, ignore_errors=True)
            raise

    def _start_all(self, grounds: Mapping[Host, Grounds], started: float) -> None:
        starts = {host: self._start(host, each, started) for host, each in grounds.items()}
        all_of(self._board, starts)
        self._wait_for(lambda state: state.ready is not None)
        self._make_folder(self._agreed(), started)
        self._tell({"do": "begin"})
        self._wait_for(lambda state: state.has_gathered)
        self._tell({"do": "meet"})

    def _start(self, host: Host, grounds: Grounds, started: float) -> Talk[bool]:
        order = {"listen": self._cluster.listen, "started": started}
        order["past"] = self._again.order if self._again else None
        lookout = self._quarters.lookout(host, grounds)
        if lookout is not None:
            yield _starting("lookout", lookout, None)
        for site in self._quarters.sites(host):
            program = self._quarters.program(site, grounds)
            own = {"peers": list(site.peers), "home": program.home, "run": program.run}
            yield _starting(site.name, program, {**order, **own})
        return True

    def _wait_for(self, holds: Callable[[Account], bool]) -> None:
        """Wait until all supervisors are so far; StartupError if one of them cannot begin."""
        while not all(map(holds, self._accounts.states.values())):
            self._board.pump(_UPDATE_S)
            failures = self._accounts.failures
            for host, connection in self._board.connections.items():
                if connection.why_closed is not None:
                    failures.setdefault(host, connection.why_closed)
            expect_none(failures)

    def _agreed(self) -> Mapping[str, Any]:
        """What all sites say of the run; StartupError if some have other data or another run."""
        ready = {site: state.ready for site, state in self._accounts.states.items() if state.ready}
        first = next(iter(self._accounts.states))
        _same("data", {site: each.data for site, each in ready.items()}, first)
        digests = {site: each.facts["digest"] for site, each in ready.items()}
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
        for host, connection in self._board.standing.items():
            names = [site.name for site in self._quarters.sites(host)]
            connection.tell({"tell": order, "to": names})

    # ---- what hosts send unasked ----------------------------------------------------------

    def _take(self, host: Host, frame: Frame) -> None:
        """A piece of a file of a site, a line of its supervisor, or one of the host's lookout."""
        site = self._sites.get((host, frame.head.get("of", "")))
        if "said" in frame.head:
            said = frame.head["said"]
            for each, words in self._quarters.hear(host, said) if site is None else [(site, said)]:
                self._accounts.hear(each, words)
        elif "file" in frame.head and site is not None:
            try:
                self._arrivals.take(site, frame.head, frame.body)
            except HostError as error:
                self._board.connections[host].close(str(error))

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
        """When all sites have said which rounds have begun there: name the last one."""
        states = [self._accounts.states[site] for site in self._going]
        said = [x.begun for x in states if not x.has_reported and x.paused is None]
        if None in said:
            return
        self._is_asking = False
        begun = [round_ for each in said for round_ in each or ()]
        done = min(self._again.rounds.values()) if self._again else 0
        last = agreed(begun) if begun else None
        self._tell({"do": "end", "round": last if last is not None and last > done else None})

    @property
    def _going(self) -> Sequence[Site]:
        """Sites whose supervisor has not ended, of hosts that are not lost."""
        standing = self._board.standing
        return [
            x
            for x, state in self._accounts.states.items()
            if x.host in standing and not state.is_over
        ]

    def follow(self, update: Callable[[], None]) -> None:
        """Wait for the ends of all peers on hosts that are not lost, then for their files."""
        told = 0
        while self._going:
            if told < self._num_stops:
                told += 1
                self._stop(told == 1)
            if self._is_asking:
                self._end_together()
            before = self._board.standing
            self._board.pump(_UPDATE_S)
            for host in before.keys() - self._board.standing.keys():
                self._say(f"host {host.name} is lost: {before[host].why_closed}")
            self._end_if_only_paused()
            update()
        self._board.converse({host: _collect() for host in self._board.standing})
        update()

    def _end_if_only_paused(self) -> None:
        """When all others have ended, there is nothing left for those that are paused."""
        going = self._going
        if not going or any(self._accounts.states[site].paused is None for site in going):
            self._only_paused_since = None
        elif self._only_paused_since is None:
            self._only_paused_since = self._now()
        elif self._now() > self._only_paused_since + PAUSED_S:
            for site in going:
                self._accounts.states[site].fate = self._accounts.states[site].paused
                self._board.connections[site.host].tell({"end": site.name})

    def outcome(self) -> Outcome:
        """How all ended; peers of a host or site that was lost count as killed."""
        for host, connection in self._board.connections.items():
            if connection.why_closed is not None:
                self._accounts.lose_host(host, connection.why_closed)
        codes, errors = self._accounts.settled()
        for peer, why in errors.items():
            clock = partial(self._accounts.ended_at, peer)
            log_ending(self._path, peer, codes[peer], why, clock)
        return Outcome(self._path, codes, errors)


def _starting(name: str, program: Program, order: Mapping[str, Any] | None) -> Request:
    return Request(
        head={
            "ask": "start",
            "name": name,
            "command": program.command,
            "env": program.env,
            "undo": program.undo,
            "owner": program.owner,
            "order": order,
        }
    )


def _collect() -> Talk[bool]:
    yield Request(head={"ask": "collect"})
    return True
