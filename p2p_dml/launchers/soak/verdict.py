"""What a soak found: faults by kind, invariants held or broken, as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, final

from rich.table import Table
from rich.text import Text

from p2p_dml.files import write_whole
from p2p_dml.launchers.soak.inject import Injection
from p2p_dml.launchers.soak.plan import SHARES

INVARIANTS = (
    "no peer ends but by a fault",
    "no unfaulted peer is without progress",
    "who was faulted goes on",
    "who is back is heard",
    "rounds only go up",
    "event files parse",
    "every model is finite",
    "nobody keeps more and more",
    "nothing is left",
    "the accuracy is kept",
)

_MOST_EVIDENCE = 20
_ABSENT = "–"


@final
class Findings:
    """What was seen of each invariant."""

    def __init__(self) -> None:
        self._evidence: dict[str, list[str]] = {name: [] for name in INVARIANTS}
        self._figures: dict[str, str] = {}

    def broken(self, invariant: str, evidence: str) -> None:
        """An invariant does not hold, as `evidence` shows."""
        found = self._evidence[invariant]
        if evidence not in found and len(found) < _MOST_EVIDENCE:
            found.append(evidence)

    def note(self, invariant: str, figure: str) -> None:
        """What was measured, whether it holds or not."""
        self._figures[invariant] = figure

    @property
    def rows(self) -> list[Row]:
        """One for each invariant."""
        return [
            Row(name=name, figure=self._figures.get(name, ""), evidence=tuple(found))
            for name, found in self._evidence.items()
        ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An invariant: it holds if there is no evidence against it."""

    name: str
    figure: str
    evidence: tuple[str, ...] = ()

    @property
    def is_held(self) -> bool:
        return not self.evidence


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The faults of one kind. Times in seconds from the end of a fault to a round of its victim."""

    kind: str
    faults: int
    victims: int
    passed_over: int
    median_s: float | None
    worst_s: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A soak that is over; `run` are facts of it, such as its seed."""

    run: Mapping[str, Any]
    kinds: tuple[Kinds, ...]
    invariants: tuple[Row, ...] = field(default=())

    @property
    def is_held(self) -> bool:
        """Whether every invariant holds."""
        return all(row.is_held for row in self.invariants)

    def write(self, folder: Path) -> Path:
        """Write `soak.json`; StorageError if it cannot be."""
        rows = [{**asdict(row), "held": row.is_held} for row in self.invariants]
        kinds = [asdict(each) for each in self.kinds]
        whole = {**self.run, "held": self.is_held, "faults": kinds, "invariants": rows}
        path = folder / "soak.json"
        write_whole(path, (json.dumps(whole, indent=2) + "\n").encode())
        return path

    def tables(self) -> tuple[Table, Table]:
        """Faults by kind, and invariants."""
        return _fault_table(self.kinds), _invariant_table(self.invariants)


def by_kind(injections: Sequence[Injection]) -> tuple[Kinds, ...]:
    """A row for each kind of fault that there was."""
    rows = []
    for kind in SHARES:
        own = [each for each in injections if each.fault.kind == kind]
        times = [seconds for each in own for seconds in each.recovered_s.values()]
        row = Kinds(
            kind=kind,
            faults=len(own),
            victims=sum(len(each.peers) for each in own),
            passed_over=sum(len(each.passed_over) for each in own),
            median_s=round(median(times), 3) if times else None,
            worst_s=round(max(times), 3) if times else None,
        )
        rows += [row] if own else []
    return tuple(rows)


def _fault_table(kinds: Sequence[Kinds]) -> Table:
    table = Table("fault", box=None, header_style="dim")
    for name in ("times", "peers hit", "passed over", "median, s", "worst, s"):
        table.add_column(name, justify="right")
    for each in kinds:
        counts = (each.faults, each.victims, each.passed_over)
        times = (each.median_s, each.worst_s)
        words = [_ABSENT if seconds is None else f"{seconds:.2f}" for seconds in times]
        table.add_row(each.kind, *map(str, counts), *words)
    return table


def _invariant_table(rows: Sequence[Row]) -> Table:
    table = Table("invariant", "", "found", box=None, header_style="dim")
    for row in rows:
        mark = Text("held", style="green") if row.is_held else Text("BROKEN", style="bold red")
        table.add_row(row.name, mark, Text("\n".join(filter(None, (row.figure, *row.evidence)))))
    return table
