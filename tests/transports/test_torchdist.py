"""A group of three gloo ranks, started by torchrun once, passes every case of `gloo_cases.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gloo_cases.py")
CASES = re.findall(r"^def ((?:last_)?case_\w+)", PROGRAM.read_text(encoding="utf-8"), re.MULTILINE)
RANKS = 3

Outcomes = list[dict[str, str | None]]


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)], ids=str
)
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What went wrong at each rank, by case, with payloads on one device or another."""
    folder = tmp_path_factory.mktemp("gloo")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    ended = subprocess.run(
        [*command, str(PROGRAM), str(folder), request.param],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_at_every_rank(outcomes: Outcomes, case: str) -> None:
    for rank, found in enumerate(outcomes):
        assert found[case] is None, f"rank {rank}: {found[case]}"
