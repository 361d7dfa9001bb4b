"""The program at a host's end of an ssh: does what the launcher asks, and cleans up after it.

It lives as long as the connection: when its input closes, or nothing has come for `lost_s`, it ends
what it started, removes its folder and goes. Peers themselves are the supervisor's, which it starts
once the package is installed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from p2p_dml.launchers.ssh.remote import files, net
from p2p_dml.launchers.ssh.remote.children import GRACE_S, Errand, Job, Program, call
from p2p_dml.launchers.ssh.remote.control import (
    PIPE_BYTES,
    ControlError,
    Decoder,
    Frame,
    Outbox,
    widen,
)
from p2p_dml.launchers.ssh.remote.facts import look, look_for_package
from p2p_dml.launchers.ssh.remote.install import InstallError, Lock, install, prepare

_TURN_S = 0.1
_FULL_BYTES = 1 << 20
"""So much may wait to be sent before files are read no further: the network may be away."""

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

Head = Mapping[str, Any]


class _Gone(Exception):
    """The launcher went, or is lost."""


class Agent:
    """What a launcher has on one host, and how it is asked."""

    def __init__(self, lost_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost_s = lost_s
        self._clock = clock
        self._heard_at = self._beat_at = clock()
        self._decoder = Decoder()
        self._outbox = Outbox()
        self._asked: dict[str, Callable[[Head], dict[str, Any] | None]] = {
            "time": lambda head: {"time": time.time()},
            "look": lambda head: self._run(lambda: look(head)),
            "package": look_for_package,
            "call": self._call,
            "open": self._open,
            "prepare": self._prepare,
            "install": self._install,
            "listen": self._listen,
            "measure": lambda head: self._run(
                lambda: net.measure(head["address"], head["port"], head["bytes"])
            ),
            "hush": self._hush,
            "start": self._start,
            "collect": self._collect,
        }
        self._folder = self._home = Path()
        self._scratch: files.Scratch | None = None
        self._lock: Lock | None = None
        self._job: Job | Errand | None = None
        self._listeners: net.Listeners | None = None
        self._programs: dict[str, Program] = {}
        self._growing: dict[str, files.Growing] = {}
        self._pieces: Iterator[Frame] | None = None

    def run(self) -> None:
        """Serve the launcher until it goes; nothing is left then."""
        os.set_blocking(1, False)
        widen(0)
        try:
            while True:
                self._turn()
        except (_Gone, OSError, ControlError):  # an OSError: nobody reads what we say
            pass
        finally:
            self._clean_up()

    def _turn(self) -> None:
        running = {name: each for name, each in self._programs.items() if not each.is_over}
        sources = [0, *(each.descriptor for each in running.values())]
        sinks = [1] if self._outbox.num_bytes else []
        ready, _, _ = select.select(sources, sinks, [], _TURN_S)
        if 0 in ready:
            self._hear()
        for name, program in running.items():
            if program.descriptor in ready:
                for line in program.read():
                    self._say({"said": line, "of": name})
        self._check_job()
        self._send_files()
        self._keep_contact()
        self._outbox.flush(1)

    def _hear(self) -> None:
        chunk = os.read(0, PIPE_BYTES)
        if not chunk:
            raise _Gone
        self._heard_at = self._clock()
        for frame in self._decoder.feed(chunk):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        head = frame.head
        if "put" in head:
            self._put(head, frame.body)
        elif "tell" in head:
            for name in head["to"]:
                self._programs[name].tell(head["tell"])
        elif "end" in head:
            self._programs[head["end"]].undo()
        elif "ask" in head:
            try:
                answer = self._asked[head["ask"]](head)
            except (OSError, InstallError) as error:
                answer = {"failed": str(error)}
            if answer is not None:
                self._say({"answer": answer})

    def _put(self, head: Head, body: bytes) -> None:
        """Take a piece of a file; what goes wrong is the answer to whatever is asked next."""
        root = self._folder if head["in"] == "folder" else self._home
        try:
            files.receive(root, head, body)
        except OSError as error:
            self._say({"answer": {"failed": f"cannot write {head['put']}: {error.strerror}"}})

    def _say(self, head: Head, body: bytes = b"") -> None:
        self._outbox.put(Frame(head, body).encode())

    def _keep_contact(self) -> None:
        """Show that we live, and see whether the launcher does."""
        now = self._clock()
        if now - self._heard_at > self._lost_s:
            raise _Gone
        if now - self._beat_at > self._lost_s / 10 and not self._outbox.num_bytes:
            self._beat_at = now
            self._say({"beat": True})

    # ---- what may be asked; None: the answer comes later -----------------------------------

    def _run(self, act: Callable[[], dict[str, Any]]) -> None:
        self._job = Errand(act)

    def _open(self, head: Head) -> dict[str, Any]:
        """Use a folder, and make one in it for this launch."""
        self._folder = Path(head["folder"]).expanduser()
        self._scratch = files.Scratch(self._folder)
        self._home = self._scratch.path / "home"
        self._home.mkdir(mode=0o700)
        return {"home": str(self._home), "out": str(self._scratch.path / "out")}

    def _call(self, head: Head) -> None:
        self._job = Job(call(head["command"]))

    def _prepare(self, head: Head) -> None:
        self._lock = Lock(self._folder)
        self._job = Job(prepare(head, self._folder, self._lock))

    def _install(self, head: Head) -> None:
        assert self._lock is not None
        self._job = Job(install(head, self._folder, self._lock))

    def _check_job(self) -> None:
        if self._job is None:
            return
        try:
            if not self._job.poll():
                return
            answer = self._job.answer
        except (OSError, InstallError) as error:
            answer = {"failed": str(error)}
        self._job.close()
        self._job = None
        self._say({"answer": answer})

    def _listen(self, head: Head) -> dict[str, Any]:
        self._listeners = net.Listeners(head["ports"])
        return {}

    def _hush(self, head: Head) -> dict[str, Any]:
        if self._listeners is not None:
            self._listeners.close()
        self._listeners = None
        return {}

    def _start(self, head: Head) -> dict[str, Any]:
        """Start a program; one that takes an order is a supervisor, with two folders of its name.

        They are given to `owner`, if there is one. The programs started first are heard first.
        """
        assert self._scratch is not None
        name, scratch = head["name"], self._scratch.path
        home, out = self._home / name, scratch / "out" / name
        for place in (home, out):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.give(place, head["owner"])
        env = {key: os.path.expanduser(value) for key, value in head["env"].items()}
        log = scratch / "logs" / f"{name}.log"
        program = self._programs[name] = Program(head["command"], home, env, log, head["undo"])
        if head["order"] is not None:
            program.tell(head["order"])
            growing = files.Growing(out, "events/*.jsonl", "checkpoints/*/*.safetensors")
            self._growing[name] = growing
        return {}

    def _collect(self, head: Head) -> None:
        """Send all else that the run has left."""
        self._pieces = self._everything()

    def _news(self) -> Iterator[Frame]:
        """What supervisors' files have more than was sent; each frame says whose it is."""
        for name, growing in self._growing.items():
            yield from files.signed(growing.pieces(), name)

    def _everything(self) -> Iterator[Frame]:
        assert self._scratch is not None
        scratch = self._scratch.path
        yield from self._news()
        for name in self._growing:
            own = [(path, f"logs/{path.name}") for path in (scratch / "out" / name).glob("logs/*")]
            for path, place in (*sorted(own), (scratch / f"logs/{name}.log", f"logs/{name}.log")):
                yield from files.signed(files.pieces(path, place), name)

    def _send_files(self) -> None:
        """Send what is new, unless too much waits already."""
        source = self._pieces or self._news()
        while self._outbox.num_bytes < _FULL_BYTES:
            piece = next(source, None)
            if piece is not None:
                self._outbox.put(piece.encode())
                continue
            if source is self._pieces:
                self._pieces = None
                self._growing.clear()
                self._say({"answer": {}})
            return

    def _clean_up(self) -> None:
        """End everything that was started, and remove every file of this launch alone."""
        if self._job is not None:
            self._job.close()
        for program in self._programs.values():
            program.hang_up()
        deadline = time.monotonic() + GRACE_S
        for program in self._programs.values():
            program.close(deadline)
        if self._scratch is not None:
            self._scratch.remove()


def _leave(number: int, frame: object) -> NoReturn:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # cleaning up is not to be cut off
    raise _Gone


def main(lost_s: float) -> None:
    """Be an agent on standard input and output; signals end it as a lost connection does."""
    for number in _SIGNALS:
        signal.signal(number, _leave)
    with suppress(_Gone):
        Agent(lost_s).run()
