"""What processes hold, of this one and of one that ends; levels and leaks by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_dml.launchers.soak.usage import (
    SAMPLES,
    Ledger,
    Life,
    Usage,
    leaks,
    level,
    life_of,
    num_files,
    scratch_of,
    usage_of,
)

LITTLE = Usage(rss_mb=100.0, own_mb=10.0, descriptors=40.0, threads=4.0)


def test_this_process_holds_what_it_opens(tmp_path: Path) -> None:
    before = usage_of(os.getpid())
    files = [(tmp_path / str(i)).open("wb") for i in range(7)]
    after = usage_of(os.getpid())
    for file in files:
        file.close()
    assert before is not None and after is not None
    assert after.descriptors == before.descriptors + 7
    assert 0 < before.own_mb < before.rss_mb
    assert before.threads >= 1


def test_a_process_that_is_gone_holds_nothing() -> None:
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as process:
        life = life_of(process.pid)
        assert life is not None and life.pid == process.pid
        assert life_of(process.pid) == life
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert life_of(process.pid) is None  # though its parent has not asked for it yet
    assert usage_of(process.pid) is None
    assert scratch_of(process.pid) == set()


def test_temporary_folders_are_found_by_open_files() -> None:
    with tempfile.TemporaryDirectory(prefix="p2p-") as name:
        folder = Path(name)
        (folder / "deep").mkdir()
        assert folder not in scratch_of(os.getpid())
        with (folder / "deep" / "file").open("wb"):
            assert folder in scratch_of(os.getpid())
        assert num_files([folder]) == 1


def test_a_level_is_the_median() -> None:
    samples = [replace(LITTLE, rss_mb=x, descriptors=y) for x, y in ((1, 9), (5, 8), (2, 40))]
    assert level(samples) == replace(LITTLE, rss_mb=2, descriptors=9)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, set()),
        ({"rss_mb": 105.0, "descriptors": 42.0}, set()),
        ({"rss_mb": 105.1}, {"rss_mb"}),
        ({"descriptors": 43.0, "threads": 5.0}, {"descriptors", "threads"}),
        ({"rss_mb": 50.0, "threads": 1.0}, set()),
    ],
)
def test_what_has_grown_by_more_than_a_twentieth(
    more: Mapping[str, float], found: set[str]
) -> None:
    assert set(leaks(LITTLE, replace(LITTLE, **more), peers=3)) == found


@pytest.mark.parametrize(("descriptors", "found"), [(154.0, set()), (163.0, {"descriptors"})])
def test_to_be_connected_to_everybody_is_no_leak(descriptors: float, found: set[str]) -> None:
    """Of 31 others four each, and 30 of its own; a twentieth more is within the tolerance."""
    later = replace(LITTLE, descriptors=descriptors)
    assert set(leaks(LITTLE, later, peers=32)) == found


def test_a_ledger_has_the_first_level_and_the_last() -> None:
    ledger, life = Ledger(), Life(7, 0)
    for i in range(4 * SAMPLES):
        assert ledger.levels(life) is None or i >= 2 * SAMPLES
        ledger.take(life, replace(LITTLE, rss_mb=float(i)))
    levels = ledger.levels(life)
    assert levels is not None
    assert [each.rss_mb for each in levels] == [SAMPLES // 2, 4 * SAMPLES - 1 - SAMPLES // 2]
    assert ledger.levels(Life(7, 1)) is None
