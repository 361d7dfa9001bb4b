"""launch/torchrun.sh and launch/slurm.sbatch, as a person or Slurm would run them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKES = {
    "scontrol": 'test "$*" = "show hostnames 127.0.0.1" && echo 127.0.0.1',
    "srun": 'echo "srun $*"; exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "python": f'exec {sys.executable} "$@"',
}
"""What a machine of a cluster has, as far as the scripts need it."""


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One node of a Slurm job, with our Python's programs first."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
        "MASTER_PORT": _free_port(),
    }
    return os.environ | job | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def _run(
    script: str, *arguments: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def test_without_arguments_it_says_how_to_call_it(environment: dict[str, str]) -> None:
    ended = _run("torchrun.sh", environment=environment)
    assert ended.returncode == 2
    assert "launch/torchrun.sh run.toml [--out RUN_FOLDER]" in ended.stderr


def test_peers_must_be_spread_evenly(environment: dict[str, str]) -> None:
    demo = str(ROOT / "examples" / "demo.toml")
    ended = _run("torchrun.sh", demo, environment=environment | {"NNODES": "3"})
    assert ended.returncode == 2
    assert "8 peers cannot be spread evenly over 3 machines" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sbatch"])
def test_a_run_of_two_peers(script: str, environment: dict[str, str], tmp_path: Path) -> None:
    changes = ["peers=2", "rounds=2", "links=ring"]
    options = [word for change in changes for word in ("--set", change)]
    out = str(tmp_path / "run")
    demo = str(ROOT / "examples" / "demo.toml")
    ended = _run(script, demo, "--out", out, *options, environment=environment)
    assert ended.returncode == 0, ended.stderr
    assert f"report: {out}/report.html" in ended.stdout
    assert ("srun torchrun --nnodes 1 --nproc-per-node 2" in ended.stdout) == (script[0] == "s")


def test_ranks_are_counted(environment: dict[str, str], tmp_path: Path) -> None:
    """Those of a run file, of a run to go on with, and several for each peer."""
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    demo, folder = ROOT / "examples" / "demo.toml", tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_bytes(demo.read_bytes())
    for arguments, extra, ranks in (
        ([str(demo), "--set", "peers=6"], {}, 6),
        (["--resume", str(folder)], {}, 8),
        ([str(demo)], {"RANKS_PER_PEER": "3", "NNODES": "2"}, 12),
    ):
        ended = _run("torchrun.sh", *arguments, environment=environment | extra)
        assert f"--nproc-per-node {ranks} " in ended.stdout, ended.stderr
        assert ended.stdout.rstrip().endswith(" ".join(["-m p2p_dml", *arguments]))
