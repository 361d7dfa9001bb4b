"""Checks on one GPU against the CPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def gpu() -> torch.device:
    """The GPU that is tested."""
    return torch.device("cuda", torch.cuda.current_device())
