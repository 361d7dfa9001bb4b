"""How a nursery starts peers where the system has no room for one more process."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import final

import pytest

from p2p_dml.launchers.nursery import Births
from p2p_dml.types import PeerId

FULL = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@final
class System:
    """Forks as told, one outcome after another, then without fail; a clock that is set by hand."""

    def __init__(self, shared: Path, outcomes: Sequence[OSError | None]) -> None:
        self.now = 0.0
        self.asked: list[tuple[PeerId, bool]] = []
        self.told: list[dict[str, int]] = []
        self._outcomes = [*outcomes]
        self.births = Births(self._fork, shared, self.told.append, lambda: self.now)

    def _fork(self, peer: PeerId, again: bool) -> int:
        self.asked.append((peer, again))
        if self._outcomes and (error := self._outcomes.pop(0)) is not None:
            raise error
        return 100 + peer

    def pass_time(self, seconds: float) -> None:
        """Attempt what is due every 20 ms."""
        until = self.now + seconds
        while self.now < until:
            self.births.attempt()
            self.now += 0.02


@pytest.mark.parametrize("failures", [0, 1, 4])
def test_what_fails_for_a_moment_is_tried_again(tmp_path: Path, failures: int) -> None:
    system = System(tmp_path, [FULL] * failures)
    system.births.order(2, again=True)
    system.pass_time(2.0)
    assert system.asked == [(2, True)] * (failures + 1)
    assert system.told == [{"peer": 2, "pid": 102}]
    assert system.births.children == {102: 2}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FULL, "Resource temporarily unavailable"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
        (OSError("no room"), "no room"),
    ],
)
def test_what_fails_for_a_second_is_reported_and_over(
    tmp_path: Path, error: OSError, why: str
) -> None:
    system = System(tmp_path, [error] * 100)
    system.births.order(2)
    system.pass_time(0.9)
    assert system.told == []
    system.pass_time(3.0)
    assert system.told == [{"peer": 2, "code": 1}]
    assert len(system.asked) == 5
    assert (tmp_path / "2.error").read_text(encoding="utf-8") == (
        f"peer 2: cannot be started: {why}; free memory or raise the limit on processes"
    )


def test_others_are_started_meanwhile(tmp_path: Path) -> None:
    system = System(tmp_path, [None, FULL])
    for peer in (0, 1, 2):
        system.births.order(peer)
    system.births.attempt()
    assert system.births.children == {100: 0, 102: 2}
    system.births.order(3, again=True)
    system.births.attempt()
    assert system.births.children == {100: 0, 102: 2, 103: 3}
    system.pass_time(1.0)
    assert system.births.children == {100: 0, 102: 2, 103: 3, 101: 1}


def test_what_cannot_be_written_down_is_reported_all_the_same(tmp_path: Path) -> None:
    system = System(tmp_path / "gone", [FULL] * 5)
    system.births.order(2)
    system.pass_time(2.0)
    assert system.told == [{"peer": 2, "code": 1}]
