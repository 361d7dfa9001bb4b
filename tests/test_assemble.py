"""What a run file's pace makes of its parts: who may run asynchronously, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from p2p_dml import config, data
from p2p_dml.assemble import Blueprint, blueprint, load_data, model_of, strategy_of
from p2p_dml.checks import check_buffers, check_needs
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.life import limits_of
from p2p_dml.mailbox import EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.network import Conditions
from p2p_dml.strategies import STRATEGIES
from p2p_dml.types import Need

BASE: Mapping[str, object] = {"peers": 8, "rounds": 4, "links": "complete"}
MASKED = ("mcepl", "supermask", "fedpm", "dispfl", "magnitude")
ASYNCHRONOUS = ("local", "dpsgd", "hyperprism", "sgp", "dfedavgm", *MASKED)
TOGETHER = sorted(set(STRATEGIES) - set(ASYNCHRONOUS))
TRACKING = """
from p2p_dml.types import Need

class Twice:
    needs = frozenset()
    exchanges = 2
    init = round = report = print  # never called
"""


def parts_of(**changes: object) -> Blueprint:
    return blueprint(config.parse({**BASE, "pace": "asynchronous", **changes}, Path()))


def test_a_network_as_the_run_file_says() -> None:
    parts = parts_of(
        strategy="dpsgd",
        network={
            "loss": 0.1,
            "delay_s": 0.5,
            "up": "ring",
            "between": [{"peers": [[0, 2], [1, 2]], "delay_s": 2.0}, {"peers": [[1, 2]]}],
        },
        devices=[{"peers": [1, 3], "bandwidth_mbps": 8.0}, {"peers": [0], "cpus": 0.5}],
    )
    usual, far = Conditions(loss=0.1, delay_s=0.5), Conditions(loss=0.1, delay_s=2.0)
    assert parts.network is not None and parts.network.up is not None
    assert (parts.network.usual, parts.network.link(2, 0)) == (usual, far)
    assert parts.network.link(1, 2) == usual  # the later entry holds
    assert parts.network.up(0).senders[0] == (1, 7)
    assert parts.network.uplinks_mbps == {1: 8.0, 3: 8.0}


def test_no_network_unless_there_is_something_to_emulate() -> None:
    assert parts_of(strategy="dpsgd", devices=[{"peers": [0], "cpus": 0.5}]).network is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": {"between": [{"peers": [[0, 8]]}]}},
            r"network.between\[0\].peers: expected p",
        ),
        ({"devices": [{"peers": [8]}]}, r"devices\[0\].peers: expected peers 0 to 7, found 8"),
        ({"network": {"up": "circle"}}, "network.up.kind: unknown .*circle"),
    ],
)
def test_a_network_of_peers_and_links_that_are_not_there(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parts_of(strategy="dpsgd", **changes)


class Positioned(nn.Module):
    """A model with a table that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", torch.ones(8, 8))
        self.register_buffer("mean", torch.ones(8))
        self.layer = nn.Linear(64, 10)


@pytest.mark.parametrize("name", MASKED)
def test_buffers_that_would_be_masked_are_refused(name: str) -> None:
    dataset = data.load({"name": "digits"})
    run = config.parse({**BASE, "strategy": name}, Path())
    with pytest.raises(ConfigError, match=r"train\.buffers: .*position \[8, 8\] is .*local"):
        check_buffers(blueprint(run, dataset), Positioned())
    check_buffers(blueprint(run, dataset), nn.Linear(64, 10))
    local = config.parse({**BASE, "strategy": name, "train": {"buffers": "local"}}, Path())
    check_buffers(blueprint(local, dataset), Positioned())
    mean = config.parse({**BASE, "strategy": "dpsgd"}, Path())
    check_buffers(blueprint(mean, dataset), Positioned())


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_who_may_run_asynchronously(name: str) -> None:
    check_needs(parts_of(strategy=name))


@pytest.mark.parametrize("strategy", [*TOGETHER, {"name": "dfedavgm", "bits": 8}], ids=str)
def test_who_needs_the_same_round_is_told_what_to_do(strategy: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_needs(parts_of(strategy=strategy))
    for said in ("needs synchronous rounds", 'set pace = "synchronous"', "such as dpsgd"):
        assert said in str(caught.value)
    check_needs(parts_of(strategy=strategy, pace="synchronous"))


def test_several_exchanges_in_a_round_need_synchronous_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tried_twice.py").write_text(TRACKING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"has 2 exchanges in a round.*or exchanges = 1"):
        check_needs(parts_of(strategy="tried_twice:Twice"))
    check_needs(parts_of(strategy="tried_twice:Twice", pace="synchronous"))


@pytest.mark.parametrize(
    ("pace", "message"),
    [
        ("asynchron", r"pace\.name: unknown name 'asynchron'; did you mean 'asynchronous'\?"),
        ({"max_age": 3}, r"pace\.name: expected a name in quotes, found None"),
        ({"name": "synchronous", "max_age": 3}, r"pace\.max_age: unknown key"),
        ({"name": "asynchronous", "max_age": -3}, r"pace: max_age = -3: expected rounds, 0 or"),
        ({"name": "asynchronous", "max_age": 1.5}, r"pace\.max_age: .* integer"),
    ],
)
def test_a_wrong_pace_has_its_message(pace: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parts_of(strategy="dpsgd", pace=pace)


@pytest.mark.parametrize(
    ("pace", "strategy", "kind", "resend"),
    [
        ("synchronous", "dpsgd", TaggedMailbox, 0),
        ("synchronous", "sgp", TaggedMailbox, 0),
        ("asynchronous", "dpsgd", NewestMailbox, 1),
        ("asynchronous", "sgp", EveryMailbox, 6),
    ],
)
def test_mailbox_and_queues_follow_from_pace_and_strategy(
    pace: str, strategy: str, kind: type[object], resend: int
) -> None:
    parts = parts_of(pace=pace, strategy=strategy, transport={"queue_messages": 6})
    assert isinstance(parts.mailbox(4), kind)
    limits = limits_of(parts, 0)
    assert (limits.queue_messages, limits.resend) == (6, resend)
    assert (Need.EVERY_MESSAGE in parts.strategy.needs) == (strategy == "sgp")


@pytest.mark.parametrize(
    ("peers", "table", "rounds", "expected"),
    [
        (8, "complete", 40, 5.0),
        (50, "complete", 40, 14.7),
        (1000, {"kind": "static", "of": {"kind": "k_regular", "degree": 4}}, 40, 24.0),
        (1000, {"kind": "k_regular", "degree": 4}, 2, 48.0),  # eight neighbours by then
    ],
)
def test_heartbeats_are_as_many_as_a_machine_can_bear(
    peers: int, table: object, rounds: int, expected: float
) -> None:
    """Two to each neighbour, three times in `heartbeat_s`: 1,000 per second of all at most."""
    settings = {"strategy": "dpsgd", "peers": peers, "links": table, "rounds": rounds}
    parts = parts_of(**settings)
    assert limits_of(parts, 3).heartbeat_s == pytest.approx(expected)
    given = parts_of(**settings, transport={"heartbeat_s": 7.0})
    assert limits_of(given, 3).heartbeat_s == 7.0


def test_who_is_slow_follows_from_the_seed() -> None:
    stragglers = {"share": 0.25, "factor": 4.0, "round_s": 0.5}
    parts = [parts_of(strategy="dpsgd", stragglers=stragglers, seed=seed) for seed in range(20)]
    assert {len(each.stragglers) for each in parts} == {2}
    assert len({each.stragglers for each in parts}) > 1
    for me in range(8):
        slowness = parts[0].slowness(me)
        assert slowness.factor == (4.0 if me in parts[0].stragglers else 1.0)
        assert slowness.round_s == 0.5


# --- personal accuracy, initial weights --------------------------------------------------------

OWN_LOOP = """
from torch import nn

def net() -> nn.Module:
    return nn.Linear(3, 2)

def train(model, round):
    return 0.0
"""


def settings(**changes: object) -> config.RunConfig:
    return config.parse({**BASE, "strategy": "dpsgd", **changes}, Path())


def test_a_run_with_a_train_function_has_no_personal_accuracy() -> None:
    run = settings(train="own:train", evaluate_on="own")
    with pytest.raises(ConfigError, match='evaluate_on: "own" is for data sets of'):
        blueprint(run, *load_data(run))


def test_every_peers_classes_must_be_tested() -> None:
    """The first two test samples of the digits are of two classes, and peers hold all ten."""
    table = {"name": "digits", "test_samples": 2}
    run = settings(data=table, evaluate_on="own")
    with pytest.raises(ConfigError, match=r"evaluate_on: .*'digits' has no test samples of class"):
        blueprint(run, *load_data(run))
    blueprint(settings(data=table), *load_data(run))


@pytest.mark.parametrize(
    ("name", "found"),
    [("os:getcwd", "str"), ("pathlib:PurePosixPath", "PurePosixPath")],
)
def test_what_is_no_strategy_is_refused(name: str, found: str) -> None:
    parts = "needs, exchanges, init, round and report"
    message = f"^strategy: '{name}' must return a strategy, with {parts}; found '{found}'$"
    with pytest.raises(ConfigError, match=message):
        strategy_of(settings(strategy=name))


@pytest.fixture
def own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_loop_of_assemble.py").write_text(OWN_LOOP, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_loop_of_assemble"


def test_init_is_for_models_beside_a_train_function_too(own_loop: str) -> None:
    table = {"name": f"{own_loop}:net", "init": "signed_constant"}
    run = settings(model=table, train=f"{own_loop}:train", dtype="float64")
    weight = model_of(run, None).state_dict()["weight"]
    assert weight.dtype == torch.float64
    assert torch.equal(weight.abs(), torch.full((2, 3), (2 / 3) ** 0.5, dtype=torch.float64))


def test_an_unknown_init_is_refused(own_loop: str) -> None:
    table = {"name": f"{own_loop}:net", "init": "kaimin"}
    with pytest.raises(ConfigError, match=r"model\.init: .*did you mean 'kaiming'"):
        model_of(settings(model=table, train=f"{own_loop}:train"), None)
