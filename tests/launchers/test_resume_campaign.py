"""A run that is killed at random instants and resumed ends with the bits of one left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_kills_cost_no_bit() -> None:
    words = (sys.executable, "-m", "benchmarks.resume", "--points", "3", "--peers", "4")
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["points"], result["checkpoints"], result["equal"]) == (3, 4, 4)
