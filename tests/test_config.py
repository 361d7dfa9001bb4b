"""Run files: every mistake has its message, and what is written reads back equal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from p2p_dml import config
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError

PLAIN: dict[str, Any] = {"peers": 4, "rounds": 10, "strategy": "dpsgd", "links": "ring"}
PLAIN_TOML = 'peers = 4\nrounds = 10\nstrategy = "dpsgd"\nlinks = "ring"\n'


def parsed(**changes: object) -> RunConfig:
    return config.parse({**PLAIN, **changes}, Path("folder"))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(PLAIN_TOML, encoding="utf-8")
    return path


def test_names_alone_are_short_for_tables() -> None:
    run = parsed(data="mnist", model="mlp", partition="iid", train="own.module:function")
    assert parsed(pace="asynchronous").pace == {"name": "asynchronous"}
    assert parsed().pace == {"name": "synchronous"}
    assert (run.strategy, run.data, run.model) == (
        {"name": "dpsgd"},
        {"name": "mnist"},
        {"name": "mlp"},
    )
    assert run.partition == {"name": "iid"}
    assert run.links == {"kind": "ring"}
    assert run.train == {"function": "own.module:function"}


def test_whole_numbers_stand_for_floats() -> None:
    assert parsed(transport={"startup_s": 3}).transport.startup_s == 3.0


def test_relative_paths_start_at_the_run_file(run_file: Path, tmp_path: Path) -> None:
    assert config.load(run_file).folder == tmp_path
    assert config.load(run_file, folder=Path("elsewhere")).folder == Path("elsewhere")


MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"peer": 3}, "run: peer: unknown key; did you mean 'peers'? valid: checkpoint_every, data"),
    ({"xyzzy": 3}, "run: xyzzy: unknown key; valid: checkpoint_every, "),
    ({"folder": "x"}, "run: folder: unknown key; "),
    ({"peers": "four"}, "run: peers: input should be a valid integer; found str 'four'"),
    ({"peers": 4.0}, "run: peers: input should be a valid integer; found float 4.0"),
    ({"peers": True}, "run: peers: input should be a valid integer; found bool True"),
    ({"peers": 0}, "run: peers: input should be greater than or equal to 1; found int 0"),
    ({"rounds": -1}, "run: rounds: input should be greater than or equal to 1; found int -1"),
    ({"seed": 1 << 63}, "run: seed: input should be less than 9223372036854775808"),
    ({"name": 5}, "run: name: input should be a valid string; found int 5"),
    (
        {"dtype": "float16"},
        "run: dtype: input should be 'float32' or 'float64'; found str 'float16'",
    ),
    ({"strategy": 5}, "run: strategy: input should be a valid dictionary; found int 5"),
    ({"links": ["ring"]}, "run: links: input should be a valid dictionary; found list ['ring']"),
    ({"transport": "tcp"}, "run: transport: input should be "),
    (
        {"transport": {"starup_s": 1.0}},
        "transport.starup_s: unknown key; did you mean 'startup_s'?",
    ),
    ({"transport": {"scheme": "udp"}}, "run: transport.scheme: input should be 'ipc' or 'tcp'; "),
    ({"transport": {"linger_s": -0.5}}, "run: transport.linger_s: input should be greater than or"),
    ({"transport": {"addresses": [1]}}, "transport.addresses.0: input should be a valid string;"),
    ({"transport": {"startup_s": "60"}}, "transport.startup_s: input should be a valid number; f"),
    (
        {"stragglers": {"shares": 0.2}},
        "stragglers.shares: unknown key; did you mean 'share'? valid: factor, round_s, share",
    ),
    ({"stragglers": {"share": 1.5}}, "stragglers.share: input should be less than or equal to 1;"),
    ({"stragglers": {"factor": 0.5}}, "stragglers.factor: input should be greater than or equal"),
    ({"stragglers": {"round_s": -1}}, "stragglers.round_s: input should be greater than or equal"),
    ({"network": {"los": 0.1}}, "network.los: unknown key; did you mean 'loss'? valid: bandwidth"),
    ({"network": {"loss": 1.5}}, "network.loss: input should be less than or equal to 1; found"),
    ({"network": {"up": 5}}, "network.up: input should be a valid dictionary; found int 5"),
    (
        {"network": {"between": [{"peers": [[0, 1]], "delay": 1.0}]}},
        "network.between.0.delay: unknown key; did you mean 'delay_s'? valid: bandwidth_mbps",
    ),
    ({"network": {"between": [{"peers": [[0, 1, 2]]}]}}, "network.between.0.peers.0: list should"),
    ({"network": {"between": [{"delay_s": 1.0}]}}, "network.between.0.peers: missing; this key"),
    ({"devices": [{"peers": [0], "cpu": 1}]}, "devices.0.cpu: unknown key; did you mean 'cpus'?"),
    ({"devices": [{"peers": []}]}, "devices.0.peers: list should have at least 1 item"),
    ({"network": {"between": [{"peers": [[1, 0], [2, 2]]}]}}, "peers.1: expected two different pe"),
    ({"threads": 1025}, "run: threads: input should be less than or equal to 1024; found int 1025"),
    ({"stragglers": {"factor": 1e9}}, "stragglers.factor: input should be less than or equal to"),
    ({"duration_s": 0}, "run: duration_s: input should be greater than 0; found int 0"),
    ({"pace": 5}, "run: pace: input should be a valid dictionary; found int 5"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_every_mistake_has_its_message(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _floats(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """(section, key) of each field of a run file that holds a float."""
    for key, field in section.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        if float in inner or any(float in get_args(each) for each in inner):
            yield path, key
        for each in inner:
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from _floats(each, f"{path}.{key}".strip("."))


FLOATS = [*_floats(RunConfig)]
_NEEDED: dict[str, dict[str, object]] = {
    "devices": {"peers": [0]},
    "network.between": {"peers": [[0, 1]]},
    "faults": {"peers": [0], "round": 1, "kind": "stop"},
}


def _with(path: str, key: str, value: object) -> dict[str, object]:
    """Tables of a run in which one field of a section has a value."""
    section = {**_NEEDED.get(path, {}), key: value}
    match path.split("."):
        case [""]:
            return section
        case ["network", "between"]:
            return {"network": {"between": [section]}}
        case [name]:
            return {name: [section] if name in _NEEDED else section}
    raise AssertionError(path)


@pytest.mark.parametrize(("path", "key"), FLOATS)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_every_number_is_finite(path: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: input should be .*; found float"):
        parsed(**_with(path, key, value))


@pytest.mark.parametrize(
    ("path", "key"), [(p, k) for p, k in FLOATS if k.endswith("_s") and k != "duration_s"]
)
def test_every_wait_ends_within_a_week(path: str, key: str) -> None:
    parsed(**_with(path, key, 604_800))
    with pytest.raises(ConfigError, match=rf"{key}: input should be less than or equal to 604800"):
        parsed(**_with(path, key, 1e300))


def test_the_floats_of_all_sections_are_found() -> None:
    assert len(FLOATS) == 21
    assert {path for path, _ in FLOATS} >= {"", "transport", "network.between", "faults"}


@pytest.mark.parametrize("key", ["peers", "rounds", "strategy", "links"])
def test_what_has_no_default_must_be_there(key: str) -> None:
    tables = {name: value for name, value in PLAIN.items() if name != key}
    with pytest.raises(ConfigError, match=f"run: {key}: missing; this key has no default"):
        config.parse(tables, Path())


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(peers=0, rouds=3, transport={"x": 1})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("peers = ", "run.toml: not valid TOML: "),
        ("peers = 4\npeers = 5", "run.toml: not valid TOML: "),
        (b"name = '\xff'", "run.toml: not valid TOML: "),
        (PLAIN_TOML + "pears = 4", "run.toml: pears: unknown key; did you mean 'peers'?"),
    ],
)
def test_mistakes_in_a_file_name_the_file(run_file: Path, text: str | bytes, message: str) -> None:
    run_file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        config.load(run_file)
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "why"), [("absent.toml", "No such file"), (".", "Is a dir")])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the run file: {why}"):
        config.load(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("peers=9", "peers", 9),
        (" peers = 9 ", "peers", 9),
        ("name=long run", "name", "long run"),
        ("name='7'", "name", "7"),
        ("transport.startup_s=2.5", "transport.startup_s", 2.5),
        ("strategy=local", "strategy", {"name": "local"}),
        ("strategy.degree=3", "strategy", {"name": "dpsgd", "degree": 3}),
        ("strategy.degree=a=b", "strategy", {"name": "dpsgd", "degree": "a=b"}),
        ("links.density=0.5", "links", {"kind": "ring", "density": 0.5}),
        ("links.kind=star", "links", {"kind": "star"}),
        ("links={kind='star',seed=3}", "links", {"kind": "star", "seed": 3}),
        ("links.of.kind=ring", "links", {"kind": "ring", "of": {"kind": "ring"}}),
        ("train.lr=0.5", "train", {"lr": 0.5}),
        ("data.limit=[1, 2]", "data", {"limit": [1, 2]}),
    ],
)
def test_overrides(run_file: Path, override: str, path: str, expected: object) -> None:
    found: object = config.load(run_file, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected


def test_an_override_reaches_into_every_short_form() -> None:
    overrides = [f"{key}={key}" for key in ("data", "model", "partition", "train", "links")]
    overrides += [f"{key}.size=2" for key in ("data", "model", "partition", "train", "links")]
    assert config.overrides_table(overrides) == {
        "data": {"name": "data", "size": 2},
        "model": {"name": "model", "size": 2},
        "partition": {"name": "partition", "size": 2},
        "train": {"function": "train", "size": 2},
        "links": {"kind": "links", "size": 2},
    }


def test_later_overrides_win(run_file: Path) -> None:
    assert config.load(run_file, ["peers=5", "peers=6"]).peers == 6


@pytest.mark.parametrize("override", ["peers", "=5", " =5", ""])
def test_an_override_without_key_or_value(run_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set .*: expected key=value, such as rounds=50"):
        config.load(run_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("peers=many", "peers: input should be a valid integer; found str 'many'"),
        ("peers=", "peers: input should be a valid integer; found str ''"),
        ("peers.x=1", "peers: input should be a valid integer; found dict"),
        ("round=5", "round: unknown key; did you mean 'rounds'?"),
        ("transport.hots=a", "transport.hots: unknown key; did you mean 'host'?"),
    ],
)
def test_an_override_is_checked_like_the_file(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(run_file, [override])
    assert message in str(caught.value)


FULL: dict[str, object] = {
    "name": 'a "quoted" näme',
    "seed": (1 << 63) - 1,
    "strategy": {"name": "hyperprism", "degree": [1.0, 9.5], "nested": {"deep": {"x": True}}},
    "train": {"lr": 1e-30, "epochs": 3},
    "transport": {"addresses": ["tcp://a:1", "tcp://b:2"], "startup_s": 1.5},
    "pace": {"name": "asynchronous", "max_age": 7},
    "stragglers": {"share": 0.25, "factor": 3.0, "round_s": 0.1},
    "duration_s": 60.0,
    "evaluate_on": "own",
    "network": {"loss": 0.1, "up": "ring", "between": [{"peers": [[0, 1]], "delay_s": 0.5}]},
    "devices": [{"peers": [0, 1], "cpus": 0.5}, {"peers": [2], "bandwidth_mbps": 3.0}],
}


@pytest.mark.parametrize("changes", [{}, FULL])
def test_what_is_dumped_loads_equal(tmp_path: Path, changes: dict[str, object]) -> None:
    run = config.parse({**PLAIN, **changes}, tmp_path)
    config.dump(run, tmp_path / "run.toml")
    assert config.load(tmp_path / "run.toml") == run


def test_a_dumped_run_finds_its_files_from_anywhere(tmp_path: Path) -> None:
    here = tmp_path / "here"
    links = {"kind": "alternating", "phases": [{"file": "a.toml"}, {"of": {"file": "b/c.toml"}}]}
    run = config.parse({**PLAIN, "links": links, "network": {"up": {"file": "up.toml"}}}, here)
    config.dump(run, tmp_path / "run.toml")
    loaded = config.load(tmp_path / "run.toml")
    assert loaded.links["phases"] == [
        {"file": str(here / "a.toml")},
        {"of": {"file": str(here / "b/c.toml")}},
    ]
    assert loaded.network.up == {"file": str(here / "up.toml")}
    assert loaded.canonical() == run.canonical()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"threads": 4},
        {"evaluate_every": 5},
        {"checkpoint_every": 5},
        {"min_neighbours": 0},
        {"max_isolated_rounds": 99},
        {"transport": {"scheme": "tcp", "startup_s": 1.0}},
        {"strategy": {"name": "dpsgd"}},
    ],
)
def test_what_a_host_may_choose_is_not_canonical(changes: dict[str, object]) -> None:
    assert parsed(**changes).canonical() == parsed().canonical()


@pytest.mark.parametrize(
    "changes",
    [
        {"peers": 5},
        {"rounds": 11},
        {"seed": 1},
        {"dtype": "float64"},
        {"strategy": "local"},
        {"strategy": {"name": "dpsgd", "x": 1}},
        {"links": "star"},
        {"mixing": "push_uniform"},
        {"data": "mnist"},
        {"partition": {"name": "dirichlet", "alpha": 0.1}},
        {"model": "mlp"},
        {"train": {"lr": 0.5}},
        {"pace": "asynchronous"},
        {"stragglers": {"share": 0.5}},
        {"duration_s": 5.0},
        {"evaluate_on": "own"},
        {"model": {"name": "softmax", "init": "kaiming"}},
        {"network": {"loss": 0.1}},
        {"devices": [{"peers": [0], "bandwidth_mbps": 1.0}]},
    ],
)
def test_what_peers_must_agree_on_is_canonical(changes: dict[str, object]) -> None:
    assert parsed(**changes).canonical() != parsed().canonical()


def test_files_count_by_their_name_alone() -> None:
    texts = {
        config.parse({**PLAIN, "links": {"file": file}}, Path(folder)).canonical()
        for file, folder in [("er.toml", "a"), ("/abs/er.toml", "a"), ("../x/er.toml", "b")]
    }
    assert len(texts) == 1
    assert parsed(links={"file": "other.toml"}).canonical() not in texts


def test_the_order_of_keys_is_not_canonical() -> None:
    one = parsed(strategy={"name": "x", "a": 1, "b": 2}).canonical()
    assert one == parsed(strategy={"b": 2, "a": 1, "name": "x"}).canonical()


def test_private_seeds_differ_and_repeat() -> None:
    runs = [parsed(seed=seed) for seed in (0, 1)]
    seeds = [
        run.private_seed(peer, purpose)
        for run in runs
        for peer in (0, 1, 10)
        for purpose in ("train", "strategy")
    ]
    assert len(set(seeds)) == len(seeds) == 12
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert parsed(seed=1).private_seed(10, "strategy") == seeds[-1]


def test_every_key_has_its_manual() -> None:
    for section in (RunConfig, config.TransportConfig, config.StragglersConfig):
        for name, field in section.model_fields.items():
            assert field.exclude or field.description, name
