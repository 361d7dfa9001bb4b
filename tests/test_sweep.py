"""`p2p-dml sweep` with real runs: tables of what they say, going on, failing and stopping."""

from __future__ import annotations

import csv
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
from typer.testing import CliRunner, Result

from p2p_dml import cli, sweep
from p2p_dml.errors import ConfigError, ExitCode

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
DEADLINE_S = 60.0


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


def test_what_is_finished_is_not_run_again(done: tuple[Path, Result]) -> None:
    out, _ = done
    marks = sorted(out.glob("cases/*/finished.json"))
    before = [mark.stat().st_mtime_ns for mark in marks]
    text = (out / "sweep.csv").read_bytes()
    result = _call(str(out.parent / "sweep.toml"), "--out", str(out))
    assert result.exit_code == ExitCode.DONE
    assert [mark.stat().st_mtime_ns for mark in marks] == before
    assert (len(marks), (out / "sweep.csv").read_bytes()) == (4, text)


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
    """Living processes that have a file of this sweep's cases on their command line."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{out}/cases/".encode() in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:  # gone meanwhile
            continue
    return found


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
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.STOPPED
    assert not _processes_of(out)
    assert not list(out.glob("cases/*/finished.json"))
    assert "strategy = dpsgd, seed = 0  stopped" in output
    assert "0 of 2 cases finished" in output
    listed = sweep.listing(sweep.read(Path(file)), out)
    assert listed.endswith("2 cases, 0 finished")
