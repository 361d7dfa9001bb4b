"""What went wrong on purpose is said so, before what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2p_dml.events import Finished, Injected
from p2p_dml.report._notices import notices
from p2p_dml.report.load import load
from p2p_dml.report.summary import measure_curve, summarise


def test_equal_faults_of_several_peers_are_one_sentence(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    for peer in (2, 0):
        fault = Injected(round=2, phase="mix", kind="hang", fault=1)
        append(folder, peer, (50, fault), (60, Finished(round=3, exit_code=0)))
    run = load(folder)
    said = notices(run, summarise(run, measure_curve(run)))
    assert said == ["on purpose, as [[faults]] says: hang in round 2, phase mix: peers 0, 2"]
