"""All peers as processes of this machine: `p2p-dml run`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from p2p_dml.assemble import blueprint, load_data
from p2p_dml.checks import check_all
from p2p_dml.config import RunConfig
from p2p_dml.errors import WORST_FIRST, ExitCode
from p2p_dml.launchers import folder, joining
from p2p_dml.launchers.crew import Aborted, Crew, assignment_of, hired, last_words
from p2p_dml.launchers.keyring import lend
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.process import allow_many_files, on_stop_signals
from p2p_dml.launchers.rendezvous import Desk
from p2p_dml.launchers.resuming import Past, take_up
from p2p_dml.launchers.scratch import lay_out, temporary_folder
from p2p_dml.launchers.single import LAST_ROUND, check_transport, socket_of
from p2p_dml.types import PeerId


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
    allow_many_files()  # every peer is a visitor of the desk until all have met
    check_transport(config)
    path = past.path if past else folder.choose(out, config)
    with ExitStack() as stack:
        scratch = stack.enter_context(temporary_folder())
        crew = stack.enter_context(hired(config.threads))
        shared = blueprint(config, *load_data(config))
        model = check_all(shared)
        if past is None:
            folder.create(path, shared, model, "run", started)
        stack.enter_context(folder.claimed(path) if past else folder.held(path))
        starts = take_up(past, shared, model, started, say) if past else None
        lay_out(shared.dataset, shared.shards, scratch)
        lend(config, scratch)
        done = min(starts.values()) if starts else 0
        words = LastRound.create(scratch / LAST_ROUND, config.peers, done)
        last = stack.enter_context(closing(words))
        peers = range(config.first_peers)
        desk = Desk(scratch / "desk.sock", peers)
        everyone = assignment_of(config, path, scratch, starts=starts)
        crew.begin(peers, everyone, config.restarts, may_grow=config.elastic)
        update = watch(path, started)

        def stop() -> None:  # the peers, not the launcher
            crew.stop(is_agreed=shared.pace.waits and last.choose(done))

        with on_stop_signals(stop, each=True):
            exit_codes = _attend(crew, desk, config, scratch, path, update)
        return Outcome(path, exit_codes, last_words(scratch, exit_codes))


def _attend(
    crew: Crew,
    desk: Desk,
    config: RunConfig,
    scratch: Path,
    path: Path,
    update: Callable[[], None],
) -> dict[PeerId, int]:
    """Bring the peers together and wait for their ends; returns how each ended."""
    exit_codes = crew.exit_codes
    try:
        book = crew.gather(desk, config.transport.startup_s, scratch)
        later = range(config.first_peers, config.peers)
        desk.publish(book | {peer: socket_of(scratch, peer) for peer in later})
    except Aborted as aborted:
        exit_codes = aborted.exit_codes
    finally:
        desk.close()
    while crew.running:
        crew.listen(0.25)
        if config.elastic:
            joining.answer(path, lambda: crew.add(range(config.peers)))
        update()
    update()
    return exit_codes
