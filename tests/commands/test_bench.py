"""`p2p-dml bench rounds`, as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from p2p_dml.cli import app
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.launchers.bench import rounds

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> Result:
    """Run the command here; its errors are raised, not swallowed."""
    words = ["bench", "rounds", *arguments]
    return CliRunner().invoke(app, words, env={"COLUMNS": "160"}, catch_exceptions=False)


def documented(line: dict[str, Any]) -> set[str]:
    """Those of a line's fields that docs/benchmarks.md has a row for."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    return names & line.keys()


def test_a_line_per_case_of_real_processes(tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    options = ["--params", "1k", "--rounds", "4", "--repeat", "1", "--limits", "--quiet"]
    said = call("--peers", "2", "--topology", "ring", *options, "--out", str(out))
    assert said.exit_code == 0
    (text,) = said.stdout.splitlines()
    assert out.read_text(encoding="utf-8") == said.stdout
    line = json.loads(text)
    assert (line["peers"], line["rounds"], line["repeat"]) == (2, 4, 1)
    assert (line["bytes_out"], line["missing"]) == (4000, 0)
    assert 0 < line["round_ms_p10"] <= line["round_ms"] <= line["slowest_round_ms"]
    assert 0 < line["pss_mb"] <= line["rss_mb"]
    assert 0 < line["met_s"] <= line["first_step_s"]
    assert line["ratio"]["pyzmq"] == pytest.approx(
        line["round_ms"] / line["limits"]["pyzmq_ms"], rel=0.01
    )
    assert documented(line) == line.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--peers", "none"), "--peers: expected a positive whole number"),
        (("--topology", "rign"), r"links.kind: unknown name 'rign'.*'ring'"),
        (("--topology", "k_regular degree=9"), "degree"),
        (("--transport", "torchdist"), "transport.kind: torchdist connects ranks"),
        (("--set", "strategy=gradient_trakcing"), "strategy.name: unknown name"),
        (("--set", "strategy.name"), "expected key=value"),
    ],
)
def test_wrong_values_end_before_anything_runs(
    change: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "run_once", pytest.fail)
    usual = {"--peers": "4", "--topology": "ring", "--params": "10"} | dict([change])
    with pytest.raises(ConfigError, match=message):
        call(*(word for pair in usual.items() for word in pair))


def test_a_run_that_fails_ends_the_command_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(config: object) -> dict[str, float]:
        raise rounds.RunFailed(ExitCode.STARTUP)

    monkeypatch.setattr(rounds, "run_once", fail)
    said = call("--peers", "4", "--topology", "ring", "--params", "10", "--quiet")
    assert said.exit_code == ExitCode.STARTUP
    assert said.stdout == ""


@pytest.mark.parametrize(("found", "told"), [(3, ExitCode.STARTUP), (-9, ExitCode.FAILED)])
def test_what_a_launcher_ended_with_is_an_exit_code(found: int, told: ExitCode) -> None:
    assert rounds.RunFailed(found).exit_code is told
