"""What strategies report, over the rounds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from p2p_dml.report._reported import reported_csv
from p2p_dml.report.load import load


def test_the_mean_over_the_peers_round_by_round(write_run: Callable[..., Path]) -> None:
    rows = list(csv.DictReader(reported_csv(load(write_run())).splitlines()))
    assert [row["round"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["degree/representation"]) for row in rows] == [1.0, 2.0, 3.0, 4.0]
    assert {row["degree/decision"] for row in rows} == {"5"}


def test_peers_that_differ_and_one_that_is_lost(write_run: Callable[..., Path]) -> None:
    run = write_run(killed=True)
    log = run / "events" / "peer-000.jsonl"
    text = log.read_text()
    log.write_text(text.replace('"degree/decision": 5.0', '"degree/decision": 8.0'))
    rows = list(csv.DictReader(reported_csv(load(run)).splitlines()))
    assert float(rows[0]["degree/decision"]) == (8.0 + 5.0 + 5.0) / 3
    assert float(rows[-1]["degree/decision"]) == (8.0 + 5.0) / 2


def test_a_figure_without_a_number_is_empty(write_run: Callable[..., Path]) -> None:
    run = write_run()
    for log in run.glob("events/*.jsonl"):
        log.write_text(log.read_text().replace('"degree/decision": 5.0', '"degree/decision": null'))
    rows = list(csv.DictReader(reported_csv(load(run)).splitlines()))
    assert {row["degree/decision"] for row in rows} == {""}
