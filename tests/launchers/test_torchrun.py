"""Ranks of torchrun equal the simulator bit for bit: every strategy, and the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.errors import ConfigError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local, simulated
from p2p_dml.strategies import STRATEGIES

if TYPE_CHECKING:
    from tests.launchers.conftest import Ended, Shell

PEERS, ROUNDS = 4, 3
DEADLINE_S = 240.0
BASE: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "seed": 3,
    "dtype": "float64",
    "links": {"kind": "erdos_renyi", "density": 0.6},
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"lr": 0.1, "momentum": 0.9, "steps": 2},
}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "local": {},
    "dpsgd": {"transport": {"debug": True}},
    "allreduce": {"links": "complete"},
    "hyperprism": {"strategy": {"name": "hyperprism", "degree": "learned"}},
    "gradient_tracking": {"strategy": {"name": "gradient_tracking", "exchanges": 2}},
    "sgp": {"links": "one_peer_exponential", "mixing": "push_uniform"},
    "swarm": {"strategy": {"name": "swarm", "bits": 8}, "links": "random_matching"},
    "mudag": {"strategy": {"name": "mudag", "lambda2": 0.4}, "links": "ring"},
    "adom": {},
    "adom_plus": {"strategy": {"name": "adom_plus", "exchanges": 2}},
    "dfedavgm": {"strategy": {"name": "dfedavgm", "bits": 16}},
    "mcepl": {
        "strategy": {"name": "mcepl", "lr": 1.0, "keep_decision": [0.3, 0.5]},
        "transport": {"debug": True},
    },
    "supermask": {"strategy": {"name": "supermask", "lr": 1.0}},
    "fedpm": {"strategy": {"name": "fedpm", "steps": 2}},
    "dispfl": {"strategy": {"name": "dispfl", "steps": 2, "prune_rounds": 3}},
    "magnitude": {"strategy": {"name": "magnitude", "keep_decision": 0.5}},
    "dpsgd, int8": {"strategy": "dpsgd", "wire_format": "int8", "transport": {"debug": True}},
    "sgp, float16": {
        "strategy": "sgp",
        "wire_format": "float16",
        "links": "one_peer_exponential",
        "mixing": "push_uniform",
    },
}
"""What differs from `BASE`, by strategy, or by a name for it."""

Runs = tuple[Path, Path]
"""Folders of all runs by ranks, and by the simulator."""


def _tables(name: str) -> dict[str, Any]:
    return {**BASE, "strategy": name, **VARIANTS[name]}


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="one group"),
        pytest.param(2, id="two groups and ZeroMQ", marks=pytest.mark.slow),
    ],
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All strategies by ranks, in one group or as on two hosts, and by the simulator."""
    folder = tmp_path_factory.mktemp("gloo")
    cases = folder / "cases.json"
    cases.write_text(json.dumps({name: _tables(name) for name in VARIANTS}), encoding="utf-8")
    program = Path(__file__).with_name("gloo_runs.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PEERS)]
    ended = subprocess.run(
        [*command, str(program), str(cases), str(folder / "ranks"), str(request.param)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stderr
    for name in VARIANTS:
        run = config.parse(_tables(name), Path())
        simulated.simulate(run, folder / "simulated" / name, _ignore)
    return folder / "ranks", folder / "simulated"


def test_every_strategy_is_compared() -> None:
    assert {config.parse(_tables(name), Path()).strategy["name"] for name in VARIANTS} == {
        *STRATEGIES
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_models_are_equal_bit_for_bit(runs: Runs, name: str) -> None:
    for peer in range(PEERS):
        file = checkpoint_file(peer, ROUNDS)
        ours, expected = (load(folder / name / file).tensors for folder in runs)
        assert ours.keys() == expected.keys()
        for key, x in expected.items():
            assert x.dtype == ours[key].dtype
            assert torch.equal(x, ours[key]), f"peer {peer}: {key}"


def _figures(folder: Path, peer: int, event: str, names: tuple[str, ...]) -> list[list[Any]]:
    lines = read_events(event_file(folder, peer))
    return [[line[name] for name in names] for line in lines if line["event"] == event]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("event", "names"),
    [
        ("evaluated", ("round", "accuracy", "loss", "sketch")),
        ("round_done", ("round", "loss", "bytes_out", "neighbours", "missing", "reported")),
        ("finished", ("round", "exit_code", "error")),
    ],
)
def test_events_hold_equal_figures(
    runs: Runs, name: str, event: str, names: tuple[str, ...]
) -> None:
    for peer in range(PEERS):
        ours, expected = (_figures(folder / name, peer, event, names) for folder in runs)
        assert expected
        assert ours == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_bytes_come_in(runs: Runs, name: str) -> None:
    """In all, since ZeroMQ counts in the round that is run when they arrive."""
    for peer in range(PEERS):
        ours, expected = (
            sum(figure for (figure,) in _figures(folder / name, peer, "round_done", ("bytes_in",)))
            for folder in runs
        )
        assert ours == expected


@pytest.mark.parametrize("kind", ["torchdist", "hybrid"])
def test_without_torchrun_there_is_no_group(tmp_path: Path, kind: str) -> None:
    run = config.parse(_tables("dpsgd") | {"transport": {"kind": kind}}, Path())
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 4 -m p2p_dml FILE\.toml"):
        local.run(run, tmp_path / "out", _ignore)
    assert not (tmp_path / "out").exists()


# ---- the command ---------------------------------------------------------------------------


def _command(shell: Shell, name: str, *options: str, ranks: int = PEERS) -> Ended:
    tables = _tables(name) | {"peers": ranks}
    file = shell.write("run.toml", tables)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "p2p_dml")
    return shell.run(file, "--out", "out", *options, program=torchrun)


@pytest.mark.parametrize(
    ("options", "transport", "endpoint"),
    [
        ((), "torch.distributed (gloo), because there is no CUDA device", "torch.distributed"),
        pytest.param(
            ("--transport", "zeromq"),
            "ZeroMQ, because transport.kind says so",
            "tcp://127.0.0.1:",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator computes on the CPU")
def test_the_command_leaves_what_the_simulator_does(
    shell: Shell, options: tuple[str, ...], transport: str, endpoint: str
) -> None:
    ended = _command(shell, "dpsgd", *options)
    assert (ended.code, ended.messages) == (0, [])
    assert f"transport: {transport}" in ended.out
    assert ended.out.count("report: out/report.html") == 1
    simulated.simulate(config.load(shell.folder / "run.toml"), shell.folder / "other", _ignore)
    for peer in range(PEERS):
        file = checkpoint_file(peer, ROUNDS)
        ours, expected = (load(shell.folder / run / file).tensors for run in ("out", "other"))
        assert all(torch.equal(x, ours[key]) for key, x in expected.items())
        (started,) = _figures(shell.folder / "out", peer, "started", ("endpoint", "samples"))
        assert started[0].startswith(endpoint)
        assert started[1] > 0
    facts = json.loads((shell.folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert facts["mode"] == "torchrun"
    assert facts["command"].startswith("torchrun -m p2p_dml run.toml --out out")
    assert not shell.processes()


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("ranks", "transport"), [(1, "torch.distributed (nccl)"), (2, "ZeroMQ"), (8, "ZeroMQ")]
)
def test_a_gpu_is_used_and_may_be_shared(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, ranks: int, transport: str
) -> None:
    """As if there were one, however many there are."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ended = _command(
        shell, "dpsgd" if ranks > 1 else "local", "--set", "dtype=float32", ranks=ranks
    )
    assert (ended.code, ended.messages) == (0, [])
    assert f"transport: {transport}, because {ranks} ranks here" in ended.out


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each rank")
def test_every_strategy_runs_over_nccl(shell: Shell) -> None:
    for name in VARIANTS:
        ended = _command(shell, name, "--set", "dtype=float32", ranks=2)
        assert (ended.code, ended.messages) == (0, []), name
