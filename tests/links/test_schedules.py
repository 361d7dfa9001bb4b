"""What every kind of schedule promises: purity, random access, well-formed graphs, errors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_dml import links
from p2p_dml.errors import ConfigError
from p2p_dml.kernels.mixing import RULES
from p2p_dml.links import combinators, mobile, random, static
from p2p_dml.types import Graph, LinkSchedule

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "topologies" / "traces"
TICKS = (0, 1, 2, 3, 17, 40, 41, 1_000_000)
Table = dict[str, object]

SYMMETRIC: dict[str, Table] = {
    "complete": {"kind": "complete"},
    "ring": {"kind": "ring"},
    "star": {"kind": "star", "hub": 3},
    "grid": {"kind": "grid"},
    "torus": {"kind": "torus", "rows": 2},
    "random_matching": {"kind": "random_matching"},
    "erdos_renyi": {"kind": "erdos_renyi", "density": 0.3},
    "k_regular": {"kind": "k_regular", "degree": 5},
    "small_world": {"kind": "small_world", "degree": 4, "rewire": 0.3},
    "barabasi_albert": {"kind": "barabasi_albert", "attach": 2},
    "geometric": {"kind": "geometric", "radius": 0.4, "speed": 0.05},
    "trace": {"kind": "trace", "file": "moving-20.csv"},
    "edges": {"kind": "edges", "edges": [[0, 1], [19, 4], [1, 0]]},
    "static": {"kind": "static", "of": {"kind": "k_regular", "degree": 4}, "at_tick": 5},
    "failing": {"kind": "failing", "p": 0.3, "of": {"kind": "erdos_renyi", "density": 0.5}},
    "alternating": {"kind": "alternating", "phases": ["ring", "random_matching"], "hold": 2},
    "every": {"kind": "every", "interval": 3, "of": "random_matching"},
    "until": {"kind": "until", "at_tick": 3, "of": "random_matching"},
    "finally_complete": {"kind": "finally_complete", "at_tick": 3, "of": "random_matching"},
}
DIRECTED: dict[str, Table] = {
    "exponential": {"kind": "exponential"},
    "one_peer_exponential": {"kind": "one_peer_exponential"},
    "epidemic": {"kind": "epidemic", "fanout": 3},
    "epidemic, local": {"kind": "epidemic", "fanout": 3, "regular": False},
    "edges, directed": {"kind": "edges", "edges": [[0, 1], [5, 1]], "directed": True},
    "failing, directed": {"kind": "failing", "p": 0.5, "of": "exponential"},
}
CASES = SYMMETRIC | DIRECTED
REDRAWN = (
    "random_matching",
    "erdos_renyi",
    "k_regular",
    "failing",
    "epidemic",
    "epidemic, local",
    "failing, directed",
)


def build(name: str, seed: int = 7, num_peers: int = 20) -> LinkSchedule:
    return links.build(CASES[name], num_peers, seed, TRACES)


def digest() -> str:
    """A hash of every case's graphs; the subprocess below computes it, too."""
    graphs = {name: [build(name)(tick).senders for tick in TICKS] for name in CASES}
    return hashlib.sha256(repr(graphs).encode()).hexdigest()


def test_every_kind_has_a_case() -> None:
    assert {str(table["kind"]) for table in CASES.values()} == set(links.KINDS)


@pytest.mark.parametrize("name", CASES)
def test_graphs_are_well_formed(name: str) -> None:
    schedule = build(name)
    for tick in TICKS:
        graph = schedule(tick)
        assert graph.num_peers == 20
        for me, heard in enumerate(graph.senders):
            assert all(type(j) is int for j in heard)
            assert list(heard) == sorted(set(heard) - {me})
            assert set(heard) <= set(range(20))


@pytest.mark.parametrize("name", CASES)
def test_access_is_random(name: str) -> None:
    forward = {tick: build(name)(tick) for tick in range(30)}
    schedule = build(name)
    assert {tick: schedule(tick) for tick in reversed(range(30))} == forward


def test_graphs_are_equal_in_another_process() -> None:
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('case', sys.argv[1]); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.digest())"
    )
    command = [sys.executable, "-c", code, __file__]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert found.stdout.strip() == digest(), found.stderr


@pytest.mark.parametrize("name", SYMMETRIC)
def test_links_are_symmetric_where_promised(name: str) -> None:
    schedule = build(name)
    assert all(schedule(tick).is_symmetric for tick in TICKS)


@pytest.mark.parametrize("name", DIRECTED)
def test_directed_kinds_have_one_way_links(name: str) -> None:
    schedule = build(name)
    assert not any(schedule(tick).is_symmetric for tick in TICKS)


@pytest.mark.parametrize("name", REDRAWN)
def test_redrawn_graphs_depend_on_tick_and_seed(name: str) -> None:
    one, other = build(name, seed=7), build(name, seed=8)
    graphs: list[Graph] = [schedule(tick) for schedule in (one, other) for tick in range(8)]
    assert len(set(graphs)) == 16


@pytest.mark.parametrize("name", sorted(set(CASES) - {"trace"}))
def test_one_peer_or_few_are_enough_or_refused_in_words(name: str) -> None:
    for num_peers in range(1, 6):
        try:
            schedule = build(name, num_peers=num_peers)
        except ConfigError as error:
            assert str(error).startswith("links")
        else:
            assert all(schedule(tick).num_peers == num_peers for tick in range(4))


REFUSED: list[tuple[Table, str]] = [
    ({"kind": "erdos_renyi", "density": 1.5}, r"links: density must be in \[0, 1\], got 1.5"),
    ({"kind": "erdos_renyi"}, "links.density: missing"),
    ({"kind": "erdos_renyi", "density": "half"}, "links.density: .*found str 'half'"),
    ({"kind": "edges", "edges": [[3, 9]]}, "links: edge 3-9 is out of range for 8 peers"),
    ({"kind": "edges", "edges": [[3, 3]]}, "links: edge 3-3 joins a peer to itself"),
    ({"kind": "edges", "edges": [[3]]}, r"links.edges\[0\]"),
    ({"kind": "star", "hub": 8}, "hub 8 is out of range for 8 peers"),
    ({"kind": "grid", "rows": 3}, "rows must divide the number of peers, got 3 rows for 8"),
    ({"kind": "torus", "rows": 0}, "rows must divide the number of peers, got 0"),
    ({"kind": "k_regular", "degree": 8}, r"degree must be in \[0, 7\], got 8"),
    ({"kind": "epidemic", "fanout": -1}, r"fanout must be in \[0, 7\], got -1"),
    ({"kind": "small_world", "degree": 3, "rewire": 0.1}, "degree must be even .*, got 3"),
    ({"kind": "small_world", "degree": 2, "rewire": -0.1}, r"rewire must be in \[0, 1\]"),
    ({"kind": "barabasi_albert", "attach": 0}, r"attach must be in \[1, 7\], got 0"),
    ({"kind": "geometric", "radius": 0.0}, "radius must be in .*got 0.0"),
    ({"kind": "geometric", "radius": 0.1, "speed": 2.0}, "speed must be in .*got 2.0"),
    ({"kind": "failing", "p": 2, "of": "ring"}, "p must be in .*got 2.0"),
    ({"kind": "failing", "p": 0.1}, "links.of: missing"),
    ({"kind": "alternating", "phases": []}, "phases must hold at least one schedule"),
    ({"kind": "alternating", "phases": "ring"}, "links.phases: .*found str 'ring'"),
    ({"kind": "alternating", "phases": ["ring"], "hold": 0}, "hold must be at least 1, got 0"),
    ({"kind": "every", "interval": 0, "of": "ring"}, "interval must be at least 1, got 0"),
    ({"kind": "static", "at_tick": -1, "of": "ring"}, "at_tick must be at least 0, got -1"),
    ({"kind": "until", "at_tick": -1, "of": "ring"}, "at_tick must be at least 0, got -1"),
    ({"kind": "until", "of": "ring"}, "links.at_tick: missing"),
    ({"kind": "finally_complete", "at_tick": -1, "of": "ring"}, "at_tick must be at least 0"),
]


@pytest.mark.parametrize(("table", "message"), REFUSED)
def test_bad_parameters_are_refused_with_path_and_value(table: Table, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        links.build(table, 8, 0, Path())


def test_odd_peers_of_odd_degree_are_refused() -> None:
    with pytest.raises(ConfigError, match="peers x degree must be even, got 9 peers of degree 3"):
        links.build({"kind": "k_regular", "degree": 3}, 9, 0, Path())


@pytest.mark.parametrize("name", sorted(set(CASES) - {"trace"}))
def test_no_peers_at_all_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="num_peers must be at least 1, got 0"):
        build(name, num_peers=0)


MANY = 300
"""More peers than have their graphs drawn whole."""


@pytest.mark.parametrize("name", sorted(set(CASES) - {"trace"}))
def test_of_many_peers_each_finds_its_own_row_and_weights(name: str) -> None:
    """As from the whole graph, whose rows nobody has asked for before."""
    rules = (
        RULES.values() if name in SYMMETRIC else [RULES["push_uniform"], RULES["neighbour_mean"]]
    )
    for tick in (0, 5, 1_000_000):
        whole = Graph(build(name, num_peers=MANY)(tick).senders)
        for me in (0, 3, MANY - 1):
            graph = fresh(name, tick)
            assert graph.senders_of(me) == whole.senders[me]
            assert graph.receivers_of(me) == whole.receivers[me]
            assert all(type(j) is int for j in graph.senders_of(me))
            for rule in rules:
                assert rule(fresh(name, tick), me) == rule(whole, me)


def fresh(name: str, tick: int) -> Graph:
    """A graph that remembers no row: no cache has seen its seed or, in closed form, may matter."""
    for cache in (random, static, mobile, combinators):
        for each in vars(cache).values():
            if hasattr(each, "cache_clear"):
                each.cache_clear()
    return build(name, num_peers=MANY)(tick)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_links_of_many_are_symmetric_where_promised(name: str) -> None:
    if name != "trace":
        graph = Graph(build(name, num_peers=MANY)(3).senders)
        assert graph.is_symmetric


@pytest.mark.parametrize("name", REDRAWN)
def test_redrawn_graphs_of_many_depend_on_tick_and_seed(name: str) -> None:
    schedules = [build(name, seed, MANY) for seed in (7, 8)]
    graphs = {schedule(tick).senders for schedule in schedules for tick in range(4)}
    assert len(graphs) == 8


def test_links_of_many_come_as_often_as_they_should() -> None:
    """Within five standard deviations of a binomial count."""
    pairs = MANY * (MANY - 1) // 2
    drawn = [build("erdos_renyi", num_peers=MANY)(tick).num_links // 2 for tick in range(5)]
    assert abs(sum(drawn) - 5 * pairs * 0.3) < 5 * (5 * pairs * 0.3 * 0.7) ** 0.5
    thinned = links.build({"kind": "failing", "p": 0.3, "of": "complete"}, MANY, 7, Path())
    up = sum(thinned(tick).num_links // 2 for tick in range(5))
    assert abs(up - 5 * pairs * 0.7) < 5 * (5 * pairs * 0.3 * 0.7) ** 0.5
