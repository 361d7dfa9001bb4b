"""The containers of a run while it goes on: who runs, who ended and why; telling them to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from p2p_dml.config import RunConfig
from p2p_dml.errors import ExitCode, StartupError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers.containers import docker
from p2p_dml.launchers.containers.compose_file import limits, service
from p2p_dml.launchers.containers.docker import Container
from p2p_dml.launchers.last_line import log_ending
from p2p_dml.launchers.process import STOP_GRACE_S
from p2p_dml.types import PeerId

LOOK_S = 1.0
"""How often the engine is asked."""

SILENT_S = 60.0
"""How long the engine may not answer."""

PAUSED_S = 10.0
"""How long containers may stay paused when all others have ended."""

Line = dict[str, Any]

PAUSED = "its container was paused (docker pause) when all others had ended, and was killed"
_SIGNALLED = 128  # exit code of a shell for a process ended by signal 0


@final
class Containers:
    """The view of a run's containers from outside; `say` is told what a user would want to know."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._run = run
        self._ids: Sequence[str] = ()
        self._answered_at = now()
        self._say = say
        self._now = now
        self._peer_of = {service(peer): peer for peer in range(config.peers)}
        self._paused: set[PeerId] = set()
        self._given_up: set[PeerId] = set()
        self._found: Mapping[PeerId, Container] = {}
        self._num_stops = 0
        self._stopped_at: float | None = None
        self._only_paused_since: float | None = None
        self._due_to: dict[PeerId, int] | None = None
        self._ended: dict[PeerId, int] = {}
        self.running = set(range(config.peers))
        self.errors: dict[PeerId, str] = {}

    @property
    def exit_codes(self) -> dict[PeerId, int]:
        """How each ended; if the run ended before peers had met, of those that it is due to."""
        return self._ended if self._due_to is None else self._due_to

    def begin(self, ids: Sequence[str]) -> None:
        """Look at these containers from now on."""
        self._ids = ids

    def stop(self) -> None:
        """First call: let peers finish and save. Second: kill them. Both with the next `look`."""
        self._num_stops += 1

    def look(self) -> None:
        """Ask the engine how all are, count out who has ended, end what cannot go on.

        Raises StartupError if the engine has not answered for a minute.
        """
        found = docker.look(self._ids)
        if found is None:
            if self._now() > self._answered_at + SILENT_S:
                raise StartupError(
                    f"docker has not answered for {SILENT_S:g} s: was dockerd stopped? what the "
                    f"peers have written until then is in {self._run}"
                )
            return
        self._answered_at = self._now()
        self._found = {self._peer_of[each.service]: each for each in found}
        for peer in sorted(self.running):
            container = self._found.get(peer)
            if container is None or container.has_ended:
                self._count_out(peer, container)
            else:
                self._notice(peer, container)
        self._obey()
        self._end_if_hopeless()
        self._end_if_only_paused()

    def _notice(self, peer: PeerId, container: Container) -> None:
        """Say that a container was paused, or goes on."""
        is_paused = container.status == "paused"
        if is_paused != (peer in self._paused):
            self._paused ^= {peer}
            self._say(f"the container of peer {peer} {'is paused' if is_paused else 'goes on'}")

    def _count_out(self, peer: PeerId, container: Container | None) -> None:
        """Take down how a peer ended: by its own last line, or else by what docker says."""
        self.running.discard(peer)
        log = self._run / "logs" / f"{service(peer)}.log"
        said = docker.save_output(container.id, log) if container else ""
        lines = _lines(self._run, peer)
        if lines and lines[-1]["event"] == "finished":
            code, why = lines[-1]["exit_code"], lines[-1]["error"]
        else:
            code, why = self._fate(peer, container, said)
            log_ending(self._run, peer, code, why)
        self._ended[peer] = code
        if code not in (ExitCode.DONE, ExitCode.STOPPED):
            self.errors[peer] = why if why.startswith("peer ") else f"peer {peer}: {why}"

    def _fate(self, peer: PeerId, container: Container | None, said: str) -> tuple[int, str]:
        """How a peer ended that wrote no last line."""
        if peer in self._given_up:
            return -signal.SIGKILL, PAUSED
        code, why = fate(container, limits(self._config, peer).memory_mb, said)
        if self._stopped_at is not None and code == -signal.SIGTERM:  # it did not listen yet
            return ExitCode.STOPPED, "stopped before its first round"
        return code, why

    # ---- ending them -------------------------------------------------------------------------

    def _obey(self) -> None:
        """Do what `stop` was called for."""
        if self._num_stops and self._stopped_at is None:
            self._end_by_term()
        is_late = self._stopped_at is not None and self._now() > self._stopped_at + STOP_GRACE_S
        if self._num_stops > 1 or is_late:
            docker.tell(self._ids_of(self.running), "kill")

    def _end_by_term(self) -> None:
        self._stopped_at = self._now()
        docker.tell(self._ids_of(self.running), "kill", "--signal", "TERM")

    def _end_if_hopeless(self) -> None:
        """If a peer ended before anyone's first round, the others would only wait for it."""
        if self._stopped_at is None and self._ended and not has_begun(self._run, self._config):
            self._due_to = dict(self._ended)
            self._end_by_term()

    def _end_if_only_paused(self) -> None:
        """When all others have ended, there is nothing left for those that are paused."""
        is_over = self._ended and all(
            self._found[peer].status == "paused" for peer in self.running & self._found.keys()
        )
        if not (self.running and is_over):
            self._only_paused_since = None
            return
        if self._only_paused_since is None:
            self._only_paused_since = self._now()
        elif self._now() > self._only_paused_since + PAUSED_S:
            self._given_up |= self.running
            docker.tell(self._ids_of(self.running), "kill")

    def _ids_of(self, peers: set[PeerId]) -> list[str]:
        return [self._found[peer].id for peer in sorted(peers & self._found.keys())]


def fate(container: Container | None, memory_mb: int | None, said: str) -> tuple[int, str]:
    """How a peer ended, and why in words: its exit code, that of a signal negative.

    `container`: None if it was removed; `said`: its last message.
    """
    if container is None:
        return -signal.SIGKILL, "its container was removed"
    code = container.exit_code
    if code and container.is_out_of_memory:
        limit = f"more than memory_mb = {memory_mb} of [[devices]]" if memory_mb else "all there is"
        return -signal.SIGKILL, f"its container ran out of memory: it used {limit}"
    if (number := code - _SIGNALLED) in signal.valid_signals():
        return -number, f"its container was killed by signal {number} ({signal.strsignal(number)})"
    return code, said or f"its container ended with exit code {code} and said nothing"


def has_begun(run: Path, config: RunConfig) -> bool:
    """Whether any peer has met its neighbours."""
    return any(
        line["event"] == "joined" for peer in range(config.peers) for line in _lines(run, peer)
    )


def _lines(run: Path, peer: PeerId) -> list[Line]:
    path = event_file(run, peer)
    return list(read_events(path)) if path.exists() else []
