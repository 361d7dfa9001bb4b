"""The package's public functions: everything written, whole, and again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from p2p_dml import report
from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.links import Survey
from p2p_dml.types import Graph

RING = Graph(((1, 2), (0, 2), (0, 1)))


def shown(renderable: RenderableType) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_write_makes_every_promised_file_and_nothing_else(write_run: Callable[..., Path]) -> None:
    run = write_run(killed=True)
    page = report.write(run, lambda tick: RING)
    assert page == run / "report.html"
    assert {path.name for path in run.iterdir()} == {
        "run.json", "run.toml", "events", "plots", "summary.json", "curve.csv", "timeline.csv",
        "reported.csv", "report.html",
    }  # fmt: skip
    assert {path.name for path in (run / "plots").iterdir()} >= {
        "accuracy-over-rounds.png", "consensus.png", "strategy.png", "data-split.png", "graph.png"
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    with (run / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["accuracy"]["mean"] == pytest.approx(float(rows[-1]["accuracy_mean"]))
    assert page.read_text().count("data:image/png") == len(list((run / "plots").iterdir()))


def test_writing_again_gives_the_same_bytes(write_run: Callable[..., Path]) -> None:
    run = write_run(evaluate=False)
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first


def test_a_run_that_cannot_be_written_is_a_storage_error(write_run: Callable[..., Path]) -> None:
    run = write_run()
    (run / "summary.json").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*summary\.json"):
        report.write(run)


def test_compare_writes_a_page_and_pictures(write_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [write_run("a"), write_run("b", killed=True)]
    page = report.compare(runs, tmp_path / "both")
    assert page == tmp_path / "both" / "compare.html"
    assert "accuracy-over-rounds.png" in {p.name for p in (tmp_path / "both" / "plots").iterdir()}


def test_comparing_needs_run_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        report.compare([], tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        report.compare_table([tmp_path])


def test_final_table(write_run: Callable[..., Path]) -> None:
    text = shown(report.final_table(report.load(write_run(killed=True))))
    for part in ("70.0 % ± 10.0", "47.0 s", "4.00 s start-up", "1.80 kB", "31.0 MB", "2 of 3"):
        assert part in text
    assert "peer 2 was lost after round 1" in text


def test_compare_table_labels_runs_of_one_name_by_their_parents(
    write_run: Callable[..., Path],
) -> None:
    text = shown(report.compare_table([write_run("a/run"), write_run("b/run", evaluate=False)]))
    first, second = text.splitlines()[1:3]
    assert first.split()[:2] == ["a/run", "dpsgd"]
    assert "50.0 %" in first
    assert second.split()[:2] == ["b/run", "dpsgd"]
    assert "–" in second


@pytest.mark.parametrize(("after", "words"), [(3, "after 3 ticks"), (None, "never")])
def test_survey_table(after: int | None, words: str) -> None:
    survey = Survey(
        num_peers=8,
        ticks=20,
        degree_mean=2.5,
        degree_min=0,
        degree_max=4,
        density=0.357,
        isolated_share=0.125,
        is_static=False,
        is_symmetric=True,
        is_doubly_stochastic=True,
        connected_share=0.25,
        union_connected_after=after,
        gap_mean=0.1,
        gap_min=0.0,
        gap_product=0.9,
    )
    text = shown(report.survey_table(survey))
    for part in ("2.50 (0 – 4)", "12.5 %", "symmetric", "25.0 %", words, "0.100 (smallest 0)"):
        assert part in text
