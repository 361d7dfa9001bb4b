"""What a process holds, by /proc, and whether it keeps more and more of it (Linux)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import final

from p2p_dml.launchers.process import proc_table

TOLERANCE = 0.05
"""By how much what a process holds may differ from its level after warm-up."""

SAMPLES = 5
"""So many samples make a level: their median."""


_OWN_DESCRIPTORS, _DESCRIPTORS_PER_PEER = 30, 4
"""What a peer has open by itself, and for messages and heartbeats from and to one other."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one process at one moment; memory in MB (10^6 bytes), `own_mb` without what is shared."""

    rss_mb: float
    own_mb: float
    descriptors: float
    threads: float


@final
@dataclass(frozen=True, slots=True)
class Life:
    """A process: its id, and when it began in the kernel's ticks, as ids are used again."""

    pid: int
    began: int


def life_of(pid: int) -> Life | None:
    """The process that has this id now, if one has that lives."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else Life(pid, int(rest[18]))


def usage_of(pid: int) -> Usage | None:
    """What a process holds; None if it is gone."""
    try:
        pages = proc_table(Path(f"/proc/{pid}/smaps_rollup"))
        threads = proc_table(Path(f"/proc/{pid}/status"))["Threads"]
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        own = pages["Private_Clean"] + pages["Private_Dirty"]
        return Usage(
            rss_mb=pages["Rss"] * 1024 / 1e6,
            own_mb=own * 1024 / 1e6,
            descriptors=descriptors,
            threads=threads,
        )
    except (OSError, KeyError):
        return None


def level(samples: Iterable[Usage]) -> Usage:
    """The median of each figure."""
    found = list(samples)
    return Usage(
        rss_mb=median(each.rss_mb for each in found),
        own_mb=median(each.own_mb for each in found),
        descriptors=median(each.descriptors for each in found),
        threads=median(each.threads for each in found),
    )


def leaks(first: Usage, last: Usage, peers: int) -> Mapping[str, tuple[float, float]]:
    """Figures that have grown by more than the tolerance: (first, last).

    To be connected to all other `peers` is no leak: links that change come to that at some time.
    """
    connected = _OWN_DESCRIPTORS + _DESCRIPTORS_PER_PEER * (peers - 1)
    pairs = {
        "rss_mb": (first.rss_mb, last.rss_mb),
        "descriptors": (max(first.descriptors, connected), last.descriptors),
        "threads": (first.threads, last.threads),
    }
    return {name: pair for name, pair in pairs.items() if pair[1] > pair[0] * (1 + TOLERANCE)}


@final
class Ledger:
    """What processes held in their first and in their last samples."""

    def __init__(self) -> None:
        self._first: dict[Life, list[Usage]] = {}
        self._last: dict[Life, deque[Usage]] = {}

    def take(self, life: Life, usage: Usage) -> None:
        """Take down a sample."""
        first = self._first.setdefault(life, [])
        if len(first) < SAMPLES:
            first.append(usage)
        else:
            self._last.setdefault(life, deque(maxlen=SAMPLES)).append(usage)

    def levels(self, life: Life) -> tuple[Usage, Usage] | None:
        """The first level and the last; None if the process was not there for two."""
        last = self._last.get(life, ())
        return (level(self._first[life]), level(last)) if len(last) == SAMPLES else None


def scratch_of(pid: int) -> set[Path]:
    """Temporary folders of a run, in memory or on a disk, in which a process has files open."""
    found = set()
    with suppress(OSError):  # gone meanwhile
        for link in Path(f"/proc/{pid}/fd").iterdir():
            for folder in Path(os.readlink(link)).parents:
                if folder.name.startswith("p2p-"):
                    found.add(folder)
    return found


def num_files(folders: Iterable[Path]) -> int:
    """How many files there are below some folders."""
    return sum(1 for folder in folders for path in folder.rglob("*") if not path.is_dir())
