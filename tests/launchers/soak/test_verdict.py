"""Verdicts by hand: what is held, what is written, what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from p2p_dml import checkpoint
from p2p_dml.checkpoint import Checkpoint, checkpoint_file
from p2p_dml.launchers.soak.inject import Injection
from p2p_dml.launchers.soak.judge import fault_of_model
from p2p_dml.launchers.soak.plan import Fault
from p2p_dml.launchers.soak.verdict import INVARIANTS, Findings, Kinds, Verdict, by_kind

KILL, STOP = (Fault(at_s=0.0, kind=kind, peers=(1,)) for kind in ("kill", "stop"))


def test_faults_are_counted_by_kind() -> None:
    injections = [
        Injection(KILL, 0.0, 0.0, [1], [], {1: 3.0}),
        Injection(STOP, 0.0, 1.0, [], [1]),
        Injection(KILL, 5.0, 5.0, [1, 2], [3], {1: 1.0, 2: 8.0}),
    ]
    kill = Kinds(kind="kill", faults=2, victims=3, passed_over=1, median_s=3.0, worst_s=8.0)
    stop = Kinds(kind="stop", faults=1, victims=0, passed_over=1, median_s=None, worst_s=None)
    assert by_kind(injections) == (kill, stop)


def test_one_broken_invariant_breaks_the_verdict_and_is_written(tmp_path: Path) -> None:
    findings = Findings()
    findings.note("rounds only go up", "12 rounds")
    fine = Verdict(run={"seed": 3}, kinds=(), invariants=tuple(findings.rows))
    assert fine.is_held
    assert [row.name for row in fine.invariants] == list(INVARIANTS)
    for i in range(30):
        findings.broken("event files parse", f"line {i}")
    broken = Verdict(run={"seed": 3}, kinds=by_kind([]), invariants=tuple(findings.rows))
    assert not broken.is_held
    said = json.loads(broken.write(tmp_path).read_text(encoding="utf-8"))
    assert (said["seed"], said["held"]) == (3, False)
    (row,) = (row for row in said["invariants"] if not row["held"])
    assert row["name"] == "event files parse"
    assert row["evidence"] == [f"line {i}" for i in range(20)]  # the first ones tell enough


def test_tables_show_what_is_broken() -> None:
    findings = Findings()
    findings.broken("nothing is left", "process 7")
    kinds = by_kind([Injection(KILL, 0.0, 0.0, [1], [], {1: 1.234})])
    verdict = Verdict(run={}, kinds=kinds, invariants=tuple(findings.rows))
    console = Console(width=120, record=True)
    for table in verdict.tables():
        console.print(table)
    text = console.export_text()
    assert "kill" in text and "1.23" in text
    assert text.count("BROKEN") == 1 and text.count("held") == len(INVARIANTS) - 1
    assert "process 7" in text


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, None), (float("nan"), "not finite"), (float("inf"), "not finite")]
)
def test_models_are_finite_or_not(tmp_path: Path, value: float, expected: str | None) -> None:
    for round_, x in ((1, 0.0), (2, value)):
        tensors = {"model/w": torch.tensor([0.0, x]), "model/n": torch.tensor([3])}
        checkpoint.save(tmp_path, Checkpoint(0, round_, "d", "v", tensors))
    why = fault_of_model(tmp_path, 0)
    assert why is None if expected is None else expected in str(why)


def test_no_model_and_a_torn_one_are_faults(tmp_path: Path) -> None:
    assert fault_of_model(tmp_path, 0) == "no checkpoint"
    file = tmp_path / checkpoint_file(0, 1)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"torn")
    assert "not a checkpoint" in str(fault_of_model(tmp_path, 0))
