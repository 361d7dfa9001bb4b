"""From tables and topology files to schedules: nesting, seeds, files, errors with their path."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml import links
from p2p_dml.errors import ConfigError
from p2p_dml.links.combinators import Alternating, Failing
from p2p_dml.links.random import ErdosRenyi, RandomMatching
from p2p_dml.links.static import Ring
from p2p_dml.types import LinkSchedule

HERE = Path()


def build(table: dict[str, object] | str, folder: Path = HERE, seed: int = 5) -> LinkSchedule:
    return links.build(table, 8, seed, folder)


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_a_string_is_a_kind_without_parameters() -> None:
    assert build("ring") == build({"kind": "ring"}) == Ring(num_peers=8)


def test_the_seed_is_the_runs_unless_the_table_has_one() -> None:
    assert build("random_matching") == RandomMatching(num_peers=8, seed=5)
    assert build({"kind": "random_matching", "seed": 6}) == RandomMatching(num_peers=8, seed=6)


def test_parts_get_seeds_of_their_own() -> None:
    schedule = build({"kind": "alternating", "phases": ["random_matching", "random_matching"]})
    assert isinstance(schedule, Alternating)
    seeds = [phase.seed for phase in schedule.phases if isinstance(phase, RandomMatching)]
    assert len({5, *seeds}) == 3
    assert schedule == build({"kind": "alternating", "phases": ["random_matching"] * 2})
    assert schedule != build({"kind": "alternating", "phases": ["random_matching"] * 2}, seed=6)


def test_a_tables_seed_fixes_its_parts() -> None:
    table: dict[str, object] = {"kind": "static", "of": "random_matching", "seed": 3}
    assert build(table, seed=1) == build(table, seed=2)


def test_combinators_nest() -> None:
    inner: dict[str, object] = {"kind": "failing", "p": 0.1, "of": "ring"}
    schedule = build({"kind": "failing", "p": 0.2, "of": inner})
    assert isinstance(schedule, Failing) and isinstance(schedule.of, Failing)
    assert (schedule.p, schedule.of.p, schedule.of.of) == (0.2, 0.1, Ring(num_peers=8))
    assert schedule.seed != schedule.of.seed


def test_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, outer='kind = "static"\nof = {file = "deep/inner.toml"}')
    write(tmp_path / "deep", inner='kind = "trace"\nfile = "t.csv"\npeers = 8')
    (tmp_path / "deep" / "t.csv").write_text("from,to,up,down\n0,1,0,1\n")
    assert build({"file": "outer.toml"}, tmp_path)(4).senders[:2] == ((1,), (0,))


def test_a_file_gives_what_its_table_gives(tmp_path: Path) -> None:
    text = 'description = "d"\nkind = "erdos_renyi"\ndensity = 0.25\n'
    write(tmp_path, er=text, own=text + "seed = 9\npeers = 8")
    expected = ErdosRenyi(num_peers=8, density=0.25, seed=5)
    assert build({"file": "er.toml"}, tmp_path) == expected
    assert links.load(tmp_path / "er.toml", 8, 5) == expected
    assert links.load(tmp_path / "own.toml") == ErdosRenyi(num_peers=8, density=0.25, seed=9)


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"kind": "rnig"}, "links.kind: unknown name 'rnig'; did you mean 'ring'"),
    ({"kind": 3}, "links.kind: unknown name 3"),
    ({}, "links.kind: missing; .*valid: alternating, barabasi_albert"),
    ({"kind": "ring", "density": 0.5}, "links.density: unknown key; there is nothing to set here$"),
    (
        {"kind": "erdos_renyi", "densty": 0.5},
        "links.densty: unknown key; did you mean 'density'\\? valid: density, seed$",
    ),
    ({"kind": "ring", "of": "ring"}, "links.of: unknown key"),
    ({"kind": "ring", "seed": "x"}, "links.seed: .*found str 'x'"),
    ({"kind": "ring", "seed": -1}, r"links.seed: must be in \[0, 2\^64\), got -1"),
    ({"kind": "ring", "num_peers": 4}, "links.num_peers: cannot be set here; it is the run's"),
    ({"kind": "static", "of": 7}, "links.of: expected the name of a kind or a table, found 7"),
    ({"kind": "static", "of": {"kind": "erdos_renyi"}}, "links.of.density: missing"),
    ({"kind": "alternating", "phases": ["ring", "x"]}, r"links.phases\[1\].kind: unknown name 'x'"),
    ({"kind": "trace", "file": "absent.csv"}, "links: cannot read trace absent.csv"),
    ({"file": "absent.toml"}, "absent.toml: cannot read the topology file: No such file"),
    ({"kind": "ring", "file": "a.toml"}, "links.file: unknown key"),
    ({"file": 3}, "links.file: .*found int 3"),
    ({"file": "a.toml", "density": 0.1}, "links.density: cannot be set beside `file`"),
]


@pytest.mark.parametrize(("table", "message"), REFUSED)
def test_bad_tables_are_refused_with_their_path(
    table: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(table, tmp_path)


BAD_FILES = [
    ("kind = ", "topo.toml: not valid TOML"),
    ('kind = "edges"\nedges = [[3, 9]]', "topo.toml: edge 3-9 is out of range for 8 peers"),
    ('kind = "ring"\npeers = 20', "topo.toml.peers: the file is for 20 peers, the run has 8"),
    ('kind = "ring"\npeers = "many"', "topo.toml.peers: .*found str 'many'"),
    ('kind = "ring"\ndescription = 3', "topo.toml.description: .*found int 3"),
    ('kind = "static"\nof = {file = "topo.toml"}', r"topo.toml.of.file: .*topo.toml includes it"),
    ('kind = "static"\nof = {kind = "grid", rows = 3}', "topo.toml.of: rows must divide"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_files_are_refused_with_their_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"file": "topo.toml"}, write(tmp_path, topo=text))


def test_load_needs_to_know_how_many_peers(tmp_path: Path) -> None:
    path = write(tmp_path, topo='kind = "ring"') / "topo.toml"
    with pytest.raises(ConfigError, match=r"topo.toml.peers: missing; say for how many peers"):
        links.load(path)
    with pytest.raises(ConfigError, match="num_peers must be at least 1, got 0"):
        links.load(path, 0)
