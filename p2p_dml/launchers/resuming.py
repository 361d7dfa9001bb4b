"""A run folder whose run is to go on: what it was, how far all peers are, where each one starts.

A checkpoint counts only if it is whole, of this run, and of a round that every peer has one of.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn

from p2p_dml import __version__, checkpoint, tables
from p2p_dml import config as run_files
from p2p_dml.assemble import Blueprint
from p2p_dml.checkpoint import Checkpoint, checkpoint_file, saved_rounds
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.events import Resumed, event_file, read_events, standing
from p2p_dml.launchers import folder
from p2p_dml.types import PeerId

LONGER = ("rounds", "duration_s")
"""Keys that peers must agree on, and that change nothing in the rounds that are done."""

_COMMANDS = {
    "run": "p2p-dml run",
    "simulate": "p2p-dml simulate",
    "torchrun": "torchrun … -m p2p_dml",
    "launch": "p2p-dml launch HOSTS.toml",
}

_ELSEWHERE = {"peer": "started one by one", "up": "in containers"}

Say = Callable[[str], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a run folder says of its run. `config` has the overrides; `facts` is `run.json`."""

    path: Path
    config: RunConfig
    facts: Mapping[str, Any]

    @property
    def digests(self) -> frozenset[str]:
        """Of all checkpoints of this run; it has another one since it was made longer."""
        return frozenset({self.facts["digest"], *self.facts.get("earlier_digests", ())})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a peer goes on; without a checkpoint at the beginning."""

    checkpoint: Checkpoint | None

    @property
    def event(self) -> Resumed:
        """What the peer says of it in its log."""
        return Resumed(self.checkpoint.round if self.checkpoint else 0)


def read(path: Path, overrides: Sequence[str], mode: str | None) -> Past:
    """Read the folder of a run that was made as `mode` says, and apply `key=value` overrides.

    `mode` None: however, for a peer whose launcher has checked it.

    Raises ConfigError if it is none, damaged, of another version or command, or if an override
    would change the rounds that are done.
    """
    facts = _facts(path)
    if facts["version"] != __version__:
        raise ConfigError(
            f"{path}: this run began with p2p_dml {facts['version']}, and this is {__version__}; "
            "a run goes on with the version it began with"
        )
    if mode is not None and facts["mode"] != mode:
        found = str(facts["mode"])
        command = _COMMANDS.get(found)
        hint = (
            f"go on with it by `{command} --resume {path}`"
            if command
            else f"its peers were {_ELSEWHERE.get(found, 'elsewhere')}, and such a run cannot be "
            "resumed"
        )
        raise ConfigError(f"{path}: not a run of `{_COMMANDS[mode]}`: {hint}")
    if facts.get("clock") == "virtual":
        raise ConfigError(
            f"{path}: a simulation by virtual clocks cannot go on: where each peer was in time is "
            "in no checkpoint; run it anew, or on processes"
        )
    file, home = path / folder.SETTINGS, Path(str(facts.get("folder", path)))
    home = home if home.is_dir() else path
    before = run_files.load(file, folder=home)
    settings = run_files.load(file, overrides, home)
    _check_overrides(before, settings)
    return Past(path=path, config=settings, facts=facts)


def _facts(path: Path) -> dict[str, Any]:
    file = path / folder.FACTS
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = {key: facts[key] for key in ("digest", "version", "mode")}
    except OSError as error:
        raise ConfigError(
            f"--resume {path}: not a run folder: looked for {file.name} ({error.strerror}); "
            "expected the folder that a run has written, such as runs/demo"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: damaged, the run cannot go on: {error!r}") from error
    for key, value in known.items():
        tables.check(str, value, f"{file}: {key}")
    return facts


def _check_overrides(before: RunConfig, after: RunConfig) -> None:
    old, new = (json.loads(each.canonical()) for each in (before, after))
    changed = [key for key in old if key not in LONGER and old[key] != new[key]]
    if changed:
        local = sorted(RunConfig.model_fields.keys() - old.keys() - {"folder"})
        raise ConfigError(
            f"--set {changed[0]}: the rounds that are done were done with another value; a resumed "
            f"run takes {', '.join((*LONGER, *local))}"
        )


def check_unchanged(past: Past, shared: Blueprint, model: nn.Module) -> None:
    """See that `run.toml` is still that of the run, whose parts are `shared`, and so is the model.

    Raises ConfigError if it, a file that it names, or the model was changed meanwhile.
    """
    stored = run_files.load(past.path / folder.SETTINGS, folder=past.config.folder)
    same = replace(shared, config=stored)
    if same.digest(model).hex() not in past.digests:
        raise changed(past)


def changed(past: Past) -> ConfigError:
    """What to say when the checkpoints are of another run than `run.toml` says."""
    return ConfigError(
        f"{past.path / folder.SETTINGS}: no longer the run that the checkpoints are of: it, a "
        "file that it names or the model was changed; undo that, and use --set for rounds"
    )


# ---- how far the peers are --------------------------------------------------------------------


def starts(past: Past, waits: bool, say: Say) -> dict[PeerId, int]:
    """The round that each peer goes on after: the newest of which all have a whole checkpoint.

    If nobody waits for others (asynchronous rounds): its own newest, 0 if it has none. `say` is
    told of files that are passed over. Raises ConfigError if there is no such round, or none to do.
    """
    peers = range(past.config.peers)
    if waits:
        found = {peer: saved_rounds(past.path, peer) for peer in peers}
        for round_ in sorted(set.intersection(*map(set, found.values())), reverse=True):
            bad = [peer for peer in peers if not _is_usable(past, peer, round_, waits, say)]
            if not bad:
                return dict.fromkeys(peers, _not_finished(past, round_))
            for peer in bad:
                found[peer].remove(round_)
        raise _nothing_common(past, {peer: max(own, default=0) for peer, own in found.items()})
    newest = {peer: next(usable_rounds(past, peer, waits, say), 0) for peer in peers}
    return starts_among(past, {peer: [round_] for peer, round_ in newest.items()}, waits)


def starts_among(
    past: Past, rounds: Mapping[PeerId, Collection[int]], waits: bool
) -> dict[PeerId, int]:
    """As `starts`, of peers that each have found their own `rounds`, perhaps on different hosts."""
    newest = {peer: max(own, default=0) for peer, own in rounds.items()}
    common = set.intersection(*(set(own) for own in rounds.values()))
    if not (common if waits else any(newest.values())):
        raise _nothing_common(past, newest)
    if waits:
        return dict.fromkeys(rounds, _not_finished(past, max(common)))
    _not_finished(past, min(newest.values()))
    return newest


def usable_rounds(past: Past, peer: PeerId, waits: bool, say: Say) -> Iterator[int]:
    """Rounds from whose checkpoints a peer can go on, newest first; `say` is told of the others."""
    for round_ in saved_rounds(past.path, peer):
        if _is_usable(past, peer, round_, waits, say):
            yield round_


def start_of(past: Past, peer: PeerId, round_: int) -> Start:
    """Where a peer goes on after a round that `starts` has found; ConfigError if it is gone."""
    if round_ == 0:
        return Start(checkpoint=None)
    reasons: list[str] = []
    found = whole(past, peer, round_, reasons.append)
    if found is None:
        raise ConfigError(f"peer {peer}: {reasons[0]}")
    return Start(checkpoint=found)


def whole(past: Past, peer: PeerId, round_: int, say: Say) -> Checkpoint | None:
    """A peer's checkpoint of a round; None, and why, if the run cannot go on from it."""
    path = past.path / checkpoint_file(peer, round_)
    try:
        found = checkpoint.load(path)
    except ConfigError as error:
        say(f"passed over: {error}")
        return None
    if (found.peer, found.round) != (peer, round_) or found.digest not in past.digests:
        say(f"passed over: {path}: of another run, peer or round")
        return None
    if found.outline is None:
        say(f"passed over: {path}: it does not say how the strategy's state was built")
        return None
    return found


def _is_usable(past: Past, peer: PeerId, round_: int, waits: bool, say: Say) -> bool:
    """Whether a checkpoint is whole and, where peers wait for each other, of a round without loss.

    `say` is told why not.
    """
    if whole(past, peer, round_, say) is None:
        return False
    return not (waits and _is_lonely(past, peer, round_, say))


def _is_lonely(past: Past, peer: PeerId, round_: int, say: Say) -> bool:
    """Whether messages of a round did not come because their senders had died after sending them.

    Then the peer's model is not what it would be in a run that nobody was lost from.
    """
    file = event_file(past.path, peer)
    lines = standing(read_events(file)) if file.exists() else []
    dead = {
        line["neighbour"]
        for line in lines
        if line["event"] == "neighbour_changed" and line["state"] == "dead"
    }
    missing = {
        sender
        for line in lines
        if line["event"] == "round_done" and line["round"] == round_
        for sender in line["missing"]
    }
    lost = dead & missing
    if lost:
        say(f"passed over: round {round_}: peer {peer} did not hear {_named(sorted(lost))}, lost")
    return bool(lost)


def _not_finished(past: Past, round_: int) -> int:
    if round_ >= past.config.rounds:
        raise ConfigError(
            f"{past.path}: nothing to resume: all peers have done {round_} rounds, and the run has "
            f"{past.config.rounds}; --set rounds={2 * round_} would make it longer"
        )
    return round_


def _nothing_common(past: Past, newest: Mapping[PeerId, int]) -> ConfigError:
    peers: dict[int, list[PeerId]] = defaultdict(list)
    for peer, round_ in newest.items():
        peers[round_].append(peer)
    have = "; ".join(
        f"{_named(peers[round_])}: {f'round {round_}' if round_ else 'none'}"
        for round_ in sorted(peers, reverse=True)
    )
    return ConfigError(
        f"{past.path}: cannot go on: there is no round of which every peer has a whole checkpoint; "
        f"the newest are: {have}. Set checkpoint_every in the run file to have them made on the way"
    )


def _named(peers: Sequence[PeerId]) -> str:
    if len(peers) == 1:
        return f"peer {peers[0]}"
    if len(peers) == peers[-1] - peers[0] + 1:
        return f"peers {peers[0]} to {peers[-1]}"
    return f"peers {', '.join(map(str, peers))}"


# ---- making the folder ready ------------------------------------------------------------------


def take_up(
    past: Past, shared: Blueprint, model: nn.Module, started: float, say: Say
) -> dict[PeerId, int]:
    """Find where all peers go on, tell the user and take it down; for a launcher of all of them.

    The folder must be claimed. Raises as `check_unchanged`, `starts` and `go_on`, which see.
    """
    check_unchanged(past, shared, model)
    found = starts(past, shared.pace.waits, say)
    first, last = min(found.values()), max(found.values())
    after = f"round {first}" if first == last else f"rounds {first} to {last}"
    go_on(past, shared, model, found, started)
    say(f"resumed after {after} of {shared.config.rounds}")
    return found


def go_on(
    past: Past,
    shared: Blueprint,
    model: nn.Module,
    rounds: Mapping[PeerId, int],
    started: float,
    program: str = "p2p-dml",
) -> None:
    """Take down in the run folder that the run goes on after `rounds`, with `shared`'s settings.

    Checkpoints of later rounds and halves of files are removed: these rounds are done again. The
    folder must be claimed. `started`: when the command began. StorageError if it cannot be written.
    """
    take_down(past, shared.config, shared.digest(model).hex(), rounds, started, program)


def take_down(
    past: Past,
    run: RunConfig,
    digest: str,
    rounds: Mapping[PeerId, int],
    started: float,
    program: str = "p2p-dml",
) -> None:
    """As `go_on`, for a launcher that builds no model: the `digest` is that of the run from now."""
    path = past.path
    again = {
        "at": started,
        "round": min(rounds.values()),
        "command": folder.command(program),
    }
    facts = {
        **past.facts,
        "name": run.name,
        "digest": digest,
        "earlier_digests": sorted(past.digests - {digest}),
        "rounds": run.rounds,
        "resumed": [*past.facts.get("resumed", ()), again],
    }
    with folder.storage(path):
        for peer, round_ in rounds.items():
            _forget_later(path, peer, round_)
        # First the facts, which know both digests: cut off between the two, it can go on still.
        folder.write_facts(path, facts)
        fresh = path / f".{folder.SETTINGS}.tmp"
        run_files.dump(run, fresh)
        os.replace(fresh, path / folder.SETTINGS)


def _forget_later(path: Path, peer: PeerId, round_: int) -> None:
    for later in saved_rounds(path, peer):
        if later > round_:
            (path / checkpoint_file(peer, later)).unlink()
    for half in (path / checkpoint_file(peer, 0)).parent.glob("*.part"):
        half.unlink()
