"""A local run from its launcher's side: its folder, what its peers share, and their ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from p2p_dml.assemble import blueprint, load_data
from p2p_dml.checks import check_all
from p2p_dml.config import RunConfig
from p2p_dml.launchers import folder, joining
from p2p_dml.launchers.assignment import assignment_of
from p2p_dml.launchers.crew import Aborted, Crew, last_words
from p2p_dml.launchers.keyring import lend
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.process import allow_many_files, on_stop_signals
from p2p_dml.launchers.rendezvous import Desk
from p2p_dml.launchers.resuming import Past, take_up
from p2p_dml.launchers.scratch import lay_out
from p2p_dml.launchers.single import LAST_ROUND, check_transport, socket_of
from p2p_dml.types import PeerId


def lead(
    crew: Crew,
    scratch: Path,
    config: RunConfig,
    out: Path | None,
    watch: Callable[[Path, float], Callable[[], None]],
    past: Past | None,
    say: Callable[[str], None],
    started: float,
) -> Outcome:
    """What `local.run` does, called at `started`, once it has a crew and a temporary folder."""
    allow_many_files()  # every peer is a visitor of the desk until all have met
    check_transport(config)
    path = past.path if past else folder.choose(out, config)
    with ExitStack() as stack:
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
