"""The arithmetic and the layout of the Markdown tables."""

from __future__ import annotations

import pytest

from p2p_dml.sweep._tables import blocks, cell, markdown
from p2p_dml.sweep._values import Layout

AXES = {"task": ("easy", "hard"), "strategy": ("dpsgd", "local"), "peers": ("2", "4")}


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("best_accuracy", [0.5], "50.0"),
        # Mean 0.6; squares of the differences 0.01 + 0 + 0.01, over 2 of 3 seeds.
        ("best_accuracy", [0.5, 0.6, 0.7], "60.0 ± 10.0"),
        ("rounds_to_80", [10.0, 14.0], "12.0 ± 2.8"),
        ("rounds_to_80", [10.0, None, 14.0], "12.0 ± 2.8 (2 of 3)"),
        ("rounds_to_80", [None, 10.0], "10.0 (1 of 2)"),
        ("rounds_to_80", [None, None], "–"),
        ("rounds_to_80", [], "–"),
        ("bytes_total", [1000.0, 3000.0], "2.00 kB ± 1.41 kB"),
        ("wall_s", [float("nan"), 2.0], "2.00 (1 of 2)"),
    ],
)
def test_mean_and_sample_deviation(metric: str, values: list[float | None], text: str) -> None:
    assert cell(metric, values) == text


def _rows(value: float) -> list[tuple[dict[str, str], dict[str, float | None]]]:
    """A case for each cell: `value`, and a tenth more with 4 peers, and 0.2 more if it is easy."""
    return [
        (
            {"task": task, "strategy": strategy, "peers": peers},
            {"best_accuracy": value + (peers == "4") / 10 + (task == "easy") / 5, "best_round": 3},
        )
        for task in AXES["task"]
        for strategy in AXES["strategy"]
        for peers in AXES["peers"]
    ]


def test_rows_columns_and_a_table_for_each_rest() -> None:
    layout = Layout(rows=("strategy",), columns=("peers",), metric="best_accuracy")
    assert markdown(layout, AXES, _rows(0.5)) == (
        "### task = easy\n\n"
        "| strategy | 2: best_accuracy (%) | 4: best_accuracy (%) |\n"
        "| --- | ---: | ---: |\n"
        "| dpsgd | 70.0 | 80.0 |\n"
        "| local | 70.0 | 80.0 |\n"
        "\n"
        "### task = hard\n\n"
        "| strategy | 2: best_accuracy (%) | 4: best_accuracy (%) |\n"
        "| --- | ---: | ---: |\n"
        "| dpsgd | 50.0 | 60.0 |\n"
        "| local | 50.0 | 60.0 |\n"
    )


def test_several_axes_down_and_several_metrics() -> None:
    layout = Layout(rows=("task", "strategy", "peers"), metric=("best_accuracy", "best_round"))
    lines = markdown(layout, AXES, _rows(0.5)).splitlines()
    assert lines[0] == "### All cases"
    assert lines[2] == "| task | strategy | peers | best_accuracy (%) | best_round |"
    assert lines[4] == "| easy | dpsgd | 2 | 70.0 | 3.0 |"
    assert len(lines) == 4 + 8


@pytest.mark.parametrize(
    ("count", "heading"),
    [(1, "### The case that has finished"), (3, "### The 3 cases that have finished")],
)
def test_a_table_of_some_cases_does_not_speak_of_all(count: int, heading: str) -> None:
    layout = Layout(rows=("task", "strategy", "peers"))
    text = markdown(layout, AXES, _rows(0.5)[:count], is_all=False)
    assert text.splitlines()[0] == heading


def test_what_is_not_finished_is_left_out() -> None:
    rows = [row for row in _rows(0.5) if row[0]["task"] == "easy"]
    layout = Layout(rows=("strategy",), columns=("peers",))
    text = markdown(layout, AXES, rows[:3])
    easy, hard = text.split("### task = hard")
    assert easy.splitlines()[2:] == [
        "| strategy | 2: best_accuracy (%) | 4: best_accuracy (%) |",
        "| --- | ---: | ---: |",
        "| dpsgd | 70.0 | 80.0 |",
        "| local | 70.0 | – |",
        "",
    ]
    assert markdown(layout, AXES, rows[2:3]).splitlines()[2:5] == [
        "| strategy | 2: best_accuracy (%) |",
        "| --- | ---: |",
        "| local | 70.0 |",
    ]
    assert "No case of this table is finished." in hard


def test_a_label_cannot_break_the_table() -> None:
    axes = {"strategy": ("a|b",)}
    rows = [({"strategy": "a|b"}, {"best_accuracy": 0.5})]
    assert "| a\\|b | 50.0 |" in markdown(Layout(rows=("strategy",)), axes, rows)


def test_blocks() -> None:
    assert blocks(AXES, ["task", "peers"]) == [{"strategy": "dpsgd"}, {"strategy": "local"}]
    assert blocks(AXES, AXES) == [{}]
