"""Every file in topologies/: loaded, checked, drawn; every kind has one; papers' figures hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from p2p_dml import links
from p2p_dml.kernels.mixing import metropolis, neighbour_mean
from p2p_dml.links import files
from p2p_dml.types import Graph, LinkSchedule

FOLDER = Path(__file__).parents[1] / "topologies"
FILES = sorted(FOLDER.glob("*.toml"))
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def schedule_of(path: Path) -> LinkSchedule:
    return links.load(path, files.read(path).peers or 16, seed=0)


def kinds_in(table: object) -> set[str]:
    """The kind of a table and of all of its parts."""
    if isinstance(table, str):
        return {table}
    if not isinstance(table, dict):
        return set()
    parts = [table.get("of"), *table.get("phases", ())]
    return {table["kind"]}.union(*map(kinds_in, parts))


@by_name
def test_a_file_loads_and_lives(path: Path) -> None:
    schedule = schedule_of(path)
    rule = metropolis if all(schedule(t).is_symmetric for t in range(100)) else neighbour_mean
    found = links.survey(schedule, rule, 100)
    assert found.union_connected_after is not None
    assert found.is_doubly_stochastic
    assert found.gap_product > 0


@by_name
def test_a_file_describes_itself_in_one_line(path: Path) -> None:
    description = files.read(path).description
    assert description.endswith(".") and "\n" not in description
    assert 20 < len(description) <= 130


@by_name
def test_a_file_can_be_drawn(path: Path, tmp_path: Path) -> None:
    schedule = schedule_of(path)
    picture = tmp_path / "graph.png"
    draw(schedule(0), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def draw(graph: Graph, to: Path) -> None:
    """Draw peers on a circle and a line for every link."""
    turn = 2 * math.pi / graph.num_peers
    places = [(math.cos(i * turn), math.sin(i * turn)) for i in range(graph.num_peers)]
    figure = Figure(figsize=(2, 2), dpi=50)
    axes = figure.add_subplot()
    lines = [(places[j], places[me]) for me, heard in enumerate(graph.senders) for j in heard]
    axes.add_collection(LineCollection(lines, linewidths=0.3))
    axes.autoscale_view()
    FigureCanvasAgg(figure)
    figure.savefig(to)


def test_every_kind_has_a_file() -> None:
    found: set[str] = set().union(*(kinds_in(dict(files.read(path).table)) for path in FILES))
    assert found == set(links.KINDS)
    assert set(links.KINDS) <= {path.stem for path in FILES}


def test_the_readme_lists_every_file() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in FILES if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_the_densities_of_hyperprism(density: float) -> None:
    schedule = links.load(FOLDER / f"hyperprism_{density}.toml", 50)
    mean = sum(schedule(tick).num_links for tick in range(100)) / (100 * 50 * 49)
    assert mean == pytest.approx(density, abs=0.01)
    assert schedule(0) != schedule(1)


def test_the_graph_of_mcepl() -> None:
    schedule = links.load(FOLDER / "mcepl.toml", 20, seed=123)
    graph = schedule(0)
    degrees = [len(heard) for heard in graph.senders]
    assert (graph.num_links // 2, min(degrees), max(degrees)) == (104, 2, 14)
    assert schedule(50) == graph


def test_the_trace_is_the_schedule_it_was_recorded_from() -> None:
    recorded = links.load(FOLDER / "trace.toml")
    moving = links.load(FOLDER / "geometric.toml", 20, seed=1)
    assert all(recorded(tick) == moving(tick % 200) for tick in range(250))
