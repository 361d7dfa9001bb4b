"""The launcher's ends of all ssh connections, served together in one thread.

A host is asked one thing at a time, and answers; meanwhile it sends beats, files and what its
supervisor says. Nothing here waits for one host while another has something to say.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.launchers.ssh.hosts import Host
from p2p_dml.launchers.ssh.login import CONNECT_S, GREETING, command, explain, program
from p2p_dml.launchers.ssh.remote.control import (
    MAX_BODY,
    ControlError,
    Decoder,
    Frame,
    Outbox,
    widen,
)

T = TypeVar("T")

_BEATS = 10
"""So many in the time after which a host is lost."""
_CLOSE_S = 20.0
_FULL_BYTES = 1 << 20
_LAST_LINES = 5


class HostError(Exception):
    """A host cannot do what was asked, or is gone; the message does not name it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a host is asked, after these files have been put there.

    `files`: (source, "folder" or "home", path below it, mode).
    """

    head: Mapping[str, Any]
    files: Sequence[tuple[Path | bytes, str, str, int]] = ()


Talk = Generator[Request, Mapping[str, Any], T]
"""A conversation with a host: yields requests, is sent their answers, returns what came of it."""


@final
class Connection:
    """One host's ssh. `why_closed` is None while it stands; `python` is known once it does."""

    def __init__(self, host: Host, lost_s: float) -> None:
        self.host = host
        self.python: str | None = None
        self.why_closed: str | None = None
        self.answers: deque[Mapping[str, Any]] = deque()
        self._lost_s = lost_s
        self._decoder = Decoder()
        self._outbox = Outbox()
        self._outbox.put(program(lost_s))
        self._coming: Iterator[Frame] | None = None
        self._noise, self._complaints = b"", b""
        self._heard_at = time.monotonic() + 2 * CONNECT_S  # and time to log in
        self._beat_at = time.monotonic()
        self._process = _start(command(host, lost_s))
        for pipe in self.pipes:
            os.set_blocking(pipe, False)
            widen(pipe)

    @property
    def pipes(self) -> tuple[int, int, int]:
        """Descriptors of its input, output and error output."""
        found = self._process.stdin, self._process.stdout, self._process.stderr
        stdin, stdout, stderr = (pipe.fileno() for pipe in found if pipe is not None)
        return stdin, stdout, stderr

    @property
    def wants_to_write(self) -> bool:
        return bool(self._outbox.num_bytes)

    def send(self, request: Request) -> None:
        """Put the files there, then ask."""
        self._coming = _frames_of(request)

    def tell(self, head: Mapping[str, Any]) -> None:
        """Say something that has no answer."""
        self._outbox.put(Frame(head).encode())

    def serve(self) -> list[Frame]:
        """Read and write what there is without waiting; what came other than answers and beats."""
        now = time.monotonic()
        frames = self._read(now)
        if self.why_closed is None:
            self._write(now)
        if self.why_closed is None and now - self._heard_at > self._lost_s:
            self.close(f"nothing was heard of it for {self._lost_s:g} s")
            self._process.kill()  # it would go on trying
        return frames

    def _write(self, now: float) -> None:
        if self.python is not None and now - self._beat_at > self._lost_s / _BEATS:
            self._beat_at = now
            self.tell({"beat": True})
        while self._coming is not None and self._outbox.num_bytes < _FULL_BYTES:
            frame = next(self._coming, None)
            if frame is None:
                self._coming = None
            else:
                self._outbox.put(frame.encode())
        with suppress(OSError):  # its end is noticed on the way back
            self._outbox.flush(self.pipes[0])

    def _read(self, now: float) -> list[Frame]:
        chunk, complaint = (_read(pipe) for pipe in self.pipes[1:])
        self._complaints += complaint or b""
        if chunk is None:
            return []
        self._heard_at = max(self._heard_at, now)
        if not chunk:
            self.close(self._reason())
            return []
        if self.python is None:
            chunk = self._greeted(chunk)
        try:
            return [frame for frame in self._decoder.feed(chunk) if not self._is_usual(frame)]
        except ControlError as error:
            self.close(f"it does not speak our language: {error}")
            return []

    def _is_usual(self, frame: Frame) -> bool:
        if "answer" in frame.head:
            self.answers.append(frame.head["answer"])
        return "answer" in frame.head or "beat" in frame.head

    def _greeted(self, chunk: bytes) -> bytes:
        """Look for the greeting; what follows it. Before it, a shell may have said anything."""
        self._noise += chunk
        _, greeting, rest = self._noise.partition(b"\n" + GREETING)
        version, end, rest = rest.partition(b"\n")
        if not greeting or not end:
            return b""
        self.python = version.decode(errors="replace")
        self._heard_at = time.monotonic()
        if tuple(map(int, self.python.split("."))) < (3, 10):
            self.close(
                f"its {self.host.entry.python} is Python {self.python}, and 3.10 is the oldest "
                "that will do; set `python` in the hosts file to a newer one"
            )
        return rest

    def _reason(self) -> str:
        """Why ssh has ended, in its own words and with what may help."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._complaints += _read(self.pipes[2]) or b""
        said = self._complaints.decode(errors="replace").strip().splitlines()
        words = "; ".join(line.strip() for line in said[-_LAST_LINES:] if line.strip())
        return explain(words or f"ssh ended with exit code {self._process.returncode}", self.host)

    def close(self, why: str) -> None:
        """End the connection, and with it all that was started there."""
        if self.why_closed is None:
            self.why_closed = why
            self._outbox = Outbox()
            with suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Let the host clean up until `deadline`, then end ssh."""
        self.close("it is no longer needed")
        try:
            while self._process.poll() is None and time.monotonic() < deadline:
                for pipe in (self._process.stdout, self._process.stderr):
                    assert pipe is not None
                    _read(pipe.fileno())  # or it could not finish
                time.sleep(0.02)
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdout, self._process.stderr):
                assert pipe is not None
                pipe.close()


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    try:
        # A session of its own: the terminal's Ctrl-C is for us to pass on.
        return subprocess.Popen(
            words, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except FileNotFoundError as error:
        raise ConfigError("there is no ssh here; install it (openssh-client)") from error


def _read(pipe: int) -> bytes | None:
    """What there is to read; None if nothing, nothing if that was all."""
    try:
        return os.read(pipe, 1 << 18)
    except BlockingIOError:
        return None


def _frames_of(request: Request) -> Iterator[Frame]:
    for source, where, name, mode in request.files:
        yield from _put(source, where, name, mode)
    yield Frame(request.head)


def _put(source: Path | bytes, where: str, name: str, mode: int) -> Iterator[Frame]:
    """A file in pieces, the last of which says so."""
    content = source if isinstance(source, bytes) else None
    size = len(content) if content is not None else Path(os.fsdecode(source)).stat().st_size
    head = {"put": name, "in": where, "mode": mode}
    for offset in range(0, max(size, 1), MAX_BODY):
        if content is not None:
            body = content[offset : offset + MAX_BODY]
        else:
            with open(source, "rb") as file:
                file.seek(offset)
                body = file.read(MAX_BODY)
        yield Frame({**head, "offset": offset, "is_last": offset + len(body) >= size}, body)


@final
class Switchboard:
    """All connections of a launch; `on_frame` takes what hosts send unasked."""

    def __init__(self, hosts: Sequence[Host], lost_s: float) -> None:
        self.connections: dict[Host, Connection] = {}
        self.on_frame: Callable[[Host, Frame], None] = lambda host, frame: None
        try:
            for host in hosts:
                self.connections[host] = Connection(host, lost_s)
        except BaseException:
            self.close()
            raise

    @property
    def standing(self) -> dict[Host, Connection]:
        """The connections that still are."""
        return {h: each for h, each in self.connections.items() if each.why_closed is None}

    def pump(self, timeout_s: float) -> None:
        """Take in and send what there is, waiting at most `timeout_s` for anything."""
        with selectors.DefaultSelector() as selector:
            for each in self.standing.values():
                stdin, stdout, stderr = each.pipes
                selector.register(stdout, selectors.EVENT_READ)
                selector.register(stderr, selectors.EVENT_READ)
                if each.wants_to_write:
                    selector.register(stdin, selectors.EVENT_WRITE)
            selector.select(timeout_s)
        for host, each in self.standing.items():
            for frame in each.serve():
                self.on_frame(host, frame)

    def converse(self, talks: Mapping[Host, Talk[T]]) -> tuple[dict[Host, T], dict[Host, str]]:
        """Have all conversations at once; what came of each, and of the others why they failed."""
        results: dict[Host, T] = {}
        failures: dict[Host, str] = {}
        waiting: dict[Host, Talk[T]] = {}

        def go_on(host: Host, talk: Talk[T], answer: Mapping[str, Any] | None) -> None:
            try:
                request = next(talk) if answer is None else talk.send(answer)
            except StopIteration as stop:
                results[host] = stop.value
            except HostError as error:
                failures[host] = str(error)
            else:
                waiting[host] = talk
                self.connections[host].send(request)

        for host, talk in talks.items():
            go_on(host, talk, None)
        while waiting:
            for host, talk in list(waiting.items()):
                connection = self.connections[host]
                if connection.answers:
                    del waiting[host]
                    answer = connection.answers.popleft()
                    if "failed" in answer:
                        failures[host] = answer["failed"]
                    else:
                        go_on(host, talk, answer)
                elif connection.why_closed is not None:
                    del waiting[host]
                    failures[host] = connection.why_closed
            if waiting:
                self.pump(0.1)
        return {host: results[host] for host in talks if host in results}, failures

    def close(self) -> None:
        """End all connections; hosts get some time to clean up."""
        deadline = time.monotonic() + _CLOSE_S
        for each in self.connections.values():
            each.close("it is no longer needed")
        for each in self.connections.values():
            each.wait(deadline)


def all_of(board: Switchboard, talks: Mapping[Host, Talk[T]]) -> dict[Host, T]:
    """What came of a conversation with every host; StartupError naming those where it failed."""
    results, failures = board.converse(talks)
    expect_none(failures)
    return results


def expect_none(failures: Mapping[Host, str]) -> None:
    """Raise StartupError with a line for each host that has failed, if any has."""
    if failures:
        raise StartupError("\n".join(f"{host.name}: {why}" for host, why in failures.items()))
