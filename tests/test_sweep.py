"""`p2p-dml sweep` with real runs: tables of what they say, going on, failing and stopping."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner, Result

from p2p_dml import cli, report, sweep
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.events import read_events

BASE: Mapping[str, object] = {
    "peers": 3,
    "rounds": 3,
    "strategy": "dpsgd",
    "links": "complete",
    "partition": {"name": "dirichlet", "alpha": 1.0},
}
TABLES: Mapping[str, object] = {
    "base": BASE,
    "seeds": [0, 1],
    "grid": {"strategy": ["dpsgd", "local"]},
    "metrics": {"targets": [0.2]},
}
DEADLINE_S = 240.0


def _call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", *arguments], catch_exceptions=False)


def _write(folder: Path, tables: Mapping[str, object]) -> str:
    (folder / "sweep.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return str(folder / "sweep.toml")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a sweep of two strategies and two seeds, and how the command ended."""
    folder = tmp_path_factory.mktemp("sweep")
    file = _write(folder, TABLES)
    return folder / "out", _call(file, "--out", str(folder / "out"))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_is_run_and_tabulated(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == ExitCode.DONE
    assert "4/4" in result.output
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert tables in result.output
    assert re.search(r"^\| dpsgd \| \d\d\.\d ± \d+\.\d \|$", tables, re.MULTILINE)
    assert (out / "plots" / "accuracy-over-rounds.png").read_bytes().startswith(b"\x89PNG")


def test_the_csv_holds_what_the_run_folders_say(done: tuple[Path, Result]) -> None:
    out, _ = done
    rows = _rows(out / "sweep.csv")
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        ("dpsgd", "0"), ("local", "0"), ("dpsgd", "1"), ("local", "1"),
    ]  # fmt: skip
    for row in rows:
        curve = _rows(out / "cases" / row["case"] / "run" / "curve.csv")
        accuracies = [float(each["accuracy_mean"]) for each in curve]
        assert len(accuracies) == 4
        assert float(row["best_accuracy"]) == max(accuracies)
        assert float(row["final_accuracy"]) == pytest.approx(accuracies[-1], abs=1e-7)
        assert float(row["mean_accuracy"]) == pytest.approx(sum(accuracies[1:]) / 3, abs=1e-7)
        reached = [each for each in curve if float(each["accuracy_mean"]) >= 0.2]
        assert row["rounds_to_20"] == reached[0]["round"]
        assert row["bytes_to_20"] == reached[0]["bytes_out"]
        assert row["bytes_total"] == curve[-1]["bytes_out"]
        assert 0 < float(row["seconds_to_20"]) < float(row["wall_s"])


def test_a_case_leaves_figures_and_no_pictures(done: tuple[Path, Result]) -> None:
    out, _ = done
    for run in out.glob("cases/*/run"):
        names = {path.name for path in run.iterdir()}
        assert names >= {"summary.json", "curve.csv", "timeline.csv", "events", "checkpoints"}
        assert not names & {"report.html", "plots"}


def _figures(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("summary.json", "curve.csv", "timeline.csv")]


def test_only_some_of_it_with_reports_and_then_the_rest(tmp_path: Path) -> None:
    file, out = _write(tmp_path, {**TABLES, "metrics": {"small": 0.01}}), tmp_path / "out"
    one = ("--only", "seed=1", "--only", "strategy=local", "--reports")
    assert _call(file, "--out", str(out), *one).exit_code == ExitCode.DONE
    (page,) = out.glob("cases/*/run/report.html")
    by_report = _figures(page.parent)
    report.write_figures(page.parent)
    assert _figures(page.parent) == by_report
    states = [(row["strategy"], row["seed"], row["state"]) for row in _rows(out / "sweep.csv")]
    assert [state for state in states if state[2] == "done"] == [("local", "1", "done")]
    assert _call(file, "--out", str(out), "--only", "strategy=local").exit_code == ExitCode.DONE
    rows = _rows(out / "sweep.csv")
    assert [row["state"] for row in rows] == ["open", "done", "open", "done"]
    assert all(0 < float(row["small_share"]) < 1 for row in rows if row["state"] == "done")
    assert "| dpsgd |" not in (out / "tables.md").read_text(encoding="utf-8")


MODEL = """
from torch import nn

def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_on_processes_a_module_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "model_of_a_sweep.py").write_text(MODEL, encoding="utf-8")
    base = {**BASE, "rounds": 1, "model": "model_of_a_sweep:small"}
    file = _write(tmp_path, {"base": base, "mode": "run", "grid": {"peers": [2]}})
    result = _call(file, "--out", str(tmp_path / "out"))
    assert result.exit_code == ExitCode.DONE
    (row,) = _rows(tmp_path / "out" / "sweep.csv")
    assert (row["state"], row["bytes_total"]) == ("done", str(2 * 650 * 4))


def test_what_is_finished_is_not_run_again(done: tuple[Path, Result]) -> None:
    out, _ = done
    marks = sorted(out.glob("cases/*/finished.json"))
    assert {json.loads(mark.read_text(encoding="utf-8"))["device"] for mark in marks} == {"cpu"}
    before = [mark.stat().st_mtime_ns for mark in marks]
    text = (out / "sweep.csv").read_bytes()
    result = _call(str(out.parent / "sweep.toml"), "--out", str(out))
    assert result.exit_code == ExitCode.DONE
    assert [mark.stat().st_mtime_ns for mark in marks] == before
    assert (len(marks), (out / "sweep.csv").read_bytes()) == (4, text)


@pytest.mark.parametrize(
    ("mode", "why"),
    [("run", "--device cuda:99: is for simulations"), ("simulate", "--device cuda:99: .*; expec")],
)
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, mode: str, why: str
) -> None:
    plan = sweep.read(Path(_write(tmp_path, {**TABLES, "mode": mode})))
    with pytest.raises(ConfigError, match=why):
        sweep.run(plan, tmp_path / "out", 1, Console(), quiet=True, device="cuda:99")
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_and_writes_nothing(done: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = done
    file = str(out.parent / "sweep.toml")
    listed = _call(file, "--out", str(out), "--dry-run").output
    assert listed.count("finished  strategy = ") == 4
    fresh = tmp_path / "out"
    again = _call(file, "--out", str(fresh), "--dry-run", "--set", "rounds=2").output
    assert again.count("to do") == 4
    assert not fresh.exists()


def test_a_failing_case_is_named_with_its_message(tmp_path: Path) -> None:
    file = _write(tmp_path, {"base": BASE, "grid": {"train.lr": [1e38]}})
    result = _call(file, "--out", str(tmp_path / "out"))
    assert result.exit_code == ExitCode.FAILED
    assert "error: 1 of 1 case failed: train.lr = 1e+38, seed = 0" in result.output
    tables = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert re.search(r"- train\.lr = 1e\+38, seed = 0: .*loss.*\(exit code 1\)", tables)
    (row,) = _rows(tmp_path / "out" / "sweep.csv")
    assert (row["state"], row["best_accuracy"]) == ("failed", "")


def test_a_mistake_ends_it_before_anything_runs(tmp_path: Path) -> None:
    file = _write(tmp_path, {**TABLES, "grid": {"strategy": ["dpsgd", "dpsg"]}})
    with pytest.raises(ConfigError, match="'dpsgd'"):
        _call(file, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def _processes_of(out: Path) -> set[int]:
    """The process of each case, as its peers say, and the parent that forked it."""
    starts = [line for file in out.glob("cases/*/run/events/*") for line in read_events(file)]
    pids = {line["pid"] for line in starts if line["event"] == "started"}
    return pids | {_parent(pid) for pid in pids}


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    return int(stat.rpartition(")")[2].split()[1])


def _wait_until_training(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not list(out.glob("cases/*/run/checkpoints/*/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stopped_it_leaves_no_process_and_no_half_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    endless = {**BASE, "rounds": 1_000_000, "checkpoint_every": 1}
    file = _write(tmp_path, {"base": endless, "grid": {"strategy": ["dpsgd", "local"]}})
    process = subprocess.Popen(
        [sys.executable, "-m", "p2p_dml", "sweep", file, "--out", str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    _wait_until_training(out, process)
    children = _processes_of(out)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.STOPPED
    assert len(children) == 2
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not list(out.glob("cases/*/finished.json"))
    assert "strategy = dpsgd, seed = 0  stopped" in output
    assert "0 of 2 cases finished" in output
    listed = sweep.listing(sweep.read(Path(file)), out)
    assert listed.endswith("2 cases, 0 finished")
