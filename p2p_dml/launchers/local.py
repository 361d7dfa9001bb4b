"""All peers as processes of this machine: `p2p-dml run`."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from p2p_dml.assemble import blueprint, check_all, load_data
from p2p_dml.config import RunConfig
from p2p_dml.errors import WORST_FIRST, ExitCode
from p2p_dml.launchers import folder
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.launchers.rendezvous import Desk
from p2p_dml.launchers.resuming import Past, take_up
from p2p_dml.launchers.scratch import lay_out, temporary_folder
from p2p_dml.launchers.single import LAST_ROUND, Assignment, check_transport
from p2p_dml.types import PeerId

STOP_GRACE_S = 60.0
"""How long peers may take to finish their last round after a first Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: each peer's exit status, and what the failed ones said."""

    folder: Path
    exit_codes: dict[PeerId, int]
    errors: dict[PeerId, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """The worst peer's; a peer ended by a signal, or in a way of its own, has failed."""
        codes = {_known(code) for code in self.exit_codes.values()}
        return next(code for code in WORST_FIRST if code in codes)

    @property
    def verdict(self) -> str | None:
        """One message for the run: what ended the worst peer, and how many others failed.

        None if none failed.
        """
        fine = (ExitCode.DONE, ExitCode.STOPPED)
        failed = {peer: code for peer, code in self.exit_codes.items() if code not in fine}
        if not failed:
            return None
        # Of equals, the peer that ended first.
        worst = min(failed, key=lambda peer: WORST_FIRST.index(_known(failed[peer])))
        others = f"; {len(failed) - 1} more peers failed, see the report" if len(failed) > 1 else ""
        return (self.errors.get(worst) or _fate(worst, failed[worst])) + others


def _known(code: int) -> ExitCode:
    return ExitCode(code) if code in tuple(ExitCode) else ExitCode.FAILED


def _fate(peer: PeerId, code: int) -> str:
    """How a peer ended that left no message."""
    if code < 0:
        return f"peer {peer} was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"peer {peer} ended with exit code {code}; see its log in the run folder"


class _Aborted(Exception):
    """The run ended before all peers had met; `exit_codes` are those of the peers it is due to."""

    def __init__(self, exit_codes: dict[PeerId, int]) -> None:
        self.exit_codes = exit_codes


def run(
    config: RunConfig,
    out: Path | None,
    watch: Callable[[Path, float], Callable[[], None]],
    past: Past | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run all peers to their end; `watch(folder, started)` gives a function called meanwhile.

    `past`: the run to go on with, in its folder; `config` is its own then. `say` is told where it
    does. The first SIGINT or SIGTERM lets peers finish a round, the same for all, and save; the
    second kills them. Raises ConfigError before anything is written, StorageError if the folder
    cannot be, StartupError if peers do not come up.
    """
    started = time.time()
    check_transport(config)
    path = past.path if past else folder.choose(out, config)
    with ExitStack() as stack:
        scratch = stack.enter_context(temporary_folder())
        nursery = stack.enter_context(_nursery(config.threads))
        shared = blueprint(config, *load_data(config))
        model = check_all(shared)
        if past is None:
            folder.create(path, shared, model, "run", started)
        stack.enter_context(folder.claimed(path) if past else folder.held(path))
        starts = take_up(past, shared, model, started, say) if past else None
        lay_out(shared.dataset, shared.shards, scratch)
        done = min(starts.values()) if starts else 0
        words = LastRound.create(scratch / LAST_ROUND, config.peers, done)
        last = stack.enter_context(closing(words))
        desk = Desk(scratch / "desk.sock", config.peers)
        nursery.begin(config.peers, _assignment(config, path, scratch, starts))
        update = watch(path, started)

        def stop() -> None:  # the peers, not the launcher
            nursery.stop(is_agreed=shared.pace.waits and last.choose(done))

        with on_stop_signals(stop, each=True):
            exit_codes = _attend(nursery, desk, config.transport.startup_s, scratch, update)
        return Outcome(path, exit_codes, _errors(scratch, exit_codes))


def _attend(
    nursery: _Nursery, desk: Desk, startup_s: float, scratch: Path, update: Callable[[], None]
) -> dict[PeerId, int]:
    """Bring the peers together and wait for their ends; returns how each ended."""
    exit_codes = nursery.exit_codes
    try:
        desk.gather(startup_s, nursery.abort_if_ended)
        shutil.rmtree(scratch / "data", ignore_errors=True)  # every peer has mapped it
        desk.publish()
    except _Aborted as aborted:
        exit_codes = aborted.exit_codes
    finally:
        desk.close()
    while nursery.running:
        nursery.listen(0.25)
        update()
    update()
    return exit_codes


def _assignment(
    config: RunConfig, path: Path, scratch: Path, starts: Mapping[PeerId, int] | None
) -> dict[str, Any]:
    home = str(config.folder.resolve())
    rounds = [starts[peer] for peer in range(config.peers)] if starts is not None else None
    everyone = Assignment(str(path.resolve()), str(scratch), home, me=0, starts=rounds)
    return {key: value for key, value in asdict(everyone).items() if key != "me"}


def _errors(scratch: Path, peers: Iterable[PeerId]) -> dict[PeerId, str]:
    files = {peer: scratch / f"{peer}.error" for peer in sorted(peers)}
    return {p: f.read_text(encoding="utf-8") for p, f in files.items() if f.exists()}


class _Nursery:
    """The launcher's view of the nursery: who runs, who ended and how."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pids: dict[PeerId, int] = {}
        self._unread = b""
        self._stopped_at: float | None = None
        self.has_begun = False
        self.running: set[PeerId] = set()
        self.exit_codes: dict[PeerId, int] = {}

    def begin(self, num_peers: int, assignment: dict[str, Any]) -> None:
        """Have all peers forked."""
        assert self._process.stdin is not None
        self.has_begun = True
        self.running = set(range(num_peers))
        order = {"peers": sorted(self.running), "assignment": assignment}
        with suppress(BrokenPipeError):  # it failed already; `listen` will find out
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def listen(self, timeout_s: float) -> None:
        """Take in what the nursery reports, waiting at most `timeout_s`."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if selector.select(timeout_s):
                self._take(os.read(self._process.stdout.fileno(), 1 << 16))
        if self._stopped_at and time.monotonic() > self._stopped_at + STOP_GRACE_S:
            self.signal(signal.SIGKILL)

    def _take(self, chunk: bytes) -> None:
        if not chunk:  # the nursery is gone, and the kernel has ended its children
            self.exit_codes |= dict.fromkeys(self.running, -signal.SIGKILL)
            self.running.clear()
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for entry in map(json.loads, lines):
            if "pid" in entry:
                self._pids[entry["peer"]] = entry["pid"]
            else:
                self.exit_codes[entry["peer"]] = entry["code"]
                self.running.discard(entry["peer"])

    def abort_if_ended(self) -> None:
        """End everything if a peer ended, or was told to, before all had met: _Aborted."""
        self.listen(0.0)
        if self._stopped_at is not None:
            raise _Aborted(dict.fromkeys(self.running, int(ExitCode.STOPPED)))
        if self.exit_codes:
            self.signal(signal.SIGTERM)
            raise _Aborted(dict(self.exit_codes))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every running peer."""
        for peer in self.running & self._pids.keys():
            with suppress(ProcessLookupError):
                os.kill(self._pids[peer], number)

    def stop(self, *, is_agreed: bool) -> None:
        """First call: let peers finish and save. Second: kill them.

        `is_agreed`: they know already after which round to end.
        """
        if self._stopped_at is not None:
            self.signal(signal.SIGKILL)
        elif not is_agreed:
            self.signal(signal.SIGTERM)
        self._stopped_at = time.monotonic()


@contextmanager
def _nursery(threads: int) -> Iterator[_Nursery]:
    """Start the nursery (its imports run beside ours); gone with all its children at the end."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    process = subprocess.Popen(
        [sys.executable, "-m", "p2p_dml.launchers.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | dict.fromkeys(names, str(threads)),
        start_new_session=True,
    )
    nursery = _Nursery(process)
    try:
        yield nursery
    finally:
        assert process.stdin is not None and process.stdout is not None
        if not nursery.has_begun:  # no children yet: nothing to wait for
            process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
