"""Pictures of schedules, of every shape that has to be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2p_dml.report.topology import draw, draw_file, link_frequency
from p2p_dml.types import Graph, LinkSchedule

ALONE = Graph(((),))
PAIR = Graph(((1,), (0,)))
LINE = Graph(((1,), (0, 2), (1,)))
CYCLE = Graph(((2,), (0,), (1,)))
APART = Graph(((1,), (0,), ()))


def test_link_frequency_counts_receivers_by_senders() -> None:
    np.testing.assert_array_equal(
        link_frequency([LINE, CYCLE], 3), [[0, 0.5, 0.5], [1, 0, 0.5], [0, 1, 0]]
    )


@pytest.mark.parametrize(
    ("schedule", "num_peers", "panels"),
    [
        (lambda tick: ALONE, 1, 3),
        (lambda tick: PAIR, 2, 3),
        (lambda tick: LINE, 3, 3),
        (lambda tick: CYCLE, 3, 3),
        (lambda tick: APART, 3, 3),
        (lambda tick: LINE if tick < 2 else CYCLE, 3, 5),
    ],
)
def test_a_changing_schedule_has_more_panels(
    schedule: LinkSchedule, num_peers: int, panels: int
) -> None:
    figure = draw(schedule, num_peers, 4)
    assert len(figure.axes) == panels  # one of them the colour bar
    figure.draw_without_rendering()


def test_the_titles_name_the_ticks_drawn() -> None:
    figure = draw(lambda tick: LINE if tick < 2 else CYCLE, 3, 4)
    titles = [axes.get_title() for axes in figure.axes[:2]]
    assert titles == ["tick 0: 4 directed links", "tick 2: 3 directed links"]
    mean = figure.axes[3].get_lines()[0].get_ydata()
    np.testing.assert_allclose(mean, [4 / 3, 4 / 3, 1, 1])  # type: ignore[arg-type]


def test_directed_links_are_arrows_and_symmetric_ones_lines() -> None:
    assert len(draw(lambda tick: CYCLE, 3, 1).axes[0].patches) == 3
    assert len(draw(lambda tick: LINE, 3, 1).axes[0].patches) == 0


def test_a_picture_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ring.png"
    draw_file(lambda tick: LINE, 3, 2, path)
    assert path.read_bytes().startswith(b"\x89PNG")
