"""The peers of this host, of a run on several: `python -m p2p_dml.launchers.supervisor`.

JSON lines on standard input say what to run and when to go on or stop; those on standard output say
how far all is. Peers here begin once the launcher has heard that those of all hosts are there. When
standard input closes, nothing is left running and the scratch folder is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NoReturn, final

from torch import nn

from p2p_dml import config as run_files
from p2p_dml.assemble import Blueprint, blueprint, load_data
from p2p_dml.checks import check_all
from p2p_dml.config import RunConfig
from p2p_dml.data import Dataset
from p2p_dml.errors import P2PError
from p2p_dml.launchers import folder
from p2p_dml.launchers.addresses import addresses
from p2p_dml.launchers.assignment import assignment_of
from p2p_dml.launchers.crew import Aborted, Crew, hired, last_words
from p2p_dml.launchers.last_round import LastRound
from p2p_dml.launchers.rendezvous import Desk
from p2p_dml.launchers.scratch import lay_out
from p2p_dml.launchers.single import LAST_ROUND
from p2p_dml.launchers.temporary import temporary_folder

_TURN_S = 0.1


class LauncherGone(BaseException):
    """The launcher has gone. No Exception, lest somebody handle it."""


@final
class Line:
    """The line to the launcher: what it says, and what it is told."""

    def __init__(self, source: int, sink: IO[str]) -> None:
        self._source = source
        self._sink = sink
        self._unread = b""

    def say(self, words: Mapping[str, Any]) -> None:
        """Tell the launcher."""
        self._sink.write(json.dumps(words) + "\n")
        self._sink.flush()

    def next(self, timeout_s: float | None) -> Mapping[str, Any] | None:
        """The next line, or None if none comes in time. Raises LauncherGone at the end."""
        while b"\n" not in self._unread:
            if timeout_s is not None and not select.select([self._source], [], [], timeout_s)[0]:
                return None
            chunk = os.read(self._source, 1 << 16)
            if not chunk:
                raise LauncherGone
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order


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


def supervise(order: Mapping[str, Any], launcher: Line) -> None:
    """Run the peers that `order` names to their end; P2PError if they cannot begin."""
    home, run, peers = Path(order["home"]), Path(order["run"]), order["peers"]
    config, past = run_files.load(home / "run.toml"), order["past"]
    starts = dict(enumerate(past["starts"])) if past else None
    with ExitStack() as stack:
        scratch = stack.enter_context(temporary_folder())
        crew = stack.enter_context(hired(config.threads))
        done = min(starts.values()) if starts else 0
        last = LastRound.create(scratch / LAST_ROUND, config.peers, done)
        host = _Host(launcher, crew, stack.enter_context(closing(last)))
        launcher.say({"ready": _prepare(config, order, scratch)})
        host.wait_for("begin")
        desk = Desk(scratch / "desk.sock", peers)
        listen = order["listen"]
        everyone = assignment_of(config, run, scratch, starts=starts, listen=listen)
        crew.begin(peers, everyone, config.restarts)
        exit_codes = host.run(desk, config, scratch)
        errors = last_words(scratch, peers)
        launcher.say({"over": {"exit_codes": exit_codes, "errors": errors}})


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


def _own_output() -> IO[str]:
    """Standard output for our lines alone: what a user's module prints goes to the log."""
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return sink


def _leave(number: int, frame: object) -> NoReturn:
    raise LauncherGone


def main() -> None:
    """Do what standard input says; an error that a user can meet is said there too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, _leave)
    line = Line(0, _own_output())
    try:
        order = line.next(None)
        assert order is not None
        supervise(order, line)
    except P2PError as error:
        line.say({"failed": str(error), "code": error.exit_code})
        sys.exit(error.exit_code)
    except (LauncherGone, BrokenPipeError):  # by now its peers are gone, too
        sys.exit(0)


if __name__ == "__main__":
    main()
