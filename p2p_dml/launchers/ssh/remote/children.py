"""What runs on a host for a launcher: commands one by one, and programs that go on beside it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from p2p_dml.launchers.ssh.remote.install import Done, Steps

_PR_SET_PDEATHSIG = 1  # prctl.h
GRACE_S = 10.0
"""How long a program may take to end by itself."""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Job:
    """Steps of a job, each a command to run; to be asked often whether all is done."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._process: subprocess.Popen[bytes] | None = None
        self._output = _file()
        self.answer: dict[str, Any] | None = None
        self._advance(None)

    def poll(self) -> bool:
        """Go on as far as that goes without waiting; whether `answer` is there now.

        Raises what the steps raise.
        """
        if self.answer is None:
            if self._process is None:
                self._advance(None)
            elif (code := self._process.poll()) is not None:
                self._output.seek(0)
                self._advance(Done(code, self._output.read().decode(errors="replace")))
        return self.answer is not None

    def _advance(self, done: Done | None) -> None:
        self._process = None
        try:
            command = self._steps.send(done)
        except StopIteration as stop:
            self.answer = stop.value
            return
        if command is not None:
            self._process = self._start(command)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        self._output.close()
        self._output = _file()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def close(self) -> None:
        """Kill the command that runs, if one does."""
        self._output.close()
        if self._process is not None:
            end(self._process)


def call(command: Sequence[str]) -> Steps:
    """The job of one command; the answer has its exit `code` and all of its `output`."""
    done = yield command
    assert done is not None
    return {"code": done.code, "output": done.output}


class Errand:
    """A function that may take long, in a thread; to be asked often whether it has answered."""

    def __init__(self, act: Callable[[], dict[str, Any]]) -> None:
        self.answer: dict[str, Any] | None = None
        self._error: OSError | None = None
        threading.Thread(target=self._run, args=(act,), daemon=True).start()

    def _run(self, act: Callable[[], dict[str, Any]]) -> None:
        try:
            self.answer = act()
        except OSError as error:
            self._error = error

    def poll(self) -> bool:
        """Whether `answer` is there now; raises the OSError that it met."""
        if self._error is not None:
            raise self._error
        return self.answer is not None

    def close(self) -> None:
        """Forget it; its thread ends with the process."""


class Program:
    """A program that is told JSON lines and says some, such as the supervisor of peers.

    `undo`: a command that ends what the program itself may leave running. A shell that waits for
    the end of this process runs it, so that it is done however that comes.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        undo: Sequence[str] = (),
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._undertaker = _undertaker(undo) if undo else None
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.descriptor = self._process.stdout.fileno()
        self._log = log
        self._unread = b""
        self.is_over = False

    def tell(self, line: Mapping[str, Any]) -> None:
        """Hand it a line; nothing happens if it has ended."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that it has said, when there are some; at the end its exit code."""
        chunk = os.read(self.descriptor, 1 << 16)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)
        if not chunk:
            self.is_over = True
            yield {"exit_code": self._process.wait(), "last_words": self._last_words()}

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def undo(self) -> None:
        """Have the command for that end it at once."""
        if self._undertaker is not None:
            _hang_up(self._undertaker)

    def hang_up(self) -> None:
        """Have it end by itself: its input closes, and nobody reads what it says."""
        _hang_up(self._process)

    def close(self, deadline: float) -> None:
        """Wait for its end until `deadline`, of the monotonic clock; then end it, and undo it."""
        self.hang_up()
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        end(self._process)
        self.undo()
        if self._undertaker is not None:
            with suppress(subprocess.TimeoutExpired):  # it goes on without us
                self._undertaker.wait(GRACE_S)


def _undertaker(undo: Sequence[str]) -> subprocess.Popen[bytes]:
    """A shell that runs a command once its input is closed."""
    return subprocess.Popen(
        ("sh", "-c", 'cat > /dev/null; exec "$@"', "sh", *undo),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
