"""Programs on a host: run in order, heard, and ended with all that they have started."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from p2p_dml.launchers.ssh.remote.children import Errand, Job, Program, call
from p2p_dml.launchers.ssh.remote.install import Done, Steps

DEADLINE_S = 120.0


def _wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _python(program: str) -> Sequence[str]:
    return [sys.executable, "-c", program]


def test_commands_run_one_after_another() -> None:
    seen: list[Done | None] = []

    def steps() -> Steps:
        seen.append((yield _python("print('one'); exit(3)")))
        seen.append((yield None))
        seen.append((yield _python("import sys; sys.exit('two')")))
        return {"done": True}

    job = Job(steps())
    _wait_until(job.poll)
    assert job.answer == {"done": True}
    assert seen == [Done(3, "one\n"), None, Done(1, "two\n")]
    job.close()


def test_what_steps_raise_is_raised_where_they_are_asked() -> None:
    def steps() -> Steps:
        yield _python("")
        raise OSError("no space left")

    job = Job(steps())
    with pytest.raises(OSError, match="no space left"):
        _wait_until(job.poll)
    job.close()


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one whose parent has not yet been told of its end does not."""
    with suppress(OSError):
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    return False


def test_a_command_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = f"import os, time; open({str(told)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(99)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    def steps() -> Steps:
        yield _python(parent)
        return {}

    job = Job(steps())
    _wait_until(lambda: told.exists() and told.read_text(encoding="ascii").endswith(" "))
    pid = int(told.read_text(encoding="ascii"))
    assert _is_alive(pid)
    job.close()
    _wait_until(lambda: not _is_alive(pid))


ECHO = """
import json, os, sys
print(json.dumps({"data": os.environ["DATA"], "cwd": os.getcwd()}), flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
sys.exit("the last words")
"""


def _heard(program: Program, count: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        assert select.select([program.descriptor], [], [], DEADLINE_S)[0]
        lines += program.read()
    return lines


def test_a_supervisor_is_told_and_heard(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "supervisor.log"
    supervisor = Program(_python(ECHO), tmp_path, {"DATA": "x"}, log)
    assert _heard(supervisor, 1) == [{"data": "x", "cwd": str(tmp_path)}]
    for number in range(3):
        supervisor.tell({"do": number})
    assert _heard(supervisor, 3) == [{"do": number} for number in range(3)]
    supervisor.close(time.monotonic() + DEADLINE_S)
    assert log.read_text(encoding="utf-8") == "the last words\n"


def test_the_end_of_a_supervisor_is_heard_with_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('{}', flush=True); sys.exit('out of luck')"
    supervisor = Program(_python(program), tmp_path, {}, tmp_path / "log")
    assert _heard(supervisor, 2) == [{}, {"exit_code": 1, "last_words": "out of luck"}]
    assert supervisor.is_over
    supervisor.tell({"do": "nothing"})
    supervisor.close(time.monotonic() + DEADLINE_S)


def test_a_call_answers_with_code_and_output() -> None:
    job = Job(call(_python("print('out'); import sys; sys.exit('error')")))
    _wait_until(job.poll)
    assert job.answer == {"code": 1, "output": "out\nerror\n"}
    job.close()


STUBBORN = "import sys, time; print('{}', flush=True); time.sleep(99)"


@pytest.mark.parametrize("way", ["undo", "close"])
def test_what_a_program_leaves_is_undone_at_its_end_or_before(tmp_path: Path, way: str) -> None:
    mark = tmp_path / "undone"
    undo = ["sh", "-c", 'echo once >> "$0"', str(mark)]
    program = Program(_python(STUBBORN), tmp_path, {}, tmp_path / "log", undo)
    assert _heard(program, 1) == [{}]
    assert not mark.exists()
    if way == "undo":
        program.undo()
        _wait_until(lambda: mark.exists() and mark.read_text(encoding="ascii"))
    program.close(time.monotonic())
    assert mark.read_text(encoding="ascii") == "once\n"


OWNER = """
import sys, time
from pathlib import Path
from p2p_dml.launchers.ssh.remote.children import Program
folder = Path(sys.argv[1])
undo = ["sh", "-c", 'echo once >> "$0"', str(folder / "undone")]
Program([sys.executable, "-c", sys.argv[2]], folder, {}, folder / "log", undo)
print("started", flush=True)
time.sleep(99)
"""


def test_it_is_undone_even_if_who_started_it_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", OWNER, str(tmp_path), STUBBORN.replace("99", "0")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "started\n"
        owner.kill()
    _wait_until((tmp_path / "undone").exists)


def test_an_errand_answers_when_it_is_done() -> None:
    source, sink = os.pipe()
    errand = Errand(lambda: {"read": os.read(source, 9).decode()})
    assert not errand.poll()
    os.write(sink, b"now")
    _wait_until(errand.poll)
    assert errand.answer == {"read": "now"}
    os.close(source)
    os.close(sink)


def test_an_errand_that_fails_says_so_when_it_is_asked() -> None:
    errand = Errand(lambda: {"read": os.read(-1, 1)})
    with pytest.raises(OSError, match="Bad file descriptor"):
        _wait_until(errand.poll)
