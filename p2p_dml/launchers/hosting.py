"""The peers of one of several hosts, once it has a crew: made ready, begun with the others."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from torch import nn

from p2p_dml.assemble import Blueprint, blueprint, load_data
from p2p_dml.checks import check_all
from p2p_dml.config import RunConfig
from p2p_dml.data import Dataset
from p2p_dml.launchers import folder
from p2p_dml.launchers.addresses import addresses
from p2p_dml.launchers.assignment import assignment_of
from p2p_dml.launchers.crew import Aborted, Crew, last_words
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.line import Line
from p2p_dml.launchers.rendezvous import Desk
from p2p_dml.launchers.scratch import lay_out
from p2p_dml.launchers.single import LAST_ROUND

_TURN_S = 0.1


def host(
    crew: Crew, scratch: Path, config: RunConfig, order: Mapping[str, Any], launcher: Line
) -> None:
    """Run the peers that `order` names to their end; P2PError if they cannot begin."""
    run, peers, past = Path(order["run"]), order["peers"], order["past"]
    starts = dict(enumerate(past["starts"])) if past else None
    done = min(starts.values()) if starts else 0
    with closing(LastRound.create(scratch / LAST_ROUND, config.peers, done)) as last:
        here = _Host(launcher, crew, last)
        launcher.say({"ready": _prepare(config, order, scratch)})
        here.wait_for("begin")
        desk = Desk(scratch / "desk.sock", peers)
        listen = order["listen"]
        everyone = assignment_of(config, run, scratch, starts=starts, listen=listen)
        crew.begin(peers, everyone, config.restarts)
        exit_codes = here.run(desk, config, scratch)
        errors = last_words(scratch, peers)
        launcher.say({"over": {"exit_codes": exit_codes, "errors": errors}})


@final
class _Host:
    """The peers here, and what the launcher wants of them."""

    def __init__(self, line: Line, crew: Crew, last: LastRound) -> None:
        self._line = line
        self._crew = crew
        self._last = last
        self._heard: set[str] = set()
        self._told: set[int] = set()

    def listen(self, timeout_s: float) -> None:
        """Take the next order, if there is one; let the launcher know who has ended."""
        order = self._line.next(timeout_s)
        if order is not None:
            self._obey(order)
        for peer in self._crew.exit_codes.keys() - self._told:
            self._told.add(peer)
            self._line.say({"ended": peer, "code": self._crew.exit_codes[peer]})

    def _obey(self, order: Mapping[str, Any]) -> None:
        """Stop: at once, or by `call` and `end` after a round that all hosts agree on."""
        what = order["do"]
        if what == "stop":
            self._crew.stop(is_agreed=False)
        elif what == "call":
            self._crew.stop(is_agreed=True)
            self._line.say({"begun": self._last.call(sorted(self._crew.running))})
        elif what == "end":
            self._last.name(order["round"])
            if order["round"] is None:
                self._crew.signal(signal.SIGTERM)
        else:
            self._heard.add(what)

    def wait_for(self, what: str) -> None:
        """Wait until the launcher says so; Aborted if peers end, or are told to, before."""
        while what not in self._heard:
            self.listen(_TURN_S)
            if self._crew.has_begun:
                self._crew.abort_if_ended()

    def run(self, desk: Desk, config: RunConfig, scratch: Path) -> dict[int, int]:
        """Bring the peers together with those of other hosts and wait for their ends."""
        exit_codes = self._crew.exit_codes
        try:
            startup_s = config.transport.startup_s
            self._crew.gather(desk, startup_s, scratch, lambda: self.listen(0.0))
            self._line.say({"gathered": True})
            self.wait_for("meet")
            desk.publish(addresses(config))
        except Aborted as aborted:
            exit_codes = aborted.exit_codes
        finally:
            desk.close()
        while self._crew.running:
            self._crew.listen(_TURN_S)
            self.listen(0.0)
        return exit_codes


def _prepare(config: RunConfig, order: Mapping[str, Any], scratch: Path) -> Mapping[str, Any]:
    """Check the run, make its folder, lay data out in `scratch`; what the launcher compares.

    Nothing of data and model stays in this process, whose memory may count as a peer's.
    """
    home, run, past = Path(order["home"]), Path(order["run"]), order["past"]
    dataset, shards = load_data(config)
    shared = blueprint(config, dataset, shards)
    model = check_all(shared)
    folder.create(run, shared, model, "launch", order["started"])
    lay_out(dataset, {peer: shards[peer] for peer in order["peers"] if shards}, scratch)
    ready = {"facts": _facts(run), "data": digest(dataset)}
    if past:
        ready["before"] = _take_up(past, shared, model, home, run)
    return ready


def _facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / folder.FACTS).read_text(encoding="utf-8"))
    return facts


def _take_up(
    past: Mapping[str, Any], shared: Blueprint, model: nn.Module, home: Path, run: Path
) -> str:
    """Let peers find the checkpoints that the launcher has brought to `home`.

    Returns the digest of the run as it was before: with the `rounds` and `duration_s` of then.
    """
    folder.write_facts(run, {**_facts(run), "earlier_digests": past["digests"]})
    for file in home.glob("checkpoints/*/*"):
        link = run / file.relative_to(home)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    before = shared.config.model_copy(update=past["before"])
    return replace(shared, config=before).digest(model).hex()


def digest(dataset: Dataset | None) -> str | None:
    """Of all samples and labels, to be compared between hosts; None where a function has them."""
    if dataset is None:
        return None
    found = hashlib.blake2b(digest_size=16)
    for x in (dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y):
        found.update(f"{x.dtype} {x.shape}".encode())
        found.update(x.tobytes())
    return found.hexdigest()
