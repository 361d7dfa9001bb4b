"""Sentences about losses, returns, slowness and stragglers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2p_dml.events import (
    Finished,
    NeighbourChanged,
    NotShared,
    Rejected,
    RoundDone,
    Started,
    Stuck,
)
from p2p_dml.report._notices import notices
from p2p_dml.report.load import load
from p2p_dml.report.summary import measure_curve, summarise


def said(folder: Path) -> list[str]:
    run = load(folder)
    return notices(run, summarise(run, measure_curve(run)))


def test_nothing_to_say_of_a_quiet_run(write_run: Callable[..., Path]) -> None:
    assert said(write_run()) == []


def test_reports_of_several_neighbours_are_one_sentence(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    for peer, t in ((0, 12), (1, 11)):
        slow = NeighbourChanged(neighbour=2, state="slow", round=t, why=f"{t} s")
        append(folder, peer, (t, slow), (t, slow), (60, Finished(round=3, exit_code=0)))
    assert said(folder) == ["peer 2 was reported slow by 2 neighbours, first in round 11: 11 s"]


def test_a_straggler_and_one_that_came_back(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=3)
    start = Started(pid=1, incarnation=0, endpoint="", parameters=1, samples=1, class_counts=[])
    for peer, train_s in enumerate((1.0, 1.0, 3.0)):
        first = RoundDone(0, 0.1, 0, 0, 2, seconds={"train": train_s})
        append(folder, peer, (1, start), (2, first), (3, Finished(round=0, exit_code=0)))
    append(folder, 0, (4, start), (5, Finished(round=0, exit_code=0)))
    assert said(folder) == [
        "peer 0 was started 2 times",
        "peer 2 trained 3.00 s per round, 3.0 times the median peer",
    ]


def test_an_error_names_its_exit_code(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=1)
    append(folder, 0, (1, Finished(round=0, exit_code=3, error="port taken")))
    assert said(folder) == [
        "peer 0 ended before its first round with exit code 3 (startup): port taken"
    ]


def test_a_flood_is_cut(write_run: Callable[..., Path], append: Callable[..., None]) -> None:
    folder = write_run()
    flood = [(50, Rejected(sender=None, round=i, why=f"bad {i}")) for i in range(60)]
    append(folder, 0, *flood, (60, Finished(round=3, exit_code=0)))
    sentences = said(folder)
    assert len(sentences) == 51
    assert sentences[0].startswith("1 message of an unknown sender rejected, first by peer 0")
    assert sentences[-1] == "… and 10 more"


def test_what_was_refused_again_and_again_is_counted(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    first, rest = (Rejected(sender=1, round=2, why="bad", times=times) for times in (1, 1041))
    append(folder, 0, (50, first), (60, rest), (61, Finished(round=3, exit_code=0)))
    assert "1042 messages of peer 1 rejected, first by peer 0 in round 2: bad" in said(folder)


def test_links_that_go_through_sockets_within_a_machine_are_told_once(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    for peer in (0, 1):
        append(folder, peer, (50, NotShared(neighbour=1 - peer, why="Permission denied")))
    expected = "messages of 2 links within a machine go through sockets: Permission denied"
    assert expected in said(folder)


def test_hangs_are_told_with_what_they_took(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    over = Stuck(round=2, phase="train", seconds=12.0, is_over=True)
    append(folder, 0, (50, Stuck(round=2, phase="train", seconds=5.0)), (57, over))
    append(folder, 1, (50, Stuck(round=3, phase="log", seconds=5.0)))
    given_up = NeighbourChanged(neighbour=1, state="stuck", round=3, why="nothing within 9 s")
    append(folder, 2, (70, given_up))
    sentences = said(folder)
    assert "peer 0 was stuck in 'train' in round 2 for 12.0 s" in sentences
    assert "peer 1 was stuck in 'log' in round 3 for 5.00 s and more" in sentences
    assert (
        "peer 1 was given up on by 1 neighbour, first in round 3: nothing within 9 s" in sentences
    )
