"""Runs on real processes over ZeroMQ equal the simulator bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.checkpoint import load as load_checkpoint
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local, simulated
from p2p_dml.strategies import STRATEGIES
from p2p_dml.types import Tensors

PEERS, ROUNDS = 4, 5
SAVED = (2, 4, 5)
BASE: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "seed": 3,
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"lr": 0.1, "momentum": 0.9, "steps": 4},
    "checkpoint_every": 2,
}
LARGE = {"name": "mlp", "hidden": [600]}
"""Of a size from which peers of one machine read each other's models in shared memory."""

PLAIN: Mapping[str, Mapping[str, object]] = {
    "local": {"strategy": "local"},
    "dpsgd": {"strategy": "dpsgd"},
    "dpsgd, then alone": {
        "strategy": "dpsgd",
        "links": {"kind": "until", "at_tick": 2, "of": "ring"},
        "model": {"name": "mlp", "hidden": [16], "init": "kaiming"},
        "evaluate_on": "own",
        "max_isolated_rounds": 1,
    },
    "allreduce": {"strategy": "allreduce", "links": "complete"},
    "p=1": {"strategy": {"name": "hyperprism", "degree": 1.0}},
    "p=9": {"strategy": {"name": "hyperprism", "degree": 9.0}},
    "decaying p": {
        "strategy": {"name": "hyperprism", "degree": {"start": 15.0, "time_constant": 2.0}}
    },
    "p by part": {
        "strategy": {"name": "hyperprism", "degree": {"representation": 1.0, "decision": 5.0}}
    },
    "learned p": {"strategy": {"name": "hyperprism", "degree": "learned"}},
    "p of layers, at the sender": {
        "strategy": {"name": "hyperprism", "groups": "layers", "degree_at": "sender"}
    },
    "one p for all": {"strategy": {"name": "hyperprism", "hypernet": "paper", "shared": True}},
    "dpsgd, large": {"strategy": "dpsgd", "model": LARGE},
    "dpsgd, large, by sockets": {
        "strategy": "dpsgd",
        "model": LARGE,
        "transport": {"shared_memory": False},
    },
    "learned p, large": {"strategy": "hyperprism", "model": LARGE, "dtype": "float64"},
    "dpsgd before": {"strategy": {"name": "dpsgd", "combine": "before"}},
    "tracking": {"strategy": {"name": "gradient_tracking", "exchanges": 2}},
    "push": {"strategy": "sgp", "links": "one_peer_exponential", "mixing": "push_uniform"},
    "push, one way, one is slow": {
        "strategy": "sgp",
        "links": {"kind": "edges", "edges": [[0, 1], [1, 2], [2, 3], [3, 0]], "directed": True},
        "mixing": "push_uniform",
        "stragglers": {"share": 0.25, "round_s": 0.05, "factor": 6.0},
        "transport": {"queue_messages": 1},
    },
    "8-bit pairs": {"strategy": {"name": "swarm", "bits": 8}, "links": "random_matching"},
    "mudag": {"strategy": {"name": "mudag", "lambda2": 0.4}, "links": "ring"},
    "adom": {"strategy": "adom"},
    "adom+": {"strategy": {"name": "adom_plus", "exchanges": 2}},
    "masks": {"strategy": {"name": "mcepl", "lr": 1.0, "keep_decision": [0.3, 0.5]}},
    "own masks": {"strategy": {"name": "supermask", "lr": 1.0}},
    "drawn masks": {"strategy": {"name": "fedpm", "steps": 2}},
    "sparse": {"strategy": {"name": "dispfl", "steps": 2, "prune_rounds": 4}},
    "largest": {"strategy": {"name": "magnitude", "keep_decision": 0.5}},
    "heavy ball": {"strategy": {"name": "dfedavgm", "bits": 16}},
    "dpsgd, in 16 bits": {"strategy": "dpsgd", "wire_format": "float16"},
    "learned p, large, in 8 bits": {
        "strategy": "hyperprism",
        "model": LARGE,
        "wire_format": "int8",
    },
    "dpsgd, large, by sockets, in 8 bits": {
        "strategy": "dpsgd",
        "model": LARGE,
        "wire_format": "int8",
        "transport": {"shared_memory": False},
    },
    "push, in 16 bits": {
        "strategy": "sgp",
        "links": "one_peer_exponential",
        "mixing": "push_uniform",
        "wire_format": "bfloat16",
    },
    "dpsgd, overlapped": {"strategy": "dpsgd", "overlap": True},
    "dpsgd before, large, overlapped": {
        "strategy": {"name": "dpsgd", "combine": "before"},
        "model": LARGE,
        "overlap": True,
        "transport": {"queue_messages": 2},
    },
    "learned p, large, by sockets, in 8 bits, overlapped": {
        "strategy": "hyperprism",
        "model": LARGE,
        "wire_format": "int8",
        "overlap": True,
        "transport": {"shared_memory": False},
    },
}
LOSSY = {"loss": 0.2, "up": {"kind": "failing", "p": 0.2, "of": "complete"}}
"""A network that loses a third of all messages."""

ON_LOSSY = (
    "dpsgd",
    "8-bit pairs",
    "masks",
    "push",
    "adom+",
    "learned p",
    "dpsgd, in 16 bits",
    "dpsgd, overlapped",
)
VARIANTS = {**PLAIN, **{f"{x}, lossy": {**PLAIN[x], "network": LOSSY} for x in ON_LOSSY}}
IN_BOTH = ("local", "dpsgd", "allreduce", "p=9", "learned p", "masks")
ONLY_IN_DOUBLE = (
    "tracking",
    "push",
    "push, one way, one is slow",
    "adom+",
    "push, lossy",
    "adom+, lossy",
    "push, in 16 bits",
)
SINGLE = [(name, "float32", "ipc") for name in VARIANTS if name not in ONLY_IN_DOUBLE]
DOUBLE = [(name, "float64", "tcp") for name in IN_BOTH + ONLY_IN_DOUBLE]

Runs = tuple[Path, Path]
"""Folders of the run on processes and of the simulation."""


def _config(variant: str, dtype: str, scheme: str) -> config.RunConfig:
    tables: dict[str, Any] = {**BASE, **VARIANTS[variant], "dtype": dtype}
    tables["transport"] = {**tables.get("transport", {}), "scheme": scheme}
    return config.parse(tables, Path())


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture(scope="module", params=SINGLE + DOUBLE, ids="-".join)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both folders of one configuration; the handlers of signals are as before."""
    run = _config(*request.param)
    parent = tmp_path_factory.mktemp("runs")
    before = signal.getsignal(signal.SIGINT)
    outcome = local.run(run, parent / "processes", _ignore)
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome.exit_codes == dict.fromkeys(range(PEERS), 0)
    simulated.simulate(run, parent / "simulated", _ignore)
    return parent / "processes", parent / "simulated"


def _saved(folder: Path, peer: int, round_: int) -> Tensors:
    return load_checkpoint(folder / checkpoint_file(peer, round_)).tensors


def _figures(folder: Path, peer: int, event: str, names: tuple[str, ...]) -> list[list[Any]]:
    lines = read_events(event_file(folder, peer))
    return [[line[name] for name in names] for line in lines if line["event"] == event]


def test_every_strategy_is_compared() -> None:
    assert {_config(*case).strategy["name"] for case in SINGLE + DOUBLE} == set(STRATEGIES)


def test_checkpoints_are_equal_bit_for_bit(runs: Runs) -> None:
    for peer in range(PEERS):
        for round_ in SAVED:
            ours, expected = (_saved(folder, peer, round_) for folder in runs)
            assert ours.keys() == expected.keys()
            for name, x in expected.items():
                assert x.dtype == ours[name].dtype
                assert torch.equal(x, ours[name]), f"peer {peer}, round {round_}: {name}"


@pytest.mark.parametrize(
    ("event", "names"),
    [
        ("evaluated", ("round", "accuracy", "loss", "sketch")),
        ("round_done", ("round", "loss", "bytes_out", "neighbours", "missing", "reported")),
        ("checkpointed", ("round", "file")),
        ("finished", ("round", "exit_code", "error")),
    ],
)
def test_events_hold_equal_figures(runs: Runs, event: str, names: tuple[str, ...]) -> None:
    for peer in range(PEERS):
        ours, expected = (_figures(folder, peer, event, names) for folder in runs)
        assert expected
        assert ours == expected


def test_as_many_bytes_come_in(runs: Runs) -> None:
    """In sum: on processes a message of the next round may come in during this one."""
    for peer in range(PEERS):
        ours, expected = (_figures(folder, peer, "round_done", ("bytes_in",)) for folder in runs)
        assert sum(x for (x,) in ours) == sum(x for (x,) in expected)


def test_a_run_can_be_repeated_from_its_folder(runs: Runs) -> None:
    processes, simulation = (config.load(folder / "run.toml") for folder in runs)
    assert processes.canonical() == simulation.canonical()
    assert sorted(path.name for path in (runs[0] / "logs").iterdir()) == [
        f"peer-{peer:03d}.log" for peer in range(PEERS)
    ]
    assert not any(path.read_text() for path in (runs[0] / "logs").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_power_mean_of_degree_1_is_dpsgd(tmp_path: Path, dtype: str) -> None:
    for variant in ("dpsgd", "p=1"):
        simulated.simulate(_config(variant, dtype, "ipc"), tmp_path / variant, _ignore)
    for peer in range(PEERS):
        expected = _saved(tmp_path / "dpsgd", peer, ROUNDS)
        ours = _saved(tmp_path / "p=1", peer, ROUNDS)
        assert all(torch.equal(x, ours[name]) for name, x in expected.items())


def test_peers_differ_where_they_should(tmp_path: Path) -> None:
    """Equality above would be worth nothing if all models were equal anyway."""
    simulated.simulate(_config("dpsgd", "float32", "ipc"), tmp_path / "run", _ignore)
    models = [_saved(tmp_path / "run", peer, ROUNDS) for peer in range(PEERS)]
    assert not any(torch.equal(models[0][name], models[1][name]) for name in models[0])
