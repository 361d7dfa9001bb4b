"""Link schedules: who hears whom at which tick; the one table of their names.

A schedule is described by a table: `kind` and its parameters, or only `file`, a topology file
holding such a table. Combinators hold the tables of their parts in `of` or `phases`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from p2p_dml import tables
from p2p_dml.errors import ConfigError
from p2p_dml.links import combinators, files, mobile, random, recorded, static
from p2p_dml.links._graphs import part_seed
from p2p_dml.links.files import TopologyFile
from p2p_dml.links.recorded import record, write_trace
from p2p_dml.links.surveys import Survey, survey
from p2p_dml.links.walk import Walk
from p2p_dml.types import LinkSchedule

__all__ = [
    "KINDS",
    "Survey",
    "TopologyFile",
    "Walk",
    "build",
    "load",
    "record",
    "survey",
    "write_trace",
]

KINDS: Mapping[str, Callable[..., LinkSchedule]] = {
    "complete": static.Complete,
    "ring": static.Ring,
    "star": static.Star,
    "grid": static.Grid,
    "torus": static.Torus,
    "exponential": static.Exponential,
    "one_peer_exponential": static.OnePeerExponential,
    "random_matching": random.RandomMatching,
    "erdos_renyi": random.ErdosRenyi,
    "k_regular": random.KRegular,
    "epidemic": random.Epidemic,
    "small_world": random.SmallWorld,
    "barabasi_albert": random.BarabasiAlbert,
    "geometric": mobile.Geometric,
    "trace": recorded.read_trace,
    "edges": recorded.Edges,
    "static": combinators.Static,
    "failing": combinators.Failing,
    "alternating": combinators.Alternating,
    "every": combinators.Every,
    "until": combinators.Until,
    "finally_complete": combinators.FinallyComplete,
}


def build(
    table: Mapping[str, object] | str,
    num_peers: int,
    seed: int,
    folder: Path,
    where: str = "links",
) -> LinkSchedule:
    """Build the schedule that `table` describes, or the kind it names if it is a string.

    `seed` is the run's; a table may have its own, which also fixes its parts. Files are relative
    to `folder`. Raises ConfigError with the path (`links.of.density`, or the topology file's).
    """
    return _build(table, _Place(num_peers=num_peers, seed=seed, folder=folder, where=where))


def load(path: Path, num_peers: int | None = None, seed: int = 0) -> LinkSchedule:
    """Build the schedule of a topology file; `num_peers` may be left to the file.

    Raises ConfigError if the file and the caller disagree about the peers, or neither says.
    """
    file = files.read(path)
    return build(file.table, file.for_peers(num_peers), seed, path.parent, str(path))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a table stands: its path for errors, and what it gets from its surroundings."""

    num_peers: int
    seed: int
    folder: Path
    where: str
    opened: tuple[Path, ...] = ()

    def part(self, key: str, index: int) -> _Place:
        return replace(self, where=f"{self.where}.{key}", seed=part_seed(self.seed, index))


def _build(table: object, place: _Place) -> LinkSchedule:
    row = _as_table(table, place.where)
    if "file" in row and "kind" not in row:
        return _from_file(row, place)
    if "kind" not in row:
        raise ConfigError(f"{place.where}.kind: missing; {tables.nearest('', KINDS)}")
    factory = tables.choose(KINDS, row.pop("kind"), f"{place.where}.kind")
    place = replace(place, seed=_seed(row.pop("seed", place.seed), place.where))
    for key, given in (("num_peers", "the run's number of peers"), ("folder", "the file's")):
        if key in row:
            raise ConfigError(f"{place.where}.{key}: cannot be set here; it is {given}")
    return tables.build(
        factory,
        row | _parts(row, place),
        place.where,
        fixed=("num_peers", "folder"),
        num_peers=place.num_peers,
        seed=place.seed,
        folder=place.folder,
    )


def _as_table(table: object, where: str) -> dict[str, object]:
    if isinstance(table, str):
        return {"kind": table}
    if isinstance(table, Mapping):
        return dict(table)
    raise ConfigError(f"{where}: expected the name of a kind or a table, found {table!r}")


def _seed(value: object, where: str) -> int:
    seed: int = tables.check(int, value, f"{where}.seed")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"{where}.seed: must be in [0, 2^64), got {seed}")
    return seed


def _parts(row: Mapping[str, object], place: _Place) -> dict[str, object]:
    """The schedules of a combinator's parts, by key, each with a seed of its own."""
    parts: dict[str, object] = {}
    if "of" in row:
        parts["of"] = _build(row["of"], place.part("of", 0))
    phases = row.get("phases")
    if isinstance(phases, Sequence) and not isinstance(phases, str):
        parts["phases"] = tuple(
            _build(phase, place.part(f"phases[{index}]", index))
            for index, phase in enumerate(phases)
        )
    return parts


def _from_file(row: Mapping[str, object], place: _Place) -> LinkSchedule:
    extra = sorted(row.keys() - {"file"})
    if extra:
        raise ConfigError(f"{place.where}.{extra[0]}: cannot be set beside `file`; edit the file")
    path = place.folder / tables.check(str, row["file"], f"{place.where}.file")
    if path.resolve() in place.opened:
        raise ConfigError(f"{place.where}.file: {path} includes itself")
    file = files.read(path)
    inside = replace(
        place,
        num_peers=file.for_peers(place.num_peers),
        folder=path.parent,
        where=str(path),
        opened=(*place.opened, path.resolve()),
    )
    return _build(file.table, inside)
