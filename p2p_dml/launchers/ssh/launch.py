"""`p2p-dml launch`: from hosts with Python and sshd to the report, over one ssh per host.

Every phase is done on all hosts at once; when one fails, or is interrupted, the connections close,
and with them goes everything that was started or copied. Only the environments with the package
stay, for the next time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
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
from p2p_dml.launchers.local import Outcome
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.launchers.resuming import Past, starts
from p2p_dml.launchers.single import check_transport
from p2p_dml.launchers.ssh import preflight
from p2p_dml.launchers.ssh.bundle import Bundle, bundle
from p2p_dml.launchers.ssh.channel import Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster, Host, check_peers
from p2p_dml.launchers.ssh.run import Again, Installed, Run, all_of
from p2p_dml.launchers.ssh.wheel import Wheel, build

_SECRET = 0o600
_KEYS = "keys"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the launcher speaks to the user; as for `p2p_dml.launchers.local.run`."""

    say: Callable[[str], None]
    watch: Callable[[Path, float], Callable[[], None]]


def launch(
    cluster: Cluster, config: RunConfig, out: Path | None, voice: Voice, past: Past | None = None
) -> Outcome:
    """Run `config` on the hosts of `cluster` to its end, and collect what it leaves.

    `past`: the run to go on with, in its folder; `config` is its own then, and hosts are brought
    their peers' checkpoints. The first SIGINT or SIGTERM while peers run lets them finish a round,
    the same for all, and save; the second kills them. Raises ConfigError before anything is
    started, StartupError naming the hosts that cannot take part, StorageError if the run folder
    cannot be written.
    """
    check_transport(config)
    check_everybody_begins(config, "p2p-dml launch")
    check_peers(cluster, config.peers)
    parts = blueprint(config)
    check_needs(parts)
    path = past.path if past else folder.choose(out, config)
    wheel, luggage = build(), bundle(_on_hosts(config, cluster))
    with ExitStack() as stack:
        if past:
            stack.enter_context(folder.claimed(path))
        again = _again(past, parts.pace.waits, voice.say) if past else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2p-")))
        names_keys = _names_keys(config, is_again=again is not None)
        secrets = _keys(config, cluster, scratch, names_keys=names_keys)
        board = stack.enter_context(closing(Switchboard(cluster.hosts, cluster.lost_s)))
        _check(board, cluster, preflight.need_of(config, wheel), voice.say)
        installed = _installed(board, cluster, wheel, voice.say)
        all_of(board, {host: _copy(host, luggage, secrets, again) for host in cluster.hosts})
        _say_copied(luggage, bool(secrets), voice.say)
        waits = parts.pace.waits
        run = Run(board, cluster, config, path, voice.say, waits=waits, again=again)
        started = time.time()
        run.start(installed, started)
        if again:
            after = sorted(set(again.rounds.values()))
            voice.say(f"resumed after round {after[0]} of {config.rounds}")
        else:
            stack.enter_context(folder.held(path))
        update = voice.watch(path, started)
        with on_stop_signals(run.stop, each=True):
            run.follow(update)
        return run.outcome()


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
    board: Switchboard, cluster: Cluster, need: preflight.Need, say: Callable[[str], None]
) -> None:
    """Raise StartupError that names every host which cannot take part, and why."""
    found = preflight.check(board, cluster, need, 0)
    for host, remark in found.remarks:
        say(f"{host.name}: {remark}")
    if found.problems:
        raise StartupError(found.words)
    say(f"checked: {len(cluster.hosts)} hosts for {cluster.num_peers} peers")


# ---- the package ------------------------------------------------------------------------------


def _installed(
    board: Switchboard, cluster: Cluster, wheel: Wheel, say: Callable[[str], None]
) -> dict[Host, Installed]:
    """Where the package is on every host; put there first where it is not yet."""
    begin, made = time.monotonic(), list[Host]()
    wheels = sorted(cluster.wheels.glob("*.whl")) if cluster.wheels else []

    def begun(host: Host) -> None:
        made.append(host)
        say(f"{host.name}: installing what the package needs, which takes minutes, but once")

    found = all_of(board, {host: _install(host, wheel, wheels, begun) for host in cluster.hosts})
    seconds = f"; what it needs on {len(made)} hosts, in {time.monotonic() - begin:.0f} s"
    say(f"installed: {wheel.name} ({wheel.digest}){seconds if made else ''}")
    return found


def _install(
    host: Host, wheel: Wheel, wheels: Sequence[Path], begun: Callable[[Host], None]
) -> Talk[Installed]:
    """See whether the package is there; else bring it, with what it needs if there are wheels."""
    own = f"packages/{wheel.digest}.whl"
    sources: dict[str, Path | bytes] = {own: wheel.content}
    sources |= {f"wheels/{path.name}": path for path in wheels}
    sizes = [(name, _size(source)) for name, source in sources.items()]
    head = {
        "package": wheel.digest,
        "needs": wheel.needs,
        "requirements": wheel.requirements,
        "inherit": host.entry.inherit,
        "wheel": sizes[0],
        "wheels": sizes[1:],
    }
    yield Request(head={"ask": "open", "folder": host.entry.folder})
    said = yield Request(head={"ask": "prepare", **head})
    if "missing" in said:
        if not said["has_env"]:
            begun(host)
        missing = [(sources[name], "folder", name, 0o644) for name in said["missing"]]
        said = yield Request(head={"ask": "install", **head}, files=missing)
    return Installed(python=said["python"], path=said["path"])


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


# ---- files of the run -------------------------------------------------------------------------


def _copy(host: Host, luggage: Bundle, secrets: Path | None, again: Again | None) -> Talk[str]:
    """Bring the run file and what it names, secret keys and checkpoints of this host's peers alone.

    The latter where the run goes on.
    """
    files: list[tuple[Path | bytes, str, str, int]] = [
        (content, "home", name, 0o600) for name, content in luggage.files.items()
    ]
    if secrets is not None:
        names = [keys.PUBLIC, *map(keys.secret_file, host.peers)]
        files += [(secrets / name, "home", f"{_KEYS}/{name}", _SECRET) for name in names]
    if again is not None:
        names = [checkpoint_file(peer, again.rounds[peer]) for peer in host.peers]
        places = [(again.past.path / name, name) for name in names]
        files += [(path, "home", name, 0o600) for path, name in places if path.exists()]
    said = yield Request(head={"ask": "time"}, files=files)
    return str(said["time"])


def _say_copied(luggage: Bundle, has_keys: bool, say: Callable[[str], None]) -> None:
    names = [*sorted(luggage.files), *(["keys"] if has_keys else [])]
    say(f"copied: {', '.join(names)}")
    if luggage.elsewhere:
        say(f"not copied, hosts must have them installed: {', '.join(luggage.elsewhere)}")
