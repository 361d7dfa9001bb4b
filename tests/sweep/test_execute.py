"""Running cases: several at a time, failing alone, stopped together. The cases are tiny scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import pytest

from p2p_dml.sweep import Plan
from p2p_dml.sweep._folder import case_folder, is_finished, run_folder
from p2p_dml.sweep._processes import Nursery
from p2p_dml.sweep._values import Case, Fate, Order
from p2p_dml.sweep.execute import OrderOf, execute, ordering

PlanOf = Callable[[Mapping[str, object]], Plan]

WRITE = "(path / 'run').mkdir()"
FAIL = "print('starting'); print('error: peer 3 is lost'); raise SystemExit(1)"
HANG = "print(os.getpid(), flush=True); signal.pause()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HANG

SERVE = """
import os, signal, sys
from pathlib import Path
from p2p_dml.sweep._nursery import serve
from p2p_dml.sweep._values import Order

def act(order: Order) -> int:
    path = Path(order.path)
    try:
        exec(order.folder)
    except SystemExit as ending:
        return int(ending.code)
    return 0

serve(act)
"""
"""A nursery whose cases are the scripts in their orders."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery([sys.executable, "-c", SERVE]) as found:
        yield found


def _order(case: Case, path: Path, script: str) -> Order:
    return Order(path=str(path), folder=script, mode="simulate", with_report=False)


def _script(text: str) -> OrderOf:
    return lambda case, path: _order(case, path, text)


def _by_peers(scripts: Mapping[int, str]) -> OrderOf:
    """A script for each case, told apart by its number of peers."""
    return lambda case, path: _order(case, path, scripts[case.config.peers])


@final
@dataclass(slots=True)
class Diary:
    """A watcher that remembers, and does `act` at every update."""

    act: Callable[[], None] = lambda: None
    running: int = 0
    most: int = 0
    ends: list[tuple[str, Fate, str]] = field(default_factory=list)

    def started(self, case: Case) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def ended(self, case: Case, fate: Fate, why: str, seconds: float) -> None:
        self.running -= 1
        assert seconds > 0
        self.ends.append((case.labels["peers"], fate, why))

    def update(self) -> None:
        self.act()


@pytest.fixture
def cases(plan_of: PlanOf) -> Sequence[Case]:
    return plan_of({"grid": {"peers": [2, 3, 4, 5]}}).cases


def test_cases_run_several_at_a_time(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    diary = Diary()
    ending = execute(cases, tmp_path / "out", 2, _script(WRITE), nursery, diary)
    assert (ending.errors, ending.is_stopped) == ({}, False)
    assert sorted(diary.ends) == [(peers, "done", "") for peers in "2345"]
    assert diary.most == 2
    for case in cases:
        assert is_finished(tmp_path / "out", case)
        assert run_folder(tmp_path / "out", case).is_dir()


def test_a_finished_case_says_on_which_device_it_was_computed(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    def order_of(case: Case, path: Path) -> Order:
        return replace(_order(case, path, WRITE), device="cuda:1")

    execute(cases[:1], tmp_path / "out", 1, order_of, nursery, Diary())
    mark = case_folder(tmp_path / "out", cases[0]) / "finished.json"
    assert json.loads(mark.read_text(encoding="utf-8"))["device"] == "cuda:1"


def test_a_failing_case_is_named_and_stops_no_other(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    diary = Diary()
    order_of = _by_peers({2: WRITE, 3: FAIL, 4: "raise SystemExit(4)", 5: WRITE})
    ending = execute(cases, tmp_path / "out", 1, order_of, nursery, diary)
    assert diary.ends == [
        ("2", "done", ""),
        ("3", "failed", "peer 3 is lost (exit code 1)"),
        ("4", "failed", "exit code 4"),
        ("5", "done", ""),
    ]
    assert ending.errors == {
        cases[1].digest: "peer 3 is lost (exit code 1)",
        cases[2].digest: "exit code 4",
    }
    finished = [is_finished(tmp_path / "out", case) for case in cases]
    assert finished == [True, False, False, True]


def test_a_killed_case_is_named_by_its_signal(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    ending = execute(cases[:1], tmp_path / "out", 1, _script(kill), nursery, Diary())
    assert list(ending.errors.values()) == ["signal 9"]


def test_a_half_finished_case_begins_again(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    left = run_folder(tmp_path / "out", cases[0])
    left.mkdir(parents=True)
    (left / "summary.json").write_text("{", encoding="utf-8")
    execute(cases[:1], tmp_path / "out", 1, _script(WRITE), nursery, Diary())
    assert is_finished(tmp_path / "out", cases[0])
    assert list(left.iterdir()) == []


def test_an_error_without_words_of_ours_is_the_last_line(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    ending = execute(cases[:1], tmp_path / "out", 1, _script("1 / 0"), nursery, Diary())
    assert list(ending.errors.values()) == ["ZeroDivisionError: division by zero (exit code 1)"]


def test_what_a_case_does_to_its_process_ends_with_it(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    look = "raise SystemExit('CHANGED' in os.environ); "
    order_of = _by_peers({2: "os.environ['CHANGED'] = ''", 3: look})
    assert not execute(cases[:2], tmp_path / "out", 1, order_of, nursery, Diary()).errors


def test_a_nursery_that_dies_fails_its_case_alone(cases: Sequence[Case], tmp_path: Path) -> None:
    order_of = _by_peers({2: "os.kill(os.getppid(), signal.SIGKILL); signal.pause()", 3: WRITE})
    with Nursery([sys.executable, "-c", SERVE]) as mortal:
        ending = execute(cases[:2], tmp_path / "out", 1, order_of, mortal, Diary())
    assert ending.errors == {cases[0].digest: "signal 9"}
    assert is_finished(tmp_path / "out", cases[1])


@pytest.mark.parametrize(
    ("script", "signals"), [(HANG, 1), (STUBBORN, 2)], ids=["first ends", "second kills"]
)
def test_a_signal_stops_the_running_cases(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path, script: str, signals: int
) -> None:
    out = tmp_path / "out"
    sent: list[int] = []

    def press() -> None:
        logs = [case_folder(out, case) / "log.txt" for case in cases[:2]]
        if len(sent) < signals and all(log.exists() and log.read_text() for log in logs):
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    diary = Diary(act=press)
    ending = execute(cases, out, 2, _script(script), nursery, diary)
    assert (ending.errors, ending.is_stopped) == ({}, True)
    assert sorted(diary.ends) == [("2", "stopped", ""), ("3", "stopped", "")]
    assert not any(is_finished(out, case) for case in cases)
    assert not case_folder(out, cases[2]).exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_our_own_leaves_no_process(
    cases: Sequence[Case], nursery: Nursery, tmp_path: Path
) -> None:
    pids: list[int] = []

    def fail() -> None:
        log = case_folder(tmp_path / "out", cases[0]) / "log.txt"
        if pid := log.read_text(encoding="utf-8").strip():
            pids.append(int(pid))
            raise OSError("no more room")

    with pytest.raises(OSError, match="no more room"):
        execute(cases[:1], tmp_path / "out", 1, _script(HANG), nursery, Diary(act=fail))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


HOST = """
import sys
from pathlib import Path
from p2p_dml import sweep
from p2p_dml.sweep._processes import Nursery
from p2p_dml.sweep._values import Order
from p2p_dml.sweep.execute import execute
from p2p_dml.sweep.view import View
from rich.console import Console

file, program, script = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
cases = sweep.read(file).cases[:1]
view = View(1, 1, Console(), lambda: 0.0, quiet=True)

def order_of(case, path):
    return Order(path=str(path), folder=script, mode="simulate", with_report=False)

with Nursery([sys.executable, "-c", program]) as nursery:
    execute(cases, file.parent / "out", 1, order_of, nursery, view)
"""


def test_no_case_outlives_a_killed_sweep(cases: Sequence[Case], tmp_path: Path) -> None:
    log = case_folder(tmp_path / "out", cases[0]) / "log.txt"
    file = str(tmp_path / "sweep.toml")
    host = subprocess.Popen([sys.executable, "-c", HOST, file, SERVE, STUBBORN])
    _wait_until(lambda: log.exists() and log.read_text(encoding="utf-8").endswith("\n"))
    child = int(log.read_text(encoding="utf-8"))
    host.kill()
    host.wait()
    _wait_until(lambda: not _is_running(child))


def _is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that its new parent has yet to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("with_reports", [False, True])
def test_an_order_says_where_what_and_how(
    cases: Sequence[Case], tmp_path: Path, with_reports: bool
) -> None:
    order_of = ordering("simulate", with_reports=with_reports, device="cuda:1")
    order = order_of(cases[0], tmp_path / "case")
    assert order == Order(
        path=str(tmp_path / "case"),
        folder=str(tmp_path),
        mode="simulate",
        with_report=with_reports,
        device="cuda:1",
    )
