"""All peers on several hosts, from hosts with Python and sshd to the report, by one ssh per host.

Every phase is done on all hosts at once; when one fails, or is interrupted, the connections close,
and with them goes everything that was started or copied. Only what peers live in stays, for the
next time: environments with the package (`p2p-dml launch`), or an image (`p2p-dml up`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from p2p_dml import keys
from p2p_dml.assemble import blueprint
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.checks import check_everybody_begins, check_needs
from p2p_dml.config import RunConfig, TransportConfig
from p2p_dml.errors import StartupError
from p2p_dml.launchers import folder
from p2p_dml.launchers.keyring import is_encrypted
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.launchers.resuming import Past, starts
from p2p_dml.launchers.single import check_transport
from p2p_dml.launchers.ssh import preflight
from p2p_dml.launchers.ssh.bundle import Bundle, bundle
from p2p_dml.launchers.ssh.channel import Request, Switchboard, Talk, all_of
from p2p_dml.launchers.ssh.hosts import Cluster, Host, check_peers
from p2p_dml.launchers.ssh.quarters import Grounds, Quarters, Site
from p2p_dml.launchers.ssh.run import Again, Run

_KEYS = "keys"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the launcher speaks to the user; as for `p2p_dml.launchers.local.run`."""

    say: Callable[[str], None]
    watch: Callable[[Path, float], Callable[[], None]]


def launch(
    cluster: Cluster,
    config: RunConfig,
    quarters: Quarters,
    out: Path | None,
    voice: Voice,
    past: Past | None = None,
) -> Outcome:
    """Run `config` in `quarters` on the hosts of `cluster` to its end, and collect what it leaves.

    `past`: the run to go on with, in its folder; `config` is its own then, and hosts are brought
    their peers' checkpoints. The first SIGINT or SIGTERM while peers run lets them finish a round,
    the same for all, and save; the second kills them. Raises ConfigError before anything is
    started, StartupError naming the hosts that cannot take part, StorageError if the run folder
    cannot be written.
    """
    waits = check(cluster, config, quarters.command)
    path = past.path if past else folder.choose(out, config)
    luggage = bundle(_on_hosts(config, cluster))
    with ExitStack() as stack:
        if past:
            stack.enter_context(folder.claimed(path))
        again = _again(past, waits, voice.say) if past else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2p-")))
        names_keys = _names_keys(config, is_again=again is not None)
        secrets = _keys(config, cluster, scratch, names_keys=names_keys)
        board = stack.enter_context(closing(Switchboard(cluster.hosts, cluster.lost_s)))
        _check(board, cluster, preflight.need_of(config), quarters, voice.say)
        grounds = all_of(board, {host: _open(host) for host in cluster.hosts})
        quarters.prepare(board, grounds, voice.say)
        copies = {host: _copy(host, quarters, luggage, secrets, again) for host in grounds}
        all_of(board, copies)
        _say_copied(luggage, bool(secrets), voice.say)
        run = Run(board, cluster, config, quarters, path, voice.say, waits=waits, again=again)
        started = time.time()
        run.start(grounds, started)
        if again:
            after = sorted(set(again.rounds.values()))
            voice.say(f"resumed after round {after[0]} of {config.rounds}")
        else:
            stack.enter_context(folder.held(path))
        update = voice.watch(path, started)
        with on_stop_signals(run.stop, each=True):
            run.follow(update)
        return run.outcome()


def check(cluster: Cluster, config: RunConfig, command: str) -> bool:
    """Raise ConfigError for what can be known before any host is asked.

    `command`: what the user has called. Returns whether peers wait for each other in a round.
    """
    check_transport(config)
    check_everybody_begins(config, command)
    check_peers(cluster, config.peers)
    parts = blueprint(config)
    check_needs(parts)
    return parts.pace.waits


def _again(past: Past, waits: bool, say: Callable[[str], None]) -> Again:
    """Where all peers go on; ConfigError if they cannot."""
    return Again(past=past, rounds=starts(past, waits, say))


def _on_hosts(config: RunConfig, cluster: Cluster) -> RunConfig:
    """The run as its peers see it."""
    changes = {"addresses": cluster.endpoints, "listen": "", "keys": _KEYS}
    changes |= {"directory": "", "reached_at": ""}
    return config.model_copy(update={"transport": config.transport.model_copy(update=changes)})


def _names_keys(config: RunConfig, *, is_again: bool) -> bool:
    """Whether the run file says which keys to use; that of a run folder always has the key."""
    is_default = config.transport.keys == TransportConfig.model_fields["keys"].default
    return "keys" in config.transport.model_fields_set and not (is_again and is_default)


def _keys(config: RunConfig, cluster: Cluster, scratch: Path, *, names_keys: bool) -> Path | None:
    """The folder with all keys: that which the run file names, or a new one; None: none.

    Raises ConfigError if the run file names keys that cannot be used.
    """
    if not is_encrypted(config, cluster.listen):
        return None
    if names_keys:
        named = config.folder / config.transport.keys
        for peer in range(config.peers):
            keys.read(named, peer, config.peers)
        return named
    keys.create(scratch / _KEYS, config.peers)
    return scratch / _KEYS


def _check(
    board: Switchboard,
    cluster: Cluster,
    need: preflight.Need,
    quarters: Quarters,
    say: Callable[[str], None],
) -> None:
    """Raise StartupError that names every host which cannot take part, and why."""
    found = preflight.check(board, cluster, need, quarters, 0)
    for host, remark in found.remarks:
        say(f"{host.name}: {remark}")
    if found.problems:
        raise StartupError(found.words)
    say(f"checked: {len(cluster.hosts)} hosts for {cluster.num_peers} peers")


# ---- files of the run -------------------------------------------------------------------------


def _open(host: Host) -> Talk[Grounds]:
    said = yield Request(head={"ask": "open", "folder": host.entry.folder})
    return Grounds(home=said["home"], out=said["out"])


def _copy(
    host: Host, quarters: Quarters, luggage: Bundle, secrets: Path | None, again: Again | None
) -> Talk[bool]:
    """Bring to each site the run file and what it names, and what its own peers alone are to have.

    That is their secret keys and, where the run goes on, their checkpoints.
    """
    files = [
        (source, "home", f"{site.name}/{name}", 0o600)
        for site in quarters.sites(host)
        for name, source in _luggage_of(site, luggage, secrets, again).items()
    ]
    yield Request(head={"ask": "time"}, files=files)
    return True


def _luggage_of(
    site: Site, luggage: Bundle, secrets: Path | None, again: Again | None
) -> Mapping[str, Path | bytes]:
    """What is copied to a site, by the names that it has there."""
    files: dict[str, Path | bytes] = {**luggage.files}
    if secrets is not None:
        names = [keys.PUBLIC, *map(keys.secret_file, site.peers)]
        files |= {f"{_KEYS}/{name}": secrets / name for name in names}
    if again is not None:
        names = [checkpoint_file(peer, again.rounds[peer]) for peer in site.peers]
        places = {name: again.past.path / name for name in names}
        files |= {name: path for name, path in places.items() if path.exists()}
    return files


def _say_copied(luggage: Bundle, has_keys: bool, say: Callable[[str], None]) -> None:
    names = [*sorted(luggage.files), *(["keys"] if has_keys else [])]
    say(f"copied: {', '.join(names)}")
    if luggage.elsewhere:
        say(f"not copied, hosts must have them installed: {', '.join(luggage.elsewhere)}")
