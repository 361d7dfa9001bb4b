"""From a sweep file to cases: the grid multiplied out, every mistake found before anything runs."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from p2p_dml import __version__, config, data, plugins, tables
from p2p_dml.assemble import blueprint
from p2p_dml.checks import check_all
from p2p_dml.config import RunConfig, Table
from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.run_fields import NAME_RULE, as_name, is_name
from p2p_dml.sweep._axes import (
    Axes,
    Pick,
    apply,
    apply_settings,
    combinations,
    labels_of,
    meets,
    read_axes,
    read_condition,
    read_settings,
)
from p2p_dml.sweep._values import Case, Labels, Layout, Measures, Mode, Plan, title_of

Names = Mapping[str, tuple[str, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFile:
    """The keys of a sweep file; docs/sweeps.md is their manual."""

    base: str | dict[str, Any]
    grid: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    seeds: tuple[int, ...] = (0,)
    mode: Mode = "simulate"
    jobs: int | None = None
    cases: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    adjust: tuple[dict[str, Any], ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] | tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None and not is_name(self.name):
            raise ValueError(f"name: {NAME_RULE}; found {self.name!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, found {list(self.seeds)}")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, found {self.jobs}")
        if not self.grid and not self.cases:
            raise ValueError("grid: missing, and there are no [[cases]]: nothing to run")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """`[[adjust]]`: what to set in the cases that have all of `when`; without it in all."""

    set: dict[str, Any]
    when: dict[str, Any] = field(default_factory=dict)


def read(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Plan:
    """Read a sweep file; `overrides` (`key=value`) change its base.

    `only` (`axis=label`, or `seed=number`) chooses the cases to run: those that have one of the
    labels given for each axis that is named.

    Raises ConfigError that says what is wrong, where, and what would be right. Whether a case can
    be run beyond the keys of its run file is for `check` to say.
    """
    where = f"{path}: sweep"
    file = tables.build(SweepFile, tables.read_toml(path, "sweep file"), where)
    picks, names = _picks(file, where)
    measures = tables.build(Measures, file.metrics, f"{where}.metrics")
    cases = tuple(_cases(file, path, overrides, picks, names))
    return Plan(
        name=file.name or as_name(path.stem),
        text=path.read_text(encoding="utf-8"),
        mode=file.mode,
        jobs=file.jobs,
        axes=names,
        cases=cases,
        chosen=_chosen(cases, only, {**names, "seed": tuple(map(str, file.seeds))}),
        measures=measures,
        reference=_reference(measures, names, f"{where}.metrics.reference"),
        layouts=_layouts(file.table, names, measures, where),
    )


def _chosen(cases: Sequence[Case], only: Sequence[str], names: Names) -> tuple[Case, ...]:
    wanted: dict[str, list[str]] = {}
    for text in only:
        axis, equals, label = text.partition("=")
        if not equals:
            raise ConfigError(f"--only {text}: expected axis=label, such as strategy=dpsgd")
        wanted.setdefault(axis.strip(), []).append(label.strip())
    condition = read_condition(wanted, names, "--only")
    found = tuple(c for c in cases if meets({**c.labels, "seed": str(c.seed)}, condition))
    if not found:
        raise ConfigError(f"--only {' --only '.join(only)}: no case of the grid has all of these")
    return found


def _reference(measures: Measures, names: Names, where: str) -> Labels:
    found = {}
    for axis, labels in read_condition(measures.reference, names, where).items():
        if len(labels) != 1:
            raise ConfigError(f"{where}.{axis}: expected one value, found {sorted(labels)}")
        found[axis] = min(labels)
    return found


def check(plan: Plan) -> None:
    """Build once what each chosen case will build: data, partition, model, strategy, links.

    Raises ConfigError naming the case.
    """

    def data_of(case: Case) -> str:
        return json.dumps([case.config.data, "function" in case.config.train], default=str)

    # One data set at a time is in memory.
    for _, cases in itertools.groupby(sorted(plan.chosen, key=data_of), data_of):
        dataset: Dataset | None = None
        for case in cases:
            with _named(case.title):
                dataset = dataset or _dataset(case.config)
                _check_case(case.config, dataset)


def _dataset(run: RunConfig) -> Dataset | None:
    plugins.look_in(run.folder)
    return None if "function" in run.train else data.load(run.data)


def _check_case(run: RunConfig, dataset: Dataset | None) -> None:
    shards = dataset and data.partition(run.partition, dataset, run.peers, run.seed)
    check_all(blueprint(run, dataset, dict(enumerate(shards or ()))))


@contextmanager
def _named(title: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"case {title}: {error}") from error


# ---- the grid --------------------------------------------------------------------------------


def _picks(file: SweepFile, where: str) -> tuple[list[Pick], Names]:
    """The picks of the grid and of `[[cases]]`, without the excluded; labels of all axes."""
    grids = [read_axes(file.grid, f"{where}.grid")] if file.grid else []
    for place, extra in enumerate(file.cases):
        listed = {
            key: value if isinstance(value, list) else [value] for key, value in extra.items()
        }
        grids.append(read_axes(listed, f"{where}.cases[{place}]"))
    names = _names(grids)
    conditions = [
        read_condition(table, names, f"{where}.exclude[{place}]")
        for place, table in enumerate(file.exclude)
    ]
    picks = [
        pick
        for grid in grids
        for pick in combinations(grid)
        if not any(meets(labels_of(pick, list(names)), each) for each in conditions)
    ]
    if not picks:
        raise ConfigError(f"{where}.exclude: leaves no case of the grid")
    _check_different([title_of(labels_of(pick, list(names))) for pick in picks], where)
    return picks, names


def _check_different(titles: Sequence[str], where: str) -> None:
    double = next((title for title in titles if titles.count(title) > 1), None)
    if double is not None:
        raise ConfigError(f"{where}.cases: the case {double} is there already")


def _names(grids: Sequence[Axes]) -> Names:
    names: dict[str, dict[str, None]] = {}
    for grid in grids:
        for axis, values in grid.items():
            names.setdefault(axis, {}).update((value.label, None) for value in values)
    for axis in names:
        if any(axis not in grid for grid in grids):
            names[axis].setdefault("")
    return {axis: tuple(labels) for axis, labels in names.items()}


def _cases(
    file: SweepFile, path: Path, overrides: Sequence[str], picks: Sequence[Pick], names: Names
) -> Iterator[Case]:
    """All cells with the first seed come first, so that an early look shows every cell."""
    base, folder = _base(file.base, path)
    for text in overrides:
        config.override(base, text)
    adjustments = _adjustments(file, names, f"{path}: sweep")
    for seed in file.seeds:
        for pick in picks:
            labels = labels_of(pick, list(names))
            run_tables = copy.deepcopy(base)
            apply(pick, run_tables)
            for condition, settings in adjustments:
                if meets(labels, condition):
                    apply_settings(settings, run_tables)
            yield _case(file, labels, {**run_tables, "seed": seed}, folder, path)


def _case(file: SweepFile, labels: Labels, run_tables: Table, folder: Path, path: Path) -> Case:
    seed: int = run_tables["seed"]
    title = title_of(labels, seed)
    run_tables["name"] = as_name(f"{file.name or path.stem}: {title}")
    run = config.parse(run_tables, folder, f"{path}: case {title}")
    return Case(labels=labels, seed=seed, config=run, digest=_digest(run, file.mode))


def _base(base: str | dict[str, Any], path: Path) -> tuple[Table, Path]:
    """The tables of the run file that all cases start from, and where its paths start."""
    if isinstance(base, dict):
        return copy.deepcopy(base), path.parent
    file = path.parent / base
    return tables.read_toml(file, "run file"), file.parent


def _adjustments(
    file: SweepFile, names: Names, where: str
) -> list[tuple[Mapping[str, frozenset[str]], Mapping[str, object]]]:
    found = []
    for place, table in enumerate(file.adjust):
        path = f"{where}.adjust[{place}]"
        adjustment = tables.build(Adjustment, table, path)
        condition = read_condition(adjustment.when, names, f"{path}.when")
        found.append((condition, read_settings(adjustment.set)))
    return found


def _digest(run: RunConfig, mode: str) -> str:
    """What a result depends on, as 16 hex digits: the effective configuration without its name.

    Keys at their defaults are left out, so that a key that is new changes no digest.
    """
    unused = {"name", "links"} | ({"transport"} if mode == "simulate" else set())
    fields = run.model_dump(mode="json", exclude=unused, exclude_defaults=True)
    facts = [fields, json.loads(run.canonical())["links"], mode, __version__]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


# ---- the tables ------------------------------------------------------------------------------


def _layouts(
    table: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    names: Names,
    measures: Measures,
    where: str,
) -> tuple[Layout, ...]:
    """The tables to write; by default the first axis down, the others across."""
    listed = [table] if isinstance(table, Mapping) else list(table)
    first, *others = names
    default = {"rows": [first], "columns": others}
    found = []
    for place, each in enumerate(listed or [{}]):
        path = f"{where}.table" if isinstance(table, Mapping) else f"{where}.table[{place}]"
        chosen = each if each.keys() & {"rows", "columns"} else {**default, **each}
        layout = tables.build(Layout, chosen, path)
        _check_layout(layout, names, measures, path)
        found.append(layout)
    return tuple(found)


def _check_layout(layout: Layout, names: Names, measures: Measures, where: str) -> None:
    for axis in (*layout.rows, *layout.columns):
        if axis not in names:
            raise ConfigError(
                f"{where}: no axis {axis!r} in the grid; {tables.nearest(axis, names)}"
            )
    if len({*layout.rows, *layout.columns}) < len(layout.rows) + len(layout.columns):
        raise ConfigError(f"{where}: an axis is named twice in rows and columns")
    for metric in layout.metrics:
        if metric not in measures.names:
            hint = tables.nearest(metric, measures.names)
            raise ConfigError(f"{where}.metric: no metric {metric!r}; {hint}")
