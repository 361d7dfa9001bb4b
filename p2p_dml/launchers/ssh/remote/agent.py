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
from p2p_dml.launchers.ssh.remote.children import Errand, Job, Supervisor
from p2p_dml.launchers.ssh.remote.control import ControlError, Decoder, Frame, Outbox
from p2p_dml.launchers.ssh.remote.facts import look
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
        self._supervisor: Supervisor | None = None
        self._growing: files.Growing | None = None
        self._pieces: Iterator[Frame] | None = None

    def run(self) -> None:
        """Serve the launcher until it goes; nothing is left then."""
        os.set_blocking(1, False)
        try:
            while True:
                self._turn()
        except (_Gone, OSError, ControlError):  # an OSError: nobody reads what we say
            pass
        finally:
            self._clean_up()

    def _turn(self) -> None:
        sources = [0]
        if self._supervisor is not None and not self._supervisor.is_over:
            sources.append(self._supervisor.descriptor)
        sinks = [1] if self._outbox.num_bytes else []
        ready, _, _ = select.select(sources, sinks, [], _TURN_S)
        if 0 in ready:
            self._hear()
        if self._supervisor is not None and self._supervisor.descriptor in ready:
            for line in self._supervisor.read():
                self._say({"said": line})
        self._check_job()
        self._send_files()
        self._keep_contact()
        self._outbox.flush(1)

    def _hear(self) -> None:
        chunk = os.read(0, 1 << 16)
        if not chunk:
            raise _Gone
        self._heard_at = self._clock()
        for frame in self._decoder.feed(chunk):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        head = frame.head
        if "put" in head:
            self._put(head, frame.body)
        elif "tell" in head and self._supervisor is not None:
            self._supervisor.tell(head["tell"])
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
        return {"home": str(self._home)}

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
        """Start the supervisor, in the folder of the run file."""
        assert self._scratch is not None
        out = self._scratch.path / "out"
        out.mkdir()
        command = [head["python"], "-m", "p2p_dml.launchers.supervisor"]
        log = self._scratch.path / "logs" / "supervisor.log"
        env = {key: os.path.expanduser(value) for key, value in head["env"].items()}
        self._supervisor = Supervisor(command, self._home, env, log)
        self._supervisor.tell({**head["order"], "run": str(out), "home": str(self._home)})
        self._growing = files.Growing(out, "events/*.jsonl", "checkpoints/*/*.safetensors")
        return {}

    def _collect(self, head: Head) -> None:
        """Send all else that the run has left."""
        assert self._scratch is not None
        self._pieces = self._everything(self._scratch.path)

    def _everything(self, scratch: Path) -> Iterator[Frame]:
        if self._growing is not None:
            yield from self._growing.pieces()
        out = scratch / "out"
        for path in sorted(out.glob("logs/*")):
            yield from files.pieces(path, str(path.relative_to(out)))
        yield from files.pieces(scratch / "logs" / "supervisor.log", "logs/supervisor.log")

    def _send_files(self) -> None:
        """Send what is new, unless too much waits already."""
        source = self._pieces
        if source is None and self._growing is not None:
            source = self._growing.pieces()
        while source is not None and self._outbox.num_bytes < _FULL_BYTES:
            piece = next(source, None)
            if piece is not None:
                self._outbox.put(piece.encode())
                continue
            if source is self._pieces:
                self._pieces = self._growing = None
                self._say({"answer": {}})
            source = None

    def _clean_up(self) -> None:
        """End everything that was started, and remove every file of this launch alone."""
        if self._job is not None:
            self._job.close()
        if self._supervisor is not None:
            self._supervisor.close()
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
